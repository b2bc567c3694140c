"""What the loops need of the world, declared by them, so that a simulator can drive the very same passes.

The stores of controller.store keep to all of the store's; controller.nodes.Agents keeps to Nodes.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol

from controller.exchange import Errand, LeaseTerms, Owed, Report, Sent
from controller.plan.action import Plan
from controller.plan.snapshot import Snapshot
from controller.store.contract import AgentAddress, AllocationFilter, Applied, Change, Hold, Lease, Page, Recorded
from kakuri.model import Allocation, Drain, EventDraft, Node


class Clock(Protocol):
    """Time, as the loops know it."""

    def now(self) -> datetime:
        """Aware, in UTC: what is written down."""

    def monotonic(self) -> float:
        """Seconds: what is measured."""

    async def sleep(self, seconds: float) -> None: ...


class PlanStore(Protocol):
    async def load_snapshot(self, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot: ...
    async def apply_plan(self, plan: Plan, *, epoch: int, now: datetime) -> Applied: ...


class SweepStore(Protocol):
    async def page_workload_ids(self, *, after: str = "", limit: int = 200) -> list[str]: ...
    async def unschedulable_ids(self, *, limit: int = 200) -> list[str]: ...
    async def list_allocations(
        self, where: AllocationFilter, *, limit: int = 500, after: str | None = None
    ) -> Page[Allocation]: ...


class ReportStore(Protocol):
    async def record_report(self, report: Report, *, epoch: int, now: datetime) -> Recorded: ...
    async def set_node_ready(
        self, id_: str, *, epoch: int, ready: bool, reason: str, message: str, now: datetime
    ) -> bool: ...
    async def owes_stops(self, node: str, *, told: Collection[str] = ()) -> bool: ...
    async def set_node_lost(self, id_: str, *, epoch: int, message: str, now: datetime) -> frozenset[str]: ...


class ErrandStore(Protocol):
    async def owed(self, node: str, *, limit: int = 500) -> Owed: ...
    async def record_sent(
        self, node: str, ledger_uid: str, sent: Sequence[Sent], *, epoch: int, now: datetime
    ) -> frozenset[str]: ...
    async def record_buried(self, node: str, ids: Collection[str], *, epoch: int, now: datetime) -> frozenset[str]: ...
    async def add_events(self, drafts: Sequence[EventDraft], *, now: datetime) -> None: ...


class DrainStore(Protocol):
    async def draining_nodes(self) -> list[Node]: ...
    async def list_allocations(
        self, where: AllocationFilter, *, limit: int = 500, after: str | None = None
    ) -> Page[Allocation]: ...
    async def load_snapshot(self, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot: ...
    async def record_drained(self, id_: str, seen: Drain, *, epoch: int, now: datetime) -> None: ...


class LeaseStore(Protocol):
    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease: ...
    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool: ...
    async def release_lease(self, holder: str, *, epoch: int) -> None: ...


class FollowStore(Protocol):
    async def resource_version(self) -> int: ...
    async def changes_by_others(self, resource_version: int, *, limit: int = 1000) -> tuple[list[Change], int]: ...


class LoopStore(PlanStore, SweepStore, ReportStore, ErrandStore, DrainStore, LeaseStore, FollowStore, Protocol):
    """All of them, and which agents there are."""

    async def hold(self) -> Hold | None: ...

    shared: bool
    """Whether other controllers may write to it."""

    def on_commit(self, kick: Callable[[], None]) -> None: ...

    async def agent_addresses(self) -> list[AgentAddress]: ...
    async def nodes_to_tell(self) -> set[str]: ...


class Nodes(Protocol):
    """The agents. Errors: NodeUnreachable, NodeRefused, NodeError of controller.nodes."""

    async def observe(
        self, node: str, address: str, *, epoch: int, instance: str, since: int, wait_s: float, lease: LeaseTerms
    ) -> Report: ...

    async def apply(
        self,
        address: str,
        *,
        epoch: int,
        ledger_uid: str,
        errands: Sequence[Errand],
        stops: Sequence[str] = (),
        removals: Sequence[str] = (),
    ) -> list[Sent]: ...
