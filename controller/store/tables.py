"""Tables: what one transaction can ask and write. The rules (rules/) are written against it alone.

One rule: rows that a writing transaction asked for stay as they are until it ends. SQLite has one writer at a time,
the twin never yields inside a transaction, PostgreSQL locks rows, always in this order: lease, nodes, runtime classes,
workloads (which guard their allocations), events, the counter.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.exchange import Errand
from controller.plan.snapshot import HostPort
from controller.store.batch import Batch
from controller.store.contract import AllocationFilter, Change, EventFilter, Kind
from controller.store.records import NodeRecord, Restored, Usage, WorkloadRecord
from kakuri.model import Allocation, Event, RuntimeClass, Tombstone
from kakuri.selector import Selector

CHANGES_KEPT = 50_000
"""Fewer, and a watcher that was away for a while must list again; more, and the log outgrows the objects."""
TOMBSTONES_KEPT = 10_000
"""More, and nodes that never come back fill the table; fewer, and a start that is delayed for long may find none. What
a node still has of one is ended by what it reports all the same."""
EVENTS_KEPT = 10_000
"""For the whole store; the least recently seen go first."""
RELEASED = "released"
"""How a node went whose agent let go of this cluster. Should it register here again, it takes no work before a person
says so: another cluster may be about to take it. What it had has this for its ledger from then on: the agent has said
that nothing of it is left, and is told nothing of it."""

Versions = Mapping[tuple[Kind, str], int]


@dataclass(frozen=True, slots=True)
class Paging:
    """One more than limit is returned when there are more."""

    limit: int
    after: str | None = None
    ids: Sequence[str] | None = None


class Tables(Protocol):
    cluster_id: str

    # -- lists, in id order (events: by last_seen) -------------------------------------------------------------------
    def list_workloads(self, selector: Selector, page: Paging) -> list[tuple[WorkloadRecord, str]]:
        """Each with a node that is not ready and has a live allocation of it, or ""."""

    def list_allocations(self, where: AllocationFilter, page: Paging) -> list[tuple[Allocation, str]]:
        """Each with why its node is not ready, or "" when it is."""

    def list_nodes(self, selector: Selector, page: Paging) -> list[tuple[NodeRecord, Usage]]: ...
    def list_runtime_classes(self, page: Paging) -> list[RuntimeClass]: ...
    def list_events(self, where: EventFilter, page: Paging) -> list[Event]: ...
    def workload_ids(self, *, after: str, limit: int) -> list[str]: ...
    def waiting_ids(self, *, limit: int) -> list[str]: ...

    # -- the counter and its log -------------------------------------------------------------------------------------
    def resource_version(self) -> int: ...
    def changes_held_after(self) -> int:
        """Changes up to this one are no longer held."""

    def changes_since(self, resource_version: int, *, limit: int) -> list[Change]: ...
    def lease_epoch(self) -> int: ...

    def restored(self) -> Restored | None:
        """None: it is held no more, or never was."""

    # -- rows by key -------------------------------------------------------------------------------------------------
    def nodes(self, ids: Collection[str] | None = None) -> dict[str, NodeRecord]:
        """These, or all, without forgotten ones. A writer that names them keeps them."""

    def forgotten_nodes(self) -> dict[str, str]:
        """Forgotten nodes whose rows are still there, and how they went: see RELEASED."""

    def runtime_classes(self, *, keep: Collection[str] = ()) -> dict[str, RuntimeClass]:
        """All of them. keep: the ones that stay as they are."""

    def workloads(self, ids: Collection[str]) -> dict[str, WorkloadRecord]: ...
    def silent_nodes(self, workload_ids: Collection[str]) -> dict[str, str]:
        """Of these workloads, those with a live allocation on a node that is not ready, and one such node."""

    def keep_workloads(self, ids: Collection[str]) -> None:
        """These workloads and their allocations stay as they are."""

    def owners_on(self, node: str, ids: Collection[str] | None = None) -> list[str]:
        """The workloads that have allocations on the node (of these ids)."""

    def allocations(self, ids: Collection[str]) -> list[Allocation]: ...
    def allocations_of(self, workload_ids: Collection[str]) -> list[Allocation]: ...
    def allocations_on(self, node: str) -> list[Allocation]: ...
    def leaving(self, nodes: Collection[str]) -> list[Allocation]:
        """What was stopped there for a drain and is not gone yet."""

    def unseen_on(self, nodes: Collection[str]) -> list[Allocation]:
        """Allocations that are not released and were never observed: in a restored database, not since."""

    def errands(self, node: str, *, limit: int) -> list[Errand]: ...
    def nodes_to_tell(self) -> set[str]:
        """Those with errands or tombstones."""

    def owes_stops(self, node: str) -> bool:
        """Whether the node has not accepted the stop of a released allocation."""

    def has_errands(self, node: str, *, besides: Collection[str] = ()) -> bool: ...
    def users_of(self, runtime_class: str) -> tuple[list[str], list[str]]:
        """The workloads that ask for it, and the allocations of it that are not released."""

    def usage(self, nodes: Collection[str] | None = None) -> dict[str, Usage]: ...
    def host_ports(self) -> dict[str, frozenset[HostPort]]:
        """By node, of allocations that are not released."""

    def tombstones_on(self, nodes: Collection[str]) -> list[Tombstone]:
        """In the order of their ids, as all lists."""

    def tombstones_of(self, workload_ids: Collection[str]) -> list[Tombstone]: ...

    # -- writing -----------------------------------------------------------------------------------------------------
    def write(self, batch: Batch) -> Versions:
        """Writes it all, and says at which resource_version each change was. The row of a forgotten node goes with the
        last allocation that refers to it, unless it says RELEASED."""
