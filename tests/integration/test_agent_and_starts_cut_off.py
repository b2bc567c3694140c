"""The agent, containerd or both die in the middle of a start, or containerd is down when a job ends: what is told."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.containerd import PrivateContainerd
from agent.endpoints import Endpoint
from agent.oci import DEMO_IMAGE
from agent.private_runtime import Runtime
from agent.runtimes import endpoint_of
from cri.client import CriClient
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import JOB, Agent, SkippingClock, living_agent, start_of, stop_of
from support.containerd import own_containerd, sandbox_leftovers

pytestmark = pytest.mark.real


@dataclass
class Node:
    """A containerd that may be killed, and an agent's state dir."""

    folder: Path
    private: PrivateContainerd
    runtime: Runtime
    clock: SkippingClock

    def life(self) -> AbstractAsyncContextManager[Agent]:
        """Of an agent; the end of the block is a kill."""

        def endpoint(client: CriClient) -> Endpoint:
            return endpoint_of(self.runtime, client)

        return living_agent(self.folder, [self.runtime.endpoint], self.clock, endpoint=endpoint)

    async def restart_containerd(self, down_s: float) -> None:
        self.kill_containerd()
        await self.start_containerd(down_s)

    def kill_containerd(self) -> None:
        os.kill(self.runtime.pid, signal.SIGKILL)

    async def start_containerd(self, down_s: float) -> None:
        await self.private.wait_end()
        await asyncio.sleep(down_s)
        self.runtime = await self.private.start()

    @property
    def runs(self) -> int:
        """How often the job has really run."""
        return sum(log.read_text().count("RAN") for log in (self.folder / "logs" / JOB).glob("*.log"))


@pytest.fixture
async def node(tmp_path: Path, clock: SkippingClock) -> AsyncIterator[Node]:
    async with own_containerd(tmp_path / "containerd") as private:
        yield Node(tmp_path, private, await private.start(), clock)


def job(**changes: object) -> wire.Start:
    command = ["sh", "-c", "echo RAN; exit 0"]
    return start_of(JOB, **{"image": DEMO_IMAGE, "command": command, "policy": "Never", "limit": 0, **changes})


async def until_starting(agent: Agent, after_s: float, handler: str = "runsc") -> None:
    """StartContainer is under way."""
    await agent.apply(job(handler=handler))
    deadline = time.monotonic() + 10
    while not agent.ledger.entries[JOB].cleared:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    await asyncio.sleep(after_s)


@pytest.mark.parametrize("after_s", [0.02, 0.12], ids=["as it is created", "as it is started"])
async def test_a_job_whose_start_was_cut_off_by_the_agents_death_runs_at_most_once(node: Node, after_s: float) -> None:
    async with node.life() as agent:
        await until_starting(agent, after_s)
    async with node.life() as agent:
        ended = await agent.until(JOB, lambda s: s.state in {"Succeeded", "Failed"})
        assert_told_truly(node, ended, heard=True)


@pytest.mark.parametrize("after_s", [0.02, 0.12], ids=["as it is created", "as it is started"])
async def test_a_job_whose_start_was_cut_off_by_containerds_death_runs_at_most_once_and_leaves_nothing(
    node: Node, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("EMPTY_S", "IN_USE_S"):
        monkeypatch.setattr(f"agent.orphans.{bound}", 0)
    async with node.life() as agent:
        await until_starting(agent, after_s)
        await node.restart_containerd(0.2)
        ended = await agent.until(JOB, lambda s: s.state in {"Succeeded", "Failed"})
        assert_told_truly(node, ended)
        await agent.apply(stop_of(JOB, revision=99))
        await agent.until_released(JOB)
    deadline = time.monotonic() + 10
    while left := sandbox_leftovers(node.private.places.state_dir):
        assert time.monotonic() < deadline, left
        await node.private.keep_up()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("handler", "after_s"), [("runc", 0.03), ("runc", 0.05), ("runc", 0.07), ("runsc", 0.12)], ids=str
)
async def test_a_job_whose_start_was_cut_off_by_the_death_of_both_runs_at_most_once(
    node: Node, handler: str, after_s: float
) -> None:
    async with node.life() as agent:
        await until_starting(agent, after_s, handler)
        node.kill_containerd()
    await node.start_containerd(0)
    async with node.life() as agent:
        ended = await agent.until(JOB, lambda s: s.state in {"Succeeded", "Failed"})
        assert_told_truly(node, ended)


def assert_told_truly(node: Node, ended: wire.AllocationStatus, *, heard: bool = False) -> None:
    """heard: containerd lived all the while. What a job says while it is down is lost, though the job has run."""
    if ended.state == "Succeeded":
        assert node.runs == 1 if heard else node.runs <= 1
    else:
        assert (ended.reason, ended.HasField("exit_code")) == ("Error", False)
        assert "it may have run" in ended.message
        assert node.runs <= 1


async def test_how_a_job_ended_while_containerd_was_down_is_told(node: Node) -> None:
    async with node.life() as agent:
        await agent.apply(job(handler="runc", command=["sh", "-c", "sleep 1; exit 7"]))
        await agent.until(JOB, lambda s: s.state == "Running" and s.started_at_ns > 0)
        await node.restart_containerd(1.5)
        ended = await agent.until_state(JOB, "Failed")
    assert (ended.reason, ended.exit_code) == ("Error", 7)


async def test_when_nobody_can_tell_how_it_ended_that_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.containerd.note_ends", lambda _places, _notes: None)
    async with node.life() as agent:
        await agent.apply(job(handler="runc", command=["sh", "-c", "sleep 1; exit 7"]))
        await agent.until(JOB, lambda s: s.state == "Running" and s.started_at_ns > 0)
        await node.restart_containerd(1.5)
        ended = await agent.until_state(JOB, "Failed")
    assert (ended.reason, ended.HasField("exit_code")) == ("Error", False)
    assert ended.message == "exit code unknown: the runtime was down when it ended"
