"""Each way that an agent itself breaks: killed, its ledger lost, its disk full. The fake runtime lives on meanwhile."""

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.entry import StopAsked
from cri.client import CriClient
from cri.fake import FakeRuntime
from cri.v1 import runtime_pb2 as pb
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import API, CLUSTER, JOB, WEB, Agent, Life, SkippingClock, fake_env, runtime_has, start_of, stop_of

ACCEPTED, REFUSED, BUSY = wire.ApplyOutcome.ACCEPTED, wire.ApplyOutcome.REFUSED, wire.ApplyOutcome.BUSY


async def test_a_killed_agent_adopts_what_runs_and_doubles_nothing(life: Life, runtime: FakeRuntime) -> None:
    ids = [f"web.{n}.0000000a" for n in range(10)]
    async with life() as agent:
        await agent.apply(*(start_of(i) for i in ids))
        before = {i: (await agent.until_state(i, "Running", "")).container_id for i in ids}
        instance = agent.observations.instance
    async with life() as agent:
        assert agent.observations.instance != instance
        report = await agent.calls.observe(wire.ObserveRequest(fence=agent.fence, instance=instance, since=5))
        assert report.full
        assert {s.allocation_id: (s.state, s.revision) for s in report.allocations} == dict.fromkeys(
            ids, ("Running", 1)
        )
        after = {i: (await agent.until(i, lambda s: s.started_at_ns > 0)) for i in ids}
        assert {i: s.container_id for i, s in after.items()} == before
        assert {s.restarts for s in after.values()} == {0}
    assert await runtime_has(runtime) == (Counter(ids), Counter(ids))


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.004, 0.006, 0.01, 0.02])
async def test_an_agent_killed_in_the_middle_of_a_start_goes_on_with_it(
    life: Life, runtime: FakeRuntime, after_s: float, clock: SkippingClock
) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB), start_of(JOB, env=fake_env("exit 3"), policy="Never"))
        await asyncio.sleep(after_s)
    async with life() as agent:
        running = await agent.until_state(WEB, "Running", "")
        assert running.restarts == 0
        ended = await agent.until_released(JOB)
        assert (ended.state, ended.exit_code) == ("Failed", 3)
    assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))


async def test_what_ended_while_nobody_looked_is_told_and_never_runs_again(
    life: Life, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    async with life() as agent:
        await agent.apply(start_of(JOB, policy="Never"), start_of(WEB))
        job = await agent.until_state(JOB, "Running", "")
        await agent.until_state(WEB, "Running", "")
    runtime.world.end_container(job.container_id, 7, "Error")
    async with life() as agent:
        ended = await agent.until_released(JOB)
        assert (ended.state, ended.reason, ended.exit_code) == ("Failed", "Error", 7)
    for _ in range(2):
        async with life() as agent:
            clock.skip(600)
            again = await agent.until_released(JOB)
            assert (again.state, again.exit_code) == ("Failed", 7)
    assert (await runtime_has(runtime))[0] == Counter([WEB])


async def test_a_job_whose_container_was_lost_by_the_runtime_is_not_run_a_second_time(
    life: Life, runtime: FakeRuntime
) -> None:
    async with life() as agent:
        await agent.apply(start_of(JOB, policy="Never"))
        await agent.until_state(JOB, "Running", "")
    await runtime.restart(keep_state=False)
    async with life() as agent:
        ended = await agent.until_released(JOB)
        assert (ended.state, ended.reason, ended.started_once) == ("Failed", "Error", True)
        assert "no longer in the runtime" in ended.message
    assert await runtime_has(runtime) == (Counter(), Counter())


async def test_a_lost_ledger_leaves_what_runs_alone_until_it_is_stopped(
    tmp_path: Path, life: Life, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB))
        await agent.until_state(WEB, "Running", "")
    (tmp_path / "ledger").unlink()
    async with life() as agent:
        found = await agent.until_state(WEB, "Running")
        assert (found.revision, found.origin, found.workload_id) == (0, CLUSTER, "web")
        clock.skip(60)
        await asyncio.sleep(0.1)
        assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))
        assert [o.result for o in await agent.apply(stop_of(WEB, "NodeLost"))] == [ACCEPTED]
        ended = await agent.until_released(WEB)
        assert (ended.state, ended.reason, ended.revision) == ("Failed", "NodeLost", 2)
    assert await runtime_has(runtime) == (Counter(), Counter())


async def test_what_is_not_ours_is_never_touched(agent: Agent, runtime: FakeRuntime, clock: SkippingClock) -> None:
    client = CriClient(runtime.endpoint)
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="theirs", namespace="x", uid="y"))
    await client.run_pod_sandbox(config, "runc")
    await client.close()
    clock.skip(60)
    await asyncio.sleep(0.1)
    assert (await runtime_has(runtime))[0] == Counter(["theirs"])
    assert not list(agent.observations.all())


async def test_with_a_full_disk_starts_wait_stops_go_on_and_ends_are_kept(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.apply(start_of(WEB), start_of(JOB, policy="Never"))
    await agent.until_state(WEB, "Running", "")
    job = await agent.until_state(JOB, "Running", "")

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(agent.ledger._file, "append", full)
        disk.setattr(agent.ledger._file, "rewrite", full)
        runtime.world.end_container(job.container_id, 5, "Error")
        outcomes = await agent.apply(start_of(API), stop_of(WEB))
        assert [(o.result, "No space" in o.message) for o in outcomes] == [(BUSY, True), (BUSY, True)]
        await agent.until_state(WEB, "Terminating")
        await until(lambda: runtime_runs(runtime, 0))
        # The containers that ended are the only record of it, so they stay.
        assert (await runtime_has(runtime))[0] == Counter([WEB, JOB])
    clock.skip(60)
    ended = await agent.until_released(JOB)
    assert (ended.state, ended.exit_code) == ("Failed", 5)
    await agent.until_released(WEB)
    assert [o.result for o in await agent.apply(start_of(API))] == [ACCEPTED]
    await agent.until_state(API, "Running", "")


async def test_a_stop_that_the_ledger_took_is_carried_out_by_the_next_life(life: Life, runtime: FakeRuntime) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB))
        await agent.until_state(WEB, "Running", "")
        await agent.ledger.record(WEB, StopAsked(2, "Deleted", 1))
    async with life() as agent:
        await agent.until_released(WEB)
    assert await runtime_has(runtime) == (Counter(), Counter())


async def runtime_runs(runtime: FakeRuntime, count: int) -> bool:
    return sum((await runtime_has(runtime))[1].values()) == count


async def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
