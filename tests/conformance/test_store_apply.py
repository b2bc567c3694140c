"""What people write: put and delete, on every store."""

import pytest

from builders import NOW, a_manifest, a_node_manifest, later
from controller.plan.action import Remove
from controller.store.contract import (
    AlreadyExists,
    Delete,
    InUse,
    Invalid,
    NotFound,
    Put,
    Stale,
    Store,
    StoreError,
    Terminating,
)
from kakuri.model import BUILT_IN, Node, RuntimeClass, RuntimeClassManifest, State, Workload
from kakuri.selector import Selector
from support.store_script import StoreScript


# -- workloads -------------------------------------------------------------------------------------------------------
async def test_a_new_workload_is_pending_and_reads_back_as_it_was_written(script: StoreScript) -> None:
    fields = {"labels": {"app": "web"}, "env": {"A": "1"}, "args": ("-p", "80"), "replicas": 3}
    outcome = await script.put("web", **fields)

    assert (outcome.kind, outcome.id, outcome.result) == ("Workload", "web", "created")
    read = await script.store.get_workload("web")
    assert read.spec == a_manifest("web", **fields).spec
    assert (read.generation, read.created_at, read.deleted_at) == (1, NOW, None)
    assert (read.status.state, read.status.desired) == (State.PENDING, 3)
    assert read.status.observed_generation == 0
    assert read.uid
    assert read.resource_version == await script.store.resource_version()
    assert isinstance(outcome.object, Workload)
    assert outcome.object == read


async def test_a_changed_put_bumps_the_generation_and_keeps_the_identity(script: StoreScript) -> None:
    before = (await script.put()).object
    outcome = await script.put(image="localhost/demo:2.0")
    assert outcome.result == "configured"
    after = await script.store.get_workload("web")
    assert isinstance(before, Workload)
    assert (after.generation, after.uid, after.created_at) == (2, before.uid, before.created_at)
    assert after.image == "localhost/demo:2.0"


async def test_an_unchanged_put_writes_nothing(script: StoreScript) -> None:
    await script.put()
    version = await script.store.resource_version()
    outcome = await script.put()
    assert outcome.result == "unchanged"
    assert outcome.object == await script.store.get_workload("web")
    assert await script.store.resource_version() == version


async def test_creating_an_id_that_exists_is_already_exists(script: StoreScript) -> None:
    await script.put()
    with pytest.raises(AlreadyExists) as error:
        await script.put(mode="create")
    assert error.value.index == 0


async def test_a_put_that_matches_the_etag_is_written_and_a_stale_one_is_not(script: StoreScript) -> None:
    outcome = await script.put()
    assert isinstance(outcome.object, Workload)
    etag = outcome.object.etag
    await script.put(if_match=etag, replicas=2)
    with pytest.raises(Stale, match=r"ETag is .*\.2"):
        await script.put(if_match=etag, replicas=3)
    assert (await script.store.get_workload("web")).replicas == 2
    assert (await script.put(if_match="*", replicas=4)).result == "configured"


async def test_if_match_on_what_does_not_exist_is_stale(script: StoreScript) -> None:
    with pytest.raises(Stale, match="does not exist"):
        await script.put(if_match="*")


async def test_a_status_change_breaks_nobodys_edit(script: StoreScript) -> None:
    await script.node()
    outcome = await script.put()
    assert isinstance(outcome.object, Workload)
    await script.running()
    await script.act(status=outcome.object.status.with_(state=State.RUNNING, reason=""))
    assert (await script.put(if_match=outcome.object.etag, replicas=2)).result == "configured"


async def test_an_unknown_runtime_class_is_invalid_and_names_those_there_are(script: StoreScript) -> None:
    with pytest.raises(Invalid, match='"firecracker" does not exist; use one of edera-zone, gvisor') as error:
        await script.put(runtime_class="firecracker")
    assert (error.value.index, error.value.pointer) == (0, "/runtime_class")


async def test_memory_below_the_minimum_of_the_class_is_invalid_and_says_the_minimum(script: StoreScript) -> None:
    with pytest.raises(Invalid, match="set memory_mb to 300 or more") as error:
        await script.put(runtime_class="edera-zone", memory_mb=299)
    assert error.value.pointer == "/memory_mb"
    assert (await script.put(runtime_class="edera-zone", memory_mb=300)).result == "created"


async def test_a_raised_minimum_holds_for_new_writes_only(script: StoreScript) -> None:
    await script.put(runtime_class="gvisor", memory_mb=64)
    raised = RuntimeClassManifest(id="gvisor", handler="runsc", min_memory_mb=128)
    (outcome,) = await script.store.apply([Put(raised)], now=NOW)
    assert outcome.result == "configured"
    assert (await script.put(runtime_class="gvisor", memory_mb=64)).result == "unchanged"
    with pytest.raises(Invalid):
        await script.put(runtime_class="gvisor", memory_mb=64, replicas=2)


async def test_deletion_is_asked_for_once_and_shows_as_terminating(script: StoreScript) -> None:
    await script.put()
    script.now = later(5)
    outcome = await script.delete()
    assert outcome.result == "deleting"
    read = await script.store.get_workload("web")
    assert read.deleted_at == later(5)
    assert read.status.state is State.TERMINATING
    version = await script.store.resource_version()
    script.now = later(9)
    assert (await script.delete()).result == "deleting"
    assert (await script.store.get_workload("web")).deleted_at == later(5)
    assert await script.store.resource_version() == version


async def test_an_id_that_is_being_deleted_takes_no_put(script: StoreScript) -> None:
    await script.put()
    await script.delete()
    for changed in ({}, {"replicas": 5}, {"mode": "create"}):
        with pytest.raises(Terminating, match="wait until it is gone"):
            await script.put(**changed)


async def test_deleting_what_is_not_there_is_not_found(script: StoreScript) -> None:
    for kind in ("Workload", "Node", "RuntimeClass"):
        with pytest.raises(NotFound) as error:
            await script.delete("nope", kind=kind)
        assert error.value.index == 0


async def test_a_delete_with_a_stale_etag_deletes_nothing(script: StoreScript) -> None:
    await script.put()
    with pytest.raises(Stale):
        await script.delete(if_match="other.1")
    assert (await script.store.get_workload("web")).deleted_at is None


# -- lists of writes -------------------------------------------------------------------------------------------------
async def test_a_list_with_one_bad_write_changes_nothing_and_says_which(script: StoreScript) -> None:
    writes = [Put(a_manifest("a")), Put(a_manifest("b")), Put(a_manifest("c", runtime_class="nope"))]
    version = await script.store.resource_version()
    with pytest.raises(Invalid) as error:
        await script.store.apply(writes, now=NOW)
    assert error.value.index == 2
    assert not (await script.store.list_workloads(selector=Selector())).items
    assert await script.store.resource_version() == version


async def test_the_order_of_documents_does_not_matter_for_what_they_refer_to(script: StoreScript) -> None:
    firecracker = RuntimeClassManifest(id="firecracker", handler="fc", min_memory_mb=10)
    outcomes = await script.store.apply(
        [Put(a_manifest("web", runtime_class="firecracker")), Put(firecracker)], now=NOW
    )
    assert [o.result for o in outcomes] == ["created", "created"]


async def test_a_list_may_write_one_object_twice(script: StoreScript) -> None:
    writes = [Put(a_manifest("web")), Put(a_manifest("web", replicas=2)), Put(a_manifest("web", replicas=2))]
    outcomes = await script.store.apply(writes, now=NOW)
    assert [o.result for o in outcomes] == ["created", "configured", "unchanged"]
    assert (await script.store.get_workload("web")).replicas == 2


async def test_a_deleted_class_can_be_put_again_in_the_same_list(script: StoreScript) -> None:
    kata = RuntimeClassManifest(id="kata", handler="kata-qemu")
    before = await script.store.get_runtime_class("kata")
    outcomes = await script.store.apply([Delete("RuntimeClass", "kata"), Put(kata)], now=NOW)
    assert [o.result for o in outcomes] == ["deleted", "created"]
    after = await script.store.get_runtime_class("kata")
    assert after.handler == "kata-qemu"
    assert after.uid != before.uid


async def test_a_dry_run_tells_the_same_and_writes_nothing(script: StoreScript) -> None:
    await script.put("old")
    version = await script.store.resource_version()
    writes = [Put(a_manifest("new")), Put(a_manifest("old", replicas=2)), Delete("Workload", "old")]
    outcomes = await script.store.apply(writes, now=NOW, dry_run=True)
    assert [o.result for o in outcomes] == ["created", "configured", "deleting"]
    assert isinstance(outcomes[1].object, Workload)
    assert (outcomes[1].object.replicas, outcomes[1].object.generation) == (2, 2)
    with pytest.raises(Invalid):
        await script.store.apply([Put(a_manifest("x", runtime_class="nope"))], now=NOW, dry_run=True)
    assert await script.store.resource_version() == version
    assert [w.replicas for w in (await script.store.list_workloads(selector=Selector())).items] == [1]


async def test_five_thousand_objects_are_one_list(script: StoreScript) -> None:
    writes = [Put(a_manifest(f"w{i:04}", labels={"n": str(i)})) for i in range(5000)]
    outcomes = await script.store.apply(writes, now=NOW)
    assert {o.result for o in outcomes} == {"created"}
    assert await script.store.resource_version() == 5000
    page = await script.store.list_workloads(selector=Selector(), limit=5000)
    assert (len(page.items), page.next) == (5000, None)


async def test_an_empty_list_is_no_error(script: StoreScript) -> None:
    assert await script.store.apply([], now=NOW) == []


# -- nodes -----------------------------------------------------------------------------------------------------------
async def test_a_node_can_be_put_before_its_agent_comes(script: StoreScript) -> None:
    manifest = a_node_manifest("n1", labels={"zone": "a"}, schedulable=False)
    (outcome,) = await script.store.apply([Put(manifest)], now=NOW)
    assert outcome.result == "created"
    node = await script.store.get_node("n1")
    assert (node.labels, node.schedulable, node.status.ready) == ({"zone": "a"}, False, False)
    assert node.status.reason == "NeverSeen"
    await script.node("n1")
    node = await script.store.get_node("n1")
    assert (node.labels, node.schedulable, node.generation) == ({"zone": "a"}, False, 1)
    assert node.status.ready


async def test_a_put_node_changes_only_what_people_own(script: StoreScript) -> None:
    await script.node("n1", labels={"arch": "x86"})
    (outcome,) = await script.store.apply([Put(a_node_manifest("n1", labels={"zone": "a"}))], now=NOW)
    assert outcome.result == "configured"
    node = await script.store.get_node("n1")
    assert node.all_labels == {"arch": "x86", "zone": "a"}
    assert node.status.address == "127.0.0.1:9001"
    assert node.generation == 2
    (outcome,) = await script.store.apply([Put(a_node_manifest("n1", labels={"zone": "a"}))], now=NOW)
    assert outcome.result == "unchanged"
    assert isinstance(outcome.object, Node)


async def test_a_node_with_a_live_allocation_is_in_use(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    with pytest.raises(InUse, match=allocation):
        await script.delete("n1", kind="Node")


async def test_a_deleted_nodes_ended_allocations_stay_so_that_they_never_run_again(script: StoreScript) -> None:
    await script.node()
    await script.put(restart_policy="Never")
    allocation = await script.running()
    await script.report(script.seen(allocation, "Succeeded", exit_code=0, reason="Completed", released=True))
    before = await script.view()
    assert (await script.delete("n1", kind="Node")).result == "deleted"
    with pytest.raises(NotFound):
        await script.store.get_node("n1")
    assert await script.view() == before
    # Nobody is left who could be asked to forget it: it goes at once, and the node's row with it.
    applied = await script.act(Remove(allocation, "ScalingDown"))
    assert (applied.written, applied.again) == ({"web"}, {"web"})
    with pytest.raises(NotFound):
        await script.store.get_allocation(allocation)
    assert (await script.view()).allocations == ()
    await script.node()
    assert (await script.store.get_node("n1")).generation == 1


# -- runtime classes -------------------------------------------------------------------------------------------------
async def test_every_store_begins_with_the_built_in_classes(store: Store) -> None:
    classes = (await store.list_runtime_classes()).items
    assert [(c.id, c.handler, c.min_memory_mb) for c in classes] == [
        (c.id, c.handler, c.min_memory_mb) for c in sorted(BUILT_IN, key=lambda c: c.id)
    ]
    assert len({c.uid for c in classes}) == len(BUILT_IN)


async def test_a_runtime_class_is_put_changed_and_deleted(script: StoreScript) -> None:
    for manifest, result in (
        (RuntimeClassManifest(id="fc", handler="fc"), "created"),
        (RuntimeClassManifest(id="fc", handler="fc"), "unchanged"),
        (RuntimeClassManifest(id="fc", handler="fc2"), "configured"),
    ):
        (outcome,) = await script.store.apply([Put(manifest)], now=NOW)
        assert outcome.result == result
    read = await script.store.get_runtime_class("fc")
    assert (read.handler, read.generation, read.created_at) == ("fc2", 2, NOW)
    assert isinstance(outcome.object, RuntimeClass)
    assert (await script.delete("fc", kind="RuntimeClass")).result == "deleted"
    with pytest.raises(NotFound):
        await script.store.get_runtime_class("fc")


async def test_a_class_that_workloads_ask_for_is_in_use(script: StoreScript) -> None:
    await script.put("a", runtime_class="gvisor")
    await script.put("b", runtime_class="gvisor")
    with pytest.raises(InUse, match='2 workloads, such as "a"') as error:
        await script.delete("gvisor", kind="RuntimeClass")
    assert error.value.index == 0
    # Judged by the state after the whole list.
    writes = [Delete("RuntimeClass", "gvisor"), Put(a_manifest("a")), Put(a_manifest("b"))]
    assert [o.result for o in await script.store.apply(writes, now=NOW)] == ["deleted", "configured", "configured"]


async def test_a_class_that_only_a_running_allocation_has_is_in_use(script: StoreScript) -> None:
    await script.node()
    await script.put(runtime_class="gvisor")
    allocation = await script.running()
    await script.put(runtime_class="native")
    with pytest.raises(InUse, match=allocation):
        await script.delete("gvisor", kind="RuntimeClass")
    await script.report(script.seen(allocation, "Failed", released=True))
    assert (await script.delete("gvisor", kind="RuntimeClass")).result == "deleted"


# -- the rest --------------------------------------------------------------------------------------------------------
async def test_what_is_not_there_is_not_found(store: Store) -> None:
    for get in (store.get_workload, store.get_allocation, store.get_node, store.get_runtime_class):
        with pytest.raises(NotFound, match='"nope" does not exist'):
            await get("nope")


async def test_kicks_come_after_commits_that_changed_something(script: StoreScript) -> None:
    if script.store.shared:
        pytest.skip("PostgreSQL tells of each commit once more, when it gets to it: see test_store_others.py")
    kicks: list[None] = []
    script.store.on_commit(lambda: kicks.append(None))
    await script.put()
    assert len(kicks) == 1
    await script.put()
    await script.store.ping()
    await script.store.apply([Put(a_manifest("b"))], now=NOW, dry_run=True)
    with pytest.raises(StoreError):
        await script.put(mode="create")
    assert len(kicks) == 1
    await script.node()
    assert len(kicks) > 1
