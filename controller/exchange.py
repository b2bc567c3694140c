"""What the controller and an agent tell each other, as values: the words of store, nodes and loops between them.

One rule: no wire and no table is known here. controller/nodes/wire.py makes messages of them, the store makes rows.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kakuri.model import Allocation, Tombstone


@dataclass(frozen=True, slots=True)
class ObservedAllocation:
    """What an agent reported of one allocation; the model side of agent.proto's AllocationStatus."""

    id: str
    workload: str
    slot: int
    origin: str
    revision: int
    state: str
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    restarts: int = 0
    started_once: bool = False
    released: bool = False
    simulated: bool = False
    handler: str = ""
    sandbox_id: str = ""
    container_id: str = ""
    ip: str = ""
    memory_mb: int = 0
    cpu_millicores: int = 0
    workload_uid: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One answer of Observe. full: what is not in it is not there."""

    node: str
    instance: str
    revision: int
    ledger_uid: str
    full: bool
    allocations: tuple[ObservedAllocation, ...] = ()
    gone: tuple[str, ...] = ()
    spared: frozenset[str] = frozenset()
    """Allocations that the node may have accepted after it made this answer: one that is missing is not lost."""
    sent_at_ns: int = 0
    """When the agent sent it, by a clock of its node: given back in the next Observe, it renews the node's lease."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What an Observe says of the node's lease: it lasts lease_s from when the agent sent the answer that heard names,
    and what is bound to it has ended stop_bound_s after that."""

    lease_s: float
    stop_bound_s: float
    heard: int = 0
    """The Report's sent_at_ns; 0 when none was heard of this instance."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The agent's answer for one allocation of an Apply."""

    allocation_id: str
    revision: int
    result: Literal["accepted", "refused", "busy"]
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """The agent's answer to a release. left: what of the cluster that holds it has not ended there; ask again."""

    released: bool
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Errand:
    """An allocation whose node must be told something, with what else that takes."""

    allocation: Allocation
    handler: str
    """The CRI handler of its runtime class."""


@dataclass(frozen=True, slots=True)
class Owed:
    """All that a node is to be told: of its rows, and of what was given up while it may still have it."""

    errands: list[Errand]
    """Allocations with accepted_revision < revision, oldest first."""
    tombstones: list[Tombstone]
