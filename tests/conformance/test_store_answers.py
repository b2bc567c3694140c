"""What is sent to agents and what they answer, on every store."""

from typing import Any

import pytest

from builders import NOW, later
from controller.exchange import Sent
from controller.plan.action import Remove, Stop, Update
from controller.store.contract import NotFound
from kakuri.model import State
from support.store_script import StoreScript, told


async def test_an_accepted_start_needs_no_telling_any_more(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    assert await script.sent(Sent(allocation, 1, "accepted")) == frozenset()
    row = await script.store.get_allocation(allocation)
    assert (row.accepted_revision, row.state, row.ledger_uid) == (1, State.PENDING, "ledger-n1")
    assert (await script.store.owed("n1")).errands == []
    version = await script.store.resource_version()
    await script.sent(Sent(allocation, 1, "accepted"))
    assert await script.store.resource_version() == version


async def test_a_refused_start_is_failed_and_released(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    dirty = await script.sent(Sent(allocation, 1, "refused", "IncompatibleAgent", "lacks the feature x"))
    assert dirty == {"web"}
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.reason, row.message) == (State.FAILED, "IncompatibleAgent", "lacks the feature x")
    assert (row.released, row.started_once, row.finished_at) == (True, False, NOW)
    assert "lacks the feature x" in (await told(script))["IncompatibleAgent"]
    assert (await script.store.get_node("n1")).status.allocations == 0


async def test_a_refused_change_of_what_runs_leaves_it_running(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    view = await script.view()
    await script.act(Update(allocation, 2, view.spec.with_(max_restarts=3), "in place"))
    await script.sent(Sent(allocation, 2, "refused", "IncompatibleAgent", "no"))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.released, row.accepted_revision) == (State.RUNNING, False, 2)
    assert "refused a change" in (await told(script))["IncompatibleAgent"]


async def test_an_answer_to_an_older_revision_changes_only_what_was_accepted(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    await script.act(Stop(allocation, "Deleted"))
    await script.sent(Sent(allocation, 1, "refused", "Refused", "no"))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.released, row.accepted_revision, row.revision) == (State.TERMINATING, False, 1, 2)


async def test_a_busy_answer_changes_nothing(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    version = await script.store.resource_version()
    assert await script.sent(Sent(allocation, 1, "busy")) == frozenset()
    assert await script.store.resource_version() == version
    assert len((await script.store.owed("n1")).errands) == 1


async def test_an_accepted_removal_deletes_the_row(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.report(script.seen(allocation, "Succeeded", exit_code=0, released=True))
    await script.act(Remove(allocation, "old"))
    start = await script.store.resource_version()
    assert await script.sent(Sent(allocation, 2, "accepted")) == {"web"}
    with pytest.raises(NotFound):
        await script.store.get_allocation(allocation)
    (change,) = await script.store.changes_since(start)
    assert (change.kind, change.id, change.deleted) == ("Allocation", allocation, True)
    assert await script.sent(Sent(allocation, 2, "accepted")) == frozenset()


async def test_answers_of_another_node_or_to_nothing_are_ignored(script: StoreScript) -> None:
    await script.node("n1")
    await script.node("n2")
    await script.put()
    allocation = await script.place(node="n1")
    assert (
        await script.sent(Sent(allocation, 1, "refused"), Sent("x.0.00000000", 1, "accepted"), node="n2") == frozenset()
    )
    assert (await script.store.get_allocation(allocation)).state is State.PENDING
    assert await script.sent() == frozenset()


async def test_errands_are_oldest_first_and_say_the_handler(script: StoreScript) -> None:
    await script.node()
    names: list[Any] = ["b", "a", "c"]
    for second, name in enumerate(names):
        await script.put(name, runtime_class="gvisor")
        script.now = later(second)
        await script.place(name)
    errands = (await script.store.owed("n1")).errands
    assert [e.allocation.workload for e in errands] == names
    assert {e.handler for e in errands} == {"runsc"}
    assert len((await script.store.owed("n1", limit=2)).errands) == 2
    assert (await script.store.owed("n2")).errands == []
