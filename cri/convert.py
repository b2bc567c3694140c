"""PURE: what should run → CRI's configs, and what CRI reports → what we have seen.

One rule: everything a restarted agent must know of its own stands in the labels, so that a list is enough to adopt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cri.v1 import runtime_pb2 as pb

LABEL_MANAGED_BY = "kakuri.dev/managed-by"
LABEL_CLUSTER = "kakuri.dev/cluster"
LABEL_WORKLOAD = "kakuri.dev/workload"
LABEL_ALLOCATION = "kakuri.dev/allocation"
LABEL_SLOT = "kakuri.dev/slot"
LABEL_ATTEMPT = "kakuri.dev/attempt"
LABEL_GENERATION = "kakuri.dev/generation"
LABEL_SPEC_HASH = "kakuri.dev/spec-hash"
LABEL_EPOCH = "kakuri.dev/epoch"
LABEL_ORIGIN = "kakuri.dev/origin"
ANNOTATION_WORKLOAD_UID = "kakuri.dev/workload-uid"
ANNOTATION_RUNTIME_CLASS = "kakuri.dev/runtime-class"

MANAGED_BY = "kakuri"
OURS: Mapping[str, str] = {LABEL_MANAGED_BY: MANAGED_BY}
"""Selects what bears our labels; nothing else on the machine is ours to touch."""

NAMESPACE = "kakuri"
CONTAINER_NAME = "main"
CPU_PERIOD_US = 100_000
MIN_CPU_QUOTA_US = 1_000
"""The kernel refuses a smaller quota."""
MAX_HOSTNAME = 63

# What a process without a VM of its own has no business with. containerd takes an empty list for "none", so these
# must be sent; they are Docker's and Kubernetes' own.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

ContainerPhase = Literal["created", "running", "exited", "unknown"]


@dataclass(frozen=True)
class SandboxOwner:
    """Whose sandbox it is."""

    cluster_id: str
    workload_id: str
    workload_uid: str
    allocation_id: str
    slot: int
    generation: int
    spec_hash: str
    epoch: int
    origin: str


@dataclass(frozen=True)
class PortWish:
    port: int
    host_port: int = 0
    """0: none."""
    host_ip: str = "127.0.0.1"
    protocol: Literal["tcp", "udp"] = "tcp"


@dataclass(frozen=True)
class ContainerWish:
    """What should run in the sandbox's one container."""

    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str
    memory_mb: int
    cpu_millicores: int
    ports: tuple[PortWish, ...]
    runtime_class: str
    handler: str


@dataclass(frozen=True)
class ObservedSandbox:
    id: str
    allocation_id: str
    owner: SandboxOwner
    """Read from the labels; fields that aren't there are empty or 0."""
    ready: bool
    handler: str
    """As the runtime reports it; some leave it empty in a list."""
    ip: str
    """Empty in a list."""
    created_at_ns: int


@dataclass(frozen=True)
class ObservedContainer:
    id: str
    sandbox_id: str
    allocation_id: str
    attempt: int
    state: ContainerPhase
    exit_code: int | None
    """None while it is not known to have finished. 255 may mean that the runtime doesn't know."""
    reason: str
    message: str
    created_at_ns: int
    started_at_ns: int
    """0: not yet, or not told (lists tell neither this nor how it ended)."""
    finished_at_ns: int

    @property
    def may_run(self) -> bool:
        """It runs, or the runtime lost track of it."""
        return self.state in {"running", "unknown"}


def of_allocation(allocation_id: str) -> Mapping[str, str]:
    """Selects what one allocation has in the runtime."""
    return {**OURS, LABEL_ALLOCATION: allocation_id}


def sandbox_config(
    owner: SandboxOwner, wish: ContainerWish, *, log_directory: str, cgroup_parent: str = ""
) -> pb.PodSandboxConfig:
    """The sandbox for one allocation. log_directory: absolute; the caller makes it, runtimes don't."""
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=owner.allocation_id, uid=owner.allocation_id, namespace=NAMESPACE, attempt=0
        ),
        hostname=_hostname(owner),
        log_directory=log_directory,
        port_mappings=[_port_mapping(port) for port in wish.ports if port.host_port],
        labels=_labels(owner),
        annotations=_sandbox_annotations(owner, wish),
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=_namespaces(), seccomp=_runtime_default()
            ),
            # VM runtimes are sized when the sandbox is made, from these two. We add nothing to their own overhead.
            overhead=pb.LinuxContainerResources(),
            resources=_limits(wish),
        ),
    )


def container_config(owner: SandboxOwner, wish: ContainerWish, *, attempt: int) -> pb.ContainerConfig:
    """The container of this attempt; its log is <attempt>.log in the sandbox's log directory."""
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=CONTAINER_NAME, attempt=attempt),
        image=pb.ImageSpec(image=wish.image, user_specified_image=wish.image),
        command=wish.command,
        args=wish.args,
        working_dir=wish.working_dir,
        envs=[pb.KeyValue(key=key, value=value) for key, value in wish.env.items()],
        labels={**_labels(owner), LABEL_ATTEMPT: str(attempt)},
        annotations=_annotations(owner, wish),
        log_path=log_name(attempt),
        linux=pb.LinuxContainerConfig(
            resources=_limits(wish),
            security_context=pb.LinuxContainerSecurityContext(
                namespace_options=_namespaces(),
                seccomp=_runtime_default(),
                masked_paths=MASKED_PATHS,
                readonly_paths=READONLY_PATHS,
            ),
        ),
    )


def log_name(attempt: int) -> str:
    """The log's file name in the sandbox's log directory."""
    return f"{attempt}.log"


def observed_sandbox(seen: pb.PodSandbox | pb.PodSandboxStatus) -> ObservedSandbox:
    """From a list's entry, or from a status, which alone has the address."""
    return ObservedSandbox(
        id=seen.id,
        allocation_id=seen.labels.get(LABEL_ALLOCATION, ""),
        owner=_owner(seen.labels, seen.annotations),
        ready=seen.state == pb.SANDBOX_READY,
        handler=seen.runtime_handler,
        ip=seen.network.ip if isinstance(seen, pb.PodSandboxStatus) else "",
        created_at_ns=seen.created_at,
    )


def observed_container(seen: pb.Container | pb.ContainerStatus, *, sandbox_id: str = "") -> ObservedContainer:
    """From a list's entry, or from a status: that alone tells how it went, but not its sandbox, so give sandbox_id."""
    status = seen if isinstance(seen, pb.ContainerStatus) else pb.ContainerStatus()
    finished = status.finished_at > 0
    return ObservedContainer(
        id=seen.id,
        sandbox_id=seen.pod_sandbox_id if isinstance(seen, pb.Container) else sandbox_id,
        allocation_id=seen.labels.get(LABEL_ALLOCATION, ""),
        attempt=seen.metadata.attempt,
        state=_PHASES.get(seen.state, "unknown"),
        exit_code=status.exit_code if finished else None,
        reason=status.reason,
        message=status.message,
        created_at_ns=seen.created_at,
        started_at_ns=max(status.started_at, 0),
        finished_at_ns=max(status.finished_at, 0),
    )


_PHASES: Mapping[int, ContainerPhase] = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
    pb.CONTAINER_UNKNOWN: "unknown",
}


def _hostname(owner: SandboxOwner) -> str:
    suffix = f"-{owner.slot}"
    return owner.workload_id[: MAX_HOSTNAME - len(suffix)].rstrip("-") + suffix


def _port_mapping(wish: PortWish) -> pb.PortMapping:
    return pb.PortMapping(
        protocol=pb.UDP if wish.protocol == "udp" else pb.TCP,
        container_port=wish.port,
        host_port=wish.host_port,
        # CRI's word for all addresses is none; portmap would take 0.0.0.0 for an address to match.
        host_ip="" if wish.host_ip == "0.0.0.0" else wish.host_ip,  # noqa: S104 - compared, not bound
    )


def _labels(owner: SandboxOwner) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_CLUSTER: owner.cluster_id,
        LABEL_WORKLOAD: owner.workload_id,
        LABEL_ALLOCATION: owner.allocation_id,
        LABEL_SLOT: str(owner.slot),
        LABEL_GENERATION: str(owner.generation),
        LABEL_SPEC_HASH: owner.spec_hash,
        LABEL_EPOCH: str(owner.epoch),
        LABEL_ORIGIN: owner.origin,
    }


def _owner(labels: Mapping[str, str], annotations: Mapping[str, str]) -> SandboxOwner:
    return SandboxOwner(
        cluster_id=labels.get(LABEL_CLUSTER, ""),
        workload_id=labels.get(LABEL_WORKLOAD, ""),
        workload_uid=annotations.get(ANNOTATION_WORKLOAD_UID, ""),
        allocation_id=labels.get(LABEL_ALLOCATION, ""),
        slot=_number(labels.get(LABEL_SLOT, "")),
        generation=_number(labels.get(LABEL_GENERATION, "")),
        spec_hash=labels.get(LABEL_SPEC_HASH, ""),
        epoch=_number(labels.get(LABEL_EPOCH, "")),
        origin=labels.get(LABEL_ORIGIN, ""),
    )


def _number(text: str) -> int:
    # A label that somebody else wrote must not stop us from reading the list.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _annotations(owner: SandboxOwner, wish: ContainerWish) -> dict[str, str]:
    return {ANNOTATION_WORKLOAD_UID: owner.workload_uid, ANNOTATION_RUNTIME_CLASS: wish.runtime_class}


def _sandbox_annotations(owner: SandboxOwner, wish: ContainerWish) -> dict[str, str]:
    annotations = _annotations(owner, wish)
    if wish.handler == "edera":
        # A zone is a VM: whole CPUs, and the memory (MB) that it boots with.
        annotations["dev.edera/cpu"] = str(-(-wish.cpu_millicores // 1000))
        annotations["dev.edera/initial-memory-request"] = str(wish.memory_mb)
    return annotations


def _namespaces() -> pb.NamespaceOption:
    # CRI's default for PID is POD: all containers of a sandbox would see each other's processes.
    return pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)


def _runtime_default() -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)


def _limits(wish: ContainerWish) -> pb.LinuxContainerResources:
    memory = wish.memory_mb * 2**20
    return pb.LinuxContainerResources(
        cpu_period=CPU_PERIOD_US,
        cpu_quota=max(wish.cpu_millicores * CPU_PERIOD_US // 1000, MIN_CPU_QUOTA_US),
        cpu_shares=max(wish.cpu_millicores * 1024 // 1000, 2),
        memory_limit_in_bytes=memory,
        # Memory and swap together: equal means no swap, so that a limit is a limit.
        memory_swap_limit_in_bytes=memory,
    )
