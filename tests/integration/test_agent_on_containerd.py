"""The agent's core on a real containerd, with runc and with gVisor: a whole life, and what is left after it."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from agent.endpoints import Endpoint
from agent.oci import DEMO_IMAGE
from cri.client import CriClient
from cri.errors import CriError
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import JOB, WEB, Agent, Life, SkippingClock, living_agent, sandboxes_and_running, start_of, stop_of
from support.containerd import RunningContainerd, own_containerd, sandbox_leftovers

pytestmark = pytest.mark.real

SLEEP = ["sleep", "1000"]


@pytest.fixture
def life(tmp_path: Path, containerd: RunningContainerd, clock: SkippingClock) -> Life:
    """Each call is another life of the same agent on containerd."""

    def endpoint(client: CriClient) -> Endpoint:
        return Endpoint(client, containerd.handlers, cgroup_parent=containerd.cgroup_parent)

    return lambda: living_agent(tmp_path, [containerd.endpoint], clock, endpoint=endpoint)


@pytest.fixture
async def agent(life: Life, containerd: RunningContainerd) -> AsyncIterator[Agent]:
    async with life() as alive:
        yield alive
        await end_all(alive)
    await nothing_left(containerd)


async def nothing_left(containerd: RunningContainerd) -> None:
    """A shim ends a moment after its sandbox is gone."""
    deadline = time.monotonic() + 5
    while left := sandbox_leftovers(containerd.state_dir):
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)


async def end_all(agent: Agent) -> None:
    left = [e.id for e in agent.ledger.entries.values() if not e.released]
    await agent.apply(*(stop_of(i, revision=99) for i in left))
    for id_ in left:
        await agent.until_released(id_)


def demo(containerd: RunningContainerd, id_: str, **changes: object) -> wire.Start:
    return start_of(id_, **{"image": containerd.demo_image, "command": SLEEP, "grace_s": 0, **changes})


async def log_of(agent: Agent, id_: str) -> str:
    request = wire.LogsRequest(allocation_id=id_, tail=-1)
    return b"".join([chunk async for chunk in agent.calls.log(request)]).decode()


@pytest.mark.parametrize("handler", ["runc", "runsc"])
async def test_a_whole_life_leaves_nothing(agent: Agent, containerd: RunningContainerd, handler: str) -> None:
    await agent.apply(demo(containerd, WEB, handler=handler))
    running = await agent.until(WEB, lambda s: s.state == "Running" and s.started_at_ns > 0)
    assert (running.handler, running.simulated, running.reason) == (handler, False, "")
    assert running.ip
    await agent.apply(stop_of(WEB))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason) == ("Succeeded", "Stopped")
    assert ended.exit_code in {137, 143}
    await nothing_left(containerd)


async def test_gvisor_shows_its_own_kernel_and_runc_the_machines(agent: Agent, containerd: RunningContainerd) -> None:
    kernels = {}
    for id_, handler in ((WEB, "runc"), (JOB, "runsc")):
        await agent.apply(demo(containerd, id_, handler=handler, command=["uname", "-r"], policy="Never"))
        assert (await agent.until_released(id_)).reason == "Completed"
        kernels[handler] = (await log_of(agent, id_)).strip()
    assert kernels["runc"] == os.uname().release
    assert kernels["runsc"] not in {"", kernels["runc"]}


@pytest.mark.parametrize("handler", ["runc", "runsc"])
@pytest.mark.parametrize(
    ("command", "state", "reason", "code"),
    [
        (["sh", "-c", "exit 0"], "Succeeded", "Completed", 0),
        (["sh", "-c", "exit 3"], "Failed", "Error", 3),
        (["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"], "Failed", "OOMKilled", 137),
        (["/does-not-exist"], "Failed", "StartError", 128),
    ],
    ids=["exit 0", "exit 3", "out of memory", "no such command"],
)
async def test_a_job_ends_as_its_container_did(
    agent: Agent, containerd: RunningContainerd, handler: str, command: list[str], state: str, reason: str, code: int
) -> None:
    await agent.apply(demo(containerd, JOB, handler=handler, command=command, policy="Never", limit=0))
    ended = await agent.until_released(JOB)
    assert (ended.state, ended.reason, ended.exit_code) == (state, reason, code), ended.message
    assert ended.started_once is (reason != "StartError")


@pytest.mark.parametrize("handler", ["runc", "runsc"])
async def test_a_container_killed_behind_our_back_runs_again(
    agent: Agent, containerd: RunningContainerd, handler: str
) -> None:
    marker = f"10{os.getpid()}"
    await agent.apply(demo(containerd, WEB, handler=handler, command=["sleep", marker]))
    first = await agent.until(WEB, lambda s: s.state == "Running" and s.started_at_ns > 0)
    await kill(first.container_id, marker)
    second = await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason and s.started_at_ns > 0)
    assert second.container_id != first.container_id
    assert second.sandbox_id == first.sandbox_id


async def kill(container_id: str, marker: str) -> None:
    """The container's process is killed as the kernel or a careless root would."""
    deadline = time.monotonic() + 5
    while (pid := find(container_id, marker)) is None:
        assert time.monotonic() < deadline, f"no process of {container_id}"
        await asyncio.sleep(0.02)  # runc becomes the program a moment after the start
    os.kill(pid, signal.SIGKILL)


def find(container_id: str, marker: str) -> int | None:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line == ["sleep", marker] or (line and "runsc-sandbox" in line[0] and line[-1] == container_id):
            return process.pid
    return None


async def test_a_killed_agent_adopts_what_runs(life: Life, containerd: RunningContainerd) -> None:
    ids = [f"web.{n}.0000000a" for n in range(6)]
    async with life() as agent:
        await agent.apply(*(demo(containerd, i) for i in ids))
        before = {}
        for id_ in ids:
            before[id_] = (await agent.until(id_, lambda s: s.state == "Running" and s.started_at_ns > 0)).container_id
    async with life() as agent:
        for id_ in ids:
            after = await agent.until(id_, lambda s: s.state == "Running" and s.started_at_ns > 0)
            assert (after.container_id, after.restarts) == (before[id_], 0)
        assert await sandboxes_and_running(containerd.endpoint) == (Counter(ids), Counter(ids))
        await end_all(agent)
    await nothing_left(containerd)


async def test_an_agent_killed_in_the_middle_of_starts_goes_on_with_them(tmp_path: Path, clock: SkippingClock) -> None:
    # One of its own: containerd 1.7 forgets the shim of a sandbox whose start its client's death cut off, and only
    # the end of containerd clears that away.
    async with own_containerd(tmp_path / "containerd") as private:
        found = await private.start()

        def life() -> AbstractAsyncContextManager[Agent]:
            def endpoint(client: CriClient) -> Endpoint:
                return Endpoint(client, found.handlers, cgroup_parent=found.cgroup_parent)

            return living_agent(tmp_path, [found.endpoint], clock, endpoint=endpoint)

        ids = [f"web.{n}.0000000a" for n in range(6)]
        start = {"image": DEMO_IMAGE, "command": SLEEP, "grace_s": 0, "policy": "Never"}
        async with life() as agent:
            await agent.apply(*(start_of(i, **start) for i in ids))
        for after_s in (0.1, 0.2, 0.3):
            async with life():
                await asyncio.sleep(after_s)
        async with life() as agent:
            for id_ in ids:
                running = await agent.until(id_, lambda s: s.state == "Running" and s.started_at_ns > 0)
                assert running.restarts <= 1, running.message
            assert await sandboxes_and_running(found.endpoint) == (Counter(ids), Counter(ids))


async def test_a_dead_sandbox_is_replaced_at_once(agent: Agent, containerd: RunningContainerd) -> None:
    await agent.apply(demo(containerd, WEB))
    first = await agent.until(WEB, lambda s: s.state == "Running" and s.started_at_ns > 0)
    client = CriClient(containerd.endpoint)
    with contextlib.suppress(CriError):  # the agent, which sees it die, stops it at the same time
        await client.stop_pod_sandbox(first.sandbox_id)
    await client.close()
    # An attempt may still have been born into the dying one.
    second = await agent.until(WEB, lambda s: s.restarts >= 1 and not s.reason and s.started_at_ns > 0)
    assert second.sandbox_id != first.sandbox_id
