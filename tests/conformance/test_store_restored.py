"""A database brought back from an earlier state, on every store: above all that was seen, and held until confirmed."""

import pytest

from builders import NOW, later
from controller.exchange import Sent
from controller.plan.action import Stop
from controller.store.contract import Expired, Fenced, Held, Hold, NotFound, Store
from kakuri.model import Desired, Reason, State
from support.store_script import StoreScript, events_of

EPOCH, VERSION = 5000, 9000


@pytest.fixture
async def script(store: Store) -> StoreScript:
    """One node runs web.0; web.1 is placed there and not yet accepted; then the database is a restored one."""
    script = StoreScript(store)
    await script.node()
    await script.put(replicas=2)
    await script.running()
    await script.place(slot=1, suffix="11111111")
    await store.adopt_restored(epoch=EPOCH, resource_version=VERSION, now=NOW)
    lease = await store.acquire_lease("controller", ttl_s=60)
    script.epoch = lease.epoch
    return script


async def test_nothing_is_held_unless_it_was_restored(store: Store) -> None:
    assert await store.hold() is None
    with pytest.raises(NotFound, match="no restored database"):
        await store.confirm_restore(now=NOW)


async def test_it_goes_on_above_all_that_was_seen(script: StoreScript) -> None:
    assert script.epoch == EPOCH + 1
    assert await script.store.resource_version() == VERSION
    row = await script.store.get_allocation("web.0.00000000")
    assert row.revision > 1000
    await script.put("db")
    assert [c.resource_version for c in await script.store.changes_since(VERSION)] == [VERSION + 1]


async def test_lower_floors_than_its_own_lower_nothing(store: Store) -> None:
    script = StoreScript(store)
    await script.put()
    before = await store.resource_version()
    await store.adopt_restored(epoch=0, resource_version=0, now=NOW)
    assert await store.resource_version() == before


async def test_no_start_is_left_to_be_sent_of_what_may_have_run_since(script: StoreScript) -> None:
    assert (await script.store.owed("n1")).errands == []
    await script.report(script.seen("web.0.00000000"), full=True)
    assert [e.allocation.id for e in (await script.store.owed("n1")).errands] == ["web.0.00000000"], "which has it"


async def test_every_watcher_lists_again(script: StoreScript) -> None:
    for seen in (1, VERSION - 1):
        with pytest.raises(Expired):
            await script.store.changes_since(seen)
    await script.put("db")
    with pytest.raises(Expired):
        await script.store.changes_since(VERSION - 1)


async def test_a_node_is_unread_until_all_it_has_was_read(script: StoreScript) -> None:
    hold = await script.store.hold()
    assert hold is not None
    assert (hold.restored_at, hold.unread, hold.unknown, hold.missing) == (NOW, ("n1",), (), ())
    assert not (await script.store.get_node("n1")).status.ready
    await script.report(script.seen("web.0.00000000"))
    assert (await _hold(script.store)).unread == ("n1",), "a part of it is not all"
    await script.report(script.seen("web.0.00000000"), full=True)
    assert (await _hold(script.store)).unread == ()


async def test_it_may_not_be_confirmed_before_unless_the_node_is_named(script: StoreScript) -> None:
    await script.node("n2")
    with pytest.raises(Held, match=r"n1, n2\. .*--without n1"):
        await script.store.confirm_restore(now=NOW)
    with pytest.raises(Held, match="n2"):
        await script.store.confirm_restore(without=["n1"], now=NOW)
    await script.store.confirm_restore(without=["n1", "n2"], now=NOW)
    assert await script.store.hold() is None


async def test_it_may_not_be_confirmed_before_agents_that_joined_later_could_register(script: StoreScript) -> None:
    await script.report(script.seen("web.0.00000000"), full=True)
    with pytest.raises(Held, match=r"joined after the backup.* wait 18 s, or .*--now"):
        await script.store.confirm_restore(served_s=42.5, now=NOW)
    await script.node("n2")
    with pytest.raises(Held, match="n2"):
        await script.store.confirm_restore(served_s=60, now=NOW)
    await script.report(node="n2", full=True)
    await script.store.confirm_restore(served_s=60, now=NOW)
    assert await script.store.hold() is None


async def test_what_a_node_has_besides_is_no_orphan_but_noted_and_its_slot_is_blocked(script: StoreScript) -> None:
    recorded = await script.report(
        script.seen("web.0.00000000"), script.seen("web.1.22222222"), script.seen("gone.0.33333333"), full=True
    )
    assert recorded.orphans == ()
    unknown = (await _hold(script.store)).unknown
    assert [(t.id, t.node, t.workload, t.slot, t.blocks) for t in unknown] == [
        ("gone.0.33333333", "n1", "gone", 0, True),
        ("web.1.22222222", "n1", "web", 1, True),
    ]
    assert {t.reason for t in unknown} == {Reason.RESTORED}
    assert [t.slot for t in (await script.view()).tombstones] == [1]
    await script.report(gone=["gone.0.33333333"])
    assert [t.id for t in (await _hold(script.store)).unknown] == ["web.1.22222222"], "gone by itself"


async def test_what_a_node_lacks_is_kept_as_it_is_and_listed(script: StoreScript) -> None:
    recorded = await script.report(full=True)
    hold = await _hold(script.store)
    assert [(m.id, m.workload, m.slot, m.node) for m in hold.missing] == [
        ("web.0.00000000", "web", 0, "n1"),
        ("web.1.11111111", "web", 1, "n1"),
    ]
    rows = {a.id: a for a in (await script.view()).allocations}
    assert {a.desired for a in rows.values()} == {Desired.RUN}
    assert recorded.dirty == frozenset()
    await script.report(script.seen("web.0.00000000"))
    assert [m.id for m in (await _hold(script.store)).missing] == ["web.1.11111111"]
    await script.report(gone=["web.0.00000000"])
    assert len((await _hold(script.store)).missing) == 2


async def test_once_confirmed_what_is_missing_is_lost_and_never_sent_as_a_start(script: StoreScript) -> None:
    await script.report(script.seen("web.0.00000000"), full=True)
    await script.store.confirm_restore(now=later(1))
    with pytest.raises(Fenced):
        await script.report(full=True)
    script.epoch = (await script.store.acquire_lease("controller", ttl_s=60)).epoch
    assert script.epoch == EPOCH + 3, "another term, so that every node is asked for all it has again"
    await script.report(script.seen("web.0.00000000"), full=True)
    errands = {e.allocation.id: e.allocation for e in (await script.store.owed("n1")).errands}
    assert errands["web.0.00000000"].desired is Desired.RUN, "said again: the agent may have heard otherwise since"
    assert errands["web.1.11111111"].desired is Desired.STOP, "it may have run and be over: it is not started now"
    assert "RestoreConfirmed" in {e.reason for e in await events_of(script, "n1")}


async def test_once_confirmed_what_is_unknown_is_an_orphan_and_blocks_until_it_is_gone(script: StoreScript) -> None:
    await script.report(script.seen("web.1.22222222"), full=True)
    await script.store.confirm_restore(now=later(1))
    script.epoch = (await script.store.acquire_lease("controller", ttl_s=60)).epoch
    recorded = await script.report(script.seen("web.1.22222222"), full=True)
    assert recorded.orphans == ("web.1.22222222",)
    assert [t.slot for t in (await script.view()).tombstones] == [1]
    dirty = await script.store.record_buried("n1", ["web.1.22222222"], epoch=script.epoch, now=later(2))
    assert dirty == {"web"}
    assert (await script.view()).tombstones == ()


async def test_while_held_nothing_is_lost_and_a_node_is_not_kept_from_its_lease(store: Store) -> None:
    """Else what is bound to the lease would be ended there, by a database that does not know what it was told since."""
    script = StoreScript(store)
    await script.node()
    await script.put(on_disconnect="replace")
    before = await script.running()
    await script.act(Stop(before, "Updating"))
    await script.accept(before)
    await script.report(script.seen(before, "Failed", revision=2, released=True))
    id_ = await script.running(suffix="11111111")
    await store.adopt_restored(epoch=EPOCH, resource_version=VERSION, now=NOW)
    script.epoch = (await store.acquire_lease("controller", ttl_s=60)).epoch
    await script.report(
        script.seen(before, "Failed", revision=2, released=True),
        script.seen(id_, revision=2),
        script.seen("web.1.22222222"),
        full=True,
    )
    assert not await store.owes_stops("n1")
    assert await store.set_node_lost("n1", epoch=script.epoch, message="silent", now=NOW) == frozenset()
    row = await store.get_allocation(id_)
    assert (row.released, row.lease_bound) == (False, False), "it may have been changed to keep since"
    await store.confirm_restore(now=NOW)
    assert await store.owes_stops("n1"), "what nobody knows is to be stopped now"
    script.epoch = (await store.acquire_lease("controller", ttl_s=60)).epoch
    await script.accept(id_)
    assert (await store.get_allocation(id_)).lease_bound


async def test_a_node_that_was_not_waited_for_is_told_again_what_is_wanted_when_it_is_back(store: Store) -> None:
    script = StoreScript(store)
    await script.node()
    await script.put(on_disconnect="replace")
    id_ = await script.running()
    await store.adopt_restored(epoch=EPOCH, resource_version=VERSION, now=NOW)
    await store.confirm_restore(without=["n1"], now=NOW)
    script.epoch = (await store.acquire_lease("controller", ttl_s=60)).epoch
    await store.set_node_lost("n1", epoch=script.epoch, message="silent", now=NOW)
    assert (await store.get_allocation(id_)).live, "nobody knows whether it is bound to the lease"
    assert (await script.report(script.seen(id_), full=True)).unsent
    assert [e.allocation.desired for e in (await store.owed("n1")).errands] == [Desired.RUN]
    assert not (await store.get_allocation(id_)).lease_bound
    await script.accept(id_)
    assert (await store.get_allocation(id_)).lease_bound


async def test_an_end_in_it_is_said_to_nobody_again(store: Store) -> None:
    script = StoreScript(store)
    await script.node()
    await script.put()
    id_ = await script.running()
    await script.report(script.seen(id_, "Succeeded", released=True))
    await store.adopt_restored(epoch=EPOCH, resource_version=VERSION, now=NOW)
    assert (await store.owed("n1")).errands == []
    script.epoch = (await store.acquire_lease("controller", ttl_s=60)).epoch
    await script.report(full=True)
    assert (await _hold(store)).missing == ()
    assert (await store.get_allocation(id_)).state is State.SUCCEEDED


async def test_what_its_agent_has_ended_and_removed_since_is_over_with_the_answer_to_its_stop(
    script: StoreScript,
) -> None:
    await script.report(full=True)
    await script.store.confirm_restore(now=later(1))
    script.epoch = (await script.store.acquire_lease("controller", ttl_s=60)).epoch
    await script.report(full=True)
    row = await script.store.get_allocation("web.0.00000000")
    answer = Sent(row.id, row.revision, "accepted", Reason.FORGOTTEN, "it has ended and was removed")
    assert await script.sent(answer) == {"web"}
    row = await script.store.get_allocation("web.0.00000000")
    assert (row.state, row.reason, row.released) == (State.FAILED, Reason.NODE_LOST, True)


async def _hold(store: Store) -> Hold:
    hold = await store.hold()
    assert hold is not None
    return hold
