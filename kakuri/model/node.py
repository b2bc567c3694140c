"""Node: a machine with an agent. What users own (labels, schedulable) and what its agent says, apart."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kakuri.model.base import Model
from kakuri.model.fields import CpuMillicores, Labels, MemoryMb, Name

FEATURE_LEASE = "node-lease"
"""An agent that has it ends what says on_disconnect replace when its node's lease is over."""


class NodeManifest(Model):
    """What a person may say of a node."""

    kind: Literal["Node"] = "Node"
    id: Name
    labels: Labels = Field(default_factory=dict)
    schedulable: StrictBool = True
    """False: what runs there goes on, nothing new is placed there."""


class Capacity(Model):
    memory_mb: MemoryMb
    cpu_millicores: CpuMillicores


class ProvedClass(Model):
    """A runtime class that a canary sandbox ran on, with the handler it reported."""

    id: Name
    handler: StrictStr


class UnprovedHandler(Model):
    """A handler that the node has in name, and why it offers no class on it."""

    handler: StrictStr
    message: StrictStr


class NodeRegistration(Model):
    """What an agent says of its node (body of PUT /nodes/{id}/registration). Never what users own."""

    address: Annotated[StrictStr, Field(max_length=512, pattern=r"^.+:[0-9]+$")]
    """host:port of the agent's gRPC."""
    capacity: Capacity
    labels: Labels = Field(default_factory=dict)
    runtime_classes: tuple[ProvedClass, ...] = ()
    unproved: tuple[UnprovedHandler, ...] = ()
    instance: Annotated[StrictStr, Field(max_length=64)]
    """A name for this run of the agent; another one means that its revisions start anew."""
    ledger_uid: Annotated[StrictStr, Field(max_length=64)]
    version: Annotated[StrictStr, Field(max_length=64)] = ""
    runtime: Annotated[StrictStr, Field(max_length=256)] = ""
    """Name and version of the CRI runtime, for people."""
    simulated: StrictBool = False
    features: tuple[StrictStr, ...] = ()


class ByHand(Model):
    """A run that somebody started at the agent over JSON lines. Controllers list and count it, and never touch it."""

    id: str
    state: str
    memory_mb: StrictInt = 0
    cpu_millicores: StrictInt = 0


class Drain(Model):
    """A person asked for the node to be emptied."""

    asked_at: datetime
    deadline_at: datetime | None = None
    """From then on what is still there is stopped, whether or not it can run elsewhere. None: never."""
    drained_at: datetime | None = None
    """When it was first found to be done."""


class Tombstone(Model):
    """An allocation that SQL gave up on while its node may still run it. It is ended there as soon as the node can be
    told, and the tombstone goes when the node has nothing of it any more."""

    id: str
    """The allocation's."""
    node: str
    workload: str
    slot: int
    reason: str
    """ForceDeleted, NodeForgotten, NodeLost or Restored."""
    message: str
    blocks: bool
    """Nothing is placed for its workload's slot until it is gone: nobody has said that two of it do no harm. Of one
    that does not block, that holds only while its node answers."""
    created_at: datetime


class NodeStatus(Model):
    ready: bool = False
    reason: str = ""
    message: str = ""
    address: str = ""
    capacity: Capacity | None = None
    allocated_memory_mb: StrictInt = 0
    allocated_cpu_millicores: StrictInt = 0
    allocations: StrictInt = 0
    by_hand: tuple[ByHand, ...] = ()
    """Not among the allocations, but what they take is in allocated_*."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The agent's own labels; a user's label of the same key wins."""
    runtime_classes: tuple[ProvedClass, ...] = ()
    unproved: tuple[UnprovedHandler, ...] = ()
    instance: str = ""
    ledger_uid: str = ""
    version: str = ""
    runtime: str = ""
    simulated: bool = False
    features: tuple[str, ...] = ()
    registered_at: datetime | None = None
    lost_at: datetime | None = None
    """Since then its lease is certainly over: what is bound to the lease has ended there. None once it is heard of."""
    drain: Drain | None = None
    tombstones: tuple[Tombstone, ...] = ()
    """Allocations that were given up while it may still run them."""


class Node(NodeManifest):
    """A node as the server shows it."""

    uid: str
    generation: int
    resource_version: int
    created_at: datetime
    status: NodeStatus

    @property
    def etag(self) -> str:
        return f"{self.uid}.{self.generation}"

    @property
    def all_labels(self) -> dict[str, str]:
        return {**self.status.labels, **self.labels}
