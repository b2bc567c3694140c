"""All that one pass may look at. What is not in here, the planner can't know.

Nodes and workloads come in any order; the planner sorts, so that the same world gives the same plan byte by byte.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kakuri.model import (
    FEATURE_LEASE,
    Allocation,
    Drain,
    OnDisconnect,
    RuntimeClass,
    Tombstone,
    WorkloadSpec,
    WorkloadStatus,
)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of a node that an allocation holds."""

    ip: str
    port: int
    protocol: str


def host_ports_of(spec: WorkloadSpec) -> tuple[HostPort, ...]:
    """What an allocation of this holds of its node, in the spec's order."""
    return tuple(HostPort(p.host_ip, p.host_port, p.protocol.value) for p in spec.ports if p.host_port is not None)


def features_of(spec: WorkloadSpec) -> tuple[str, ...]:
    """What an agent must know of to run this: one that would drop a field it doesn't know is not given it."""
    return (FEATURE_LEASE,) if spec.on_disconnect is OnDisconnect.REPLACE else ()


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """A workload as loaded, with every allocation row it has."""

    id: str
    uid: str
    version: int
    """Bumped by every write to the workload or to one of its allocations; the apply is guarded by it."""
    generation: int
    spec: WorkloadSpec
    deleting: bool
    status: WorkloadStatus
    allocations: tuple[Allocation, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    """Those that hold a slot of it: it is placed when they are gone."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with what is taken of it. used_* and host_ports count every allocation there that is not released."""

    id: str
    labels: Mapping[str, str]
    ready: bool
    schedulable: bool
    runtime_classes: frozenset[str]
    memory_mb: int
    cpu_millicores: int
    used_memory_mb: int = 0
    used_cpu_millicores: int = 0
    host_ports: frozenset[HostPort] = frozenset()
    ledger_uid: str = ""
    simulated: bool = False
    features: frozenset[str] = frozenset()
    """What its agent knows of."""
    message: str = ""
    """Why it is not ready, when it isn't."""
    lost: bool = False
    """Silent for so long that its lease is certainly over."""
    drain: Drain | None = None
    """It is to be emptied. It is not schedulable then."""
    unproved: Mapping[str, str] = field(default_factory=dict)
    """CRI handler → why the node offers no class on it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    now: datetime
    workloads: tuple[WorkloadView, ...]
    nodes: tuple[NodeView, ...]
    runtime_classes: Mapping[str, RuntimeClass]
    seed: str
    """Fresh for each pass; new allocation ids come from it."""
    leaving: tuple[Allocation, ...] = ()
    """What was stopped because its node is drained and is not gone yet, of every workload: each needs a place soon."""

    def suffix(self, workload_uid: str, slot: int) -> str:
        """8 hex digits for a new allocation of this slot: the same in the same snapshot, new in the next."""
        text = f"{self.seed}/{workload_uid}/{slot}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]
