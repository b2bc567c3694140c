"""cri/convert.py: what is sent, field by field, and what is read back."""

import pytest

from cri import convert
from cri.convert import (
    ObservedContainer,
    PortWish,
    container_config,
    observed_container,
    observed_sandbox,
    sandbox_config,
)
from cri.v1 import runtime_pb2 as pb
from support.cri_subject import owner, wish

LABELS = {
    "kakuri.dev/managed-by": "kakuri",
    "kakuri.dev/cluster": "c1",
    "kakuri.dev/workload": "web",
    "kakuri.dev/allocation": "web.0.0123abcd",
    "kakuri.dev/slot": "0",
    "kakuri.dev/generation": "3",
    "kakuri.dev/spec-hash": "0123456789abcdef",
    "kakuri.dev/epoch": "7",
    "kakuri.dev/origin": "c1",
}


def test_a_sandbox_bears_the_allocations_name_and_our_labels() -> None:
    config = sandbox_config(owner(), wish(), log_directory="/logs/web.0.0123abcd", cgroup_parent="/kakuri")
    meta = config.metadata
    assert (meta.name, meta.uid, meta.namespace, meta.attempt) == ("web.0.0123abcd", "web.0.0123abcd", "kakuri", 0)
    assert dict(config.labels) == LABELS
    assert dict(config.annotations) == {"kakuri.dev/workload-uid": "u1", "kakuri.dev/runtime-class": "native"}
    assert config.log_directory == "/logs/web.0.0123abcd"
    assert config.linux.cgroup_parent == "/kakuri"
    assert not config.HasField("dns_config")


@pytest.mark.parametrize(
    ("workload", "slot", "hostname"),
    [
        pytest.param("web", 0, "web-0", id="workload and slot"),
        pytest.param("w" * 63, 12, "w" * 60 + "-12", id="a long name is cut to what the kernel takes"),
        pytest.param("w" * 60 + "-x", 1234, "w" * 58 + "-1234", id="no doubled hyphen, and 63 at most"),
        pytest.param("w" * 58 + "--x", 1, "w" * 58 + "--x-1", id="what fits is left alone"),
    ],
)
def test_the_host_name_is_workload_and_slot(workload: str, slot: int, hostname: str) -> None:
    config = sandbox_config(owner(workload_id=workload, slot=slot), wish(), log_directory="/l")
    assert config.hostname == hostname
    assert len(hostname) <= 63


def test_a_containers_name_is_its_attempts_and_its_labels_say_so() -> None:
    config = container_config(owner(), wish(), attempt=4)
    assert (config.metadata.name, config.metadata.attempt) == ("main", 4)
    assert dict(config.labels) == {**LABELS, "kakuri.dev/attempt": "4"}
    assert config.log_path == "4.log"


def test_command_and_args_keep_their_own_places() -> None:
    wished = wish(
        "kakuri.test/demo:1", "/bin/app", args=("--port", "8080"), env={"A": "1", "B": ""}, working_dir="/srv"
    )
    config = container_config(owner(), wished, attempt=0)
    assert (list(config.command), list(config.args)) == (["/bin/app"], ["--port", "8080"])
    assert [(pair.key, pair.value) for pair in config.envs] == [("A", "1"), ("B", "")]
    assert config.working_dir == "/srv"
    assert config.image.image == "kakuri.test/demo:1"
    assert not config.tty
    assert not config.stdin


def test_pid_namespaces_are_asked_for_by_name_since_the_default_is_shared() -> None:
    for options in (
        sandbox_config(owner(), wish(), log_directory="/l").linux.security_context.namespace_options,
        container_config(owner(), wish(), attempt=0).linux.security_context.namespace_options,
    ):
        assert (options.pid, options.network, options.ipc) == (pb.CONTAINER, pb.POD, pb.POD)


def test_containers_are_filtered_masked_and_never_privileged() -> None:
    context = container_config(owner(), wish(), attempt=0).linux.security_context
    assert not context.privileged
    assert context.HasField("seccomp")
    assert context.seccomp.profile_type == pb.SecurityProfile.RuntimeDefault
    assert {"/proc/kcore", "/sys/firmware"} <= set(context.masked_paths)
    assert "/proc/sys" in context.readonly_paths


@pytest.mark.parametrize(
    ("memory_mb", "cpu_millicores", "memory", "quota", "shares"),
    [
        pytest.param(512, 500, 512 * 2**20, 50_000, 512, id="half a core"),
        pytest.param(1, 1, 2**20, 1_000, 2, id="the smallest the kernel takes"),
        pytest.param(65_536, 64_000, 2**36, 6_400_000, 65_536, id="a big one"),
    ],
)
def test_limits_are_limits(memory_mb: int, cpu_millicores: int, memory: int, quota: int, shares: int) -> None:
    wished = wish(memory_mb=memory_mb, cpu_millicores=cpu_millicores)
    container = container_config(owner(), wished, attempt=0).linux.resources
    assert (container.memory_limit_in_bytes, container.memory_swap_limit_in_bytes) == (memory, memory)
    assert (container.cpu_period, container.cpu_quota, container.cpu_shares) == (100_000, quota, shares)
    sandbox = sandbox_config(owner(), wished, log_directory="/l").linux
    assert sandbox.resources == container
    assert sandbox.HasField("overhead")


def test_only_host_ports_are_mapped() -> None:
    ports = (
        PortWish(8080),
        PortWish(8080, 18080),
        PortWish(53, 5353, "0.0.0.0", "udp"),
        PortWish(80, 80, "192.0.2.1"),
    )
    mapped = sandbox_config(owner(), wish(ports=ports), log_directory="/l").port_mappings
    assert [(m.protocol, m.container_port, m.host_port, m.host_ip) for m in mapped] == [
        (pb.TCP, 8080, 18080, "127.0.0.1"),
        (pb.UDP, 53, 5353, ""),
        (pb.TCP, 80, 80, "192.0.2.1"),
    ]


@pytest.mark.parametrize(("millicores", "cpus"), [(1, "1"), (1000, "1"), (1001, "2"), (2500, "3")])
def test_a_zone_of_edera_is_told_its_size(millicores: int, cpus: str) -> None:
    wished = wish(handler="edera", runtime_class="edera-zone", memory_mb=512, cpu_millicores=millicores)
    annotations = sandbox_config(owner(), wished, log_directory="/l").annotations
    assert annotations["dev.edera/cpu"] == cpus
    assert annotations["dev.edera/initial-memory-request"] == "512"


def test_only_edera_is_told_of_edera() -> None:
    config = sandbox_config(owner(), wish(handler="kata"), log_directory="/l")
    assert not [key for key in config.annotations if key.startswith("dev.edera/")]


def test_an_owner_is_read_back_from_a_lists_entry() -> None:
    sent = sandbox_config(owner(slot=2, epoch=9), wish(), log_directory="/l")
    entry = pb.PodSandbox(
        id="s1",
        state=pb.SANDBOX_READY,
        created_at=5,
        labels=sent.labels,
        annotations=sent.annotations,
        runtime_handler="runc",
    )
    seen = observed_sandbox(entry)
    assert seen.owner == owner(slot=2, epoch=9)
    assert (seen.id, seen.allocation_id, seen.ready, seen.handler, seen.ip, seen.created_at_ns) == (
        "s1",
        "web.0.0123abcd",
        True,
        "runc",
        "",
        5,
    )


def test_a_status_of_a_sandbox_has_its_address_too() -> None:
    status = pb.PodSandboxStatus(
        id="s1", state=pb.SANDBOX_NOTREADY, network=pb.PodSandboxNetworkStatus(ip="10.0.0.7"), runtime_handler="runsc"
    )
    seen = observed_sandbox(status)
    assert (seen.ready, seen.ip, seen.handler, seen.allocation_id) == (False, "10.0.0.7", "runsc", "")


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "9" * 40])
def test_labels_that_somebody_else_wrote_are_read_as_nothing(text: str) -> None:
    entry = pb.PodSandbox(id="s1", labels={convert.LABEL_SLOT: text, convert.LABEL_EPOCH: text})
    assert (observed_sandbox(entry).owner.slot, observed_sandbox(entry).owner.epoch) == (0, 0)


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (pb.CONTAINER_CREATED, "created"),
        (pb.CONTAINER_RUNNING, "running"),
        (pb.CONTAINER_EXITED, "exited"),
        (pb.CONTAINER_UNKNOWN, "unknown"),
        (17, "unknown"),
    ],
)
def test_a_lists_entry_tells_the_state_and_nothing_of_the_end(state: int, phase: str) -> None:
    entry = pb.Container(
        id="k1",
        pod_sandbox_id="s1",
        metadata=pb.ContainerMetadata(name="main", attempt=3),
        state=state,
        created_at=5,
        labels={convert.LABEL_ALLOCATION: "web.0.0123abcd"},
    )
    assert observed_container(entry) == ObservedContainer("k1", "s1", "web.0.0123abcd", 3, phase, None, "", "", 5, 0, 0)


@pytest.mark.parametrize(
    ("finished_at", "exit_code", "seen"),
    [
        pytest.param(0, 0, None, id="no end without a time, though the field says 0"),
        pytest.param(-1, 255, None, id="nor before the epoch"),
        pytest.param(9, 0, 0, id="success"),
        pytest.param(9, 137, 137, id="failure"),
    ],
)
def test_an_exit_code_counts_only_when_it_has_finished(finished_at: int, exit_code: int, seen: int | None) -> None:
    status = pb.ContainerStatus(
        id="k1", state=pb.CONTAINER_EXITED, started_at=3, finished_at=finished_at, exit_code=exit_code, reason="Error"
    )
    observed = observed_container(status, sandbox_id="s1")
    assert (observed.exit_code, observed.sandbox_id, observed.started_at_ns) == (seen, "s1", 3)
    assert observed.finished_at_ns == max(finished_at, 0)
