"""Drains: what leaves a node and when, what stays and why, and how far it has come."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders import NOW, a_node_view, a_port, a_snapshot, a_spec, a_stop, a_view, an_allocation, an_end, later
from controller.plan.action import Place, Remove, Stop
from controller.plan.progress import Progress, progress_of
from controller.plan.reconcile import plan
from controller.plan.snapshot import NodeView, WorkloadView
from kakuri.model import Allocation, Desired, Drain, RestartPolicy, State, Tombstone
from support.toy_world import ToyWorld

DRAIN = Drain(asked_at=NOW)
SOON = Drain(asked_at=NOW, deadline_at=later(60))
PAST = Drain(asked_at=NOW, deadline_at=NOW)
OLD = a_spec(image="localhost/demo:old")
PENDING: dict[str, Any] = {"state": State.PENDING}
CRASHING: dict[str, Any] = {"reason": "CrashLoopBackOff"}
DRAINED: dict[str, Any] = {"desired": Desired.STOP, "desired_reason": "Drained", "reason": "Stopped"}


def draining(drain: Drain = DRAIN, **fields: Any) -> NodeView:
    return a_node_view("n1", schedulable=False, drain=drain, **fields)


def web(*rows: Allocation, **fields: Any) -> WorkloadView:
    return a_view(allocations=rows, **{"replicas": len(rows), **fields})


def stopped(*views: WorkloadView, nodes: tuple[NodeView, ...]) -> list[str]:
    actions = plan(a_snapshot(views, nodes)).actions
    assert not [a for a in actions if isinstance(a, Place) and a.node == "n1"]
    assert all(a.reason == "Drained" for a in actions if isinstance(a, Stop))
    return [a.allocation_id.rpartition(".")[0] for a in actions if isinstance(a, Stop)]


def staying(view: WorkloadView, *nodes: NodeView) -> dict[str, str]:
    (decided,) = plan(a_snapshot(view, nodes)).workloads
    return {s.allocation_id.rpartition(".")[0]: s.message for s in decided.staying}


def row(slot: int = 0, **fields: Any) -> Allocation:
    return an_allocation(slot=slot, **fields)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(web(row(0), row(1), row(2)), ["web.0"], id="one at a time"),
        pytest.param(
            web(row(0), row(1), row(2), max_unavailable=2), ["web.0", "web.1"], id="or as many as may be down"
        ),
        pytest.param(web(row(0, node="n2"), row(1)), ["web.1"], id="what is elsewhere stays there"),
        pytest.param(web(a_stop(slot=0), row(1)), [], id="the next waits while one is stopping"),
        pytest.param(web(row(0, node="n2", **PENDING), row(1)), [], id="and while its successor comes up"),
        pytest.param(web(row(0, node="n2", age_s=0.5), row(1)), [], id="and until that has run for a moment"),
        pytest.param(web(row(0, **CRASHING), row(1)), ["web.0"], id="what is down anyway leaves first, and counts"),
        pytest.param(
            web(row(0, **PENDING), row(1, **PENDING)), ["web.0", "web.1"], id="all that is down leaves at once"
        ),
        pytest.param(web(row(0, age_s=0.5), row(1, age_s=0.5)), [], id="what has only come up is left a moment"),
        pytest.param(web(row(0), restart_policy=RestartPolicy.NEVER), [], id="a job is left to finish"),
        pytest.param(web(row(0), restart_policy=RestartPolicy.ON_FAILURE), [], id="also one that is retried"),
        pytest.param(web(row(0, reason="RuntimeUnreachable")), [], id="what may run or not is left"),
    ],
)
def test_before_the_deadline_a_drain_takes_what_can_move(view: WorkloadView, expected: list[str]) -> None:
    for drain in (DRAIN, SOON):
        assert stopped(view, nodes=(draining(drain), a_node_view("n2"))) == expected


def test_from_the_deadline_on_all_that_is_left_is_stopped() -> None:
    rows = (row(0), row(1), row(2, **PENDING), row(3, reason="RuntimeUnreachable"), row(4, node="n2"))
    service = web(*rows)
    job = a_view("job", allocations=[an_allocation("job")], restart_policy=RestartPolicy.NEVER)
    everything = ["job.0", "web.0", "web.1", "web.2", "web.3"]
    assert stopped(service, job, nodes=(draining(PAST),)) == everything
    assert stopped(service, job, nodes=(draining(PAST, ready=False),)) == everything, "silent or not"


def test_what_the_deadline_stops_is_told_of_the_node_with_the_stop() -> None:
    (decided,) = plan(a_snapshot(web(row(0), row(1)), [draining(PAST), a_node_view("n2")])).workloads
    (event,) = [e for e in decided.events if e.object_kind == "Node"]
    assert (event.object_id, event.reason, event.type) == ("n1", "DrainDeadline", "Warning")
    assert "stopping web.0.00000000, web.1.00000000" in event.message


def test_the_deadline_is_looked_at_when_it_comes() -> None:
    (decided,) = plan(a_snapshot(web(row(0), restart_policy="Never"), [draining(SOON), a_node_view("n2")])).workloads
    assert decided.look_again_at == SOON.deadline_at
    (decided,) = plan(a_snapshot(web(row(0, node="n2")), [draining(SOON), a_node_view("n2")])).workloads
    assert decided.look_again_at is None


@pytest.mark.parametrize(
    ("view", "node", "why"),
    [
        pytest.param(web(row(0)), a_node_view("n2", memory_mb=32), "too little memory", id="no room"),
        pytest.param(web(row(0)), a_node_view("n2", ready=False), "1 is not ready", id="not ready"),
        pytest.param(
            web(row(0)), a_node_view("n2", schedulable=False, drain=DRAIN), "2 are being drained", id="drained"
        ),
        pytest.param(
            web(row(0), node_selector={"disk": "ssd"}), a_node_view("n2"), "labels of node_selector", id="labels"
        ),
        pytest.param(web(row(0), restart_policy="Never"), a_node_view("n2"), "is a job", id="a job"),
        pytest.param(
            web(row(0), row(1, node="n2", **CRASHING)), a_node_view("n2"), "waits its turn: 1 not up", id="its turn"
        ),
    ],
)
def test_what_stays_says_why(view: WorkloadView, node: NodeView, why: str) -> None:
    (message,) = staying(view, draining(), node).values()
    assert why in message


def test_what_stays_on_a_silent_node_says_so() -> None:
    silent = draining(ready=False, message="no answer")
    assert staying(web(row(0)), silent, a_node_view("n2")) == {
        "web.0": "can't be ended there: n1 is silent (no answer); next: bring it back, or `kakuri node forget n1`"
    }


def test_the_last_place_is_given_once_and_is_kept_for_what_is_on_its_way() -> None:
    one_place = a_node_view("n2", memory_mb=64)
    web_, db = web(row(0)), a_view("db", allocations=[an_allocation("db")])
    assert stopped(web_, db, nodes=(draining(), one_place)) == ["db.0"]
    on_its_way = a_view("db", allocations=[a_stop("db", **DRAINED | {"state": State.TERMINATING})])
    assert stopped(web_, on_its_way, nodes=(draining(), one_place)) == []
    # Also when the other workload is none of this pass.
    snapshot = a_snapshot([web_, on_its_way], [draining(), one_place])
    assert plan(replace(snapshot, workloads=(web_,))).actions == ()


def test_what_is_to_be_placed_anyway_comes_before_what_could_move() -> None:
    new = a_view("zoo")
    actions = plan(a_snapshot([web(row(0)), new], [draining(), a_node_view("n2", memory_mb=64)])).actions
    assert [type(a) for a in actions] == [Place]


def test_a_host_port_that_is_taken_elsewhere_keeps_it() -> None:
    spec = a_spec(ports=(a_port(8080),))
    view = web(row(0, spec=spec), row(1, spec=spec, node="n2"), ports=spec.ports)
    assert "host_port" in staying(view, draining(), a_node_view("n2"))["web.0"]


# -- beside a change ---------------------------------------------------------------------------------------------------
def test_a_changed_workload_moves_with_its_new_spec_and_only_where_it_has_a_place() -> None:
    view = web(row(0, spec=OLD), row(1, spec=OLD), generation=2)
    assert stopped(view, nodes=(draining(), a_node_view("n2"))) == ["web.0"]
    assert stopped(view, nodes=(draining(), a_node_view("n2", memory_mb=32))) == []


def test_a_change_goes_on_elsewhere_and_both_share_what_may_be_down() -> None:
    view = web(row(0, spec=OLD), row(1, spec=OLD, node="n2"), generation=2)
    actions = plan(a_snapshot(view, [draining(), a_node_view("n2")])).actions
    assert [(a.allocation_id, a.reason) for a in actions if isinstance(a, Stop)] == [("web.1.00000000", "Updating")]


def test_a_paused_change_keeps_what_has_the_earlier_spec_but_not_what_has_the_new_one() -> None:
    view = web(row(0, spec=OLD), row(1, **CRASHING, node="n2"), row(2, **PENDING, failures=0), generation=2)
    assert stopped(view, nodes=(draining(), a_node_view("n2"))) == ["web.2"]
    assert "paused" in staying(view, draining(), a_node_view("n2"))["web.0"]


def test_a_slot_that_a_drain_left_without_a_place_does_not_pause_a_change() -> None:
    gone = an_end(slot=0, spec=OLD, **DRAINED, state=State.FAILED)
    view = web(gone, row(1, spec=OLD, node="n2"), generation=2, max_unavailable=2)
    nodes = [draining(PAST), a_node_view("n2", memory_mb=64)]
    (decided,) = plan(a_snapshot(view, nodes)).workloads
    progressing = next(c for c in decided.status.conditions if c.type == "Progressing")
    assert progressing.reason == "Unschedulable"
    assert [a.allocation_id for a in decided.actions if isinstance(a, Stop)] == ["web.1.00000000"]


# -- what was stopped --------------------------------------------------------------------------------------------------
def test_a_service_that_was_stopped_for_a_drain_is_placed_elsewhere() -> None:
    view = web(an_end(slot=0, **DRAINED, state=State.FAILED))
    (place,) = plan(a_snapshot(view, [draining(), a_node_view("n2")])).actions
    assert isinstance(place, Place)
    assert (place.node, "Drained" in place.reason) == ("n2", True)


@pytest.mark.parametrize(
    ("policy", "fields", "state"),
    [
        pytest.param("Never", {"state": State.FAILED, "exit_code": 137}, State.FAILED, id="a job has failed for good"),
        pytest.param("Never", {"exit_code": 0}, State.FAILED, id="also when it took the stop well"),
        pytest.param(
            "Never", {"exit_code": 0, "reason": "Completed"}, State.SUCCEEDED, id="but not when it finished meanwhile"
        ),
        pytest.param("Never", {"state": State.FAILED, "started_once": False}, State.PENDING, id="or never began"),
        pytest.param(
            "OnFailure", {"state": State.FAILED, "exit_code": 137}, State.PENDING, id="one that is retried is"
        ),
    ],
)
def test_a_job_that_the_deadline_stopped(policy: str, fields: dict[str, Any], state: State) -> None:
    view = web(an_end(slot=0, **DRAINED | fields), restart_policy=RestartPolicy(policy))
    (decided,) = plan(a_snapshot(view, [draining(PAST), a_node_view("n2")])).workloads
    assert decided.status.state is state
    if state is State.FAILED:
        assert (decided.status.reason, decided.actions) == ("Drained", ())
        assert "n1 was drained" in decided.status.message


# -- tombstones --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("there", "cure"),
    [
        ((a_node_view("n9", ready=False),), "when that node has nothing of it, or after `kakuri node forget n9`"),
        ((a_node_view("n9", schedulable=False),), "it is being ended there, and placed when nothing of it is left"),
        ((), "it is placed when n9 is registered again and has nothing of it"),
    ],
)
def test_a_slot_with_a_blocking_tombstone_is_not_placed_and_says_why(there: tuple[NodeView, ...], cure: str) -> None:
    tombstone = Tombstone(
        id="web.0.aaaaaaaa",
        node="n9",
        workload="web",
        slot=0,
        reason="Restored",
        message="it was started after the backup",
        blocks=True,
        created_at=NOW,
    )
    view = a_view(replicas=2, tombstones=(tombstone,))
    (decided,) = plan(a_snapshot(view, (a_node_view("n2"), *there))).workloads
    assert [a.slot for a in decided.actions if isinstance(a, Place)] == [1]
    (waiting,) = [w for w in decided.waiting if w.slot == 0]
    assert waiting.reason == "Restored"
    assert "web.0.aaaaaaaa may still run on n9" in waiting.message
    assert waiting.message.endswith(cure)


# -- progress ----------------------------------------------------------------------------------------------------------
def progress(*views: WorkloadView, nodes: tuple[NodeView, ...]) -> Progress:
    return progress_of("n1", a_snapshot(views, nodes))


def test_a_drain_is_done_when_what_left_runs_elsewhere_and_not_before() -> None:
    gone = an_end(slot=0, **DRAINED, age_s=120)
    nodes = (draining(), a_node_view("n2"))
    assert progress(nodes=nodes).done
    seen = progress(web(gone), nodes=nodes)
    (waiting,) = seen.waiting
    assert (waiting.workload, waiting.slot, seen.left, seen.moved, seen.done) == ("web", 0, (), 0, False)
    coming = progress(web(gone, row(0, node="n2", **PENDING, suffix="11111111"), replicas=1), nodes=nodes)
    assert (len(coming.waiting), coming.done) == (1, False)
    there = progress(web(gone, row(0, node="n2", suffix="11111111"), replicas=1), nodes=nodes)
    assert (there.left, there.waiting, there.moved, there.done) == ((), (), 1, True)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(web(an_end(slot=0, **DRAINED), deleting=True), id="deleted"),
        pytest.param(web(an_end(slot=0, **DRAINED), replicas=0), id="scaled away"),
        pytest.param(web(an_end(slot=0, **DRAINED, state=State.FAILED), restart_policy="Never"), id="a job that ran"),
    ],
)
def test_what_is_wanted_no_more_is_not_waited_for(view: WorkloadView) -> None:
    assert progress(view, nodes=(draining(), a_node_view("n2"))).done


def test_what_could_not_be_placed_keeps_a_drain_open_and_says_why() -> None:
    seen = progress(web(an_end(slot=0, **DRAINED, state=State.FAILED)), nodes=(draining(PAST),))
    (waiting,) = seen.waiting
    assert "Unschedulable" in waiting.why
    assert "being drained" in waiting.why


def test_each_that_is_left_says_what_it_waits_for() -> None:
    view = web(row(0), row(1), a_stop(slot=2, desired_reason="Drained"), an_end(slot=3, released=False))
    silent = draining(ready=False, message="no answer")
    assert [x.allocation.split(".")[1] for x in progress(view, nodes=(draining(),)).left] == ["0", "1", "2", "3"]
    words = [x.why for x in progress(view, nodes=(draining(), a_node_view("n2"))).left]
    assert "waits its turn" in words[0]
    assert "is stopping (Drained, grace 10 s)" in words[2]
    assert "being cleared away" in words[3]
    words = [x.why for x in progress(view, nodes=(silent, a_node_view("n2"))).left]
    assert all("can't be ended there: n1 is silent (no answer)" in words[i] for i in (0, 2))


def test_the_trace_of_a_move_is_kept_until_the_drain_is_over() -> None:
    """However often the successor fails to start, the slot stays known as one that left."""
    moved = an_end(slot=0, **DRAINED, state=State.FAILED, age_s=900, finished_at=later(-800))
    failures = [
        an_end(
            slot=0,
            node="n2",
            state=State.FAILED,
            reason="SandboxFailed",
            started_once=False,
            suffix=f"0000000{i}",
            age_s=600 - i * 100,
            finished_at=later(-500),
            observed_at=later(-500),
        )
        for i in (1, 2)
    ]
    view = web(moved, *failures, row(0, node="n2", suffix="99999999"), replicas=1)
    during = plan(a_snapshot(view, [draining(), a_node_view("n2")])).actions
    after = plan(a_snapshot(view, [a_node_view("n1"), a_node_view("n2")])).actions
    assert during == (Remove(failures[0].id, "slot 0 has newer ends"),)
    assert after == (*during, Remove(moved.id, "slot 0 has newer ends"))


def test_a_world_with_a_drained_node_settles_with_nothing_left_there() -> None:
    world = ToyWorld({n: a_node_view(n, memory_mb=1000) for n in ("n1", "n2", "n3")})
    world.put("web", replicas=6)
    world.put("db", replicas=3, max_unavailable=2)
    world.settle(do=world.run)
    assert {a.node for a in world.rows()} == {"n1", "n2", "n3"}
    world.nodes["n1"] = replace(world.nodes["n1"], schedulable=False, drain=Drain(asked_at=world.now))
    lowest = 6
    for _ in range(60):
        decided = world.plan()
        world.apply(decided)
        ready = sum(a.ready for a in world.rows() if a.workload == "web")
        lowest = min(lowest, ready)
        for each in world.rows():
            world.change(each.id, world.run)
        world.now += timedelta(seconds=2)
        if progress_of("n1", world.snapshot()).done:
            break
    seen = progress_of("n1", world.snapshot())
    assert (seen.done, seen.moved) == (True, 3)
    assert not [a for a in world.rows() if a.node == "n1" and a.live]
    assert lowest == 5, "one at a time"
