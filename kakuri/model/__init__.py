"""The objects of kakuri (docs/vocabulary.md), as frozen values."""

from kakuri.model.allocation import BY_HAND, Allocation, Desired, allocation_id, workload_of
from kakuri.model.base import Model
from kakuri.model.event import Event, EventDraft, EventType
from kakuri.model.node import (
    FEATURE_LEASE,
    ByHand,
    Capacity,
    Drain,
    Node,
    NodeManifest,
    NodeRegistration,
    NodeStatus,
    ProvedClass,
    Tombstone,
    UnprovedHandler,
)
from kakuri.model.runtime_class import BUILT_IN, RuntimeClass, RuntimeClassManifest
from kakuri.model.state import Reason, State
from kakuri.model.workload import (
    Condition,
    OnDisconnect,
    PortMapping,
    Protocol,
    RestartPolicy,
    Workload,
    WorkloadManifest,
    WorkloadSpec,
    WorkloadStatus,
    ips_overlap,
)

__all__ = [
    "BUILT_IN",
    "BY_HAND",
    "FEATURE_LEASE",
    "Allocation",
    "ByHand",
    "Capacity",
    "Condition",
    "Desired",
    "Drain",
    "Event",
    "EventDraft",
    "EventType",
    "Model",
    "Node",
    "NodeManifest",
    "NodeRegistration",
    "NodeStatus",
    "OnDisconnect",
    "PortMapping",
    "Protocol",
    "ProvedClass",
    "Reason",
    "RestartPolicy",
    "RuntimeClass",
    "RuntimeClassManifest",
    "State",
    "Tombstone",
    "UnprovedHandler",
    "Workload",
    "WorkloadManifest",
    "WorkloadSpec",
    "WorkloadStatus",
    "allocation_id",
    "ips_overlap",
    "workload_of",
]
