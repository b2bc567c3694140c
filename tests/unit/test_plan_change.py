"""A change of the spec, slot by slot: in what order, how many at a time, and when it pauses."""

from typing import Any

import pytest

from builders import NOW, a_failed_start, a_node_view, a_snapshot, a_spec, a_stop, a_view, an_allocation, an_end, later
from controller.plan.action import Place, Stop, WorkloadPlan
from controller.plan.reconcile import plan
from controller.plan.replace import STEADY_S
from controller.plan.snapshot import NodeView
from kakuri.model import Allocation, Desired, RestartPolicy, State
from support.toy_world import ToyWorld

OLD = a_spec(image="localhost/demo:old")
NEW = "localhost/demo:new"
NEW_SPEC = a_spec(image=NEW)


def old(slot: int, **fields: Any) -> Allocation:
    return an_allocation(slot=slot, spec=OLD, **fields)


def new(slot: int, **fields: Any) -> Allocation:
    return an_allocation(slot=slot, spec=NEW_SPEC, **fields)


def change(*rows: Allocation, nodes: tuple[NodeView, ...] = (), **spec: Any) -> WorkloadPlan:
    view = a_view(allocations=rows, replicas=len(rows), image=NEW, generation=2, **spec)
    (decided,) = plan(a_snapshot(view, nodes or (a_node_view(),))).workloads
    return decided


def touched(decided: WorkloadPlan) -> str:
    """The slots that are stopped (-) and placed (+), as in: -0 +2."""
    words = []
    for action in decided.actions:
        if isinstance(action, Stop):
            assert action.reason == "Updating"
            words.append(f"-{action.allocation_id.split('.')[1]}")
        if isinstance(action, Place):
            words.append(f"+{action.slot}")
    return " ".join(words)


BAD_PULL = {"state": State.PENDING, "reason": "ImagePullBackOff", "message": "not found"}
CRASHING = {"reason": "CrashLoopBackOff", "message": "exit code 1, again in 20 s"}
PENDING = {"state": State.PENDING}
JUST_NOW = {"age_s": 0.5}
STOPPED = {"state": State.SUCCEEDED, "reason": "Stopped", "desired": Desired.STOP, "desired_reason": "Updating"}
TOOK_THE_STOP = {"reason": "Completed", "desired": Desired.STOP, "desired_reason": "Updating"}
FAILED = {"state": State.FAILED, "reason": "Error", "exit_code": 3}


@pytest.mark.parametrize(
    ("rows", "limit", "expected"),
    [
        pytest.param([old(0), old(1), old(2)], 1, "-0", id="the first slot goes first, one at a time"),
        pytest.param([old(0), old(1), old(2)], 2, "-0 -1", id="or as many as max_unavailable says"),
        pytest.param([old(0), old(1)], 9, "-0 -1", id="or all at once"),
        pytest.param([a_stop(slot=0, spec=OLD), old(1)], 1, "", id="the next waits while one is stopping"),
        pytest.param(
            [an_end(slot=0, spec=OLD, **STOPPED), old(1)], 1, "+0", id="what is gone is placed anew, the next waits"
        ),
        pytest.param(
            [an_end(slot=0, spec=OLD, **TOOK_THE_STOP, released=False), old(1)],
            1,
            "",
            id="what completes because the change stops it is still down",
        ),
        pytest.param(
            [an_end(slot=0, spec=OLD, **TOOK_THE_STOP), old(1)], 1, "+0", id="so it is placed anew, and the next waits"
        ),
        pytest.param([new(0, **PENDING), old(1)], 1, "", id="the next waits while one comes up"),
        pytest.param([new(0, **JUST_NOW), old(1)], 1, "", id="and until it has run for a moment"),
        pytest.param([new(0), old(1)], 1, "-1", id="then it is the next one's turn"),
        pytest.param([new(0), new(1)], 1, "", id="until all have the present spec"),
        pytest.param(
            [old(0), old(1, **CRASHING), old(2, **BAD_PULL)], 1, "-1 -2", id="what does not work anyway goes first"
        ),
        pytest.param([old(0), old(1, **PENDING)], 1, "-1", id="also what never came up"),
        pytest.param(
            [old(0), a_failed_start(slot=1, spec=OLD)],
            1,
            "+1",
            id="what failed to start is tried anew at once",
        ),
        pytest.param([old(0), old(1, node="silent")], 1, "", id="a slot on a silent node counts, and is left alone"),
        pytest.param([old(0), old(1, node="silent")], 2, "-0", id="so it leaves one less for the change"),
        pytest.param(
            [old(0), old(1, reason="RuntimeUnreachable")], 1, "", id="so does one whose runtime can't be reached"
        ),
        # -- pausing
        pytest.param([new(0, **BAD_PULL), old(1), old(2)], 3, "", id="an image that can't be pulled pauses the change"),
        pytest.param([new(0, **CRASHING), old(1)], 2, "", id="so does one that crashes"),
        pytest.param([a_failed_start(slot=0, spec=NEW_SPEC), old(1)], 2, "", id="so does a failed start"),
        pytest.param(
            [a_failed_start(slot=0, spec=NEW_SPEC, released=False), old(1)], 2, "", id="also before it is cleared away"
        ),
        pytest.param([new(0, **PENDING, failures=1), old(1)], 2, "", id="and the try after it"),
        pytest.param([an_end(slot=0, spec=NEW_SPEC, **FAILED), old(1)], 2, "", id="so does a run that failed"),
        pytest.param([new(0, **BAD_PULL), old(1, **CRASHING)], 2, "", id="then even what does not work is left alone"),
        pytest.param(
            [new(0, **BAD_PULL), an_end(slot=1, spec=OLD, **STOPPED)], 2, "+1", id="what is gone is placed all the same"
        ),
        # -- jobs
        pytest.param(
            [an_end(slot=0, spec=OLD), an_end(slot=1, spec=OLD)],
            1,
            "+0",
            id="a done job runs again for a new spec",
        ),
        pytest.param(
            [an_end(slot=0, spec=OLD, released=False)],
            1,
            "",
            id="once nothing of its run is left, without a stop",
        ),
        pytest.param(
            [an_end(slot=0, spec=OLD), an_end(slot=1, spec=OLD, **FAILED)],
            1,
            "+1",
            id="what failed goes first",
        ),
        pytest.param([an_end(slot=0, spec=NEW_SPEC), old(1)], 1, "-1", id="a changed job that is done lets the next"),
    ],
)
def test_which_slots_a_change_touches(rows: list[Allocation], limit: int, expected: str) -> None:
    decided = change(*rows, max_unavailable=limit, restart_policy=RestartPolicy.ON_FAILURE)
    assert touched(decided) == expected


def test_a_slot_is_trusted_only_after_it_has_run_for_a_moment() -> None:
    decided = change(new(0, **JUST_NOW), old(1))
    assert decided.look_again_at == later(1 + STEADY_S - 0.5)
    assert touched(change(new(0, age_s=4.0), old(1))) == "-1"
    nothing_left_to_change = change(new(0, **JUST_NOW), new(1))
    assert nothing_left_to_change.look_again_at is None


def test_a_paused_change_says_why_and_what_to_do() -> None:
    decided = change(new(0, **BAD_PULL), old(1), old(2))
    progressing = next(c for c in decided.status.conditions if c.type == "Progressing")
    assert (progressing.status, progressing.reason) == (False, "Paused")
    assert progressing.message == (
        "the change to generation 2 is paused: slot 0 did not come up (ImagePullBackOff: not found); 2 of 3 keep the "
        "earlier spec; next: apply a spec that comes up"
    )
    assert [(e.reason, e.message) for e in decided.events] == [("Paused", progressing.message)]
    assert [(w.slot, w.reason) for w in decided.waiting] == [(0, "ImagePullBackOff"), (1, "Paused"), (2, "Paused")]
    status = decided.status
    assert (status.state, status.reason, status.ready, status.updated) == (State.RUNNING, "ImagePullBackOff", 2, 1)


def test_a_slot_that_lost_its_place_to_the_change_pauses_it() -> None:
    gone = an_end(slot=0, spec=OLD, **STOPPED)
    decided = change(gone, old(1), max_unavailable=2, memory_mb=9000)
    assert touched(decided) == ""
    assert decided.status.reason == "Unschedulable"
    progressing = next(c for c in decided.status.conditions if c.type == "Progressing")
    assert progressing.reason == "Paused"


@pytest.mark.parametrize("end", [{}, FAILED])
def test_a_job_that_finds_no_place_to_run_again_pauses_the_change(end: dict[str, Any]) -> None:
    decided = change(an_end(slot=0, spec=OLD, **end), old(1), max_unavailable=2, memory_mb=9000)
    assert touched(decided) == ""
    assert decided.status.reason == "Unschedulable"


def test_a_slot_that_never_had_a_place_does_not_pause_a_change() -> None:
    rows = [old(0), old(1)]
    view = a_view(allocations=rows, replicas=3, image=NEW, max_unavailable=2)
    decided = plan(a_snapshot(view, a_node_view(memory_mb=128))).workloads[0]
    assert touched(decided) == "-0"


def test_what_changed_is_named_in_the_stop() -> None:
    (stop,) = change(old(0), env={"A": "b"}).actions
    assert isinstance(stop, Stop)
    assert stop.message == "env, image changed"


# -- whole changes, in a small world -----------------------------------------------------------------------------------
def a_running_world(**spec: Any) -> ToyWorld:
    world = ToyWorld({n: a_node_view(n) for n in ("n1", "n2")})
    world.put("web", image="localhost/demo:old", **spec)
    world.settle(do=world.run)
    return world


def pulls_all_but(world: ToyWorld, bad: str) -> Any:
    def agent(row: Allocation) -> Allocation | None:
        if row.desired is Desired.RUN and row.spec.image == bad:
            return row.with_(reason="ImagePullBackOff", message="not found", accepted_revision=row.revision)
        return world.run(row)

    return agent


def images(world: ToyWorld) -> list[str]:
    return [a.spec.image.split(":")[1] for a in sorted(world.rows(), key=lambda a: a.slot) if a.live]


def test_a_good_change_reaches_every_slot() -> None:
    world = a_running_world(replicas=3)
    world.put("web", image=NEW)
    world.settle(do=world.run)
    assert images(world) == ["new", "new", "new"]
    status = world.workloads["web"].status
    assert (status.ready, status.updated, status.observed_generation) == (3, 3, 2)
    # The end before is kept for its logs.
    assert len(world.rows()) == 6


def test_a_bad_image_stops_at_the_first_slot_and_a_good_one_takes_that_slot_first() -> None:
    world = a_running_world(replicas=3)
    world.put("web", image="localhost/demo:bad")
    agent = pulls_all_but(world, "localhost/demo:bad")
    world.settle(do=agent)
    assert images(world) == ["bad", "old", "old"]
    assert world.workloads["web"].status.ready == 2
    world.put("web", image=NEW)
    decided = world.plan().workloads[0]
    assert touched(decided) == "-0"
    world.settle(do=agent)
    assert images(world) == ["new", "new", "new"]


def test_taking_a_bad_change_back_leaves_the_other_slots_untouched() -> None:
    world = a_running_world(replicas=3)
    before = {a.id for a in world.rows()}
    world.put("web", image="localhost/demo:bad")
    agent = pulls_all_but(world, "localhost/demo:bad")
    world.settle(do=agent)
    world.put("web", image="localhost/demo:old")
    world.settle(do=agent)
    assert images(world) == ["old", "old", "old"]
    assert len(before & {a.id for a in world.rows() if a.live}) == 2


def test_a_change_of_a_finished_job_runs_it_once_more() -> None:
    world = ToyWorld({"n1": a_node_view()})
    world.put("job", restart_policy=RestartPolicy.NEVER, image="localhost/demo:old")
    world.settle(do=world.run_job)
    first = {a.id for a in world.rows()}
    world.put("job", image=NEW)
    world.settle(do=world.run_job)
    assert len({a.id for a in world.rows()} - first) == 1
    assert world.workloads["job"].status.state is State.SUCCEEDED


def test_scaling_up_and_down_converges_each_time() -> None:
    world = a_running_world(replicas=3)
    for replicas in (5, 1, 0, 2):
        world.put("web", replicas=replicas)
        world.settle(do=world.run)
        assert [a.slot for a in world.rows()] == list(range(replicas))


def test_a_deletion_leaves_nothing() -> None:
    world = a_running_world(replicas=3)
    world.delete("web")
    world.settle(do=world.run)
    assert world.workloads == {}


def test_time_goes_on_only_when_it_is_waited_for() -> None:
    assert a_running_world(replicas=3).now == NOW
