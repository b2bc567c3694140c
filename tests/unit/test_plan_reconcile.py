"""One pass: what is placed, stopped, updated, removed and forgotten, and what is said of it."""

import pytest

from builders import (
    NOW,
    a_failed_start,
    a_node_view,
    a_port,
    a_snapshot,
    a_spec,
    a_stop,
    a_view,
    an_allocation,
    an_end,
    later,
)
from controller.plan.action import Action, Forget, Place, Remove, Stop, Update, WorkloadPlan, carried_out
from controller.plan.reconcile import plan
from controller.plan.snapshot import NodeView, WorkloadView
from kakuri.model import Desired, EventType, RestartPolicy, State


def decide(view: WorkloadView, *nodes: NodeView) -> WorkloadPlan:
    (decided,) = plan(a_snapshot(view, nodes or (a_node_view(),))).workloads
    return decided


def brief(*actions: Action) -> list[str]:
    """Actions in short, as in: place 0 n1, stop web.0.00000000 Deleted."""
    told = []
    for action in actions:
        match action:
            case Place():
                told.append(f"place {action.slot} {action.node}")
            case Stop():
                told.append(f"stop {action.allocation_id} {action.reason}")
            case Update():
                told.append(f"update {action.allocation_id}")
            case Remove():
                told.append(f"remove {action.allocation_id}")
            case Forget():
                told.append(f"forget {action.workload_id}")
    return told


NEVER = RestartPolicy.NEVER
FAILED = {"state": State.FAILED, "reason": "Error", "exit_code": 3}
LOST = {"state": State.FAILED, "reason": "NodeLost", "desired": Desired.STOP, "desired_reason": "NodeLost"}
LONG_AGO = {"finished_at": later(-3600), "observed_at": later(-3600)}


@pytest.mark.parametrize(
    ("view", "actions"),
    [
        # -- scale
        pytest.param(a_view(), ["place 0 n1"], id="an empty slot gets an allocation"),
        pytest.param(
            a_view(replicas=3, allocations=[an_allocation(slot=1)]), ["place 0 n1", "place 2 n1"], id="every empty slot"
        ),
        pytest.param(a_view(allocations=[an_allocation()]), [], id="a slot that runs is left alone"),
        pytest.param(
            a_view(allocations=[an_allocation(state=State.PENDING, reason="ImagePullBackOff")]),
            [],
            id="its agent goes on trying, so nothing is replaced for that",
        ),
        pytest.param(
            a_view(replicas=1, allocations=[an_allocation(slot=n) for n in range(3)]),
            ["stop web.1.00000000 ScalingDown", "stop web.2.00000000 ScalingDown"],
            id="slots past the replicas are stopped",
        ),
        pytest.param(
            a_view(replicas=0, allocations=[a_stop(), an_end(slot=1), an_end(slot=2, desired=Desired.REMOVE)]),
            ["remove web.1.00000000"],
            id="and removed when they are gone, each once",
        ),
        pytest.param(
            a_view(allocations=[an_end(desired=Desired.REMOVE)], restart_policy=NEVER),
            ["place 0 n1"],
            id="a slot that is wanted again while its allocation is removed gets another",
        ),
        # -- deletion
        pytest.param(
            a_view(deleting=True, allocations=[an_allocation(), a_stop(slot=1), an_end(slot=2)]),
            ["stop web.0.00000000 Deleted", "remove web.2.00000000"],
            id="deletion stops what lives and removes what has ended",
        ),
        pytest.param(
            a_view(deleting=True, allocations=[an_end(desired=Desired.REMOVE)]), [], id="and waits for the agents"
        ),
        pytest.param(a_view(deleting=True), ["forget web"], id="and forgets the workload when nothing is left"),
        # -- ends
        pytest.param(a_view(allocations=[an_end()], restart_policy=NEVER), [], id="a job that is done stays done"),
        pytest.param(
            a_view(allocations=[an_end(**FAILED)], restart_policy=NEVER), [], id="a job that failed is not run again"
        ),
        pytest.param(a_view(allocations=[an_end(**FAILED)]), [], id="nor is a service whose agent has given it up"),
        pytest.param(
            a_view(allocations=[an_end(**FAILED)], labels={"a": "b"}, replicas=1, termination_grace_s=1),
            [],
            id="nor is either for a change that applies in place",
        ),
        pytest.param(a_view(allocations=[an_end(**LOST)]), ["place 0 n1"], id="what was lost is replaced at once"),
        pytest.param(
            a_view(allocations=[an_end(**LOST)], restart_policy=NEVER), [], id="but not under Never: it may have run"
        ),
        pytest.param(
            a_view(allocations=[an_end(**LOST, released=False)]), [], id="and not before it is known to be gone"
        ),
        pytest.param(
            a_view(allocations=[an_end(state=State.SUCCEEDED, reason="Stopped", desired=Desired.STOP)]),
            ["place 0 n1"],
            id="what we stopped and is wanted again is replaced",
        ),
        pytest.param(a_view(allocations=[a_stop()]), [], id="but not while it is stopping"),
        pytest.param(a_view(allocations=[a_failed_start()]), [], id="a failed start waits"),
        pytest.param(
            a_view(allocations=[a_failed_start(**LONG_AGO)], restart_policy=NEVER),
            ["place 0 n1"],
            id="and is tried again under every policy: it never ran",
        ),
        # -- in place
        pytest.param(
            a_view(allocations=[an_allocation()], labels={"a": "b"}),
            ["update web.0.00000000"],
            id="a changed label goes to the agent",
        ),
        pytest.param(
            a_view(
                allocations=[
                    an_allocation(spec=a_spec(replicas=6)),
                    a_stop(slot=1),
                    an_end(slot=2),
                    an_allocation(slot=3, state=State.PENDING),
                    an_end(slot=4, released=False),
                ],
                replicas=5,
                restart_policy=NEVER,
            ),
            ["update web.0.00000000", "update web.3.00000000"],
            id="but only for allocations that run or will",
        ),
        pytest.param(
            a_view(allocations=[an_allocation()], max_unavailable=4, generation=2),
            [],
            id="what the agent does not see it is not told",
        ),
        # -- old ends
        pytest.param(
            a_view(
                allocations=[
                    an_allocation(suffix="00000004", age_s=1),
                    *(an_end(**LOST, suffix=f"0000000{n}", age_s=9 - n) for n in (1, 2, 3)),
                ]
            ),
            ["remove web.0.00000002", "remove web.0.00000001"],
            id="of a slot's ends one is kept beside the newest",
        ),
        pytest.param(
            a_view(allocations=[an_end(suffix=f"0000000{n}", age_s=9 - n) for n in (1, 2, 3)], restart_policy=NEVER),
            ["remove web.0.00000001"],
            id="also when the newest has ended itself",
        ),
        pytest.param(
            a_view(allocations=[an_end(**LOST, suffix=f"0000000{n}", age_s=9 - n) for n in (1, 2)]),
            ["place 0 n1", "remove web.0.00000001"],
            id="a placement counts as the newest",
        ),
        # -- what should not be
        pytest.param(
            a_view(allocations=[an_allocation(suffix="0000000a", age_s=9), an_allocation(suffix="0000000b", age_s=1)]),
            ["stop web.0.0000000a Stopped"],
            id="of two live allocations of a slot the newest is kept",
        ),
    ],
)
def test_what_a_pass_does(view: WorkloadView, actions: list[str]) -> None:
    assert brief(*decide(view).actions) == actions


def test_a_placement_leaves_nothing_to_choose() -> None:
    view = a_view(generation=7, ports=(a_port(),))
    node = a_node_view(ledger_uid="ledger-7", simulated=True)
    snapshot = a_snapshot(view, node)
    assert plan(snapshot).actions == (
        Place(
            allocation_id=f"web.0.{snapshot.suffix('uid-web', 0)}",
            workload_id="web",
            workload_uid="uid-web",
            slot=0,
            node="n1",
            generation=7,
            spec=view.spec,
            spec_hash=view.spec.replacing_hash(),
            failures=0,
            ledger_uid="ledger-7",
            simulated=True,
            reason="slot 0 has no allocation; n1 alone fits",
        ),
    )


def test_another_try_counts_the_failures_and_goes_to_another_node() -> None:
    failed = a_failed_start(failures=1, message="no space", **LONG_AGO)
    (place,) = decide(a_view(allocations=[failed]), a_node_view("n1"), a_node_view("n2", memory_mb=64)).actions
    assert isinstance(place, Place)
    assert (place.failures, place.node) == (2, "n2")
    assert place.reason == (
        "web.0.00000000 failed to start on n1 (SandboxFailed); this is try 3; "
        "n2 has the fewest of its allocations (0), then most memory free"
    )


def test_a_failed_start_says_when_the_next_try_is_due_and_asks_to_be_looked_at_then() -> None:
    failed = a_failed_start(failures=1, message="no space", finished_at=later(-5))
    decided = decide(a_view(allocations=[failed]))
    assert decided.look_again_at == later(15)
    (waiting,) = decided.waiting
    assert (waiting.slot, waiting.reason) == (0, "BackOff")
    assert waiting.message == (
        "web.0.00000000 failed to start on n1 (SandboxFailed: no space); try 3 is due at 2030-01-01T12:00:15Z, "
        "on another node if one fits"
    )


def test_an_update_keeps_what_an_outdated_allocation_runs_with() -> None:
    old = [an_allocation(slot=n, spec=a_spec(image="localhost/demo:1")) for n in (0, 1)]
    view = a_view(allocations=old, replicas=2, image="localhost/demo:2", labels={"a": "b"}, generation=2)
    stop, update = decide(view).actions
    assert brief(stop) == ["stop web.0.00000000 Updating"]
    assert isinstance(update, Update)
    assert (update.allocation_id, update.generation, update.reason) == ("web.1.00000000", 2, "labels changed")
    assert (update.spec.image, update.spec.labels, update.spec.replicas) == ("localhost/demo:1", {"a": "b"}, 2)


def test_workloads_are_planned_in_the_order_of_their_ids_and_share_the_room() -> None:
    small = a_node_view(memory_mb=100)
    decided = plan(a_snapshot([a_view("b"), a_view("a")], small))
    assert [w.workload_id for w in decided.workloads] == ["a", "b"]
    assert brief(*decided.actions) == ["place 0 n1"]
    assert decided.workloads[1].status.reason == "Unschedulable"


def test_why_there_is_no_place_is_told_of_the_room_that_the_whole_pass_leaves() -> None:
    """Else the next pass would tell it differently, and write."""
    views = [a_view("a", cpu_millicores=4001), a_view("b")]
    told = plan(a_snapshot(views, a_node_view(memory_mb=100))).workloads[0].status.message
    assert told.startswith("0 of 1 nodes fit: 1 has too little memory free (64 MiB asked)")


def test_a_stopped_allocation_holds_its_room_until_it_is_gone() -> None:
    held = a_node_view(memory_mb=100)
    assert brief(*decide(a_view("b", allocations=[a_stop("b", slot=1)]), held).actions) == []


def test_what_came_to_pass_is_told_in_events() -> None:
    decided = plan(a_snapshot([a_view("new"), a_view("old", deleting=True), a_view("less", replicas=0)]))
    told = {(e.object_id, e.reason, e.message) for w in decided.workloads for e in w.events}
    (place,) = [a for a in decided.actions if isinstance(a, Place)]
    assert told == {
        ("new", "Scheduled", f"placed {place.allocation_id} on n1: slot 0 has no allocation; n1 alone fits"),
        ("old", "Deleted", "nothing of it is left"),
    }


def test_many_placements_and_stops_are_told_in_few_events() -> None:
    many = decide(a_view(replicas=40))
    assert len([e for e in many.events if e.reason == "Scheduled"]) == 11
    assert many.events[10].message == "placed 30 more on 1 nodes"
    fewer = decide(a_view(replicas=1, allocations=[an_allocation(slot=n) for n in range(6)]))
    (event,) = [e for e in fewer.events if e.reason == "ScalingDown"]
    assert event.message == "stopping web.1.00000000, web.2.00000000, web.3.00000000 and 2 more: replicas is 1"


def test_an_unschedulable_workload_warns_once() -> None:
    view = a_view(runtime_class="edera-zone", memory_mb=300)
    first = decide(view)
    assert [(e.type, e.reason) for e in first.events] == [(EventType.WARNING, "Unschedulable")]
    assert first.status.message in first.events[0].message
    again = decide(a_view(runtime_class="edera-zone", memory_mb=300, status=first.status))
    assert again.empty
    assert again.waiting == first.waiting


@pytest.mark.parametrize("slots", [1, 3])
def test_an_idle_workload_costs_no_write(slots: int) -> None:
    rows = [an_allocation(slot=n) for n in range(slots)]
    status = decide(a_view(replicas=slots, allocations=rows)).status
    assert decide(a_view(replicas=slots, allocations=rows, status=status)).empty


def test_the_log_line_of_a_pass_says_what_it_did_and_what_it_waits_on() -> None:
    views = [a_view("a"), a_view("b", allocations=[a_failed_start("b")]), a_view("c", deleting=True)]
    fields = plan(a_snapshot(views)).log_fields()
    assert (fields["looked_at"], fields["place"], fields["forget"]) == (3, 1, 1)
    actions, waiting = fields["actions"], fields["waiting"]
    assert isinstance(actions, list)
    assert isinstance(waiting, list)
    assert actions[0].startswith("place a.0.")
    assert actions[0].endswith(" on n1: slot 0 has no allocation; n1 alone fits")
    assert actions[1] == "forget c: Deleted"
    assert any(w.startswith("b.0: BackOff: b.0.00000000 failed to start on n1 (SandboxFailed)") for w in waiting)


def test_actions_carried_out_give_the_rows_that_stores_must_have() -> None:
    spec = a_spec(labels={"a": "b"})
    rows = [an_allocation(), an_allocation(slot=1), an_end(slot=2), an_end(slot=3, released=False)]
    place = Place("web.4.0", "web", "uid-web", 4, "n1", 2, spec, spec.replacing_hash(), 3, "ledger", True, "why")
    after = carried_out(
        rows,
        [
            Update("web.0.00000000", 2, spec, "why"),
            Stop("web.1.00000000", "Deleted", "the workload was deleted"),
            Remove("web.2.00000000", "Deleted"),
            Stop("web.3.00000000", "Deleted"),
            place,
        ],
        NOW,
    )
    updated, stopped, removed, ended, placed = after
    assert (updated.spec, updated.generation, updated.revision, updated.desired) == (spec, 2, 2, Desired.RUN)
    assert (stopped.desired, stopped.state, stopped.reason, stopped.revision) == (
        Desired.STOP,
        State.TERMINATING,
        "Deleted",
        2,
    )
    assert (removed.desired, removed.state, removed.revision) == (Desired.REMOVE, State.SUCCEEDED, 2)
    assert (ended.desired, ended.state, ended.reason) == (Desired.STOP, State.SUCCEEDED, "Completed")
    assert (placed.state, placed.reason, placed.failures, placed.simulated) == (State.PENDING, "Starting", 3, True)
    assert (placed.revision, placed.accepted_revision, placed.created_at) == (1, 0, NOW)
    assert carried_out(rows, [Forget("web", "Deleted")], NOW) == ()
