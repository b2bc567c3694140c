"""A real containerd is stopped in the middle of each call (SIGSTOP), longer than the agent waits, and goes on: what it
was asked for may have been done, or is done now, or was given up. The machine's own processes are the witness.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.containerd import PrivateContainerd
from agent.endpoints import Endpoint
from agent.oci import DEMO_IMAGE
from agent.prerequisites import can_run
from agent.private_runtime import Runtime
from agent.runtimes import endpoint_of
from cri.client import CriClient
from cri.errors import DeadlineExceeded
from support.agents import (
    API,
    JOB,
    WEB,
    Agent,
    SkippingClock,
    living_agent,
    sandboxes_and_running,
    start_of,
    stop_of,
)
from support.containerd import leftovers
from support.needs import need

pytestmark = pytest.mark.real

DEADLINE_S = 0.7
STOPPED_S = 0.9
BOUND_S = 60.0
NAP = f"77{os.getpid()}"
"""What the service sleeps for: its processes are told by this."""


@pytest.fixture(scope="module")
def private() -> Iterator[tuple[PrivateContainerd, Runtime]]:
    """One for this file, and no other test's."""
    why = can_run()
    need(why is None, f"a private containerd can't run here: {why}")
    state_dir = Path(tempfile.mkdtemp(prefix="kakuri-containerd-"))
    private = PrivateContainerd(state_dir)
    try:
        yield private, asyncio.run(private.start())
    finally:
        try:
            asyncio.run(private.stop())
            left = leftovers(state_dir)
        finally:
            shutil.rmtree(state_dir, ignore_errors=True)
    assert not left, f"the private containerd left behind: {left}"


@dataclass
class Node:
    """A containerd that is stopped at times, an agent's state dir, and what the machine shows of both."""

    folder: Path
    runtime: Runtime
    clock: SkippingClock
    most_at_once: int = 0

    def life(self) -> AbstractAsyncContextManager[Agent]:
        def endpoint(client: CriClient) -> Endpoint:
            return endpoint_of(self.runtime, client)

        return living_agent(self.folder, [self.runtime.endpoint], self.clock, endpoint=endpoint)

    def said(self, id_: str, word: str) -> int:
        """How often the allocation's containers said it."""
        return sum(log.read_text().count(word) for log in (self.folder / "logs" / id_).glob("*.log"))

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """With what the agent waits for passing in no time."""
        try:
            async with asyncio.timeout(BOUND_S):
                while not holds():
                    self.most_at_once = max(self.most_at_once, len(naps()))
                    self.clock.skip(0.5)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not within {BOUND_S} s: {what}") from None


def naps() -> list[int]:
    """The service's processes, however many of it run."""
    line = ["sleep", NAP]
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == line]


@pytest.fixture
async def node(tmp_path: Path, private: tuple[PrivateContainerd, Runtime], clock: SkippingClock) -> AsyncIterator[Node]:
    yield Node(tmp_path, private[1], clock)
    os.kill(private[1].pid, signal.SIGCONT)


def stop_in_the_middle_of(method: str, after_s: float, pid: int, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The first such call finds the process stopped after so long, and for longer than the call's deadline. Set when
    it goes on."""
    goes_on = asyncio.Event()
    real = getattr(CriClient, method)

    def stop() -> None:
        os.kill(pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(STOPPED_S, go_on)

    def go_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        goes_on.set()

    async def call(self: CriClient, *arguments: Any) -> Any:
        monkeypatch.setattr(CriClient, method, real)
        if after_s:
            asyncio.get_running_loop().call_later(after_s, stop)
        else:
            stop()
        # This call alone: others are slow enough on a busy machine.
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await real(self, *arguments)
        except TimeoutError:
            raise DeadlineExceeded("Deadline Exceeded") from None

    monkeypatch.setattr(CriClient, method, call)
    return goes_on


ROWS = [
    ("run_pod_sandbox", 0),
    ("run_pod_sandbox", 0.06),
    ("create_container", 0.004),
    ("start_container", 0.03),
    ("stop_container", 0.01),
    ("remove_container", 0.01),
    ("stop_pod_sandbox", 0.02),
    ("remove_pod_sandbox", 0.01),
]


@pytest.mark.parametrize(("method", "after_s"), ROWS, ids=[f"{m} after {a} s" for m, a in ROWS])
async def test_a_containerd_that_is_stopped_in_the_middle_of_a_call_doubles_and_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, method: str, after_s: float
) -> None:
    await see_through(node, monkeypatch, method, after_s, "runc")


async def test_nor_does_it_with_gvisor(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    need("runsc" in node.runtime.handlers, "this machine has no runsc; install it with: apt-get install runsc")
    await see_through(node, monkeypatch, "start_container", 0.1, "runsc")


async def see_through(node: Node, monkeypatch: pytest.MonkeyPatch, method: str, after_s: float, handler: str) -> None:
    """A service and a job, with containerd stopped once on the way."""
    async with node.life() as agent:
        goes_on = stop_in_the_middle_of(method, after_s, node.runtime.pid, monkeypatch)
        service = {"command": ["sh", "-c", f"echo UP; exec sleep {NAP}"], "grace_s": 0}
        job = {"command": ["sh", "-c", "echo RAN; exit 0"], "policy": "Never", "limit": 0}
        common = {"image": DEMO_IMAGE, "handler": handler}
        await agent.apply(start_of(WEB, **common, **service), start_of(JOB, **common, **job))
        status = agent.calls.get_status
        await node.until(lambda: status(WEB).state == "Running" and not status(WEB).reason, "the service runs")
        if method in {"run_pod_sandbox", "create_container", "start_container"}:
            await goes_on.wait()
            await node.until(lambda: node.said(WEB, "UP") > 0 and not status(WEB).reason, "the service is up")
        await agent.apply(stop_of(WEB))
        await node.until(lambda: status(WEB).released and status(JOB).released, "both are gone")
        assert goes_on.is_set()
        ended = status(JOB)
        if ended.state == "Succeeded":
            assert node.said(JOB, "RAN") == 1
        else:
            assert "it may have run" in ended.message
            assert node.said(JOB, "RAN") <= 1
        assert status(WEB).state in {"Succeeded", "Failed"}
        assert node.most_at_once <= 1
        assert not naps()
        assert await sandboxes_and_running(node.runtime.endpoint) == (Counter(), Counter())


async def test_a_shim_that_hangs_takes_neither_its_node_nor_the_truth_with_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.client.STOP_SLACK_S", DEADLINE_S)
    async with node.life() as agent:
        status = agent.calls.get_status
        await agent.apply(start_of(WEB, image=DEMO_IMAGE, command=["sleep", NAP], grace_s=0))
        running = await agent.until(WEB, lambda s: s.state == "Running" and s.started_at_ns > 0)
        shim = shim_of(running.sandbox_id)
        os.kill(shim, signal.SIGSTOP)
        try:
            await agent.apply(stop_of(WEB))
            await node.until(lambda: "; last error: " in status(WEB).message, "it says that it is stuck")
            assert naps()
            await agent.apply(start_of(API, image=DEMO_IMAGE, command=["sleep", "1000"], grace_s=0))
            await node.until(lambda: status(API).state == "Running", "another one starts")
            await agent.apply(stop_of(API))
            await node.until(lambda: status(API).released, "and stops")
            assert (status(WEB).state, bool(naps())) == ("Terminating", True)
        finally:
            os.kill(shim, signal.SIGCONT)
        await node.until(lambda: status(WEB).released, "what hung is gone, now that its shim goes on")
        assert not naps()


def shim_of(sandbox_id: str) -> int:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        if "containerd-shim" in line[0] and sandbox_id in line:
            return process.pid
    raise AssertionError(f"no shim of {sandbox_id}")
