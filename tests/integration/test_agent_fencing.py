"""What binds an agent to its controller: the node's lease as calls use it, and the release of a node. On the fake."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from agent.calls import BadRequest, Fenced, NotNow
from agent.endpoints import Endpoint
from agent.lease import FENCE_FILE, decode
from cri.client import CriClient
from cri.fake import FakeRuntime
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.model import BY_HAND, FEATURE_LEASE
from support.agents import (
    API,
    BOUND_S,
    CLUSTER,
    WEB,
    Agent,
    Life,
    SkippingClock,
    living_agent,
    runtime_has,
    start_of,
    stop_of,
)
from support.steps import ENTRY

OTHER = "cluster-b"


def replaced(id_: str = WEB, **changes: object) -> wire.Start:
    return start_of(id_, **{"on_disconnect": "replace", "features": [FEATURE_LEASE], **changes})


async def observed(agent: Agent, **more: object) -> wire.ObserveResponse:
    return await agent.calls.observe(wire.ObserveRequest(fence=agent.fence, **more))  # type: ignore[arg-type]


async def grant(agent: Agent, *, lease_s: float = 30, heard: int = 0) -> wire.ObserveResponse:
    """A controller hears, and says so."""
    first = await observed(agent)
    return await observed(
        agent, instance=first.instance, lease_s=lease_s, stop_bound_s=10, heard=heard or first.sent_at_ns
    )


async def test_a_start_waits_for_the_lease_and_says_so(agent: Agent, runtime: FakeRuntime) -> None:
    [outcome] = await agent.apply(replaced())
    assert outcome.result == wire.ApplyOutcome.ACCEPTED
    waiting = await agent.until(WEB, lambda s: "no controller has granted one yet" in s.message)
    assert (waiting.state, waiting.reason, waiting.workload_uid) == ("Pending", "Starting", "uid-web")
    assert not (await runtime_has(runtime))[0]
    await grant(agent)
    await agent.until_state(WEB, "Running")


async def test_what_was_heard_of_another_instance_or_not_sent_yet_grants_nothing(
    agent: Agent, runtime: FakeRuntime
) -> None:
    await agent.apply(replaced())
    sent_at_ns = (await observed(agent)).sent_at_ns
    await observed(agent, instance="another life", lease_s=30, stop_bound_s=10, heard=sent_at_ns)
    await grant(agent, heard=sent_at_ns + 10**12)
    await grant(agent, lease_s=0)
    assert (await agent.until(WEB, lambda _: True)).state == "Pending"
    assert not (await runtime_has(runtime))[0]


async def test_when_no_controller_is_heard_only_what_is_bound_ends(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    await agent.apply(replaced(), start_of(API))
    await grant(agent)
    await agent.until_state(WEB, "Running")
    await agent.until_state(API, "Running")
    clock.skip(31)
    ended = await agent.until_released(WEB)
    assert (ended.state, ended.reason) == ("Failed", "NodeLost")
    assert "no controller was heard of since 20" in ended.message
    assert dict((await runtime_has(runtime))[1]) == {API: 1}
    assert (await agent.until(API, lambda _: True)).state == "Running"


async def test_a_lease_that_is_renewed_keeps_it_running(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    await agent.apply(replaced())
    for _ in range(4):
        await grant(agent)
        await agent.until_state(WEB, "Running")
        clock.skip(25)
    assert (await agent.until(WEB, lambda _: True)).restarts == 0


async def test_a_word_that_was_long_on_its_way_prolongs_nothing(agent: Agent, clock: SkippingClock) -> None:
    await agent.apply(replaced())
    heard = (await grant(agent)).sent_at_ns
    await agent.until_state(WEB, "Running")
    clock.skip(20)
    await grant(agent, heard=heard)
    clock.skip(11)
    assert (await agent.until_released(WEB)).reason == "NodeLost"


async def test_a_crash_is_not_followed_by_a_restart_while_no_lease_is_held(
    tmp_path: Path, runtime: FakeRuntime, clock: SkippingClock, life: Life
) -> None:
    async with life() as agent:
        await agent.apply(replaced())
        await grant(agent)
        await agent.until_state(WEB, "Running")
    clock.skip(31)  # nobody was there to see it
    async with life() as agent:
        assert (await agent.until_released(WEB)).reason == "NodeLost"
        assert not (await runtime_has(runtime))[0]
        await grant(agent)
        [outcome] = await agent.apply(replaced("web.0.0000000b"))
        assert outcome.result == wire.ApplyOutcome.ACCEPTED
        await agent.until_state("web.0.0000000b", "Running")
    assert decode((tmp_path / FENCE_FILE).read_bytes()).bound.keys() == {"web.0.0000000b"}


async def test_an_agent_that_was_held_up_just_before_a_start_does_not_start(
    agent: Agent, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = agent.calls._lease
    bind = lease.bind

    async def held_up(id_: str, ids: frozenset[str] = frozenset()) -> None:
        await bind(id_, ids)
        if ids:
            clock.skip(31)

    monkeypatch.setattr(lease, "bind", held_up)
    await agent.apply(replaced())
    await grant(agent)
    ended = await agent.until_released(WEB)
    assert (ended.reason, ended.started_once) == ("NodeLost", False)


async def test_what_runs_already_can_be_bound_and_let_go(
    agent: Agent, runtime: FakeRuntime, clock: SkippingClock, tmp_path: Path
) -> None:
    await agent.apply(start_of(WEB), start_of(API))
    running = await agent.until(WEB, lambda s: s.state == "Running" and bool(s.container_id))
    [outcome] = await agent.apply(replaced(revision=2))
    assert (outcome.result, outcome.reason) == (wire.ApplyOutcome.BUSY, "Unleased")
    await grant(agent)
    await agent.until(API, lambda s: s.state == "Running")
    async with asyncio.timeout(BOUND_S):  # the grant is used a moment after it came
        while any(o.result for o in await agent.apply(replaced(revision=2), replaced(API, revision=2))):
            await asyncio.sleep(0.01)
    fence = decode((tmp_path / FENCE_FILE).read_bytes())
    assert fence.bound[WEB] == {running.sandbox_id, running.container_id}
    await agent.apply(start_of(API, revision=3))
    assert decode((tmp_path / FENCE_FILE).read_bytes()).bound.keys() == {WEB}
    clock.skip(31)
    assert (await agent.until_released(WEB)).reason == "NodeLost"
    assert (await agent.until(API, lambda _: True)).state == "Running"


async def test_a_zone_cannot_be_bound_to_the_lease(tmp_path: Path, runtime: FakeRuntime, clock: SkippingClock) -> None:
    def real(client: CriClient) -> Endpoint:
        return Endpoint(client, ("runc", "edera"))

    async with living_agent(tmp_path, [runtime.endpoint], clock, endpoint=real) as agent:
        [zone] = await agent.apply(replaced(handler="edera"))
        assert (zone.result, zone.reason) == (wire.ApplyOutcome.REFUSED, "IncompatibleAgent")
        assert "zones of Edera are no processes of this host" in zone.message
        [kept] = await agent.apply(start_of(API, handler="edera"))
        assert kept.result == wire.ApplyOutcome.ACCEPTED
        assert agent.calls.features == (FEATURE_LEASE,)


async def test_what_an_agent_lacks_or_does_not_know_is_refused_in_words(agent: Agent) -> None:
    [newer] = await agent.apply(start_of(WEB, features=[FEATURE_LEASE, "teleport"]))
    assert (newer.reason, newer.message) == ("IncompatibleAgent", "this agent lacks teleport; upgrade it")
    [unknown] = await agent.apply(replaced(on_disconnect="migrate"))
    assert (unknown.result, unknown.reason) == (wire.ApplyOutcome.REFUSED, "Refused")
    assert "'migrate' is unknown" in unknown.message


async def release(agent: Agent, *, by: str = OTHER, held_by: str = CLUSTER, stop: bool = False) -> wire.ReleaseResponse:
    return await agent.calls.release(
        wire.ReleaseRequest(fence=wire.Fence(cluster_id=by, epoch=1), held_by=held_by, stop=stop)
    )


async def test_an_agent_of_another_cluster_says_how_to_take_it_over(agent: Agent) -> None:
    await agent.apply(start_of(WEB))
    with pytest.raises(Fenced, match=f"kakuri node release NODE --from {CLUSTER}"):
        await agent.calls.observe(wire.ObserveRequest(fence=wire.Fence(cluster_id=OTHER, epoch=9)))
    with pytest.raises(Fenced, match=f"belongs to the cluster {CLUSTER}, not to cluster-c"):
        await release(agent, held_by="cluster-c", stop=True)
    with pytest.raises(BadRequest):
        await release(agent, by="")
    assert (await agent.until_state(WEB, "Running")).revision == 1


async def test_an_agent_is_released_once_nothing_of_its_cluster_is_left(life: Life, runtime: FakeRuntime) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB), stop_of("gone.0.0000000d"))
        hand = await start_by_hand(agent)
        await agent.until_state(WEB, "Running")
        await agent.until_released("gone.0.0000000d")
        left = await release(agent)
        assert (left.released, list(left.left)) == (False, [WEB])
        assert (await agent.until(WEB, lambda _: True)).state == "Running"
        left = await release(agent, stop=True)
        assert (left.released, list(left.left)) == (False, [WEB])
        stopped = await agent.until_released(WEB)
        assert (stopped.state, stopped.reason) == ("Succeeded", "Stopped")
        assert (await release(agent, stop=True)).released
        assert list(agent.ledger.entries) == [hand]
        assert (await release(agent)).released
    async with life() as agent:
        assert list(agent.ledger.entries) == [hand]
        fence = wire.Fence(cluster_id=OTHER, epoch=1)
        [outcome] = (
            await agent.calls.apply(wire.ApplyRequest(fence=fence, ledger_uid=agent.ledger.uid, starts=[start_of(API)]))
        ).outcomes
        assert outcome.result == wire.ApplyOutcome.ACCEPTED
        with pytest.raises(Fenced):
            await agent.apply(start_of(WEB))
        [late] = (
            await agent.calls.apply(wire.ApplyRequest(fence=fence, ledger_uid=agent.ledger.uid, starts=[start_of(WEB)]))
        ).outcomes
        assert late.message == "it has ended and was removed"


async def test_an_older_epoch_of_the_same_cluster_releases_nothing(agent: Agent) -> None:
    agent.epoch = 3
    await agent.apply(start_of(WEB))
    with pytest.raises(Fenced, match="epoch 1 is over"):
        await release(agent, by=CLUSTER, stop=True)


async def test_what_the_ledger_lost_is_stopped_by_a_release_too(
    life: Life, runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB))
        await agent.until_state(WEB, "Running")
    (tmp_path / "ledger").unlink()
    async with life() as agent:
        await agent.apply(start_of(API))  # binds it again
        assert set((await release(agent)).left) == {API, WEB}
        await release(agent, stop=True)
        await agent.until_released(WEB)
        await agent.until_released(API)
        assert (await release(agent)).released
    assert not (await runtime_has(runtime))[0]


async def test_what_a_lost_ledger_does_not_even_know_the_holder_of_is_not_released_before_it_has_ended(
    life: Life, runtime: FakeRuntime, tmp_path: Path
) -> None:
    async with life() as agent:
        await agent.apply(start_of(WEB))
        await agent.until_state(WEB, "Running")
    (tmp_path / "ledger").unlink()
    async with life() as agent:
        assert list((await release(agent)).left) == [WEB]
        assert not (await release(agent, stop=True)).released
        await agent.until_released(WEB)
        assert (await release(agent)).released
        assert not agent.ledger.entries
    assert not (await runtime_has(runtime))[0]


async def test_nothing_is_released_while_a_runtime_does_not_say_what_it_has(agent: Agent) -> None:
    await agent.apply(stop_of(WEB))
    await agent.until_released(WEB)
    agent.sync.listed_all = False
    with pytest.raises(NotNow, match="does not say what it has"):
        await release(agent)
    await agent.sync.relist()
    assert (await release(agent)).released


async def test_of_two_clusters_that_come_at_once_one_gets_the_agent(agent: Agent) -> None:
    fences = [wire.Fence(cluster_id=id_, epoch=1) for id_ in (CLUSTER, OTHER)]
    requests = [
        wire.ApplyRequest(fence=fence, ledger_uid=agent.ledger.uid, starts=[start_of(id_)])
        for fence, id_ in zip(fences, (WEB, API), strict=True)
    ]
    answers = await asyncio.gather(*map(agent.calls.apply, requests), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["ApplyResponse", "Fenced"]
    assert {e.origin for e in agent.ledger.entries.values()} == {agent.ledger.cluster_id}


async def test_a_start_that_comes_while_the_agent_is_released_is_not_accepted(agent: Agent) -> None:
    await agent.apply(stop_of(API))
    await agent.until_released(API)
    releasing = asyncio.ensure_future(release(agent))
    await asyncio.sleep(0)
    [outcome] = await agent.apply(start_of(WEB))
    assert (outcome.result, outcome.reason) == (wire.ApplyOutcome.BUSY, "Released")
    assert (await releasing).released
    assert not agent.ledger.entries


async def start_by_hand(agent: Agent) -> str:
    entry = replace(ENTRY, id="hand.0.0000000e", workload_id="hand", origin=BY_HAND)
    await agent.calls.accept(entry)
    return entry.id
