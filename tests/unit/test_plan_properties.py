"""What holds for every plan, whatever happened before: worlds made by Hypothesis, a pass after each happening."""

import os
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from builders import a_node_view, a_port, host_ports
from controller.plan.action import Forget, Place, Plan, Stop
from controller.plan.place import why_not
from controller.plan.reconcile import plan
from controller.plan.replace import Standing, sort_into_slots
from controller.plan.snapshot import Snapshot
from kakuri.model import Allocation, Desired, Drain, RestartPolicy, State, ips_overlap
from support.toy_world import ToyWorld

BOUNDED = settings(max_examples=120, deadline=None, derandomize="CI" in os.environ)
"""Enough to have found every fault planted so far; more only makes everyone wait."""

WORKLOADS = ("db", "job", "web")
NODES = ("n1", "n2", "n3")

Step = tuple[str, int, int]
HAPPENINGS = (
    "agents act",
    "agents act",
    "starts",
    "crashes",
    "can't pull",
    "fails to start",
    "succeeds",
    "fails",
    "is released",
    "is lost",
    "image changes",
    "memory changes",
    "labels change",
    "replicas change",
    "limit changes",
    "is deleted",
    "node goes silent",
    "node comes back",
    "node is cordoned",
    "node is drained",
    "node is drained until soon",
    "time passes",
)
steps = st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 11), st.integers(0, 11)), max_size=25)


def new_world() -> ToyWorld:
    nodes = {n: a_node_view(n, memory_mb=300, cpu_millicores=600) for n in NODES}
    nodes["n3"] = replace(nodes["n3"], runtime_classes=frozenset({"native"}))
    world = ToyWorld(nodes)
    world.put("web", replicas=3, runtime_class="gvisor", ports=(a_port(8080),))
    world.put("job", replicas=2, restart_policy=RestartPolicy.NEVER)
    world.put("db", replicas=4, max_unavailable=2)
    return world


def happen(world: ToyWorld, step: Step) -> None:
    what, a, b = step
    rows = world.rows()
    row = rows[a % len(rows)].id if rows else ""
    name = WORKLOADS[a % 3]
    node = NODES[a % 3]
    end = world.end
    match what:
        case "agents act":
            for each in rows:
                world.change(each.id, world.run)
        case "starts":
            world.change(row, world.run)
        case "crashes":
            world.change(row, lambda r: r.with_(reason="CrashLoopBackOff") if r.state is State.RUNNING else r)
        case "can't pull":
            world.change(row, lambda r: r.with_(reason="ImagePullBackOff") if r.state is State.PENDING else r)
        case "fails to start":
            world.change(row, lambda r: end(r, State.FAILED, "SandboxFailed") if r.state is State.PENDING else r)
        case "succeeds":
            world.change(row, lambda r: end(r, State.SUCCEEDED, "Completed", 0) if r.state is State.RUNNING else r)
        case "fails":
            world.change(row, lambda r: end(r, State.FAILED, "Error", 1) if r.state is State.RUNNING else r)
        case "is released":
            world.change(row, lambda r: r.with_(released=r.state.ended))
        case "is lost":
            world.change(row, lose)
        case "image changes":
            world.put(name, image=f"localhost/demo:{b % 3}")
        case "memory changes":
            world.put(name, memory_mb=(64, 100, 400)[b % 3])
        case "labels change":
            world.put(name, labels={"app": str(b % 2)})
        case "replicas change":
            world.put(name, replicas=b % 6)
        case "limit changes":
            world.put(name, max_unavailable=1 + b % 3)
        case "is deleted":
            world.delete(name)
        case "node goes silent":
            world.nodes[node] = replace(world.nodes[node], ready=False, message="no answer")
        case "node comes back":
            world.nodes[node] = replace(world.nodes[node], ready=True, schedulable=True, message="", drain=None)
        case "node is cordoned":
            world.nodes[node] = replace(world.nodes[node], schedulable=False)
        case "node is drained" | "node is drained until soon":
            until = world.now + timedelta(seconds=b) if what.endswith("soon") else None
            drain = Drain(asked_at=world.now, deadline_at=until)
            world.nodes[node] = replace(world.nodes[node], schedulable=False, drain=drain)
        case _:
            world.now += timedelta(seconds=1 + 7 * a * b)


def lose(row: Allocation) -> Allocation:
    if row.desired is not Desired.RUN or row.state.ended:
        return row
    stopped = {"desired": Desired.STOP, "desired_reason": "NodeLost", "revision": row.revision + 1}
    return row.with_(state=State.TERMINATING, **stopped)


@BOUNDED
@given(steps)
def test_planning_again_after_applying_plans_nothing(happened: list[Step]) -> None:
    world = new_world()
    for step in [("time passes", 0, 0), *happened]:
        happen(world, step)
        world.apply(world.plan())
        again = world.plan()
        # A deleted workload whose rows are gone already is forgotten in the same pass, never in a second one.
        assert again.empty, again.log_fields()


@BOUNDED
@given(steps)
def test_every_plan_keeps_to_what_must_never_be_broken(happened: list[Step]) -> None:
    world = new_world()
    for step in [("time passes", 0, 0), *happened]:
        happen(world, step)
        snapshot = world.snapshot()
        decided = plan(snapshot)
        nothing_is_started_for_what_is_deleting(snapshot, decided)
        every_start_is_on_a_node_that_has_what_it_needs(snapshot, decided)
        at_most_max_unavailable_slots_are_down_by_a_change(snapshot, decided)
        a_drain_stops_only_what_has_a_place_elsewhere(snapshot, decided)
        finished_slots_run_again_only_for_another_spec(snapshot, decided)
        every_slot_that_is_not_as_due_says_why(decided)
        world.apply(decided)
        no_slot_has_two_live_allocations(world)


@BOUNDED
@given(steps, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(happened: list[Step], dice: random.Random) -> None:
    world = new_world()
    for step in happened:
        happen(world, step)
        world.apply(world.plan())
    happen(world, ("time passes", 7, 7))
    snapshot = world.snapshot()
    assert plan(shuffled(snapshot, dice)) == plan(snapshot)


@BOUNDED
@given(steps)
def test_whatever_happened_a_world_in_which_all_goes_well_settles_as_wanted(happened: list[Step]) -> None:
    world = new_world()
    for step in happened:
        happen(world, step)
        world.apply(world.plan())
    for name in NODES:
        world.nodes[name] = replace(
            world.nodes[name], ready=True, schedulable=True, memory_mb=9000, cpu_millicores=9000, drain=None
        )
    for id_ in WORKLOADS:
        # What failed for good stays so until its spec changes; a port fits once on each of two nodes.
        world.put(id_, image="localhost/demo:good", ports=(), replicas=3)
    world.settle(do=world.run)
    for view in world.workloads.values():
        assert not view.deleting
        assert (view.status.state, view.status.ready, view.status.updated) == (State.RUNNING, 3, 3)
        assert all(c.status for c in view.status.conditions)


@BOUNDED
@given(steps)
def test_a_job_that_has_finished_never_runs_again_of_itself(happened: list[Step]) -> None:
    world = new_world()
    world.settle(do=world.run_job)
    finished = {a.id for a in world.rows() if a.workload == "job"}
    spec = world.workloads["job"].spec
    for step in happened:
        happen(world, step)
        if "job" not in world.workloads or world.workloads["job"].deleting or world.workloads["job"].spec != spec:
            return
        world.apply(world.plan())
        assert {a.id for a in world.rows() if a.workload == "job"} == finished


def shuffled(snapshot: Snapshot, dice: random.Random) -> Snapshot:
    views = [replace(w, allocations=tuple(dice.sample(w.allocations, len(w.allocations)))) for w in snapshot.workloads]
    return replace(
        snapshot,
        workloads=tuple(dice.sample(views, len(views))),
        nodes=tuple(dice.sample(snapshot.nodes, len(snapshot.nodes))),
    )


# -- what must never be broken -----------------------------------------------------------------------------------------
def no_slot_has_two_live_allocations(world: ToyWorld) -> None:
    live = Counter((a.workload, a.slot) for a in world.rows() if a.live)
    assert all(n == 1 for n in live.values()), live


def nothing_is_started_for_what_is_deleting(snapshot: Snapshot, decided: Plan) -> None:
    deleting = {w.id for w in snapshot.workloads if w.deleting}
    assert not [a for a in decided.actions if isinstance(a, Place) and a.workload_id in deleting]


def every_start_is_on_a_node_that_has_what_it_needs(snapshot: Snapshot, decided: Plan) -> None:
    """The whole pass together: what one placement takes, the next has not."""
    places = [a for a in decided.actions if isinstance(a, Place)]
    for node in snapshot.nodes:
        here = [p for p in places if p.node == node.id]
        for place in here:
            assert node.ready
            assert node.schedulable
            assert why_not(place.spec, node, snapshot.runtime_classes) == []
            assert place.ledger_uid == node.ledger_uid
        if here:
            assert node.used_memory_mb + sum(p.spec.memory_mb for p in here) <= node.memory_mb
            assert node.used_cpu_millicores + sum(p.spec.cpu_millicores for p in here) <= node.cpu_millicores
        taken = list(node.host_ports) + [h for p in here for h in host_ports(p.spec)]
        for i, one in enumerate(taken):
            for other in taken[i + 1 :]:
                same = (one.port, one.protocol) == (other.port, other.protocol)
                assert not (same and ips_overlap(one.ip, other.ip))


def at_most_max_unavailable_slots_are_down_by_a_change(snapshot: Snapshot, decided: Plan) -> None:
    nodes = {n.id: n for n in snapshot.nodes}
    for view, part in zip(sorted(snapshot.workloads, key=lambda w: w.id), decided.workloads, strict=True):
        if view.deleting:
            continue
        slots = sort_into_slots(view, nodes, snapshot.now).wanted
        up = {
            s.current.id
            for s in slots
            if s.standing is Standing.READY and s.current and not past_its_deadline(snapshot, s.current)
        }
        stopped = [a for a in part.actions if isinstance(a, Stop) and a.allocation_id in up]
        down = sum(not s.available for s in slots)
        assert not stopped or len(stopped) + down <= view.spec.max_unavailable


def past_its_deadline(snapshot: Snapshot, row: Allocation) -> bool:
    drain = next(n.drain for n in snapshot.nodes if n.id == row.node)
    return drain is not None and drain.deadline_at is not None and drain.deadline_at <= snapshot.now


def a_drain_stops_only_what_has_a_place_elsewhere(snapshot: Snapshot, decided: Plan) -> None:
    """And no job, and nothing on other nodes. All that it stopped fits at once beside what is there."""
    drained = {n.id for n in snapshot.nodes if n.drain is not None}
    rows = {a.id: a for w in snapshot.workloads for a in w.allocations}
    views = {w.id: w for w in snapshot.workloads}
    for stop in [a for a in decided.actions if isinstance(a, Stop) and a.reason == "Drained"]:
        row = rows[stop.allocation_id]
        assert row.node in drained
        if past_its_deadline(snapshot, row):
            continue
        spec = views[row.workload].spec
        assert spec.restart_policy is RestartPolicy.ALWAYS
        assert any(why_not(spec, n, snapshot.runtime_classes) == [] for n in snapshot.nodes)


def finished_slots_run_again_only_for_another_spec(snapshot: Snapshot, decided: Plan) -> None:
    nodes = {n.id: n for n in snapshot.nodes}
    for view, part in zip(sorted(snapshot.workloads, key=lambda w: w.id), decided.workloads, strict=True):
        slots = sort_into_slots(view, nodes, snapshot.now).wanted
        done = {s.number for s in slots if s.standing in {Standing.DONE, Standing.FAILED} and not s.outdated}
        assert not [a for a in part.actions if isinstance(a, Place) and a.slot in done]


def every_slot_that_is_not_as_due_says_why(decided: Plan) -> None:
    for part in decided.workloads:
        assert all(w.reason and w.message for w in part.waiting)
        if any(isinstance(a, Forget) for a in part.actions):
            continue
        told = {w.slot for w in part.waiting}
        status = part.status
        assert status.desired - status.ready - status.succeeded - status.failed <= len(told)
