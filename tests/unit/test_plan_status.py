"""What a person reads of a workload: its state, why, the counts and the conditions."""

from typing import Any

import pytest

from builders import (
    NOW,
    a_failed_start,
    a_node_view,
    a_snapshot,
    a_spec,
    a_stop,
    a_view,
    an_allocation,
    an_end,
    later,
)
from controller.plan.reconcile import plan
from controller.plan.snapshot import NodeView, WorkloadView
from kakuri.model import Allocation, Condition, Desired, RestartPolicy, State, WorkloadStatus

NEVER = RestartPolicy.NEVER
PENDING = {"state": State.PENDING}
ERROR = {"state": State.FAILED, "reason": "Error", "exit_code": 3}
SILENT = a_node_view("n2", ready=False, message="no answer since 12:00")
OLD = a_spec(image="localhost/demo:old")


def status(view: WorkloadView, *nodes: NodeView) -> WorkloadStatus:
    return plan(a_snapshot(view, nodes or (a_node_view(), SILENT))).workloads[0].status


def slots(*rows: Allocation, **fields: Any) -> WorkloadView:
    return a_view(allocations=rows, **{"replicas": len(rows)} | fields)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        pytest.param(slots(an_allocation()), (State.RUNNING, "", ""), id="running, and nothing to say"),
        pytest.param(
            slots(an_allocation(), an_end(slot=1), restart_policy=NEVER),
            (State.RUNNING, "", ""),
            id="running while any slot runs and all is as due",
        ),
        pytest.param(
            slots(an_allocation(reason="CrashLoopBackOff", message="exit code 1, again at 12:01")),
            (State.RUNNING, "CrashLoopBackOff", "exit code 1, again at 12:01"),
            id="running between two attempts, with why",
        ),
        pytest.param(
            slots(
                an_allocation(),
                an_allocation(slot=1, reason="CrashLoopBackOff", message="exit code 1"),
                an_allocation(slot=2, reason="CrashLoopBackOff", message="exit code 1"),
                an_allocation(slot=3, **PENDING, reason="ImagePullBackOff", message="not found"),
            ),
            (State.RUNNING, "ImagePullBackOff", "slot 3: not found; 2 more wait too"),
            id="running with the worst slot's trouble",
        ),
        pytest.param(
            slots(
                an_allocation(),
                an_allocation(slot=1, reason="CrashLoopBackOff", message="exit code 1"),
                an_allocation(slot=2, reason="CrashLoopBackOff", message="exit code 1"),
            ),
            (State.RUNNING, "CrashLoopBackOff", "slot 1 and 1 more: exit code 1"),
            id="the same trouble is counted",
        ),
        pytest.param(
            slots(an_allocation(), an_end(slot=1, **ERROR), restart_policy=NEVER),
            (State.RUNNING, "Error", "slot 1: exit code 3"),
            id="running with a slot that failed",
        ),
        pytest.param(
            slots(an_allocation(node="n2")),
            (State.RUNNING, "NodeSilent", "node n2 is silent (no answer since 12:00); web.0.00000000 is kept for it"),
            id="running as far as is known, on a silent node",
        ),
        pytest.param(
            slots(an_allocation(node="n9")),
            (State.RUNNING, "NodeSilent", "node n9 is not registered; web.0.00000000 is kept for it"),
            id="running as far as is known, on a node that is gone",
        ),
        pytest.param(
            slots(an_allocation(**PENDING)),
            (State.PENDING, "Starting", "web.0.00000000 waits for n1 to start it"),
            id="pending before its node has said a word",
        ),
        pytest.param(
            slots(an_allocation(**PENDING, reason="Pulling", message="pulling the image")),
            (State.PENDING, "Pulling", "pulling the image"),
            id="pending in its agent's words",
        ),
        pytest.param(
            slots(an_end(**ERROR), an_allocation(slot=1, **PENDING, reason="Pulling"), restart_policy=NEVER),
            (State.PENDING, "Pulling", "slot 1: web.1.00000000 waits for n1 to start it"),
            id="pending while any slot is to come, whatever another ended as",
        ),
        pytest.param(
            slots(a_failed_start(released=False, message="no space left")),
            (
                State.PENDING,
                "SandboxFailed",
                "web.0.00000000 ended on n1 (SandboxFailed: no space left); it is replaced once nothing is left of it",
            ),
            id="pending while a failed start is cleared away",
        ),
        pytest.param(
            slots(a_stop(spec=OLD, desired_reason="Updating")),
            (State.PENDING, "Updating", "web.0.00000000 is stopping on n1"),
            id="pending while the only slot changes over",
        ),
        pytest.param(
            slots(a_stop(desired_reason="NodeLost")),
            (State.PENDING, "NodeLost", "web.0.00000000 was lost; n1 is clearing away what is left of it"),
            id="pending while what is left of a lost one is cleared",
        ),
        pytest.param(
            a_view(replicas=0), (State.PENDING, "ScaledToZero", "replicas is 0"), id="pending with no replicas"
        ),
        pytest.param(
            slots(an_end(spec=OLD, released=False), restart_policy=NEVER),
            (State.PENDING, "Updating", "waits until nothing of web.0.00000000 is left on n1"),
            id="pending when a done job is to run again",
        ),
        pytest.param(
            slots(an_end(), an_end(slot=1), restart_policy=NEVER),
            (State.SUCCEEDED, "Completed", ""),
            id="succeeded when all slots have",
        ),
        pytest.param(
            slots(an_end(**ERROR), restart_policy=NEVER),
            (State.FAILED, "Error", "exit code 3"),
            id="failed, with its code",
        ),
        pytest.param(
            slots(an_end(), an_end(slot=1, **ERROR | {"reason": "OOMKilled", "message": "over 64 MiB"})),
            (State.FAILED, "OOMKilled", "slot 1: over 64 MiB"),
            id="failed when any slot has",
        ),
        pytest.param(
            slots(
                an_end(state=State.FAILED, reason="NodeLost", exit_code=None, desired=Desired.STOP),
                restart_policy=NEVER,
            ),
            (State.FAILED, "NodeLost", "web.0.00000000 failed on n1"),
            id="failed when it was lost and must not run twice",
        ),
        pytest.param(
            slots(an_allocation(), a_stop(slot=1), deleting=True),
            (State.TERMINATING, "Deleted", "web.0.00000000 is stopping on n1, and 1 more"),
            id="terminating until all have stopped",
        ),
        pytest.param(
            slots(an_allocation(node="n2"), deleting=True),
            (
                State.TERMINATING,
                "Deleted",
                (
                    "web.0.00000000 can't be ended: node n2 is silent (no answer since 12:00); "
                    "next: bring it back, or `kakuri delete --force web`"
                ),
            ),
            id="terminating for as long as the node is silent",
        ),
        pytest.param(
            slots(an_end(), deleting=True),
            (State.TERMINATING, "Deleted", "nothing of it runs any more; its nodes are forgetting it"),
            id="terminating until its nodes have forgotten it",
        ),
    ],
)
def test_state_reason_and_message(view: WorkloadView, expected: tuple[State, str, str]) -> None:
    told = status(view)
    assert (told.state, told.reason, told.message) == expected


def test_a_workload_without_a_place_says_why_and_which_slots() -> None:
    told = status(a_view(runtime_class="kata", memory_mb=128, replicas=3), a_node_view())
    assert (told.state, told.reason) == (State.PENDING, "Unschedulable")
    assert told.message.startswith("slot 0 and 2 more: 0 of 1 nodes fit: 1 lacks runtime class kata (no handler kata)")


def test_what_has_no_place_is_told_before_all_else() -> None:
    rows = [an_allocation(), an_allocation(slot=1, **PENDING, reason="ImagePullBackOff", message="not found")]
    told = status(a_view(allocations=rows, replicas=3), a_node_view(memory_mb=128))
    assert (told.state, told.reason) == (State.RUNNING, "Unschedulable")
    assert told.message.startswith("slot 2: 0 of 1 nodes fit")
    assert told.message.endswith("; 1 more waits too")


@pytest.mark.parametrize(
    ("view", "counts"),
    [
        pytest.param(
            slots(an_allocation(restarts=2), an_allocation(slot=1, restarts=3), an_allocation(slot=2, **PENDING)),
            {"desired": 3, "updated": 3, "ready": 2, "failed": 0, "succeeded": 0, "restarts": 5},
            id="slots that run and that come up",
        ),
        pytest.param(
            slots(an_end(), an_end(slot=1, **ERROR), an_allocation(slot=2), restart_policy=NEVER),
            {"desired": 3, "updated": 3, "ready": 1, "failed": 1, "succeeded": 1, "exit_code": 3},
            id="slots that ended",
        ),
        pytest.param(
            slots(an_end(), restart_policy=NEVER), {"exit_code": 0, "node": "n1", "nodes": 1}, id="one that ended"
        ),
        pytest.param(
            slots(an_end(), an_allocation(slot=1), restart_policy=NEVER),
            {"exit_code": None},
            id="no code before all ended",
        ),
        pytest.param(
            slots(an_allocation(), an_allocation(slot=1, node="n2")),
            {"ready": 1, "node": None, "nodes": 2},
            id="on a silent node none counts as ready",
        ),
        pytest.param(
            slots(an_allocation(spec=OLD), a_stop(slot=1, spec=OLD), max_unavailable=1),
            {"updated": 0, "ready": 1, "node": "n1"},
            id="slots of an earlier spec",
        ),
        pytest.param(slots(a_failed_start()), {"updated": 0, "node": None, "nodes": 0}, id="a failed start is nowhere"),
        pytest.param(
            slots(an_allocation(), deleting=True), {"desired": 0, "node": "n1"}, id="deleted, nothing is desired"
        ),
        pytest.param(
            slots(an_allocation(simulated=True)), {"simulated": True}, id="on the fake runtime it is simulated"
        ),
        pytest.param(
            slots(an_allocation(), generation=4), {"observed_generation": 4}, id="the generation it is told of"
        ),
    ],
)
def test_counts(view: WorkloadView, counts: dict[str, object]) -> None:
    told = status(view)
    assert {name: getattr(told, name) for name in counts} == counts


@pytest.mark.parametrize(
    ("view", "available", "progressing"),
    [
        pytest.param(slots(an_allocation()), (True, ""), (True, "UpToDate"), id="all well"),
        pytest.param(
            slots(an_allocation(**PENDING, reason="Pulling")), (False, "Pulling"), (True, "Pulling"), id="coming up"
        ),
        pytest.param(
            slots(an_allocation(), an_allocation(slot=1, **PENDING)), (True, ""), (True, "Starting"), id="enough is up"
        ),
        pytest.param(
            slots(an_allocation(), *(an_allocation(slot=n, **PENDING) for n in (1, 2))),
            (False, "Starting"),
            (True, "Starting"),
            id="too little is up",
        ),
        pytest.param(
            slots(an_allocation(reason="CrashLoopBackOff")),
            (False, "CrashLoopBackOff"),
            (False, "CrashLoopBackOff"),
            id="a crash loop",
        ),
        pytest.param(slots(an_allocation(node="n2")), (False, "NodeSilent"), (False, "NodeSilent"), id="a silent node"),
        pytest.param(slots(an_end(), restart_policy=NEVER), (True, ""), (True, "UpToDate"), id="a job that is done"),
        pytest.param(
            slots(an_end(**ERROR), restart_policy=NEVER), (False, "Error"), (False, "Error"), id="a job that failed"
        ),
        pytest.param(
            slots(an_allocation(spec=OLD), an_allocation(slot=1, spec=OLD)),
            (True, ""),
            (True, "Updating"),
            id="in the middle of a change",
        ),
        pytest.param(
            slots(an_allocation(), a_stop(slot=1), replicas=1), (True, ""), (True, "ScalingDown"), id="scaling down"
        ),
        pytest.param(a_view(replicas=0), (False, "ScaledToZero"), (True, "UpToDate"), id="no replicas"),
        pytest.param(slots(an_allocation(), deleting=True), (False, "Deleted"), (True, "Deleted"), id="deleted"),
    ],
)
def test_conditions(view: WorkloadView, available: tuple[bool, str], progressing: tuple[bool, str]) -> None:
    told = {c.type: (c.status, c.reason) for c in status(view).conditions}
    assert told == {"Available": available, "Progressing": progressing}


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    before = Condition(type="Available", status=True, reason="x", since=later(-500))
    up = status(slots(an_allocation(), status=WorkloadStatus(conditions=(before,))))
    assert [c.since for c in up.conditions] == [later(-500), NOW]
    down = status(slots(an_allocation(**PENDING), status=up))
    assert [c.since for c in down.conditions] == [NOW, NOW]


def test_reaching_the_spec_is_told_once() -> None:
    first = plan(a_snapshot(slots(an_allocation()))).workloads[0]
    assert [(e.reason, e.message) for e in first.events] == [("UpToDate", "generation 1: 1 ready, 0 succeeded of 1")]
    assert plan(a_snapshot(slots(an_allocation(), status=first.status))).empty


def test_a_silent_node_is_told_of_its_workloads() -> None:
    decided = plan(a_snapshot(slots(an_allocation(node="n2")), [SILENT])).workloads[0]
    assert [e.reason for e in decided.events] == ["NodeSilent"]


def test_what_a_finished_slot_waits_on_is_nothing() -> None:
    decided = plan(a_snapshot(slots(an_end(), an_end(slot=1, **ERROR), restart_policy=NEVER))).workloads[0]
    assert decided.waiting == ()


def test_surplus_slots_say_what_they_wait_on() -> None:
    decided = plan(a_snapshot(slots(an_allocation(), an_allocation(slot=1), replicas=1))).workloads[0]
    (waiting,) = decided.waiting
    assert (waiting.slot, waiting.reason, waiting.message) == (1, "ScalingDown", "web.1.00000000 is stopping on n1")
