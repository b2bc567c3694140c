"""Each way that a runtime breaks, on the fake one, and what the agent makes of it."""

import asyncio
from collections import Counter

import grpc
import pytest

from cri.fake import FakeRuntime, Fault
from support.agents import API, BOUND_S, WEB, Agent, Life, SkippingClock, runtime_has, start_of, stop_of


async def until_it_has(runtime: FakeRuntime, id_: str) -> None:
    """The sandbox is there, however late."""
    async with asyncio.timeout(BOUND_S):
        while (await runtime_has(runtime))[0] != Counter([id_]):
            await asyncio.sleep(0.02)


async def test_a_sandbox_that_comes_up_after_the_deadline_is_adopted_and_not_doubled(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.client.RUN_DEADLINE_S", 0.1)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=0.3, done_anyway=True, times=1))
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Pending", "SandboxFailed")
    await until_it_has(runtime, WEB)
    clock.skip(10)
    await agent.until_state(WEB, "Running", "")
    assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))


async def test_a_stopped_one_is_not_released_before_its_late_sandbox_is_gone(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.client.RUN_DEADLINE_S", 0.1)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=1.5, done_anyway=True, times=1))
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Pending", "SandboxFailed")
    await agent.apply(stop_of(WEB))
    ended = await agent.until_state(WEB, "Failed")
    assert not ended.released
    await until_it_has(runtime, WEB)
    clock.skip(31)
    await agent.until_released(WEB)
    assert (await runtime_has(runtime))[0] == Counter()


@pytest.mark.parametrize("method", ["RunPodSandbox", "CreateContainer", "StartContainer"])
async def test_a_reply_that_was_lost_doubles_nothing(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, method: str
) -> None:
    runtime.faults.add(Fault(method, code=grpc.StatusCode.UNAVAILABLE, done_anyway=True, times=1))
    await agent.apply(start_of(WEB))
    running = await agent.until_state(WEB, "Running", "")
    assert running.restarts == 0
    assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))


async def test_a_broken_sandbox_is_tried_four_times_and_ends_never_started(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    runtime.faults.add(Fault("RunPodSandbox", code=grpc.StatusCode.UNKNOWN, message="no CNI plugin"))
    await agent.apply(start_of(WEB), start_of(API, handler="runsc"))
    waiting = await agent.until_state(WEB, "Pending", "SandboxFailed")
    assert "no CNI plugin" in waiting.message
    async with asyncio.timeout(BOUND_S):
        while agent.calls.get_status(WEB).state != "Failed":
            clock.skip(60)
            await asyncio.sleep(0.02)
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.started_once) == ("Failed", "SandboxFailed", False)
    assert "gave up after 4 tries" in ended.message


async def test_a_dead_sandbox_is_replaced_as_the_next_attempt(agent: Agent, runtime: FakeRuntime) -> None:
    await agent.apply(start_of(WEB))
    first = await agent.until_state(WEB, "Running", "")
    runtime.world.stop_sandbox(first.sandbox_id)
    second = await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason)
    assert second.sandbox_id != first.sandbox_id
    assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))


async def test_a_lost_event_is_found_out_by_relisting(agent: Agent, runtime: FakeRuntime, clock: SkippingClock) -> None:
    await agent.apply(start_of(WEB))
    first = await agent.until_state(WEB, "Running", "")
    runtime.faults.lose_events = True
    runtime.world.end_container(first.container_id, 1, "Error")
    await asyncio.sleep(0.1)
    assert agent.calls.get_status(WEB).restarts == 0
    clock.skip(11)
    await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason)


async def test_a_runtime_without_events_is_relisted_more_often(
    runtime: FakeRuntime, life: Life, clock: SkippingClock
) -> None:
    runtime.faults.no_events = True
    async with life() as agent:
        await agent.apply(start_of(WEB))
        first = await agent.until_state(WEB, "Running", "")
        runtime.world.end_container(first.container_id, 1, "Error")
        clock.skip(2.1)
        await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason)


async def test_a_runtime_that_restarts_disturbs_nothing_that_runs(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    ids = [f"web.{n}.0000000a" for n in range(5)]
    await agent.apply(*(start_of(i) for i in ids))
    before = {i: (await agent.until_state(i, "Running", "")).container_id for i in ids}
    await runtime.restart()
    runtime.world.end_container(before[ids[0]], 1, "Error")
    await agent.until(ids[0], lambda s: s.restarts == 1 and not s.reason)
    after = {i: agent.calls.get_status(i) for i in ids}
    assert {i: after[i].container_id for i in ids[1:]} == {i: before[i] for i in ids[1:]}
    assert {after[i].state for i in ids} == {"Running"}


async def test_a_hung_runtime_call_of_one_harms_no_other(agent: Agent, runtime: FakeRuntime) -> None:
    runtime.faults.add(Fault("CreateContainer", delay_s=60, times=1))
    await agent.apply(start_of(WEB))
    await until_it_has(runtime, WEB)
    await agent.apply(start_of(API))
    await agent.until_state(API, "Running", "")
    assert agent.calls.get_status(WEB).state == "Pending"
