"""Sorting a workload's allocations into slots, and what an end means for its slot."""

from datetime import timedelta

import pytest

from builders import NOW, a_failed_start, a_node_view, a_spec, a_stop, a_view, an_allocation, an_end, later
from controller.plan.replace import End, Slot, Standing, backoff, end_of, sort_into_slots
from controller.plan.snapshot import NodeView
from kakuri.model import Allocation, Desired, RestartPolicy, State

ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER
RUNS = {"state": State.RUNNING}
OTHER = "0123456789abcdef"


def only_slot(*allocations: Allocation, node: NodeView | None = None, **spec: object) -> Slot:
    nodes = {"n1": node or a_node_view()}
    return sort_into_slots(a_view(allocations=allocations, **spec), nodes, NOW).wanted[0]


@pytest.mark.parametrize(
    ("allocation", "policy", "end"),
    [
        pytest.param(an_end(), ON_FAILURE, End.DONE, id="a job that completed is done"),
        pytest.param(an_end(), ALWAYS, End.DONE, id="an end of its own is final under Always too"),
        pytest.param(
            an_end(state=State.FAILED, reason="Error", exit_code=3),
            NEVER,
            End.FAILED,
            id="a job that failed has failed",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="BackoffLimitExceeded"),
            ON_FAILURE,
            End.FAILED,
            id="what the agent gave up on has failed",
        ),
        pytest.param(a_failed_start(), NEVER, End.FAILED_START, id="what never ran failed to start, under Never too"),
        pytest.param(
            a_failed_start(reason="IncompatibleAgent"), ALWAYS, End.FAILED_START, id="a refusal is a failed start"
        ),
        pytest.param(
            a_failed_start(reason="StartError", exit_code=128),
            NEVER,
            End.FAILED,
            id="a command that is not there fails",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="NodeLost", desired=Desired.STOP),
            ALWAYS,
            End.LOST,
            id="a lost service is lost",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="NodeLost", desired=Desired.STOP),
            ON_FAILURE,
            End.LOST,
            id="a lost job that may be repeated is lost",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="NodeLost", desired=Desired.STOP),
            NEVER,
            End.FAILED,
            id="a lost job that must not be repeated has failed",
        ),
        pytest.param(
            a_failed_start(reason="NodeLost", desired=Desired.STOP),
            NEVER,
            End.FAILED,
            id="a lost job counts as run, even if nobody saw it run",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="Stopped", desired=Desired.STOP, desired_reason="NodeLost"),
            ON_FAILURE,
            End.LOST,
            id="what was stopped for being lost is lost, whatever its agent calls it",
        ),
        pytest.param(
            an_end(state=State.SUCCEEDED, reason="Stopped", desired=Desired.STOP),
            ALWAYS,
            End.STOPPED,
            id="a service that stopped well was stopped",
        ),
        pytest.param(
            an_end(state=State.FAILED, reason="Stopped", desired=Desired.STOP),
            NEVER,
            End.STOPPED,
            id="a job that was stopped by us did not fail",
        ),
        pytest.param(
            an_end(desired=Desired.STOP), NEVER, End.DONE, id="a job that completed before the stop came is done"
        ),
        pytest.param(
            an_end(desired=Desired.STOP), ALWAYS, End.STOPPED, id="a service is never done because it was stopped"
        ),
    ],
)
def test_what_an_end_means(allocation: Allocation, policy: RestartPolicy, end: End) -> None:
    assert end_of(allocation, policy, outdated=False) is end


def test_a_run_that_completes_when_a_change_stops_it_was_stopped_and_one_that_nobody_stopped_is_done() -> None:
    assert end_of(an_end(desired=Desired.STOP), ON_FAILURE, outdated=True) is End.STOPPED
    assert end_of(an_end(), ON_FAILURE, outdated=True) is End.DONE


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (7, 300), (1_000_000, 300)]
)
def test_backoff_doubles_up_to_five_minutes(failures: int, seconds: int) -> None:
    assert backoff(failures) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("allocation", "standing"),
    [
        pytest.param(an_allocation(), Standing.READY, id="running without a reason is ready"),
        pytest.param(an_allocation(state=State.PENDING), Standing.COMING_UP, id="pending is coming up"),
        pytest.param(
            an_allocation(state=State.PENDING, reason="Pulling"), Standing.COMING_UP, id="pulling is coming up"
        ),
        pytest.param(
            an_allocation(state=State.PENDING, reason="ImagePullBackOff"), Standing.BROKEN, id="no image is broken"
        ),
        pytest.param(an_allocation(reason="CrashLoopBackOff"), Standing.BROKEN, id="a crash loop is broken"),
        pytest.param(
            an_allocation(reason="RuntimeUnreachable"), Standing.UNSURE, id="with its runtime out of reach it may run"
        ),
        pytest.param(an_allocation(reason="Meditating"), Standing.UNSURE, id="running with an unknown reason may run"),
        pytest.param(an_allocation(node="gone"), Standing.UNSURE, id="on a node that is not known it may run"),
        pytest.param(a_stop(), Standing.STOPPING, id="told to stop, it is stopping"),
        pytest.param(
            an_allocation(state=State.TERMINATING), Standing.STOPPING, id="terminating of itself, it is stopping"
        ),
        pytest.param(an_end(released=False), Standing.DONE, id="a job is done before its remains are cleared"),
        pytest.param(
            a_failed_start(released=False), Standing.CLEARING, id="a failed start is cleared before it is replaced"
        ),
        pytest.param(a_failed_start(), Standing.BACKING_OFF, id="a failed start waits for the next try"),
        pytest.param(a_failed_start(finished_at=later(-10)), Standing.EMPTY, id="a backoff that is over leaves room"),
        pytest.param(
            a_failed_start(spec_hash=OTHER), Standing.EMPTY, id="a failed start of an earlier spec has no backoff"
        ),
        pytest.param(an_end(desired=Desired.REMOVE), Standing.EMPTY, id="what is being removed is gone already"),
    ],
)
def test_the_standing_of_a_slot_with_one_allocation(allocation: Allocation, standing: Standing) -> None:
    assert only_slot(allocation).standing is standing


def test_a_slot_without_allocations_is_empty() -> None:
    slot = only_slot()
    assert slot.standing is Standing.EMPTY
    assert slot.cause == "slot 0 has no allocation"


def test_on_a_silent_node_nothing_is_sure() -> None:
    silent = a_node_view(ready=False, message="no answer")
    assert only_slot(an_allocation(), node=silent).standing is Standing.UNSURE
    assert only_slot(an_allocation(state=State.PENDING, reason="ImagePullBackOff"), node=silent).standing is (
        Standing.UNSURE
    )


def test_a_live_allocation_counts_before_any_ended_one() -> None:
    live = an_allocation(suffix="00000001", age_s=100)
    slot = only_slot(an_end(suffix="00000002", age_s=10), live)
    assert slot.current == live
    assert [a.id for a in slot.older] == ["web.0.00000002"]


def test_of_ended_allocations_the_newest_counts_and_the_others_are_newest_first() -> None:
    rows = [an_end(suffix=f"0000000{n}", age_s=100 - n) for n in (2, 1, 3)]
    slot = only_slot(*rows)
    assert slot.current is not None
    assert [slot.current.id, *(a.id for a in slot.older)] == ["web.0.00000003", "web.0.00000002", "web.0.00000001"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(an_allocation(age_s=9), a_stop(age_s=1), id="one that should run before one told to stop"),
        pytest.param(
            an_allocation(age_s=9), an_end(released=False, age_s=1), id="one that is alive before one that ended"
        ),
        pytest.param(
            an_allocation(age_s=9), an_allocation(spec_hash=OTHER, age_s=1), id="one of the present spec before another"
        ),
        pytest.param(
            an_allocation(age_s=9),
            an_allocation(age_s=1, state=State.PENDING),
            id="one that runs before one that does not",
        ),
        pytest.param(
            an_allocation(age_s=9, state=State.PENDING),
            an_allocation(age_s=1, state=State.PENDING, accepted_revision=0),
            id="one that its agent accepted before one it did not",
        ),
        pytest.param(an_allocation(age_s=1), an_allocation(age_s=9), id="else the newest"),
    ],
)
def test_of_two_live_allocations_one_is_kept(better: Allocation, worse: Allocation) -> None:
    better, worse = better.with_(id="web.0.aaaaaaaa"), worse.with_(id="web.0.bbbbbbbb")
    slot = only_slot(worse, better)
    assert slot.current == better
    assert slot.doubles == (worse,)


def test_slots_past_the_replicas_are_surplus() -> None:
    rows = [an_allocation(slot=n) for n in range(4)]
    slots = sort_into_slots(a_view(allocations=rows, replicas=2), {"n1": a_node_view()}, NOW)
    assert [s.number for s in slots.wanted] == [0, 1]
    assert [a.slot for a in slots.surplus] == [2, 3]


@pytest.mark.parametrize(
    ("last", "failures", "avoid"),
    [
        pytest.param(a_failed_start(failures=2, finished_at=later(-999)), 3, "n1", id="a failed start counts on"),
        pytest.param(
            an_end(desired=Desired.STOP, reason="Stopped", failures=2),
            0,
            "",
            id="a run that was up forgets the failures",
        ),
        pytest.param(
            a_failed_start(desired=Desired.STOP, reason="NodeLost", failures=2),
            2,
            "",
            id="being lost is not the start's failure, and forgets none",
        ),
        pytest.param(
            a_failed_start(failures=2, spec_hash=OTHER), 0, "", id="another spec starts without failures and anywhere"
        ),
    ],
)
def test_what_the_next_allocation_inherits(last: Allocation, failures: int, avoid: str) -> None:
    slot = only_slot(last)
    assert slot.standing is Standing.EMPTY
    assert (slot.failures, slot.avoid) == (failures, avoid)


def test_a_node_whose_clock_is_ahead_does_not_hold_a_slot_down() -> None:
    slot = only_slot(a_failed_start(finished_at=later(86_400), observed_at=NOW))
    assert slot.due == later(10)


def test_an_end_without_a_time_waits_from_when_it_was_made() -> None:
    assert only_slot(a_failed_start(finished_at=None, observed_at=None, age_s=4)).due == later(6)


def test_an_allocation_of_another_spec_is_outdated() -> None:
    assert only_slot(an_allocation(spec=a_spec(image="localhost/demo:2"))).outdated
    assert not only_slot(an_allocation(spec=a_spec(labels={"a": "b"}, replicas=9, termination_grace_s=1))).outdated
