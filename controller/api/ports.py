"""What the API needs of the other floors, said by the one who needs it.

One rule: handlers know these protocols and the values of the store's contract, never a store or an agent client.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from controller.exchange import Released
from controller.plan.snapshot import Snapshot
from controller.store.contract import AllocationFilter, Change, EventFilter, Hold, Outcome, Page, Write
from kakuri.model import Allocation, Drain, Event, Node, NodeRegistration, RuntimeClass, Workload
from kakuri.selector import Selector


class AgentError(Exception):
    """Why an agent did not do as it was asked, in words for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AgentUnreachable(AgentError):  # noqa: N818 - the reason's own name, as people see it
    """503: the node's agent does not answer, or answers that it can't now."""


class AgentRefused(AgentError):  # noqa: N818 - the reason's own name, as people see it
    """409: the agent is another cluster's, or something there keeps it from it."""


class LogsNotFound(AgentError):  # noqa: N818 - the reason's own name, as people see it
    """404: the agent has no such log: not started yet, no earlier attempt, or long removed."""


class Kick(Protocol):
    """Called after a commit, so that the loops look soon. Never waits, never fails."""

    def workloads(self, ids: Iterable[str]) -> None: ...
    def nodes(self) -> None:
        """A node or a runtime class changed: what waits for a place may have one now."""


class AgentLogs(Protocol):
    def read(self, allocation: Allocation, *, follow: bool, tail: int, previous: bool) -> AsyncIterator[bytes]:
        """The log as the container wrote it. tail: the last n lines, -1 for all. Raises AgentError."""


class AgentReleases(Protocol):
    async def release(self, address: str, *, held_by: str, stop: bool) -> Released:
        """The agent there is no cluster's any more, or says what keeps it. Raises AgentError."""


class WorkloadReads(Protocol):
    async def get_workload(self, id_: str) -> Workload: ...
    async def list_workloads(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Workload]: ...


class AllocationReads(Protocol):
    async def get_allocation(self, id_: str) -> Allocation: ...
    async def list_allocations(
        self, where: AllocationFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Allocation]: ...


class NodeReads(Protocol):
    async def get_node(self, id_: str) -> Node: ...
    async def list_nodes(
        self, *, selector: Selector, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Node]: ...


class RuntimeClassReads(Protocol):
    async def get_runtime_class(self, id_: str) -> RuntimeClass: ...
    async def list_runtime_classes(
        self, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[RuntimeClass]: ...


class EventReads(Protocol):
    async def list_events(
        self, where: EventFilter, *, limit: int = 500, after: str | None = None, ids: Sequence[str] | None = None
    ) -> Page[Event]: ...


class ObjectReads(WorkloadReads, AllocationReads, NodeReads, RuntimeClassReads, EventReads, Protocol):
    """Every kind, for what is the same with all of them: pages and watches."""


class ChangeLog(Protocol):
    def on_commit(self, kick: Callable[[], None]) -> None: ...
    async def resource_version(self) -> int: ...
    async def changes_since(self, resource_version: int, *, limit: int = 1000) -> list[Change]: ...


class WatchStore(ObjectReads, ChangeLog, Protocol):
    """What a watch reads: the log of changes, and the objects that changed."""


class ApiStore(WatchStore, Protocol):
    """All that the API asks of a store; controller.store.contract.Store has it."""

    cluster_id: str

    async def ping(self) -> None: ...
    async def apply(self, writes: Sequence[Write], *, now: datetime, dry_run: bool = False) -> list[Outcome]: ...
    async def register_node(self, id_: str, registration: NodeRegistration, *, now: datetime) -> tuple[Node, bool]: ...
    async def drain_node(
        self, id_: str, drain: Drain | None, *, keep_deadline: bool = False, now: datetime
    ) -> tuple[Node, frozenset[str]]: ...
    async def take_back_drain(
        self, id_: str, began: Drain, *, before: Drain | None, schedulable: bool, now: datetime
    ) -> frozenset[str]: ...
    async def forget_node(self, id_: str, *, released: bool = False, now: datetime) -> frozenset[str]: ...
    async def load_snapshot(self, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot: ...
    async def hold(self) -> Hold | None: ...
    async def confirm_restore(self, *, without: Collection[str] = (), served_s: float, now: datetime) -> None: ...
