"""Each call to a runtime that gets no answer in time: it was done, or is done later, or never; and the agent lives on,
or is killed just then. The fake runtime's own history is the witness.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from cri.client import CriClient
from cri.convert import LABEL_ALLOCATION
from cri.errors import DeadlineExceeded
from cri.fake import FakeRuntime, Fault
from cri.instrument import Instrument
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import API, JOB, WEB, Agent, Life, SkippingClock, fake_env, start_of, stop_of

DEADLINE_S = 0.05
LATE_S = 0.12
BOUND_S = 30.0
SKIP_S = 2.0
"""Every 10 ms: what comes late comes within the 30 s that an agent reckons with."""
DOES = ("RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox",
        "RemovePodSandbox", "PullImage")  # fmt: skip
SAYS = ("ListContainers", "ListPodSandbox", "ContainerStatus", "PodSandboxStatus", "ImageStatus")
STARTS = DOES[:3]
NEVER = {"delay_s": 60.0}
LATE = {"delay_s": LATE_S, "done_anyway": True}
AT_ONCE = {"done_anyway": True, "answer_s": 60.0}
ROWS = [
    *(pytest.param(m, fault, id=f"{m} {when}") for m in DOES for fault, when in ((NEVER, "never"), (LATE, "later"))),
    *(pytest.param(m, AT_ONCE, id=f"{m} done") for m in DOES),
    *(pytest.param(m, NEVER, id=m) for m in SAYS),
]


@pytest.fixture(autouse=True)
def short_deadlines(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls that meet a fault. The others have theirs: a busy machine must not look like a broken runtime."""
    real = Instrument.__call__

    async def call(self: Instrument, method: str, answer: Awaitable[object]) -> object:
        if method not in {fault.method for fault in runtime.faults._faults}:
            return await real(self, method, answer)
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await real(self, method, answer)
        except TimeoutError:
            raise DeadlineExceeded("Deadline Exceeded") from None

    monkeypatch.setattr(Instrument, "__call__", call)


class Witness:
    """Of a service that is stopped once it runs, and of a job that must run once."""

    def __init__(self, runtime: FakeRuntime, clock: SkippingClock) -> None:
        self._runtime = runtime
        self._clock = clock

    async def see_through(self, agent: Agent) -> None:
        """Both have ended, and nothing of them is left. Another life may have done a part of it."""
        job = start_of(JOB, env=fake_env("exit 0 after 0.02"), policy="Never", limit=0, image="other:1")
        await agent.apply(start_of(WEB, grace_s=0, image="other:1"), job)
        async with asyncio.timeout(BOUND_S):
            while not await self._all_released(agent):
                self.check(agent)
                self._clock.skip(SKIP_S)
                await asyncio.sleep(0.01)
        self.check(agent)

    async def _all_released(self, agent: Agent) -> bool:
        web, job = agent.calls.get_status(WEB), agent.calls.get_status(JOB)
        if web.state == "Running" and not web.reason:
            await agent.apply(stop_of(WEB))
        return web.released and job.released

    def check(self, agent: Agent) -> None:
        """One live container at most, none of what has ended, and no job's work a second time."""
        for id_ in (WEB, JOB):
            live = self.began(id_) - self.ended(id_)
            assert live <= 1, f"{live} containers of {id_} run"
            if id_ in agent.ledger.entries and agent.calls.get_status(id_).state in {"Succeeded", "Failed"}:
                assert live == 0, f"{id_} is said to have ended, and runs"
        assert self.began(JOB) <= 1, "the job ran again"

    def began(self, id_: str) -> int:
        return self._count("began", id_)

    def ended(self, id_: str) -> int:
        return self._count("ended", id_)

    def _count(self, what: str, id_: str) -> int:
        return sum(h.what == what and h.labels[LABEL_ALLOCATION] == id_ for h in self._runtime.world.history)

    async def until_met(self) -> None:
        while not self._runtime.faults.met:
            await asyncio.sleep(0.001)


@pytest.fixture
def witness(runtime: FakeRuntime, clock: SkippingClock) -> Witness:
    return Witness(runtime, clock)


@pytest.mark.parametrize(("method", "fault"), ROWS)
async def test_a_call_without_an_answer_doubles_loses_and_leaves_nothing(
    life: Life, runtime: FakeRuntime, witness: Witness, clock: SkippingClock, method: str, fault: dict[str, float]
) -> None:
    runtime.faults.add(Fault(method, times=2, **fault))  # type: ignore[arg-type]
    async with life() as agent:
        await witness.see_through(agent)
        await asyncio.sleep(LATE_S)
        await assert_good(agent, runtime, witness, clock)
    assert runtime.faults.met


@pytest.mark.parametrize(("method", "fault"), ROWS)
async def test_nor_does_one_in_whose_middle_the_agent_is_killed(
    life: Life, runtime: FakeRuntime, witness: Witness, clock: SkippingClock, method: str, fault: dict[str, float]
) -> None:
    async with life() as agent:
        runtime.faults.add(Fault(method, times=2, **fault))  # type: ignore[arg-type]
        async with background(witness.see_through(agent)):
            await witness.until_met()
    async with life() as agent:
        await witness.see_through(agent)
        await asyncio.sleep(LATE_S)
        await assert_good(agent, runtime, witness, clock)


@pytest.mark.parametrize(("method", "fault"), [r for r in ROWS if r.values[0] in STARTS])
async def test_nor_does_one_in_whose_middle_it_is_stopped(
    life: Life, runtime: FakeRuntime, witness: Witness, clock: SkippingClock, method: str, fault: dict[str, float]
) -> None:
    runtime.faults.add(Fault(method, times=2, **fault))  # type: ignore[arg-type]
    async with life() as agent:
        await agent.apply(start_of(WEB, grace_s=0))
        await witness.until_met()
        await agent.apply(stop_of(WEB))
        await until_released(agent, clock, lambda: witness.check(agent))
        began = witness.began(WEB)
        await asyncio.sleep(LATE_S)
        await until_nothing_is_left(runtime, clock)
        assert witness.began(WEB) == witness.ended(WEB) == began <= 1


async def assert_good(agent: Agent, runtime: FakeRuntime, witness: Witness, clock: SkippingClock) -> None:
    job, web = agent.calls.get_status(JOB), agent.calls.get_status(WEB)
    assert (job.state, job.reason, job.exit_code) == ("Succeeded", "Completed", 0), job.message
    assert (web.state, web.reason) == ("Succeeded", "Stopped"), web.message
    assert (witness.began(JOB), witness.began(WEB)) == (1, 1)
    await until_nothing_is_left(runtime, clock)


async def until_nothing_is_left(runtime: FakeRuntime, clock: SkippingClock) -> None:
    runtime.faults.clear()
    client = CriClient(runtime.endpoint)
    try:
        async with asyncio.timeout(BOUND_S):
            while await client.list_pod_sandboxes() or await client.list_containers():
                clock.skip(SKIP_S)
                await asyncio.sleep(0.01)
    finally:
        await client.close()


@asynccontextmanager
async def background(work: object) -> AsyncIterator[None]:
    """The work goes on during the block, and is cut off with it."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


# a stop that the runtime does not carry out


async def test_a_runtime_that_only_says_that_it_stopped_is_not_believed_and_the_stop_climbs_to_the_sandbox(
    agent: Agent, runtime: FakeRuntime, witness: Witness, clock: SkippingClock
) -> None:
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Running", "")
    runtime.faults.add(Fault("StopContainer", unfounded=True))
    await agent.apply(stop_of(WEB))
    told = await agent.until(WEB, lambda s: "stop is at kill" in s.message)
    assert told.state == "Terminating"
    assert "that the container still runs" in told.message
    await until_released(agent, clock)
    assert (witness.began(WEB), witness.ended(WEB)) == (1, 1)
    assert agent.calls.get_status(WEB).exit_code == 137


@pytest.mark.parametrize("fault", [{"unfounded": True}, {"code": grpc.StatusCode.UNKNOWN}])
async def test_a_stop_that_nothing_carries_out_says_so_until_the_runtime_has_recovered(
    agent: Agent, runtime: FakeRuntime, witness: Witness, clock: SkippingClock, fault: dict[str, object]
) -> None:
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Running", "")
    for method in ("StopContainer", "StopPodSandbox", "RemovePodSandbox"):
        runtime.faults.add(Fault(method, **fault))  # type: ignore[arg-type]
    await agent.apply(stop_of(WEB))
    async with asyncio.timeout(BOUND_S):
        while "stop is at remove" not in agent.calls.get_status(WEB).message or runtime.faults.met < 20:
            clock.skip(30)
            await asyncio.sleep(0.01)
    stuck = agent.calls.get_status(WEB)
    assert (stuck.state, stuck.released) == ("Terminating", False)
    assert witness.ended(WEB) == 0
    runtime.faults.clear()
    await until_released(agent, clock)
    assert witness.ended(WEB) == 1


async def test_a_later_stop_with_less_grace_ends_the_one_under_way(agent: Agent, runtime: FakeRuntime) -> None:
    await agent.apply(start_of(WEB, env=fake_env("stubborn"), grace_s=3600))
    await agent.until_state(WEB, "Running", "")
    await agent.apply(stop_with(3600, revision=2))
    await agent.until(WEB, lambda s: s.message.startswith("stop is at grace (3600 s) since "))
    await agent.apply(stop_with(3000, revision=3))
    await agent.until(WEB, lambda s: s.message.startswith("stop is at grace (3000 s) since "))
    await agent.apply(stop_with(0, revision=4))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.exit_code, ended.revision) == ("Succeeded", "Stopped", 137, 4)


async def test_a_hung_container_does_not_keep_another_from_starting_and_stopping(agent: Agent) -> None:
    await agent.apply(start_of(WEB, env=fake_env("stubborn"), grace_s=3600))
    await agent.until_state(WEB, "Running", "")
    await agent.apply(stop_with(3600, revision=2))
    await agent.until_state(WEB, "Terminating")
    await agent.apply(start_of(API))
    await agent.until_state(API, "Running", "")
    await agent.apply(stop_of(API))
    await agent.until_released(API)
    assert agent.calls.get_status(WEB).state == "Terminating"


async def test_a_log_that_the_runtime_does_not_reopen_does_not_keep_the_others_from_being_looked_at(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sync.ROTATE_S", 0.05)
    await agent.apply(start_of(WEB), start_of(API))
    await agent.until_state(WEB, "Running", "")
    api = await agent.until_state(API, "Running", "")
    (agent.logs / WEB / "0.log").unlink()
    runtime.faults.add(Fault("ReopenContainerLog", delay_s=60))
    clock.skip(11)
    async with asyncio.timeout(BOUND_S):
        while not runtime.faults.met:
            await asyncio.sleep(0.01)
    runtime.faults.lose_events = True
    runtime.world.end_container(api.container_id, 1, "Error")
    async with asyncio.timeout(BOUND_S):
        while agent.calls.get_status(API).restarts == 0:
            clock.skip(5)
            await asyncio.sleep(0.02)


async def test_a_late_sandbox_of_a_stopped_one_is_waited_for_by_the_next_life_of_the_agent_too(
    life: Life, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    runtime.faults.add(Fault("RunPodSandbox", delay_s=1.0, done_anyway=True, times=1))
    async with life() as agent:
        await agent.apply(start_of(WEB))
        await agent.until_state(WEB, "Pending", "SandboxFailed")
        await agent.apply(stop_of(WEB))
        await agent.until_state(WEB, "Failed")
    async with life() as agent:
        assert not agent.calls.get_status(WEB).released
        await asyncio.sleep(1.1)
        assert not agent.calls.get_status(WEB).released
        clock.skip(31)
        await agent.until_released(WEB)
        client = CriClient(runtime.endpoint)
        assert not await client.list_pod_sandboxes()
        await client.close()


async def until_released(agent: Agent, clock: SkippingClock, check: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(BOUND_S):
        while not agent.calls.get_status(WEB).released:
            check()
            clock.skip(SKIP_S)
            await asyncio.sleep(0.01)


def stop_with(grace_s: int, *, revision: int) -> wire.Stop:
    stop = stop_of(WEB, revision=revision)
    stop.termination_grace_s = grace_s
    return stop
