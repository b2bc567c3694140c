"""What the planner looks at, and carrying its plans out, on every store."""

import pytest

from builders import NOW, a_manifest, a_port, a_registration, later
from controller.plan.action import Action, Forget, Plan, Remove, Stop, Update, Waiting, WorkloadPlan
from controller.plan.reconcile import plan
from controller.plan.snapshot import HostPort
from controller.store.contract import Applied, Delete, EventFilter, Fenced, Invalid, NotFound, Put, StoreError
from kakuri.model import (
    Desired,
    EventDraft,
    EventType,
    NodeManifest,
    ProvedClass,
    RuntimeClassManifest,
    State,
    UnprovedHandler,
    WorkloadStatus,
)
from kakuri.selector import Selector
from support.store_script import StoreScript


# -- snapshots -------------------------------------------------------------------------------------------------------
async def test_a_snapshot_has_the_workloads_with_their_allocations_and_every_node_and_class(
    script: StoreScript,
) -> None:
    await script.node("n1")
    await script.store.apply([Put(NodeManifest(id="n2", schedulable=False))], now=NOW)
    for id_ in "abc":
        await script.put(id_, replicas=2, memory_mb=50, cpu_millicores=10)
    first, second = await script.running("a", 0), await script.place("a", 1)
    await script.place("c")
    snapshot = await script.store.load_snapshot(["a", "b", "nope"], now=later(3), seed="seed")

    assert (snapshot.now, snapshot.seed) == (later(3), "seed")
    views = {w.id: w for w in snapshot.workloads}
    assert views.keys() == {"a", "b"}
    assert {x.id for x in views["a"].allocations} == {first, second}
    assert views["b"].allocations == ()
    assert views["a"].spec == a_manifest("a", replicas=2, memory_mb=50, cpu_millicores=10).spec
    nodes = {n.id: n for n in snapshot.nodes}
    assert (nodes["n1"].used_memory_mb, nodes["n1"].used_cpu_millicores) == (150, 30), "others' allocations count"
    assert (nodes["n1"].ready, nodes["n1"].memory_mb, nodes["n1"].ledger_uid) == (True, 4096, "ledger-n1")
    assert (nodes["n2"].ready, nodes["n2"].schedulable, nodes["n2"].memory_mb) == (False, False, 0)
    assert snapshot.runtime_classes.keys() == {"edera-zone", "gvisor", "kata", "native"}


async def test_an_empty_snapshot_still_has_nodes(script: StoreScript) -> None:
    await script.node()
    snapshot = await script.store.load_snapshot([], now=NOW, seed="s")
    assert (snapshot.workloads, len(snapshot.nodes)) == ((), 1)


async def test_a_node_offers_the_classes_whose_handler_was_proved(script: StoreScript) -> None:
    await script.store.apply([Put(RuntimeClassManifest(id="sandboxed", handler="runsc"))], now=NOW)
    await script.store.apply([Put(RuntimeClassManifest(id="native", handler="crun"))], now=NOW)
    proved = (ProvedClass(id="native", handler="runc"), ProvedClass(id="gvisor", handler="runsc"))
    await script.node(runtime_classes=proved, unproved=(UnprovedHandler(handler="kata", message="no /dev/kvm"),))
    (node,) = (await script.store.load_snapshot([], now=NOW, seed="s")).nodes
    assert node.runtime_classes == {"gvisor", "sandboxed"}
    assert node.unproved == {"kata": "no /dev/kvm"}


async def test_host_ports_are_taken_until_the_release(script: StoreScript) -> None:
    await script.node()
    await script.put(ports=(a_port(8080), a_port(None, port=81)), replicas=1)
    allocation = await script.running()
    taken = HostPort("127.0.0.1", 8080, "tcp")

    async def ports() -> frozenset[HostPort]:
        (node,) = (await script.store.load_snapshot([], now=NOW, seed="s")).nodes
        return node.host_ports

    assert await ports() == {taken}
    await script.report(script.seen(allocation, "Failed"))
    assert await ports() == {taken}
    await script.report(script.seen(allocation, "Failed", released=True))
    assert await ports() == frozenset()


# -- applying --------------------------------------------------------------------------------------------------------
async def test_a_placed_allocation_is_a_row_that_its_node_must_be_told_of(script: StoreScript) -> None:
    await script.node()
    await script.put()
    place = await script.a_place()
    applied = await script.act(place)
    assert applied == Applied(frozenset({"web"}), frozenset(), frozenset({"n1"}))
    row = await script.store.get_allocation(place.allocation_id)
    assert (row.workload, row.slot, row.node, row.spec) == ("web", 0, "n1", place.spec)
    assert (row.desired, row.revision, row.accepted_revision) == (Desired.RUN, 1, 0)
    assert (row.state, row.ledger_uid, row.created_at) == (State.PENDING, "ledger-n1", NOW)


async def test_every_store_carries_out_each_kind_of_action(script: StoreScript) -> None:
    await script.node()
    await script.put(replicas=3)
    ids = [await script.running(slot=slot) for slot in range(3)]
    await script.report(script.seen(ids[2], "Succeeded", exit_code=0, released=True))
    await script.put(replicas=3, max_restarts=9)
    view = await script.view()
    applied = await script.act(
        Update(ids[0], view.generation, view.spec, "max_restarts changed"),
        Stop(ids[1], "ScalingDown", "no longer wanted"),
        Remove(ids[2], "old"),
    )
    assert applied.nodes == {"n1"}
    updated, stopped, removed = [await script.store.get_allocation(i) for i in ids]
    assert (updated.spec.max_restarts, updated.generation, updated.revision) == (9, 2, 2)
    assert (updated.desired, updated.state) == (Desired.RUN, State.RUNNING)
    assert (stopped.desired, stopped.desired_reason, stopped.revision) == (Desired.STOP, "ScalingDown", 2)
    assert (stopped.state, stopped.message) == (State.TERMINATING, "no longer wanted")
    assert (removed.desired, removed.state, removed.revision) == (Desired.REMOVE, State.SUCCEEDED, 2)
    assert {e.allocation.id for e in (await script.store.owed("n1")).errands} == set(ids)
    assert (await script.view()).version == view.version + 1


async def test_the_status_of_a_plan_is_what_people_see(script: StoreScript) -> None:
    await script.put()
    status = WorkloadStatus(state=State.RUNNING, reason="CrashLoopBackOff", node="n1", nodes=1, ready=1, restarts=4)
    event = EventDraft(object_kind="Workload", object_id="web", type=EventType.NORMAL, reason="Placed", message="m")
    start = await script.store.resource_version()
    applied = await script.act(status=status, events=(event,))
    assert (applied.written, applied.nodes) == ({"web"}, frozenset())
    assert (await script.store.get_workload("web")).status == status
    assert {c.kind for c in await script.store.changes_since(start)} == {"Workload", "Event"}
    assert [e.reason for e in (await script.store.list_events(EventFilter())).items] == ["Placed"]


async def test_a_stale_plan_changes_nothing_and_the_others_of_its_pass_are_written(script: StoreScript) -> None:
    await script.node()
    await script.put("a")
    await script.put("b")
    plans = []
    for id_ in "ab":
        view = await script.view(id_)
        actions: tuple[Action, ...] = (await script.a_place(id_),)
        plans.append(WorkloadPlan(id_, view.version, actions, view.status, status_changed=False))
    gone = WorkloadPlan("gone", 1, (), WorkloadStatus(), status_changed=True)
    await script.put("a", replicas=2)
    applied = await script.store.apply_plan(Plan((*plans, gone)), epoch=0, now=NOW)
    assert (applied.written, applied.stale) == ({"b"}, {"a", "gone"})
    assert (await script.view("a")).allocations == ()
    assert len((await script.view("b")).allocations) == 1


@pytest.mark.parametrize("write", ["put", "delete", "report", "accept"])
async def test_every_write_to_a_workload_or_its_allocations_makes_older_plans_stale(
    script: StoreScript, write: str
) -> None:
    await script.node()
    await script.put()
    allocation = await script.place()
    old = (await script.view()).version
    match write:
        case "put":
            await script.put(replicas=2)
        case "delete":
            await script.delete()
        case "report":
            await script.report(script.seen(allocation))
        case _:
            await script.accept(allocation)
    applied = await script.act(Stop(allocation, "ScalingDown"), version=old)
    assert applied.stale == {"web"}
    assert (await script.store.get_allocation(allocation)).desired is Desired.RUN


async def test_a_plan_for_an_earlier_workload_of_the_same_id_is_stale(script: StoreScript) -> None:
    await script.node()
    await script.put()
    old = await script.view()
    await script.delete()
    await script.act(Forget("web", "gone"))
    await script.put()
    new = await script.view()
    assert new.uid != old.uid
    assert new.version > old.version
    for _ in range(3):  # whatever its version comes to be
        stale = WorkloadPlan("web", old.version, (), old.status.with_(message="old"), status_changed=True)
        applied = await script.store.apply_plan(Plan((stale,)), epoch=0, now=NOW)
        assert applied.stale == {"web"}


async def test_a_place_on_a_node_that_is_gone_or_has_another_ledger_is_stale(script: StoreScript) -> None:
    await script.node()
    await script.put()
    place = await script.a_place()
    await script.store.register_node("n1", a_registration(ledger_uid="ledger-2"), now=NOW)
    assert (await script.act(place)).stale == {"web"}
    await script.delete("n1", kind="Node")
    assert (await script.act(place)).stale == {"web"}
    assert (await script.view()).allocations == ()


async def test_a_slot_never_has_two_live_allocations(script: StoreScript) -> None:
    await script.node()
    await script.put()
    first = await script.running()
    second = await script.a_place(suffix="11111111")
    with pytest.raises(Invalid, match="never has two live"):
        await script.act(second)
    await script.report(script.seen(first, "Failed"))
    with pytest.raises(Invalid, match="never has two live"):
        await script.act(second)
    await script.report(script.seen(first, "Failed", released=True))
    assert (await script.act(second)).written == {"web"}


async def test_a_forgotten_workload_is_gone_and_its_id_free(script: StoreScript) -> None:
    await script.put()
    await script.delete()
    start = await script.store.resource_version()
    await script.act(Forget("web", "nothing is left"))
    with pytest.raises(NotFound):
        await script.store.get_workload("web")
    (change,) = await script.store.changes_since(start)
    assert (change.kind, change.id, change.deleted) == ("Workload", "web", True)
    assert (await script.put(mode="create")).result == "created"


async def test_a_workload_with_allocations_is_not_forgotten(script: StoreScript) -> None:
    await script.node()
    await script.put()
    await script.running()
    with pytest.raises(Invalid, match="can't be forgotten"):
        await script.act(Forget("web", "too early"))
    assert (await script.store.get_workload("web")).id == "web"


async def test_a_plan_of_an_epoch_that_is_over_is_fenced(script: StoreScript) -> None:
    await script.put()
    lease = await script.store.acquire_lease("me", ttl_s=60)
    status = WorkloadStatus(message="mine")
    for epoch in (lease.epoch - 1, lease.epoch + 1):
        script.epoch = epoch
        with pytest.raises(Fenced) as error:
            await script.act(status=status)
        assert isinstance(error.value, StoreError)
    script.epoch = lease.epoch
    assert (await script.act(status=status)).written == {"web"}


async def test_an_empty_plan_writes_nothing(script: StoreScript) -> None:
    await script.put()
    version = await script.store.resource_version()
    view = await script.view()
    empty = WorkloadPlan("web", view.version, (), view.status, status_changed=False)
    assert await script.store.apply_plan(Plan((empty,)), epoch=0, now=NOW) == Applied()
    assert await script.store.apply_plan(Plan(()), epoch=0, now=NOW) == Applied()
    assert await script.store.resource_version() == version


# -- waiting ---------------------------------------------------------------------------------------------------------
async def test_those_that_wait_for_a_place_are_found_least_recently_changed_first(script: StoreScript) -> None:
    waiting = (Waiting(0, "Unschedulable", "no node has room"),)
    unschedulable = WorkloadStatus(reason="Unschedulable", message="no node has room")
    for id_ in "abcd":
        await script.put(id_, replicas=2)
    await script.act(id_="c", status=unschedulable)
    # One that runs with fewer slots than it should waits as well.
    await script.act(id_="b", status=WorkloadStatus(state=State.RUNNING), waiting=waiting)
    await script.act(id_="a", status=unschedulable, waiting=waiting)
    assert await script.store.unschedulable_ids() == ["c", "b", "a"]
    assert await script.store.unschedulable_ids(limit=1) == ["c"]
    await script.act(id_="c", status=WorkloadStatus(state=State.RUNNING))
    await script.delete("a")
    assert await script.store.unschedulable_ids() == ["b"]


# -- the real planner ------------------------------------------------------------------------------------------------
async def test_the_planner_converges_over_the_store(script: StoreScript) -> None:
    """What is planned, applied, accepted and reported comes to rest, is changed, and is gone again."""
    await script.node()

    async def settle() -> None:
        for round_ in range(40):
            ids = await script.store.page_workload_ids()
            snapshot = await script.store.load_snapshot(ids, now=script.now, seed=f"{script.now} {round_}")
            decided = plan(snapshot)
            applied = await script.store.apply_plan(decided, epoch=0, now=script.now)
            assert not applied.stale
            errands = (await script.store.owed("n1")).errands
            if decided.empty and not errands:
                times = [w.look_again_at for w in decided.workloads if w.look_again_at is not None]
                if not times:
                    return
                script.now = min(times)
            for errand in errands:
                row = errand.allocation
                await script.accept(row.id)
                if row.desired is Desired.RUN:
                    await script.report(script.seen(row.id, revision=row.revision, started_at=script.now))
                elif row.desired is Desired.STOP:
                    end = script.seen(row.id, "Succeeded", revision=row.revision, released=True, exit_code=0)
                    await script.report(end)
        raise AssertionError("the planner and the store do not come to rest")

    for id_ in ("a", "b"):
        await script.put(id_, replicas=3)
    await settle()
    for workload in (await script.store.list_workloads(selector=Selector())).items:
        assert (workload.status.state, workload.status.ready, workload.status.node) == (State.RUNNING, 3, "n1")
        assert workload.status.observed_generation == workload.generation
    await script.put("a", replicas=1)
    await script.put("b", replicas=3, image="localhost/demo:2.0")
    await settle()
    assert {a.spec.image for a in (await script.view("b")).allocations if a.live} == {"localhost/demo:2.0"}
    assert len([a for a in (await script.view("a")).allocations if a.live]) == 1
    await script.store.apply([Delete("Workload", "a"), Delete("Workload", "b")], now=NOW)
    await settle()
    assert await script.store.page_workload_ids() == []
    assert (await script.store.get_node("n1")).status.allocations == 0
