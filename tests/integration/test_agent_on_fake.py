"""The agent's core on the fake runtime: what people see of it, and what it refuses."""

import asyncio
import socket
import time
from collections import Counter
from typing import Any

import grpc
import pytest

from agent.calls import BadRequest, Fenced, NotHere
from cri.client import CriClient
from cri.fake import FakeRuntime, Fault
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.agents import API, CLUSTER, JOB, WEB, Agent, Life, SkippingClock, fake_env, runtime_has, start_of, stop_of
from support.ports import unused_port

ACCEPTED, REFUSED, BUSY = wire.ApplyOutcome.ACCEPTED, wire.ApplyOutcome.REFUSED, wire.ApplyOutcome.BUSY


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
    mapping = wire.PortMapping(port=80, host_port=unused_port(), host_ip="127.0.0.1", protocol="tcp")
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
            (wire.Fence(cluster_id="other", epoch=9), f"belongs to the cluster {CLUSTER}.*kakuri node release"),
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


async def log_of(agent: Agent, *, previous: bool = False, id_: str = WEB) -> bytes:
    request = wire.LogsRequest(allocation_id=id_, tail=-1, previous=previous)
    return b"".join([chunk async for chunk in agent.calls.log(request)])
