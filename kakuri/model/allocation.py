"""Allocation: one run of one slot, bound to one node for good. One-shot: never moved, it is replaced.

             start accepted          stop asked
Pending ───────────────► Running ───────────────► Terminating
   │                        │                          │
   └────────────────────────┴──────────┬───────────────┘
                              Succeeded | Failed ──► released ──► removed
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from kakuri.model.base import Model
from kakuri.model.state import Reason, State
from kakuri.model.workload import WorkloadSpec

BY_HAND = "hand"
"""The origin of what somebody started at an agent; any other origin is the id of the cluster that started it."""


class Desired(StrEnum):
    """What the controller wants of an allocation. Only goes forward."""

    RUN = "run"
    STOP = "stop"
    REMOVE = "remove"
    """Its end is durable in SQL: the agent may forget it and its logs."""


class Allocation(Model):
    kind: Literal["Allocation"] = "Allocation"
    id: str
    """<workload>.<slot>.<8 hex>"""
    workload: str
    workload_uid: str
    slot: int
    node: str
    runtime_class: str
    generation: int
    """The workload's generation whose in-place fields it has."""
    spec_hash: str
    """WorkloadSpec.replacing_hash() of what it runs."""
    spec: WorkloadSpec
    desired: Desired = Desired.RUN
    desired_reason: str = ""
    revision: int = 1
    """Bumped with every change of desired or of the in-place fields: what the agent should have accepted."""
    accepted_revision: int = 0
    """What the agent did accept."""
    failures: int = 0
    """Allocations of this slot in a row, before this one, that were refused or failed to start; not the lost ones."""
    state: State = State.PENDING
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    restarts: int = 0
    started_once: bool = False
    """A container of it has run."""
    released: bool = False
    """Ended, and nothing of it is left in the runtime: its resources and its ports are free."""
    lease_bound: bool = False
    """Whatever the node may have accepted of it said on_disconnect replace: it ends with the node's lease."""
    simulated: bool = False
    handler: str = ""
    """The handler its sandbox reported."""
    ledger_uid: str = ""
    """The agent's ledger that accepted it."""
    sandbox_id: str = ""
    container_id: str = ""
    ip: str = ""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    observed_at: datetime | None = None
    resource_version: int = 0

    @property
    def live(self) -> bool:
        """Whether a container of it may still be there."""
        return not self.released

    @property
    def leaves_a_drain(self) -> bool:
        """It was stopped because its node is drained, and is not gone yet."""
        return self.live and self.desired is not Desired.RUN and self.desired_reason == Reason.DRAINED

    @property
    def ready(self) -> bool:
        return self.state is State.RUNNING and self.reason == ""


def allocation_id(workload: str, slot: int, suffix: str) -> str:
    return f"{workload}.{slot}.{suffix}"


def workload_of(allocation: str) -> str:
    """The workload's id in an allocation's id; the id itself when it is a workload's."""
    return allocation.partition(".")[0]
