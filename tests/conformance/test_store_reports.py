"""What agents report of allocations, on every store."""

import pytest

from builders import NOW, later
from controller.plan.action import Remove, Stop
from controller.store.contract import Recorded
from kakuri.model import Desired, State
from support.store_script import StoreScript, events_of, told


async def test_a_report_of_a_start_makes_it_running_and_tells_so(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    before = await script.view()
    recorded = await script.report(script.seen(allocation, ip="10.1.0.2", container_id="c", started_at=later(1)))
    assert recorded == Recorded(dirty=frozenset({"web"}))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.started_once, row.handler, row.ip) == (State.RUNNING, True, "runc", "10.1.0.2")
    assert (row.accepted_revision, row.ledger_uid) == (1, "ledger-n1"), "a lost answer to the start is made up for"
    assert (row.started_at, row.observed_at) == (later(1), NOW)
    (started,) = [e for e in await events_of(script) if e.reason == "Started"]
    assert (started.allocation, started.node, started.object_kind) == (allocation, "n1", "Workload")
    assert (await script.view()).version == before.version + 1


async def test_the_same_report_again_writes_nothing(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    version, view = await script.store.resource_version(), await script.view()
    for full in (False, True):
        assert await script.report(script.seen(allocation), full=full) == Recorded()
    assert await script.store.resource_version() == version
    assert await script.view() == view


async def test_a_state_never_goes_back(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.act(Stop(allocation, "ScalingDown", "not wanted"))
    await script.report(script.seen(allocation, "Running", restarts=1))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.reason, row.restarts) == (State.TERMINATING, "ScalingDown", 1)

    await script.report(script.seen(allocation, "Failed", reason="Stopped", exit_code=143, revision=2, restarts=1))
    for later_word in ("Running", "Succeeded", "Pending", "Unknown", "Hibernating"):
        await script.report(script.seen(allocation, later_word, exit_code=0, revision=2))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.reason, row.exit_code, row.released) == (State.FAILED, "Stopped", 143, False)
    assert row.restarts == 1


async def test_an_end_is_recorded_with_its_exit_code_and_then_its_release(script: StoreScript) -> None:
    await script.node()
    await script.put(restart_policy="Never")
    allocation = await script.running()
    recorded = await script.report(
        script.seen(allocation, "Failed", reason="Error", exit_code=3, finished_at=later(7), started_once=True)
    )
    assert (recorded.dirty, recorded.released) == ({"web"}, False)
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.exit_code, row.finished_at, row.released) == (State.FAILED, 3, later(7), False)
    recorded = await script.report(script.seen(allocation, "Failed", reason="Error", exit_code=3, released=True))
    assert (recorded.dirty, recorded.released) == ({"web"}, True)
    assert (await script.store.get_allocation(allocation)).released
    assert "exit code 3" in (await told(script))["Error"]


async def test_an_end_without_a_time_ends_when_it_was_heard_of(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    script.now = later(30)
    await script.report(script.seen(allocation, "Succeeded", exit_code=0))
    assert (await script.store.get_allocation(allocation)).finished_at == later(30)


async def test_what_is_released_but_has_not_ended_is_not_released(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.report(script.seen(allocation, "Running", released=True))
    assert not (await script.store.get_allocation(allocation)).released


async def test_a_restart_is_counted_and_told_with_its_exit_code(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.report(script.seen(allocation, "Running", restarts=1, exit_code=137))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.restarts) == (State.RUNNING, 1)
    assert "ended with exit code 137; started again" in (await told(script))["Restarted"]
    (restarted,) = [e for e in await events_of(script) if e.reason == "Restarted"]
    assert (restarted.type, restarted.allocation, restarted.node) == ("Warning", allocation, "n1")
    await script.report(script.seen(allocation, "Running", restarts=2, exit_code=137))
    (restarted,) = [e for e in await events_of(script) if e.reason == "Restarted"]
    assert restarted.count == 2


async def test_an_oom_kill_says_the_limit(script: StoreScript) -> None:
    await script.node()
    await script.put(memory_mb=64)
    allocation = await script.running()
    await script.report(
        script.seen(allocation, "Running", reason="CrashLoopBackOff", message="OOMKilled; again in 10 s", exit_code=137)
    )
    await script.report(script.seen(allocation, "Running", restarts=1, exit_code=137))
    said = await told(script)
    assert "limit of 64 MiB" in said["OOMKilled"]
    assert "OOMKilled" in said["Restarted"]
    assert said["CrashLoopBackOff"] == "OOMKilled; again in 10 s"


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "SandboxFailed", "HostPortInUse", "RuntimeUnreachable"])
async def test_trouble_with_a_start_is_told_as_it_was_said(script: StoreScript, reason: str) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    await script.report(script.seen(allocation, "Pending", reason=reason, message="the runtime's words"))
    row = await script.store.get_allocation(allocation)
    assert (row.state, row.reason, row.message) == (State.PENDING, reason, "the runtime's words")
    (event,) = [e for e in await events_of(script) if e.reason == reason]
    assert (event.type, event.message, event.count) == ("Warning", "the runtime's words", 1)
    await script.report(script.seen(allocation, "Pending", reason=reason, message="the runtime's words", ip="x"))
    (event,) = [e for e in await events_of(script) if e.reason == reason]
    assert event.count == 1


async def test_what_another_cluster_started_is_nobodys_business(script: StoreScript) -> None:
    await script.node()
    version = await script.store.resource_version()
    foreign = script.seen("web.0.22222222", origin="another-cluster")
    assert await script.report(foreign, full=True) == Recorded()
    assert await script.store.resource_version() == version


async def test_what_has_no_row_is_an_orphan(script: StoreScript) -> None:
    await script.node("n1")
    await script.node("n2")
    await script.put()
    elsewhere = await script.running(node="n2")
    recorded = await script.report(
        script.seen("web.0.99999999"), script.seen("gone.0.88888888"), script.seen(elsewhere), node="n1"
    )
    assert recorded.orphans == ("gone.0.88888888", "web.0.99999999"), "what is bound to another node is not"
    assert recorded.dirty == frozenset()


async def test_an_accepted_allocation_that_a_full_report_lacks_is_lost(script: StoreScript) -> None:
    await script.node("n1")
    await script.node("n2")
    await script.put(replicas=3)
    accepted, unaccepted = await script.running(slot=0), await script.place(slot=1)
    other = await script.running(slot=2, node="n2")
    recorded = await script.report(full=True)
    assert (recorded.dirty, recorded.unsent) == ({"web"}, True)
    row = await script.store.get_allocation(accepted)
    assert (row.desired, row.desired_reason, row.state) == (Desired.STOP, "NodeLost", State.TERMINATING)
    assert (row.revision, row.accepted_revision) == (2, 1)
    for kept in (unaccepted, other):
        assert (await script.store.get_allocation(kept)).desired is Desired.RUN
    version = await script.store.resource_version()
    assert (await script.report(full=True)).dirty == frozenset(), "it is already being told"
    assert await script.store.resource_version() == version


async def test_what_was_accepted_while_a_full_answer_was_on_its_way_is_not_lost(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    await script.accept(allocation)
    assert (await script.report(full=True, spared=[allocation])).dirty == frozenset()
    assert (await script.store.get_allocation(allocation)).desired is Desired.RUN
    assert (await script.report(full=True)).dirty == {"web"}


async def test_a_stop_that_its_ledger_forgot_is_said_again(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.act(Stop(allocation, "ScalingDown"))
    await script.accept(allocation)
    await script.report(full=True)
    row = await script.store.get_allocation(allocation)
    assert (row.desired_reason, row.revision, row.accepted_revision) == ("ScalingDown", 3, 2)


async def test_what_the_agent_says_is_gone_is_lost_too(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    assert (await script.report(gone=["nope.0.00000000"])) == Recorded()
    assert (await script.report(gone=[allocation])).dirty == {"web"}
    assert (await script.store.get_allocation(allocation)).desired_reason == "NodeLost"


async def test_a_removal_whose_answer_was_lost_ends_with_the_next_report(script: StoreScript) -> None:
    await script.node()
    await script.put(replicas=2)
    ids = [await script.running(slot=slot) for slot in (0, 1)]
    for allocation in ids:
        await script.report(script.seen(allocation, "Succeeded", released=True))
    await script.act(*(Remove(a, "old") for a in ids))
    assert (await script.report(gone=[ids[0]])).dirty == {"web"}
    assert (await script.report(full=True)).dirty == {"web"}
    assert (await script.view()).allocations == ()


async def test_a_report_says_whether_its_node_has_something_to_be_told(script: StoreScript) -> None:
    await script.node("n1")
    await script.node("n2")
    await script.put(replicas=2)
    first = await script.running(slot=0)
    await script.place(slot=1, node="n2")
    assert not (await script.report(script.seen(first))).unsent
    await script.act(Stop(first, "ScalingDown"))
    assert (await script.report(script.seen(first))).unsent
    assert not (await script.report(script.seen(first, "Terminating", revision=2))).unsent


async def test_a_report_of_a_node_that_is_not_there_has_only_orphans(script: StoreScript) -> None:
    recorded = await script.report(script.seen("web.0.00000000"), node="nobody", full=True)
    assert recorded == Recorded(orphans=("web.0.00000000",))
