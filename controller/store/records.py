"""What the tables hold, as frozen values, and how it is shown to people.

One rule: what can be computed when it is read (Unknown, a node's usage) is not in a record, so it can't be out of date.
Allocation, RuntimeClass and Event are their own records.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.plan.snapshot import HostPort, NodeView, WorkloadView
from kakuri.model import (
    Allocation,
    ByHand,
    Drain,
    Node,
    NodeRegistration,
    NodeStatus,
    Reason,
    RuntimeClass,
    State,
    Tombstone,
    Workload,
    WorkloadSpec,
    WorkloadStatus,
)


@dataclass(frozen=True, slots=True)
class WorkloadRecord:
    id: str
    uid: str
    spec: WorkloadSpec
    generation: int
    version: int
    status: WorkloadStatus
    created_at: datetime
    deleted_at: datetime | None = None
    waits_for_place: bool = False
    """A slot of it found no node when it was last planned."""
    resource_version: int = 0

    def shown(self, silent_node: str = "") -> Workload:
        """The workload as people see it. silent_node: one that is not ready and has a live allocation of it."""
        status = self.status
        if silent_node:
            # The planner says of a lost node that it is lost; it looks when that turns.
            reason = Reason.NODE_LOST if status.reason == Reason.NODE_LOST else Reason.NODE_SILENT
            message = _silence(silent_node, status.state, reason)
            if self.deleted_at is not None:
                message += f"; it can't be ended there; next: bring it back, or `kakuri delete --force {self.id}`"
            status = status.with_(state=State.UNKNOWN, reason=reason.value, message=message)
        return Workload.model_construct(
            **self.spec.__dict__,
            kind="Workload",
            id=self.id,
            uid=self.uid,
            generation=self.generation,
            resource_version=self.resource_version,
            created_at=self.created_at,
            deleted_at=self.deleted_at,
            status=status,
        )

    def view(self, allocations: tuple[Allocation, ...], tombstones: Iterable[Tombstone] = ()) -> WorkloadView:
        return WorkloadView(
            id=self.id,
            uid=self.uid,
            version=self.version,
            generation=self.generation,
            spec=self.spec,
            deleting=self.deleted_at is not None,
            status=self.status,
            allocations=allocations,
            tombstones=tuple(tombstones),
        )


def shown_allocation(allocation: Allocation, *, silence: str) -> Allocation:
    """The allocation as people see it: Unknown while it may be running on a node that is not ready. silence: why that
    is so, or "" when it is ready."""
    if not silence or allocation.released or allocation.state.ended:
        return allocation
    reason = Reason.NODE_LOST if silence == Reason.NODE_LOST else Reason.NODE_SILENT
    message = _silence(allocation.node, allocation.state, reason)
    return allocation.with_(state=State.UNKNOWN, reason=reason.value, message=message)


def _silence(node: str, state: State, reason: Reason) -> str:
    how = "lost" if reason is Reason.NODE_LOST else "not ready"
    return f"node {node} is {how}; the last known state is {state.value}"


@dataclass(frozen=True, slots=True)
class Restored:
    """When this database was brought back from an earlier state, and the epoch that all before it are below."""

    at: datetime
    epoch: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a node's allocations that are not released take of it."""

    memory_mb: int = 0
    cpu_millicores: int = 0
    allocations: int = 0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    id: str
    uid: str
    labels: Mapping[str, str]
    """The user's own."""
    schedulable: bool
    generation: int
    created_at: datetime
    ready: bool
    reason: str
    message: str
    registration: NodeRegistration | None = None
    registered_at: datetime | None = None
    by_hand: tuple[ByHand, ...] = ()
    resource_version: int = 0
    lost_at: datetime | None = None
    inventory_epoch: int = 0
    """The newest epoch under which all that the node has was read."""
    drain: Drain | None = None

    @property
    def all_labels(self) -> dict[str, str]:
        return {**(self.registration.labels if self.registration else {}), **self.labels}

    @property
    def ledger_uid(self) -> str:
        return self.registration.ledger_uid if self.registration else ""

    def shown(self, usage: Usage, tombstones: Iterable[Tombstone] = ()) -> Node:
        told = self.registration.__dict__ if self.registration else {}
        status = NodeStatus.model_construct(
            **told,
            ready=self.ready,
            reason=self.reason,
            message=self.message,
            allocated_memory_mb=usage.memory_mb + self._by_hand_mb,
            allocated_cpu_millicores=usage.cpu_millicores + self._by_hand_millicores,
            allocations=usage.allocations,
            by_hand=self.by_hand,
            registered_at=self.registered_at,
            lost_at=self.lost_at,
            drain=self.drain,
            tombstones=tuple(tombstones),
        )
        return Node.model_construct(
            kind="Node",
            id=self.id,
            labels=dict(self.labels),
            schedulable=self.schedulable,
            uid=self.uid,
            generation=self.generation,
            resource_version=self.resource_version,
            created_at=self.created_at,
            status=status,
        )

    def view(
        self, usage: Usage, host_ports: frozenset[HostPort], runtime_classes: Mapping[str, RuntimeClass]
    ) -> NodeView:
        told = self.registration
        return NodeView(
            id=self.id,
            labels=self.all_labels,
            ready=self.ready,
            schedulable=self.schedulable,
            runtime_classes=frozenset(c.id for c in runtime_classes.values() if self._offers(c)),
            memory_mb=told.capacity.memory_mb if told else 0,
            cpu_millicores=told.capacity.cpu_millicores if told else 0,
            used_memory_mb=usage.memory_mb + self._by_hand_mb,
            used_cpu_millicores=usage.cpu_millicores + self._by_hand_millicores,
            host_ports=host_ports,
            ledger_uid=self.ledger_uid,
            simulated=bool(told and told.simulated),
            features=frozenset(told.features) if told else frozenset(),
            message=self.message,
            lost=self.lost_at is not None,
            drain=self.drain,
            unproved={u.handler: u.message for u in told.unproved} if told else {},
        )

    @property
    def _by_hand_mb(self) -> int:
        return sum(run.memory_mb for run in self.by_hand)

    @property
    def _by_hand_millicores(self) -> int:
        return sum(run.cpu_millicores for run in self.by_hand)

    def _offers(self, runtime_class: RuntimeClass) -> bool:
        # What a canary proved is the handler: a class that a user pointed at another one since is not offered, and a
        # new name for a proved one is.
        proved = self.registration.runtime_classes if self.registration else ()
        return any(p.handler == runtime_class.handler or (p.id == runtime_class.id and not p.handler) for p in proved)
