"""The agent's core on the fake runtime: what people see of it, and each way that runtimes and agents break."""

import asyncio
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.calls import BadRequest, Fenced, NotHere
from agent.entry import StopAsked
from cri.client import CriClient
from cri.fake import FakeRuntime, Fault
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import CLUSTER, Agent, SkippingClock, fake_env, living_agent, start_of

WEB, API, JOB = "web.0.0000000a", "api.0.0000000b", "job.0.0000000c"
ACCEPTED, REFUSED, BUSY = wire.ApplyOutcome.ACCEPTED, wire.ApplyOutcome.REFUSED, wire.ApplyOutcome.BUSY
Life = Callable[[], AbstractAsyncContextManager[Agent]]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime(tmp_path / "cri.sock", images=["demo:1"]) as fake:
        yield fake


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


@pytest.fixture
def life(tmp_path: Path, runtime: FakeRuntime, clock: SkippingClock) -> Life:
    """Each call is another life of the same agent; the end of its block is a kill."""
    return lambda: living_agent(tmp_path, [runtime.endpoint], clock)


@pytest.fixture
async def agent(life: Life) -> AsyncIterator[Agent]:
    async with life() as alive:
        yield alive


def stop_of(id_: str, reason: str = "Deleted", revision: int = 2) -> wire.Stop:
    return wire.Stop(allocation_id=id_, revision=revision, reason=reason, termination_grace_s=1)


async def runtime_has(runtime: FakeRuntime) -> tuple[Counter[str], Counter[str]]:
    """(sandboxes, running containers), by allocation."""
    client = CriClient(runtime.endpoint)
    try:
        sandboxes = Counter(s.metadata.name for s in await client.list_pod_sandboxes())
        containers = [c for c in await client.list_containers() if c.state == 1]
        return sandboxes, Counter(c.labels["kakuri.dev/allocation"] for c in containers)
    finally:
        await client.close()


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name in ("run_pod_sandbox", "create_container", "start_container", "list_containers", "container_status"):
        real = getattr(CriClient, name)

        def counted(self: CriClient, *args: Any, _real: Any = real, _name: str = name, **how: Any) -> Any:
            calls[_name] += 1
            return _real(self, *args, **how)

        monkeypatch.setattr(CriClient, name, counted)
    return calls


# what people see


async def test_a_start_runs_a_stop_ends_it_and_a_removal_forgets_it(agent: Agent, runtime: FakeRuntime) -> None:
    assert [o.result for o in await agent.apply(start_of(WEB))] == [ACCEPTED]
    running = await agent.until_state(WEB, "Running")
    assert (running.reason, running.revision, running.origin) == ("", 1, CLUSTER)
    assert running.started_once
    assert running.simulated
    assert running.started_at_ns
    assert (running.handler, running.workload_id, running.image) == ("runc", "web", "demo:1")
    assert running.ip
    await agent.apply(stop_of(WEB))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.exit_code, ended.revision) == ("Succeeded", "Stopped", 143, 2)
    assert await runtime_has(runtime) == (Counter(), Counter())
    assert (agent.logs / WEB).exists()
    assert [o.result for o in await agent.apply(wire.Remove(allocation_id=WEB, revision=3))] == [ACCEPTED]
    assert not (agent.logs / WEB).exists()
    with pytest.raises(NotHere):
        agent.calls.get_status(WEB)


async def test_the_way_to_running_makes_no_needless_call(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    await agent.apply(start_of(WEB))
    await agent.until(WEB, lambda s: s.started_at_ns > 0)
    assert calls == {"run_pod_sandbox": 1, "create_container": 1, "start_container": 1, "container_status": 1}


@pytest.mark.parametrize(
    ("script", "policy", "state", "reason", "code"),
    [
        ("exit 0", "Never", "Succeeded", "Completed", 0),
        ("exit 3", "Never", "Failed", "Error", 3),
        ("exit 0", "OnFailure", "Succeeded", "Completed", 0),
        ("oom", "Never", "Failed", "OOMKilled", 137),
        ("no start", "Never", "Failed", "StartError", 128),
    ],
)
async def test_a_job_ends_as_its_container_did(
    agent: Agent, script: str, policy: str, state: str, reason: str, code: int
) -> None:
    await agent.apply(start_of(JOB, env=fake_env(script), policy=policy))
    ended = await agent.until_released(JOB)
    assert (ended.state, ended.reason, ended.exit_code) == (state, reason, code)
    assert ended.started_once is (reason != "StartError")
    assert ended.restarts == 0


async def test_a_failing_job_is_tried_again_with_growing_waits_until_its_limit(
    agent: Agent, clock: SkippingClock
) -> None:
    await agent.apply(start_of(JOB, env=fake_env("exit 3"), policy="OnFailure", limit=3))
    for attempt, wait_s in ((1, 10), (2, 20)):
        waiting = await agent.until(
            JOB,
            lambda s, n=attempt, w=wait_s: s.restarts == n and f"restarting {w} s" in s.message,  # type: ignore[misc]
        )
        assert (waiting.state, waiting.reason, waiting.exit_code) == ("Running", "CrashLoopBackOff", 3)
        clock.skip(wait_s)
    ended = await agent.until_released(JOB)
    assert (ended.state, ended.reason, ended.restarts) == ("Failed", "BackoffLimitExceeded", 3)
    assert "restarted 3 times" in ended.message
    assert "exit code 3" in ended.message


async def test_a_container_killed_behind_our_back_runs_again_at_once_and_says_why(
    agent: Agent, runtime: FakeRuntime
) -> None:
    await agent.apply(start_of(WEB))
    first = await agent.until_state(WEB, "Running", "")
    runtime.world.end_container(first.container_id, 137, "Error")
    second = await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason)
    assert second.state == "Running"
    assert second.container_id != first.container_id
    assert second.sandbox_id == first.sandbox_id
    assert "exit code 137" in second.message
    assert (agent.logs / WEB / "0.log").exists()


async def test_an_image_that_is_not_there_is_tried_for_ever_with_the_registrys_words(
    agent: Agent, clock: SkippingClock, runtime: FakeRuntime
) -> None:
    await agent.apply(start_of(WEB, image="missing:1"))
    waiting = await agent.until_state(WEB, "Pending", "ImagePullBackOff")
    assert "missing" in waiting.message
    for _ in range(3):
        clock.skip(300)
    assert await runtime_has(runtime) == (Counter(), Counter())
    await agent.apply(stop_of(WEB))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.started_once) == ("Failed", "Stopped", False)


async def test_a_slow_pull_does_not_hold_up_a_stop(agent: Agent, runtime: FakeRuntime) -> None:
    runtime.faults.add(Fault("PullImage", delay_s=60))
    await agent.apply(start_of(WEB, image="slow:1"))
    await agent.until_state(WEB, "Pending", "Pulling")
    await agent.apply(stop_of(WEB))
    assert (await agent.until_released(WEB)).state == "Failed"


async def test_one_image_is_pulled_once_for_all_who_wait(agent: Agent, runtime: FakeRuntime) -> None:
    runtime.faults.add(Fault("PullImage", delay_s=0.2, times=1))
    runtime.faults.add(Fault("PullImage", code=grpc.StatusCode.INTERNAL, message="asked twice"))
    ids = [f"web.{n}.0000000a" for n in range(5)]
    await agent.apply(*(start_of(i, image="new:1") for i in ids))
    for id_ in ids:
        await agent.until_state(id_, "Running", "")


async def test_a_taken_host_port_says_who_took_it_and_ends_so_that_another_node_is_tried(
    agent: Agent, clock: SkippingClock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        mapping = wire.PortMapping(port=80, host_port=port, host_ip="127.0.0.1", protocol="tcp")
        await agent.apply(start_of(WEB, ports=[mapping]))
        waiting = await agent.until_state(WEB, "Pending", "HostPortInUse")
        assert f"127.0.0.1:{port}/tcp is in use" in waiting.message
        for _ in range(2):
            clock.skip(30)
            await asyncio.sleep(0.05)
        ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.started_once) == ("Failed", "HostPortInUse", False)


async def test_a_host_port_that_came_free_is_taken(agent: Agent, clock: SkippingClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        mapping = wire.PortMapping(port=80, host_port=server.getsockname()[1], host_ip="0.0.0.0", protocol="tcp")
        await agent.apply(start_of(WEB, ports=[mapping]))
        await agent.until_state(WEB, "Pending", "HostPortInUse")
    clock.skip(3)
    await agent.until_state(WEB, "Running", "")


async def test_two_of_ours_never_share_a_host_port(agent: Agent) -> None:
    mapping = wire.PortMapping(port=80, host_port=free_port(), host_ip="127.0.0.1", protocol="tcp")
    await agent.apply(start_of(WEB, ports=[mapping]))
    await agent.until_state(WEB, "Running", "")
    await agent.apply(start_of(API, ports=[mapping]))
    waiting = await agent.until_state(API, "Pending", "HostPortInUse")
    assert WEB in waiting.message


async def test_in_place_fields_follow_a_newer_revision(agent: Agent, runtime: FakeRuntime) -> None:
    await agent.apply(start_of(WEB))
    first = await agent.until_state(WEB, "Running", "")
    await agent.apply(start_of(WEB, revision=2, policy="Never"))
    second = await agent.until(WEB, lambda s: s.revision == 2)
    assert second.container_id == first.container_id
    runtime.world.end_container(first.container_id, 0, "Completed")
    assert (await agent.until_released(WEB)).state == "Succeeded"


async def test_a_handler_that_reports_another_is_not_run_on(agent: Agent, runtime: FakeRuntime) -> None:
    runtime.faults.report_handler = "crun"
    await agent.apply(start_of(WEB))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.started_once) == ("Failed", "SandboxFailed", False)
    assert "crun" in ended.message


# what is refused


async def test_what_this_agent_cannot_do_is_refused_with_why(agent: Agent) -> None:
    outcomes = await agent.apply(
        start_of(WEB, features=["seccomp-v9"]),
        start_of(API, handler="kata"),
        start_of(JOB, policy="Sometimes"),
        start_of("web.1.0000000d"),
    )
    assert [(o.result, o.reason) for o in outcomes] == [
        (REFUSED, "IncompatibleAgent"),
        (REFUSED, "Refused"),
        (REFUSED, "Refused"),
        (ACCEPTED, ""),
    ]
    assert "seccomp-v9" in outcomes[0].message
    assert "kata" in outcomes[1].message


async def test_another_cluster_an_older_epoch_and_another_ledger_are_refused(life: Life) -> None:
    async with life() as agent:
        agent.epoch = 5
        await agent.apply(start_of(WEB))
    async with life() as agent:
        for fence, words in (
            (wire.Fence(cluster_id="other", epoch=9), "bound"),
            (wire.Fence(cluster_id=CLUSTER, epoch=4), "over"),
        ):
            with pytest.raises(Fenced, match=words):
                await agent.calls.apply(wire.ApplyRequest(fence=fence, stops=[stop_of(WEB)]))
            with pytest.raises(Fenced, match=words):
                await agent.calls.observe(wire.ObserveRequest(fence=fence))
        with pytest.raises(BadRequest):
            await agent.calls.apply(wire.ApplyRequest())
        agent.epoch = 6
        with pytest.raises(Fenced, match="lost"):
            await agent.calls.apply(wire.ApplyRequest(fence=agent.fence, ledger_uid="x", starts=[start_of(API)]))
        await agent.until_state(WEB, "Running", "")


async def test_a_start_that_comes_after_its_stop_is_refused(agent: Agent, runtime: FakeRuntime) -> None:
    await agent.apply(stop_of(WEB))
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.revision) == ("Failed", "Deleted", 2)
    assert [o.result for o in await agent.apply(start_of(WEB))] == [REFUSED]
    assert await runtime_has(runtime) == (Counter(), Counter())


async def test_a_start_that_comes_after_its_removal_is_refused_in_every_life(life: Life) -> None:
    async with life() as agent:
        await agent.apply(start_of(JOB, env=fake_env("exit 0"), policy="Never"))
        await agent.until_released(JOB)
        await agent.apply(wire.Remove(allocation_id=JOB))
        assert [o.result for o in await agent.apply(start_of(JOB))] == [REFUSED]
    async with life() as agent:
        assert [o.result for o in await agent.apply(start_of(JOB))] == [REFUSED]


async def test_a_removal_waits_for_the_end_and_is_done_when_nothing_is_there(agent: Agent) -> None:
    await agent.apply(start_of(WEB))
    outcomes = await agent.apply(wire.Remove(allocation_id=WEB), wire.Remove(allocation_id=API))
    assert [o.result for o in outcomes] == [BUSY, ACCEPTED]


# how runtimes break


async def test_a_sandbox_that_comes_up_after_the_deadline_is_adopted_and_not_doubled(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.client.RUN_DEADLINE_S", 0.1)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=0.3, done_anyway=True, times=1))
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Pending", "SandboxFailed")
    await asyncio.sleep(0.4)
    clock.skip(10)
    await agent.until_state(WEB, "Running", "")
    assert await runtime_has(runtime) == (Counter([WEB]), Counter([WEB]))


async def test_a_stopped_one_is_not_released_before_its_late_sandbox_is_gone(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri.client.RUN_DEADLINE_S", 0.1)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=0.4, done_anyway=True, times=1))
    await agent.apply(start_of(WEB))
    await agent.until_state(WEB, "Pending", "SandboxFailed")
    await agent.apply(stop_of(WEB))
    ended = await agent.until_state(WEB, "Failed")
    assert not ended.released
    await asyncio.sleep(0.5)
    assert (await runtime_has(runtime))[0] == Counter([WEB])
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
    for _ in range(4):
        waiting = await agent.until(WEB, lambda s: s.reason == "SandboxFailed")
        assert "no CNI plugin" in waiting.message
        clock.skip(60)
        await asyncio.sleep(0.05)
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason, ended.started_once) == ("Failed", "SandboxFailed", False)


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
    await asyncio.sleep(0.05)
    await agent.apply(start_of(API))
    await agent.until_state(API, "Running", "")
    assert agent.calls.get_status(WEB).state == "Pending"


# how agents break


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
    from cri.v1 import runtime_pb2 as pb

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


async def test_fifty_starts_at_once_all_run(agent: Agent, runtime: FakeRuntime) -> None:
    ids = [f"web.{n}.0000000a" for n in range(50)]
    began = time.monotonic()
    await agent.apply(*(start_of(i) for i in ids))
    for id_ in ids:
        await agent.until_state(id_, "Running", "")
    assert time.monotonic() - began < 10
    await agent.apply(*(stop_of(i) for i in ids))
    for id_ in ids:
        await agent.until_released(id_)
    assert await runtime_has(runtime) == (Counter(), Counter())


async def test_an_idle_agent_makes_two_calls_a_relist_however_much_runs(
    agent: Agent, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"web.{n}.0000000a" for n in range(20)]
    await agent.apply(*(start_of(i) for i in ids))
    for id_ in ids:
        await agent.until(id_, lambda s: s.started_at_ns > 0)
    calls = count_calls(monkeypatch)
    revision = agent.observations._revision
    for _ in range(3):
        clock.skip(10.1)
        await asyncio.sleep(0.1)
    assert calls == {"list_containers": 3}
    assert agent.observations._revision == revision


async def test_a_long_poll_answers_with_what_changed_and_what_went(agent: Agent) -> None:
    first = await agent.calls.observe(wire.ObserveRequest(fence=agent.fence))
    assert first.full
    assert first.ledger_uid == agent.ledger.uid
    poll = asyncio.ensure_future(
        agent.calls.observe(
            wire.ObserveRequest(fence=agent.fence, instance=first.instance, since=first.revision, wait_s=5)
        )
    )
    await asyncio.sleep(0.02)
    assert not poll.done()
    await agent.apply(start_of(JOB, env=fake_env("exit 0"), policy="Never"))
    told = await poll
    assert not told.full
    assert [s.allocation_id for s in told.allocations] == [JOB]
    await agent.until_released(JOB)
    await agent.apply(wire.Remove(allocation_id=JOB))
    await asyncio.sleep(0.02)
    last = await agent.calls.observe(
        wire.ObserveRequest(fence=agent.fence, instance=told.instance, since=told.revision, wait_s=0)
    )
    assert list(last.gone) == [JOB]
    assert not last.allocations
    empty = await agent.calls.observe(
        wire.ObserveRequest(fence=agent.fence, instance=last.instance, since=last.revision, wait_s=0.05)
    )
    assert (list(empty.gone), list(empty.allocations), empty.full) == ([], [], False)


async def test_logs_of_this_run_and_of_the_one_before(agent: Agent, runtime: FakeRuntime) -> None:
    await agent.apply(start_of(WEB))
    first = await agent.until_state(WEB, "Running", "")
    with pytest.raises(NotHere, match="no earlier run"):
        await log_of(agent, previous=True)
    runtime.world.end_container(first.container_id, 1, "Error")
    await agent.until(WEB, lambda s: s.restarts == 1 and not s.reason)
    assert b"simulated" in await log_of(agent, previous=True)
    assert b"simulated" in await log_of(agent)
    with pytest.raises(NotHere):
        await log_of(agent, id_="../../etc")


async def log_of(agent: Agent, *, previous: bool = False, id_: str = WEB) -> bytes:
    request = wire.LogsRequest(allocation_id=id_, tail=-1, previous=previous)
    return b"".join([chunk async for chunk in agent.calls.log(request)])


async def runtime_runs(runtime: FakeRuntime, count: int) -> bool:
    return sum((await runtime_has(runtime))[1].values()) == count


async def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
