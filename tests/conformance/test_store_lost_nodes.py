"""A node whose lease is over: what becomes of its rows, on every kind of store."""

from typing import Any

import pytest

from controller.exchange import Sent
from controller.plan.action import Remove, Stop, Update
from controller.store.contract import AllocationFilter, Delete, Fenced, NotFound, Store
from kakuri.model import Allocation, Desired, OnDisconnect, State
from support.store_script import StoreScript, events_of


async def rows(store: Store) -> dict[str, Allocation]:
    page = await store.list_allocations(AllocationFilter())
    return {a.workload: a for a in page.items}


async def running(script: StoreScript, id_: str, **fields: Any) -> Allocation:
    await script.put(id_, **fields)
    return await script.store.get_allocation(await script.running(id_))


async def lose(script: StoreScript, node: str = "n1", epoch: int = 0) -> frozenset[str]:
    return await script.store.set_node_lost(node, epoch=epoch, message="not heard of for 45 s", now=script.now)


async def test_what_is_bound_to_the_lease_has_ended_and_the_rest_is_kept(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    await running(script, "gives", on_disconnect="replace")
    await running(script, "keeps")

    assert await lose(script) == {"gives", "keeps"}

    gives, keeps = (await rows(store))["gives"], (await rows(store))["keeps"]
    assert (gives.state, gives.reason, gives.released) == (State.FAILED, "NodeLost", True)
    assert gives.desired is Desired.STOP
    assert gives.accepted_revision < gives.revision, "the node is told when it is back"
    assert (keeps.state, keeps.reason, keeps.released) == (State.UNKNOWN, "NodeLost", False)
    assert "NodeLost" in {e.reason for e in await events_of(script, "n1")}
    assert await lose(script) == frozenset(), "once is enough"


async def test_a_change_to_replace_counts_only_once_its_node_accepted_it(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    row = await running(script, "web")
    spec = row.spec.with_(on_disconnect=OnDisconnect.REPLACE)
    await script.act(Update(row.id, 2, spec, "on_disconnect changed"))

    await lose(script)
    assert (await rows(store))["web"].live, "the node may never have heard of it"

    await script.node("n1")
    await script.accept(row.id)
    assert (await rows(store))["web"].lease_bound
    await lose(script)
    assert (await rows(store))["web"].released


@pytest.mark.parametrize("then", ["heard", "stopped"])
async def test_a_change_to_replace_that_its_node_refused_never_counts(
    store: Store, script: StoreScript, then: str
) -> None:
    """An agent that can't end it without its controller says so; it is not replaced as if it had been ended."""
    await script.node("n1")
    row = await running(script, "web")
    await script.act(Update(row.id, 2, row.spec.with_(on_disconnect=OnDisconnect.REPLACE), "on_disconnect changed"))
    await script.sent(Sent(row.id, row.revision + 1, "refused", "IncompatibleAgent", "this agent lacks node-lease"))
    if then == "heard":
        await script.report(script.seen(row.id, message="still there"))
    else:
        await script.act(Stop(row.id, "Updating"))
        await script.sent(Sent(row.id, row.revision + 2, "accepted"))
        await script.report(script.seen(row.id, "Terminating", revision=row.revision + 2))

    await lose(script)

    assert not (await store.get_allocation(row.id)).released


async def test_a_change_to_keep_counts_from_when_it_is_planned(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    row = await running(script, "web", on_disconnect="replace")
    spec = row.spec.with_(on_disconnect=OnDisconnect.KEEP)
    await script.act(Update(row.id, 2, spec, "on_disconnect changed"))

    await lose(script)

    assert (await rows(store))["web"].live, "the node may have accepted that it is kept"


async def test_one_that_is_being_stopped_is_given_up_too(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    row = await running(script, "web", on_disconnect="replace")
    await script.act(Stop(row.id, "Updating"))

    await lose(script)

    after = (await rows(store))["web"]
    assert (after.released, after.state, after.desired_reason) == (True, State.FAILED, "Updating")


async def test_only_the_leader_may_say_so(script: StoreScript) -> None:
    await script.node("n1")
    await script.store.acquire_lease("another", ttl_s=60)
    with pytest.raises(Fenced):
        await lose(script, epoch=0)


async def test_a_node_that_is_not_there_is_not_lost(script: StoreScript) -> None:
    with pytest.raises(NotFound):
        await lose(script, "n9")


async def test_nothing_is_placed_on_a_node_that_fell_silent_since_the_plan_was_made(
    store: Store, script: StoreScript
) -> None:
    await script.node("n1")
    await script.put("web")
    place = await script.a_place("web")
    await script.node("n1", ready=False)

    assert (await script.act(place)).stale == {"web"}
    assert not await rows(store)


async def test_a_lost_node_that_answers_is_lost_no_more(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    await lose(script)
    await script.node("n1", ready=False)
    assert (await store.get_node("n1")).status.reason == "NodeLost", "silent says less"

    await script.node("n1")

    status = (await store.get_node("n1")).status
    assert (status.ready, status.lost_at) == (True, None)


async def test_a_whole_inventory_is_noted_once_an_epoch(store: Store, script: StoreScript) -> None:
    await script.node("n1")
    script.epoch = (await store.acquire_lease("me", ttl_s=60)).epoch
    await script.report(full=True)
    before = await store.resource_version()
    await script.report(full=True)
    assert await store.resource_version() == before


async def test_a_node_owes_the_stop_of_what_was_given_up_until_it_has_accepted_it(
    store: Store, script: StoreScript
) -> None:
    await script.node("n1")
    row = await running(script, "web", on_disconnect="replace")
    await script.act(Stop(row.id, "Updating"))
    assert not await store.owes_stops("n1"), "a stop that is under way holds nothing up"
    await lose(script)
    assert await store.owes_stops("n1")
    await script.node("n1")
    await script.act(Remove(row.id, "newer ends"))
    assert await store.owes_stops("n1"), "it was never told to stop"

    await script.sent(Sent(row.id, (await store.get_allocation(row.id)).revision - 1, "accepted"))

    assert not await store.owes_stops("n1")


async def test_what_a_lost_node_should_forget_is_buried_so_that_nobody_waits_for_it(
    store: Store, script: StoreScript
) -> None:
    await script.node("n1")
    row = await running(script, "web", on_disconnect="replace")
    ending = await running(script, "job", on_disconnect="replace")
    await script.report(script.seen(ending.id, "Succeeded", reason="Completed", exit_code=0, released=True))
    await script.act(Remove(ending.id, "Deleted"), id_="job")
    await lose(script)
    assert "job" not in await rows(store), "it was to be forgotten when the node was lost"
    before = (await store.get_node("n1")).resource_version

    applied = await script.act(Remove(row.id, "Deleted"))

    assert (await store.get_node("n1")).resource_version > before, "whoever watches nodes sees it"
    assert applied.again == {"web"}
    assert not await rows(store)
    assert [(t.id, t.reason, t.blocks) for t in (await store.owed("n1")).tombstones] == [
        (ending.id, "NodeLost", False),
        (row.id, "NodeLost", False),
    ]
    assert await store.owes_stops("n1"), "no lease before it has heard"


async def test_a_tombstone_that_does_not_block_holds_its_slot_only_while_its_node_answers(
    store: Store, script: StoreScript
) -> None:
    await script.node("n1")
    await running(script, "web")
    await store.apply([Delete("Workload", "web", force=True)], now=script.now)
    await script.put("web")
    assert [t.slot for t in (await script.view("web")).tombstones] == [0]

    await script.node("n1", ready=False)

    assert not (await script.view("web")).tombstones
