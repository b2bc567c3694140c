"""Workload: one containerized application, `replicas` times. What people write, and what the server says of it."""

import hashlib
import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from kakuri.model.base import Model
from kakuri.model.fields import (
    AbsolutePath,
    Arguments,
    CpuMillicores,
    Env,
    HostIp,
    Image,
    Labels,
    MemoryMb,
    Name,
    Port,
)
from kakuri.model.state import State


class RestartPolicy(StrEnum):
    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class OnDisconnect(StrEnum):
    """What happens to an allocation whose node is silent."""

    KEEP = "keep"
    """It waits for the node, however long."""
    REPLACE = "replace"
    """The node ends it when its lease is over, and it is replaced elsewhere once that is certain."""


class PortMapping(Model):
    port: Port
    """The port inside the sandbox."""
    host_port: Port | None = None
    """The node's port that leads to it: a resource of the node, so two allocations there can't have the same."""
    host_ip: HostIp = "127.0.0.1"
    protocol: Protocol = Protocol.TCP


class WorkloadSpec(Model):
    """What should run. The fields a person writes, without the id."""

    image: Image
    runtime_class: Name
    memory_mb: MemoryMb
    """MiB (2^20 bytes). A limit, and what the scheduler counts."""
    cpu_millicores: CpuMillicores
    """Thousandths of a core. A limit, and what the scheduler counts."""
    labels: Labels = Field(default_factory=dict)
    replicas: Annotated[StrictInt, Field(ge=0, le=10_000)] = 1
    command: Arguments = ()
    """Replaces the image's entrypoint, as in Kubernetes."""
    args: Arguments = ()
    """Replaces the image's arguments."""
    env: Env = Field(default_factory=dict)
    working_dir: AbsolutePath | None = None
    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    max_restarts: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    """How often the agent restarts before it gives up. OnFailure: 6 unless given; Always: no limit unless given."""
    ports: Annotated[tuple[PortMapping, ...], Field(max_length=64)] = ()
    node_selector: Labels = Field(default_factory=dict)
    termination_grace_s: Annotated[StrictInt, Field(ge=0, le=3600)] = 10
    """Seconds between the stop signal and the kill."""
    max_unavailable: Annotated[StrictInt, Field(ge=1, le=10_000)] = 1
    """How many slots a change may take down at a time."""
    on_disconnect: OnDisconnect = OnDisconnect.KEEP

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        seen: set[tuple[str, int, str]] = set()
        for mapping in self.ports:
            if mapping.host_port is None:
                continue
            key = (mapping.protocol, mapping.host_port, mapping.host_ip)
            clash = any(p == key[0] and h == key[1] and ips_overlap(i, key[2]) for p, h, i in seen)
            if clash:
                raise PydanticCustomError(
                    "host_port_twice",
                    "ports: host_port {port}/{protocol} is given twice; a host port can lead to one port only",
                    {"port": mapping.host_port, "protocol": mapping.protocol.value},
                )
            seen.add(key)
        return self

    @property
    def restart_limit(self) -> int | None:
        """Restarts allowed before the run fails; None for no limit."""
        if self.restart_policy is RestartPolicy.NEVER:
            return 0
        if self.restart_policy is RestartPolicy.ON_FAILURE and self.max_restarts is None:
            return 6
        return self.max_restarts

    def replacing_hash(self) -> str:
        """16 hex digits over the fields whose change replaces allocations; the others apply in place."""
        fields = self.model_dump(mode="json", include=REPLACING_FIELDS)
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def ips_overlap(a: str, b: str) -> bool:
    """Whether two host addresses can't hold the same port at once."""
    return a == b or "0.0.0.0" in {a, b}  # noqa: S104 - compared, not bound


REPLACING_FIELDS = {
    "image",
    "runtime_class",
    "memory_mb",
    "cpu_millicores",
    "command",
    "args",
    "env",
    "working_dir",
    "ports",
    "node_selector",
}
"""A change of these can't be made in a running container. Too few here and a change is silently not applied; too
many and an edit of a label restarts the world."""


class WorkloadManifest(WorkloadSpec):
    """A workload as a person writes it: the spec and its id."""

    kind: Literal["Workload"] = "Workload"
    id: Name

    @property
    def spec(self) -> WorkloadSpec:
        return WorkloadSpec.model_construct(**{name: getattr(self, name) for name in WorkloadSpec.model_fields})


class Condition(Model):
    type: str
    status: bool
    reason: str = ""
    message: str = ""
    since: datetime


class WorkloadStatus(Model):
    """What is. Written by the controller alone."""

    state: State = State.PENDING
    reason: str = ""
    message: str = ""
    node: str | None = None
    """The node, when all allocations are on one."""
    nodes: int = 0
    """How many nodes have allocations of it."""
    desired: int = 0
    updated: int = 0
    """Slots whose allocation has the present spec."""
    ready: int = 0
    """Slots whose allocation runs, of whatever spec."""
    failed: int = 0
    succeeded: int = 0
    conditions: tuple[Condition, ...] = ()
    exit_code: int | None = None
    restarts: int = 0
    observed_generation: int = 0
    simulated: bool = False
    """True when any of its allocations is on a node whose runtime is the fake one: nothing really runs there."""


class Workload(WorkloadManifest):
    """A workload as the server shows it."""

    uid: str
    generation: int
    """Version of the spec; with uid it is the ETag."""
    resource_version: int
    created_at: datetime
    deleted_at: datetime | None = None
    """When its deletion was asked for; it is gone when its containers are."""
    status: WorkloadStatus

    @property
    def etag(self) -> str:
        return f"{self.uid}.{self.generation}"
