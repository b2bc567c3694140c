"""The store's contract: what every store keeps to, in the words that loops and API share with it.

One rule: a method is one transaction. It has committed when it returns, and changed nothing when it raises. Three
stores keep it: SQLite and PostgreSQL (sql.py) and the in-memory twin (memory.py); tests/conformance/ runs on all.

Errors, each with a reason (CamelCase, for programs) and whether it is temporary:

    StoreError
    ├── NotFound              404
    ├── AlreadyExists         409
    ├── Terminating           409  the id is still being deleted
    ├── Stale                 409  If-Match does not match
    ├── InUse                 409  a runtime class that workloads ask for
    ├── Held                  409  a restored database can't be confirmed yet: nodes are unread, or not known yet
    ├── Invalid               422  refers to what isn't there (an unknown runtime class), or breaks its minimum
    ├── Expired               410  a resource_version that is no longer held, or was never reached
    ├── Fenced                     another controller leads: the epoch is not ours any more
    ├── SchemaMismatch             the database is newer than this code, or (PostgreSQL) not yet upgraded
    └── Unavailable           503  temporary: disk full, read-only, locked, connection lost
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, Protocol, TypeVar

from controller.exchange import Owed, Report, Sent
from controller.plan.action import Plan
from controller.plan.snapshot import Snapshot
from kakuri.model import (
    Allocation,
    Drain,
    Event,
    EventDraft,
    Node,
    NodeManifest,
    NodeRegistration,
    RuntimeClass,
    RuntimeClassManifest,
    Tombstone,
    Workload,
    WorkloadManifest,
)
from kakuri.selector import Selector

Kind = Literal["Workload", "Allocation", "Node", "RuntimeClass", "Event"]
T_co = TypeVar("T_co", covariant=True)


class StoreError(Exception):
    reason = "StoreError"
    temporary = False

    def __init__(self, message: str, *, index: int | None = None, pointer: str = "") -> None:
        """index: which of the writes given to apply() it is about; pointer: the field in it, as a JSON pointer."""
        super().__init__(message)
        self.message = message
        self.index = index
        self.pointer = pointer


class NotFound(StoreError):  # noqa: N818 - the reason's own name, as people see it
    reason = "NotFound"


class AlreadyExists(StoreError):  # noqa: N818
    reason = "AlreadyExists"


class Terminating(StoreError):  # noqa: N818
    reason = "Terminating"


class Stale(StoreError):  # noqa: N818
    reason = "Stale"


class InUse(StoreError):  # noqa: N818
    reason = "InUse"


class Held(StoreError):  # noqa: N818
    reason = "Held"


class Invalid(StoreError):  # noqa: N818
    reason = "Invalid"


class Expired(StoreError):  # noqa: N818
    reason = "Expired"


class Fenced(StoreError):  # noqa: N818
    reason = "Fenced"


class SchemaMismatch(StoreError):  # noqa: N818
    reason = "SchemaMismatch"


class Unavailable(StoreError):  # noqa: N818
    reason = "Unavailable"
    temporary = True


@dataclass(frozen=True, slots=True)
class Put:
    """Create or replace. mode create: an existing id is AlreadyExists. if_match: an ETag, or "*" for any existing."""

    manifest: WorkloadManifest | NodeManifest | RuntimeClassManifest
    mode: Literal["upsert", "create"] = "upsert"
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Workloads become deleting and go when their containers have; other kinds go at once.

    A node with allocations that are not released is InUse, and so is a runtime class that a workload asks for.
    force: a workload and its allocations go at once; what may still run leaves a tombstone."""

    kind: Literal["Workload", "Node", "RuntimeClass"]
    id: str
    if_match: str | None = None
    force: bool = False


Write = Put | Delete


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one write did. object is as after it (as it would be, in a dry run); None for what is gone."""

    kind: Kind
    id: str
    result: Literal["created", "configured", "unchanged", "deleting", "deleted"]
    object: Workload | Node | RuntimeClass | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """items in id order (events: by last_seen, oldest first). next: pass as after; None on the last page."""

    items: Sequence[T_co]
    next: str | None
    resource_version: int
    """Of the whole store, read before the items: a watch from here misses nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the change log: the object's present state is read apart, so a reader may skip states."""

    resource_version: int
    kind: Kind
    id: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a report changed. dirty: workloads to plan again. orphans: ids of this cluster that the agent has and SQL
    has not (their rows are gone): to be stopped and removed. released: resources came free."""

    dirty: frozenset[str] = frozenset()
    orphans: tuple[str, ...] = ()
    released: bool = False
    unsent: bool = False
    """Rows of the node have revisions that the agent has not accepted: dispatch to it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What apply_plan wrote. stale: workloads that moved on since the snapshot; nothing of theirs was written. again:
    allocations of theirs went at once, since their node is forgotten and none need be asked; plan them again."""

    written: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    """Nodes that have something to be told now."""
    again: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Missing:
    """An allocation that SQL has and its node has not (any more)."""

    id: str
    workload: str
    slot: int
    node: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A database that was restored, until a person confirms it: what is known of the difference to the nodes."""

    restored_at: datetime
    unread: tuple[str, ...]
    """Nodes whose whole inventory was not read since."""
    unknown: tuple[Tombstone, ...]
    """What nodes have and the database has not: once confirmed, it is stopped."""
    missing: tuple[Missing, ...]
    """What the database has and nodes have not: once confirmed, it is lost, and replaced where it should run."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The leadership of this cluster, as the database's clock sees it."""

    holder: str
    epoch: int
    ttl_s: float
    mine: bool


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """What the observe loop needs of a node."""

    node: str
    address: str
    ready: bool
    ledger_uid: str
    uid: str = ""
    """The node's: one that was forgotten and is back is another node."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    object_kind: str | None = None
    object_id: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class AllocationFilter:
    workload: str | None = None
    node: str | None = None
    selector: Selector = field(default_factory=Selector)


class Store(Protocol):
    """All that a store does. Loops and API declare the one to three methods that they use of it."""

    cluster_id: str
    shared: bool
    """Whether other controllers may write to it."""

    async def close(self) -> None: ...

    def on_commit(self, kick: Callable[[], None]) -> None:
        """Kick is called, in the event loop, after each commit of this store that wrote changes. Without payload: what
        changed is read from the log. On PostgreSQL others' commits call it too, and now and then it is called for
        nothing; while the connection that brings the news is down, only this store's own do."""

    async def ping(self) -> None:
        """Returns when the store can be written (a write transaction that writes nothing may not be enough on a
        read-only disk); else Unavailable with why."""

    # -- what people do ------------------------------------------------------------------------------------------
    async def apply(self, writes: Sequence[Write], *, now: datetime, dry_run: bool = False) -> list[Outcome]:
        """All of the writes in their order, or none. Errors bear the index of the write."""

    async def get_workload(self, id_: str) -> Workload: ...
    async def list_workloads(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Workload]:
        """ids: only these. status.state is Unknown while a live allocation's node is not ready."""

    async def get_allocation(self, id_: str) -> Allocation: ...
    async def list_allocations(
        self, where: AllocationFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Allocation]:
        """The selector goes by the workload's labels. Unknown as for workloads."""

    async def get_node(self, id_: str) -> Node: ...
    async def list_nodes(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Node]: ...
    async def get_runtime_class(self, id_: str) -> RuntimeClass: ...
    async def list_runtime_classes(
        self, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[RuntimeClass]: ...
    async def list_events(
        self, where: EventFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Event]: ...

    async def resource_version(self) -> int: ...
    async def changes_since(self, resource_version: int, *, limit: int = 1000) -> list[Change]:
        """In commit order. Expired when rows after it are no longer held, or it is ahead of the store."""

    async def changes_by_others(self, resource_version: int, *, limit: int = 1000) -> tuple[list[Change], int]:
        """As changes_since, without what this store object surely committed itself; and up to where that looked: the
        place to go on from. The store of a single process (memory) has no others."""

    # -- what people do to nodes -----------------------------------------------------------------------------------
    async def drain_node(
        self, id_: str, drain: Drain | None, *, keep_deadline: bool = False, now: datetime
    ) -> tuple[Node, frozenset[str]]:
        """The node is to be emptied, or None: no more (it stays cordoned). With the workloads to plan again. One that
        is being drained takes over another deadline, unless it is to keep its own."""

    async def take_back_drain(
        self, id_: str, began: Drain, *, before: Drain | None, schedulable: bool, now: datetime
    ) -> frozenset[str]:
        """What came of an act that began by a drain and failed: the node is as it was, unless a person has said
        otherwise since. Returns the workloads to plan again."""

    async def forget_node(self, id_: str, *, released: bool = False, now: datetime) -> frozenset[str]:
        """The node is gone: what it had is lost and leaves tombstones; ended allocations stay as such. InUse while it
        is ready, unless its agent has released itself. Returns the workloads to plan again."""

    # -- what agents say -----------------------------------------------------------------------------------------
    async def register_node(self, id_: str, registration: NodeRegistration, *, now: datetime) -> tuple[Node, bool]:
        """The node, created when new, and whether anything changed (an unchanged registration writes nothing). A new
        ledger_uid turns its allocations that another ledger accepted to desired=stop, reason NodeLost."""

    async def set_node_ready(
        self, id_: str, *, epoch: int, ready: bool, reason: str, message: str, now: datetime
    ) -> bool:
        """Whether that changed anything. Workloads with live allocations there are logged as changed too, since
        Unknown is shown for them or no longer; an Event says it. Fenced when the lease's epoch is another."""

    async def set_node_lost(self, id_: str, *, epoch: int, message: str, now: datetime) -> frozenset[str]:
        """The node's lease is certainly over: what is bound to it is Failed/NodeLost and released; the rest is kept
        for the node. Returns the workloads to plan again. Fenced when the lease's epoch is another."""

    async def owes_stops(self, node: str, *, told: Collection[str] = ()) -> bool:
        """Whether the node has not accepted the stop of something that was given up while it was away. told: the
        tombstones whose stop it has accepted. What a restored database does not know is not given up while it is held.
        """

    async def record_report(self, report: Report, *, epoch: int, now: datetime) -> Recorded:
        """Fenced when the lease's epoch is another."""

    # -- what loops do -------------------------------------------------------------------------------------------
    async def load_snapshot(self, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot:
        """The workloads that exist of these, with all their allocations, and all nodes and runtime classes."""

    async def apply_plan(self, plan: Plan, *, epoch: int, now: datetime) -> Applied:
        """Each WorkloadPlan whole, guarded by its version. Fenced when the lease's epoch is another."""

    async def page_workload_ids(self, *, after: str = "", limit: int = 200) -> list[str]: ...
    async def unschedulable_ids(self, *, limit: int = 200) -> list[str]:
        """Workloads that wait for a place, least recently changed first."""

    async def agent_addresses(self) -> list[AgentAddress]: ...
    async def nodes_to_tell(self) -> set[str]:
        """Those that have something to be told."""

    async def owed(self, node: str, *, limit: int = 500) -> Owed:
        """What the node is to be told, so much of each kind; no tombstones while a restored database is held."""

    async def record_sent(
        self, node: str, ledger_uid: str, sent: Sequence[Sent], *, epoch: int, now: datetime
    ) -> frozenset[str]:
        """accepted_revision follows; a refused start becomes Failed and released; an accepted removal deletes the row.
        Answers of a revision that is no longer the row's newest change accepted_revision alone. Returns the workloads
        to plan again. Fenced when the lease's epoch is another."""

    async def add_events(self, drafts: Sequence[EventDraft], *, now: datetime) -> None: ...

    async def record_buried(self, node: str, ids: Collection[str], *, epoch: int, now: datetime) -> frozenset[str]:
        """The node has nothing of these any more, so their tombstones go. Returns the workloads that they held up.
        Fenced when the lease's epoch is another."""

    async def draining_nodes(self) -> list[Node]: ...
    async def record_drained(self, id_: str, seen: Drain, *, epoch: int, now: datetime) -> None:
        """Nothing is left to do of the drain that was seen: told once by an Event. Fenced when the lease's epoch is
        another."""

    # -- a restored database -------------------------------------------------------------------------------------
    async def adopt_restored(self, *, epoch: int, resource_version: int, now: datetime) -> None:
        """The database was brought back from an earlier state. It is above all that agents and watchers may have seen:
        these two are the least it goes on from, each allocation's revision is raised, and all watchers list again. It
        is held: reports delete nothing and find no orphans until confirm_restore."""

    async def hold(self) -> Hold | None:
        """None: nothing is held, and whoever leads acts as ever. While held it only observes."""

    async def confirm_restore(
        self, *, without: Collection[str] = (), served_s: float = math.inf, now: datetime
    ) -> None:
        """The database counts as it is: unknown things are ended by their nodes, and a new epoch begins, so that the
        next leader asks every node for its whole inventory and takes what is missing for lost. Held while nodes are
        unread that are not named in without, and before agents could register for a minute (served_s; inf: whoever asks
        knows that all have); NotFound when nothing is held."""

    # -- leadership ----------------------------------------------------------------------------------------------
    async def lease_epoch(self) -> int:
        """The newest epoch: whoever leads acts under it."""

    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
        """Takes it when it is free, expired, or held by the same holder's earlier life: epoch + 1. Else says whose."""

    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool:
        """False: it is not ours any more."""

    async def release_lease(self, holder: str, *, epoch: int) -> None: ...
