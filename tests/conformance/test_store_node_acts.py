"""Draining, forgetting and forced deletion, on every store: what goes, what stays, and what its node is held to."""

import pytest

from builders import NOW, a_node_manifest, a_registration, later
from controller.plan.action import Remove, Stop
from controller.store.base import TransactionStore
from controller.store.contract import Delete, InUse, NotFound, Put
from kakuri.model import Desired, Drain, Node, State
from kakuri.selector import Selector
from support.store_script import StoreScript, events_of, told


async def force(script: StoreScript, id_: str = "web") -> None:
    (outcome,) = await script.store.apply([Delete("Workload", id_, force=True)], now=script.now)
    assert (outcome.result, outcome.object) == ("deleted", None)


async def buried(script: StoreScript, node: str = "n1") -> list[tuple[str, str, bool]]:
    return [(t.id, t.reason, t.blocks) for t in (await script.store.owed(node)).tombstones]


async def node(script: StoreScript, id_: str = "n1") -> Node:
    return await script.store.get_node(id_)


# -- delete --force ----------------------------------------------------------------------------------------------------
async def test_a_forced_deletion_takes_all_rows_at_once_and_leaves_a_tombstone_for_each(script: StoreScript) -> None:
    await script.node()
    await script.node("n2")
    await script.put(replicas=2)
    here, away = await script.running(slot=0), await script.running(slot=1, node="n2")
    await script.node("n2", ready=False)
    version = (await node(script, "n2")).resource_version
    await force(script)
    for gone in (script.store.get_workload("web"), script.store.get_allocation(here)):
        with pytest.raises(NotFound):
            await gone
    assert await buried(script) == [(here, "ForceDeleted", False)]
    shown = await node(script, "n2")
    assert [(t.id, t.workload, t.slot) for t in shown.status.tombstones] == [(away, "web", 1)]
    assert shown.resource_version > version, "whoever watches nodes sees it"
    (event,) = [e for e in await events_of(script) if e.reason == "ForceDeleted"]
    assert event.type == "Warning"
    assert f"{away} on n2" in event.message


async def test_what_a_forced_deletion_left_goes_when_its_node_has_nothing_of_it(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await force(script)
    recorded = await script.report(script.seen(allocation), full=True)
    assert recorded.orphans == (allocation,)
    assert await script.store.record_buried("n1", {allocation, "x.0.00000000"}, epoch=0, now=NOW) == {"web"}
    assert await buried(script) == []
    assert (await node(script)).status.tombstones == ()
    version = await script.store.resource_version()
    await script.store.record_buried("n1", {allocation}, epoch=0, now=NOW)
    assert await script.store.resource_version() == version, "said again it writes nothing"


async def test_an_id_that_was_deleted_by_force_can_be_taken_again_at_once(script: StoreScript) -> None:
    await script.node()
    await script.put()
    first = await script.running()
    await force(script)
    assert (await script.put()).result == "created"
    await script.node(ready=False)
    assert (await script.view()).tombstones == (), "a person has said that a silent node need not be waited for"
    await script.node()
    second = await script.place(suffix="11111111")
    assert [i for i, _, _ in await buried(script)] == [first]
    assert (await script.store.get_allocation(second)).live


async def test_a_forced_deletion_of_what_is_not_there_is_not_found(script: StoreScript) -> None:
    with pytest.raises(NotFound):
        await force(script)


# -- forget ------------------------------------------------------------------------------------------------------------
async def test_a_ready_node_is_not_forgotten(script: StoreScript) -> None:
    await script.node()
    with pytest.raises(InUse, match="drain it"):
        await script.store.forget_node("n1", now=NOW)


async def test_a_forgotten_node_is_shown_no_more_and_what_it_had_is_lost(script: StoreScript) -> None:
    await script.node(ready=True)
    await script.put()
    allocation = await script.running()
    await script.node(ready=False)
    assert await script.store.forget_node("n1", now=later(5)) == {"web"}
    with pytest.raises(NotFound):
        await node(script)
    assert list((await script.store.list_nodes(selector=Selector())).items) == []
    assert await script.store.agent_addresses() == []
    assert (await script.store.load_snapshot(["web"], now=NOW, seed="s")).nodes == ()
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.reason, row.released, row.desired) == (State.FAILED, "NodeLost", True, Desired.STOP)
    assert row.accepted_revision == row.revision, "nobody is there to be told"
    assert await buried(script) == [(allocation, "NodeForgotten", False)]
    changes = [(c.kind, c.id, c.deleted) for c in await script.store.changes_since(0)]
    assert ("Node", "n1", True) in changes
    assert "1 allocations there are given up" in (await told(script, "n1"))["NodeForgotten"]
    assert "may still run there" in (await told(script))["NodeLost"]
    with pytest.raises(NotFound):
        await script.store.forget_node("n1", now=NOW)


async def test_what_ended_on_a_forgotten_node_stays_as_it_ended(script: StoreScript) -> None:
    await script.node()
    await script.put(restart_policy="Never", replicas=2)
    done, cleaning = await script.running(slot=0), await script.running(slot=1)
    await script.report(script.seen(done, "Succeeded", reason="Completed", exit_code=0, released=True))
    await script.report(script.seen(cleaning, "Succeeded", reason="Completed", exit_code=0))
    await script.node(ready=False)
    await script.store.forget_node("n1", now=NOW)
    for id_ in (done, cleaning):
        row = await script.store.get_allocation(id_)
        assert (row.state, row.reason, row.exit_code, row.released) == (State.SUCCEEDED, "Completed", 0, True)
    assert [i for i, _, _ in await buried(script)] == [cleaning], "of the other the node has nothing to end"


async def test_a_forgotten_node_that_comes_back_is_new_and_its_ghosts_stay_lost(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.store.apply([Put(a_node_manifest("n1", labels={"zone": "a"}, schedulable=False))], now=NOW)
    first = await node(script)
    await script.node(ready=False)
    await script.store.forget_node("n1", now=NOW)
    await script.node()
    back = await node(script)
    assert back.uid != first.uid
    assert (back.labels, back.schedulable, back.generation) == ({}, True, 1)
    assert [t.id for t in back.status.tombstones] == [allocation]
    await script.report(script.seen(allocation), full=True)
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.released) == (State.FAILED, True), "an end is never unseen"
    assert (await script.store.owed("n1")).errands == []
    # Once it is back, it is asked again before a row goes.
    await script.act(Remove(allocation, "ScalingDown"))
    assert [e.allocation.id for e in (await script.store.owed("n1")).errands] == [allocation]


async def test_a_node_that_has_released_itself_may_be_ready(script: StoreScript) -> None:
    await script.node()
    assert await script.store.forget_node("n1", released=True, now=NOW) == frozenset()
    assert "was released" in (await told(script, "n1"))["NodeForgotten"]
    assert list((await script.store.list_nodes(selector=Selector())).items) == []
    # Should its agent come back before another cluster has taken it, it takes no work here.
    await script.node()
    assert (await node(script)).schedulable is False
    assert "until a person uncordons it" in (await told(script, "n1"))["Cordoned"]


async def test_a_node_that_a_person_writes_down_again_is_as_written(script: StoreScript) -> None:
    await script.node()
    await script.store.forget_node("n1", released=True, now=NOW)
    await script.store.apply([Put(a_node_manifest("n1"))], now=NOW)
    shown = await node(script)
    assert (shown.status.address, shown.schedulable) == ("", True)


async def test_a_pending_stop_of_an_ended_row_is_not_forgotten_with_the_node(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.act(Stop(allocation, "ScalingDown", ""))
    await script.node(ready=False)
    await script.store.forget_node("n1", now=NOW)
    assert [i for i, _, _ in await buried(script)] == [allocation]


async def test_a_deleted_node_is_still_held_to_what_it_was_not_told(script: StoreScript) -> None:
    """What was bound to its lease has ended; but it may have accepted a start that came late."""
    await script.node()
    await script.put(on_disconnect="replace")
    allocation = await script.running()
    await script.store.set_node_lost("n1", epoch=script.epoch, message="silent", now=NOW)
    await script.delete("n1", "Node")
    assert await buried(script) == [(allocation, "NodeForgotten", False)]
    await script.node()
    assert await script.store.owes_stops("n1"), "no lease before it was told"
    assert not await script.store.owes_stops("n1", told=[allocation])


async def test_a_released_node_is_told_nothing_more(script: StoreScript) -> None:
    """Its agent has nothing of ours left; the first thing that it is told would make it ours again."""
    await script.node()
    await script.put("gone")
    await script.running("gone")
    await script.store.apply([Delete("Workload", "gone", force=True)], now=NOW)
    await script.put()
    allocation = await script.running()
    await script.act(Stop(allocation, "Deleted"))
    await script.accept(allocation)
    await script.report(script.seen(allocation, "Failed", revision=2, released=True))
    await script.act(Remove(allocation, "Deleted"))
    await script.store.forget_node("n1", released=True, now=NOW)
    await script.node()
    assert await buried(script) == []
    assert (await script.store.owed("n1")).errands == []


async def test_what_a_released_node_had_goes_without_a_word_to_it(script: StoreScript) -> None:
    """Its agent registers here again, and is not made ours by what once ran there."""
    await script.node()
    ended = {}
    for id_ in ("job", "task"):
        await script.put(id_, restart_policy="Never")
        ended[id_] = await script.running(id_)
        await script.report(script.seen(ended[id_], "Succeeded", reason="Completed", exit_code=0, released=True))
    await script.store.forget_node("n1", released=True, now=NOW)
    await script.node()
    applied = await script.act(Remove(ended["job"], "Deleted"), id_="job")
    assert (applied.again, applied.nodes) == ({"job"}, frozenset())
    await force(script, "task")
    for id_ in ended.values():
        with pytest.raises(NotFound):
            await script.store.get_allocation(id_)
    assert await script.store.nodes_to_tell() == set()


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("how", ["plan", "force"])
async def test_a_hidden_nodes_row_goes_with_the_last_that_refers_to_it_unless_it_was_released(
    script: StoreScript, how: str, released: bool
) -> None:
    await script.node()
    await script.put(restart_policy="Never")
    done = await script.running()
    await script.report(script.seen(done, "Succeeded", reason="Completed", exit_code=0, released=True))
    await script.node(ready=False)
    await script.store.forget_node("n1", released=released, now=NOW)
    assert await hidden(script) == {"n1"}
    await (force(script) if how == "force" else script.act(Remove(done, "Deleted")))
    assert await hidden(script) == ({"n1"} if released else set())


async def hidden(script: StoreScript) -> set[str]:
    assert isinstance(script.store, TransactionStore)
    return set(await script.store._read(lambda tables: tables.forgotten_nodes()))


async def test_the_nodes_that_have_something_to_be_told_are_found_in_one_look(script: StoreScript) -> None:
    for id_ in ("n1", "n2", "n3"):
        await script.node(id_)
    await script.put(replicas=3)
    await script.running(slot=0)
    await script.place(slot=1, node="n2")
    assert await script.store.nodes_to_tell() == {"n2"}
    await script.accept("web.1.00000000", node="n2")
    assert await script.store.nodes_to_tell() == set()
    await force(script)
    assert await script.store.nodes_to_tell() == {"n1", "n2"}


async def test_a_deleted_node_blocks_no_slot(script: StoreScript) -> None:
    await script.node()
    await script.put()
    await script.store.adopt_restored(epoch=5000, resource_version=9000, now=NOW)
    script.epoch = (await script.store.acquire_lease("controller", ttl_s=60)).epoch
    await script.report(script.seen("web.0.22222222"), full=True)
    await script.store.confirm_restore(now=NOW)
    assert [t.slot for t in (await script.view()).tombstones] == [0]
    await script.delete("n1", "Node")
    assert (await script.view()).tombstones == (), "nobody could say any more that it is gone"
    assert await buried(script) == [("web.0.22222222", "NodeForgotten", False)]


# -- drain -------------------------------------------------------------------------------------------------------------
async def test_a_drain_cordons_and_ends_by_an_uncordon(script: StoreScript) -> None:
    await script.node()
    await script.put()
    await script.running()
    drain = Drain(asked_at=NOW, deadline_at=later(60))
    shown, owners = await script.store.drain_node("n1", drain, now=NOW)
    assert (shown.schedulable, shown.status.drain, shown.generation, owners) == (False, drain, 2, {"web"})
    assert shown == await node(script)
    assert [n.id for n in await script.store.draining_nodes()] == ["n1"]
    version = await script.store.resource_version()
    await script.store.drain_node("n1", Drain(asked_at=later(1), deadline_at=later(60)), now=later(1))
    assert await script.store.resource_version() == version, "the same again is no news"
    await script.store.apply([Put(a_node_manifest("n1", schedulable=False, labels={"a": "b"}))], now=NOW)
    assert (await node(script)).status.drain == drain, "a change of labels is none of the drain"
    await script.store.apply([Put(a_node_manifest("n1"))], now=NOW)
    after = await node(script)
    assert (after.schedulable, after.status.drain) == (True, None)
    assert {"DrainStarted", "DrainEnded"} <= (await told(script, "n1")).keys()


async def test_a_drain_again_keeps_its_deadline_if_it_is_asked_to(script: StoreScript) -> None:
    await script.node()
    drain, again = Drain(asked_at=NOW, deadline_at=later(60)), Drain(asked_at=later(1))
    await script.store.drain_node("n1", drain, keep_deadline=True, now=NOW)
    await script.store.drain_node("n1", again, keep_deadline=True, now=later(1))
    assert (await node(script)).status.drain == drain
    await script.store.drain_node("n1", again, now=later(1))
    assert (await node(script)).status.drain == Drain(asked_at=NOW)


async def test_a_drain_that_is_taken_back_leaves_the_node_as_it_was(script: StoreScript) -> None:
    await script.node()
    await script.put()
    await script.running()

    async def take_back(began: Drain) -> frozenset[str]:
        return await script.store.take_back_drain("n1", began, before=None, schedulable=True, now=NOW)

    drain = Drain(asked_at=NOW, deadline_at=NOW)
    await script.store.drain_node("n1", drain, now=NOW)
    assert await take_back(Drain(asked_at=NOW)) == frozenset(), "a person has changed the deadline since"
    assert (await node(script)).status.drain == drain
    assert await take_back(drain) == {"web"}
    shown = await node(script)
    assert (shown.schedulable, shown.status.drain) == (True, None)
    assert await take_back(drain) == frozenset()


async def test_an_ended_drain_leaves_the_node_cordoned(script: StoreScript) -> None:
    await script.node()
    await script.store.drain_node("n1", Drain(asked_at=NOW), now=NOW)
    shown, _ = await script.store.drain_node("n1", None, now=NOW)
    assert (shown.schedulable, shown.status.drain) == (False, None)
    with pytest.raises(NotFound):
        await script.store.drain_node("n9", None, now=NOW)


async def test_the_end_of_a_drain_is_told_once(script: StoreScript) -> None:
    await script.node()
    drain = Drain(asked_at=NOW, deadline_at=later(60))
    await script.store.drain_node("n1", drain, now=NOW)
    for _ in range(2):
        await script.store.record_drained("n1", drain, epoch=0, now=later(70))
    (event,) = [e for e in await events_of(script, "n1") if e.reason == "Drained"]
    assert event.count == 1
    status = (await node(script)).status
    assert status.drain == drain.with_(drained_at=later(70))


async def test_what_is_said_of_an_earlier_drain_is_dropped(script: StoreScript) -> None:
    await script.node()
    earlier = Drain(asked_at=NOW)
    await script.store.drain_node("n1", earlier, now=NOW)
    await script.store.drain_node("n1", None, now=NOW)
    await script.store.drain_node("n1", Drain(asked_at=later(9)), now=later(9))
    await script.store.record_drained("n1", earlier, epoch=0, now=later(9))
    assert "Drained" not in await told(script, "n1")


async def test_what_a_drain_has_stopped_and_is_not_gone_is_in_every_snapshot(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.store.drain_node("n1", Drain(asked_at=NOW), now=NOW)
    await script.act(Stop(allocation, "Drained", "n1 is being drained"))
    snapshot = await script.store.load_snapshot([], now=NOW, seed="s")
    assert [a.id for a in snapshot.leaving] == [allocation]
    await script.report(script.seen(allocation, "Failed", reason="Stopped", released=True, revision=2))
    assert (await script.store.load_snapshot([], now=NOW, seed="s")).leaving == ()


async def test_an_agents_registration_leaves_a_drain_alone(script: StoreScript) -> None:
    await script.node()
    await script.store.drain_node("n1", Drain(asked_at=NOW), now=NOW)
    await script.store.register_node("n1", a_registration(instance="instance-2"), now=NOW)
    assert (await node(script)).status.drain == Drain(asked_at=NOW)
