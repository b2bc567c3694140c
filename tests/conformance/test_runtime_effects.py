"""What convert.py asks for has its effect in a real runtime, with runc and with runsc."""

import asyncio
import os
from pathlib import Path

import pytest

from agent import logs
from cri.convert import PortWish, container_config, observed_sandbox
from cri.v1 import runtime_pb2 as pb
from support.cri_subject import Subject, owner
from support.ports import unused_port

BOUND_S = 60.0


async def output(subject: Subject, *argv: str, **changes: object) -> str:
    """What a container of this command says until it ends."""
    allocation = subject.allocation()
    _, container_id = await subject.create(subject.wish(*argv, **changes), allocation_id=allocation)
    await subject.client.start_container(container_id)
    async with asyncio.timeout(BOUND_S):
        while (await subject.client.container_status(container_id)).state != pb.CONTAINER_EXITED:
            await asyncio.sleep(0.02)
    return b"".join([chunk async for chunk in logs.read(subject.logs(allocation), 0)]).decode()


async def shell(subject: Subject, text: str, **changes: object) -> list[str]:
    return (await output(subject, "sh", "-c", text, **changes)).splitlines()


async def test_gvisor_has_a_kernel_of_its_own_and_runc_the_machines(real_subject: Subject) -> None:
    (release,) = await shell(real_subject, "uname -r")
    assert (release == os.uname().release) == (real_subject.handler == "runc")


async def test_the_container_sees_only_its_own_processes(real_subject: Subject) -> None:
    assert await shell(real_subject, "echo $$") == ["1"]


async def test_the_kernels_settings_can_not_be_written(real_subject: Subject) -> None:
    said = await shell(real_subject, "echo 1 > /proc/sys/kernel/core_uses_pid || echo refused")
    assert "refused" in said  # beside what sh says of it on stderr, in any order


async def test_masked_paths_show_nothing(real_subject: Subject) -> None:
    assert await shell(real_subject, "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 9") == []


async def test_runc_filters_system_calls(real_subject: Subject) -> None:
    if real_subject.handler != "runc":
        pytest.skip("gVisor takes system calls itself, and shows no filter inside")
    (mode,) = await shell(real_subject, "grep Seccomp: /proc/self/status")
    assert mode.split() == ["Seccomp:", "2"]


async def test_there_are_no_more_capabilities_than_the_runtimes_default(real_subject: Subject) -> None:
    (line,) = await shell(real_subject, "grep CapEff /proc/self/status")
    sys_admin, net_admin, sys_module = 21, 12, 16
    assert not int(line.split()[1], 16) & (1 << sys_admin | 1 << net_admin | 1 << sys_module)


async def test_host_name_environment_and_folder_are_as_asked(real_subject: Subject) -> None:
    name, value, folder = await shell(
        real_subject, 'cat /etc/hostname; echo "$KEY"; pwd', env={"KEY": "a b=c"}, working_dir="/tmp"
    )
    assert name.startswith("conformance-")
    assert name.endswith("-0")
    assert (value, folder) == ("a b=c", "/tmp")


async def test_args_follow_the_command_and_each_alone_works(real_subject: Subject) -> None:
    assert await output(real_subject, "echo", "a", args=("b  c",)) == "a b  c\n"
    assert await output(real_subject, args=("echo", "only args")) == "only args\n"


async def test_memory_and_cpu_limits_are_set(real_subject: Subject) -> None:
    allocation = real_subject.allocation()
    _, container_id = await real_subject.create(
        real_subject.wish("sleep", "1000", memory_mb=96, cpu_millicores=250), allocation_id=allocation
    )
    await real_subject.client.start_container(container_id)
    found = _cgroup_files(real_subject.cgroup_parent, container_id)
    assert found["memory"] == 96 * 2**20
    assert found["quota"] / found["period"] == 0.25
    assert found.get("memory_and_swap", 96 * 2**20) == 96 * 2**20


@pytest.mark.parametrize("host_ip", ["127.0.0.1", "0.0.0.0"])
async def test_a_host_port_leads_to_the_container(real_subject: Subject, host_ip: str) -> None:
    port = unused_port()
    allocation = real_subject.allocation()
    wished = real_subject.wish("httpd", "-f", "-p", "8080", "-h", "/", ports=(PortWish(8080, port, host_ip),))
    sandbox_id, container_id = await real_subject.create(wished, allocation_id=allocation)
    await real_subject.client.start_container(container_id)
    assert (await _first_answer("127.0.0.1", port)).startswith(b"HTTP/1.")
    address = observed_sandbox(await real_subject.client.pod_sandbox_status(sandbox_id)).ip
    assert (await _first_answer(address, 8080)).startswith(b"HTTP/1.")
    await real_subject.client.stop_pod_sandbox(sandbox_id)
    with pytest.raises(OSError, match=r"refused|unreachable|failed"):
        await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 5)


async def test_two_sandboxes_at_once_are_apart(real_subject: Subject) -> None:
    first, second = real_subject.allocation(), real_subject.allocation()
    wished = real_subject.wish("sleep", "1000")
    one, other = await asyncio.gather(
        real_subject.run(real_subject.config(first, wished)), real_subject.run(real_subject.config(second, wished))
    )
    for sandbox_id, allocation in ((one, first), (other, second)):
        config = real_subject.config(allocation, wished)
        made = container_config(owner(allocation), wished, attempt=0)
        await real_subject.client.start_container(await real_subject.client.create_container(sandbox_id, made, config))
    seen = [observed_sandbox(await real_subject.client.pod_sandbox_status(id_)) for id_ in (one, other)]
    assert len({s.ip for s in seen}) == 2
    assert [s.allocation_id for s in seen] == [first, second]


async def _first_answer(host: str, port: int) -> bytes:
    """The first line of an HTTP answer, once the server is up."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                line = await reader.readline()
                writer.close()
                await writer.wait_closed()
            except ConnectionError:
                line = b""
            if line:
                return line
            await asyncio.sleep(0.05)


def _cgroup_files(parent: str, container_id: str) -> dict[str, int]:
    """The limits that the kernel has, from cgroup v1's files or v2's."""
    folders = {path: path.parent for path in CGROUPS.glob(f"**{parent}/{container_id}/cgroup.procs")}.values()
    found: dict[str, int] = {}
    for folder in folders:
        for name, file in LIMIT_FILES.items():
            if (folder / file).exists():
                found[name] = int((folder / file).read_text())
        if (folder / "cpu.max").exists():
            found["quota"], found["period"] = map(int, (folder / "cpu.max").read_text().split())
    return found


CGROUPS = Path("/sys/fs/cgroup")
LIMIT_FILES = {
    "memory": "memory.limit_in_bytes",
    "memory_and_swap": "memory.memsw.limit_in_bytes",
    "quota": "cpu.cfs_quota_us",
    "period": "cpu.cfs_period_us",
}
