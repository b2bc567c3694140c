"""What a node says of itself, and whether it is ready, on every store."""

import pytest

from builders import NOW, a_registration, later
from controller.exchange import Sent
from controller.store.contract import Fenced, InUse, NotFound, Put
from kakuri.model import Desired, NodeManifest, State
from support.store_script import StoreScript, told


async def test_a_node_registers_and_says_what_it_has(script: StoreScript) -> None:
    node, changed = await script.store.register_node("n1", a_registration(labels={"arch": "x86"}), now=NOW)
    assert changed
    assert node == await script.store.get_node("n1")
    assert (node.labels, node.status.labels, node.schedulable) == ({}, {"arch": "x86"}, True)
    assert (node.status.ready, node.status.reason) == (False, "NeverSeen")
    assert node.status.registered_at == NOW
    assert node.status.capacity == a_registration().capacity
    (agent,) = await script.store.agent_addresses()
    assert (agent.node, agent.address, agent.ready, agent.ledger_uid) == ("n1", "127.0.0.1:9001", False, "ledger-n1")


async def test_an_unchanged_registration_writes_nothing(script: StoreScript) -> None:
    await script.store.register_node("n1", a_registration(), now=NOW)
    version = await script.store.resource_version()
    node, changed = await script.store.register_node("n1", a_registration(), now=later(60))
    assert not changed
    assert node.status.registered_at == NOW
    assert await script.store.resource_version() == version


async def test_a_new_registration_keeps_readiness_and_what_users_own(script: StoreScript) -> None:
    await script.node()
    node, changed = await script.store.register_node("n1", a_registration(instance="instance-2"), now=NOW)
    assert changed
    assert (node.status.ready, node.status.instance, node.generation) == (True, "instance-2", 1)


async def test_a_put_node_without_an_agent_has_no_address(script: StoreScript) -> None:
    await script.store.apply([Put(NodeManifest(id="n9"))], now=NOW)
    assert await script.store.agent_addresses() == []


async def test_a_new_ledger_loses_what_the_old_one_had(script: StoreScript) -> None:
    await script.node()
    await script.put(replicas=3)
    running = await script.running(slot=0)
    ended = await script.running(slot=1)
    await script.report(script.seen(ended, "Failed", exit_code=1, released=True))
    before = await script.view()
    await script.store.register_node("n1", a_registration(ledger_uid="ledger-2"), now=NOW)

    lost = await script.store.get_allocation(running)
    assert (lost.desired, lost.desired_reason, lost.state) == (Desired.STOP, "NodeLost", State.TERMINATING)
    assert (lost.revision, lost.accepted_revision) == (2, 1)
    assert (await script.store.get_allocation(ended)).desired is Desired.RUN
    assert (await script.view()).version > before.version
    assert "NodeLost" in await told(script)
    assert "LedgerLost" in await told(script, "n1")
    assert [e.allocation.id for e in (await script.store.owed("n1")).errands] == [running]

    # Its agent cleaned up and answers with a tombstone.
    tombstone = script.seen(running, "Failed", reason="NodeLost", revision=2, released=True, started_once=False)
    recorded = await script.report(tombstone, ledger_uid="ledger-2")
    assert (recorded.dirty, recorded.released) == ({"web"}, True)
    row = await script.store.get_allocation(running)
    assert (row.state, row.reason, row.released, row.ledger_uid) == (State.FAILED, "NodeLost", True, "ledger-2")


async def test_readiness_is_told_once_and_by_an_event(script: StoreScript) -> None:
    await script.store.register_node("n1", a_registration(), now=NOW)

    async def set_ready(ready: bool, reason: str) -> bool:
        return await script.store.set_node_ready("n1", epoch=0, ready=ready, reason=reason, message="why", now=NOW)

    assert await set_ready(True, "Ready")
    assert not await set_ready(True, "Ready")
    assert await set_ready(False, "NodeSilent")
    assert (await script.store.get_node("n1")).status.message == "why"
    assert {"Ready", "NodeSilent"} <= (await told(script, "n1")).keys()
    with pytest.raises(NotFound):
        await script.store.set_node_ready("n9", epoch=0, ready=True, reason="", message="", now=NOW)


async def test_watchers_hear_of_workloads_that_turn_unknown(script: StoreScript) -> None:
    await script.node()
    await script.put("web")
    await script.put("done")
    allocation = await script.running("web")
    done = await script.running("done")
    await script.report(script.seen(done, "Succeeded", released=True))
    start = await script.store.resource_version()
    await script.store.set_node_ready("n1", epoch=0, ready=False, reason="NodeSilent", message="", now=NOW)
    changed = {(c.kind, c.id) for c in await script.store.changes_since(start) if c.kind != "Event"}
    assert changed == {("Node", "n1"), ("Allocation", allocation), ("Workload", "web")}
    assert (await script.store.get_workload("web")).resource_version > start


async def test_a_controller_that_lost_the_lead_writes_nothing_of_what_agents_say(script: StoreScript) -> None:
    await script.node()
    await script.put()
    allocation = await script.running()
    await script.store.acquire_lease("another", ttl_s=60)
    before = await script.store.resource_version()

    with pytest.raises(Fenced):
        await script.store.set_node_ready("n1", epoch=0, ready=False, reason="NodeSilent", message="", now=NOW)
    with pytest.raises(Fenced):
        await script.report(script.seen(allocation, "Failed"))
    with pytest.raises(Fenced):
        await script.sent(Sent(allocation, 1, "refused"))

    assert await script.store.resource_version() == before


async def test_a_node_keeps_its_name(script: StoreScript) -> None:
    """By another one its allocations would be lost where nobody answers, and go on under the lease of the new one."""
    await script.node("n1")
    await script.put(on_disconnect="replace")
    allocation = await script.running()
    with pytest.raises(InUse, match=r"--node n1; .*kakuri node forget n1"):
        await script.node("n2", ledger_uid="ledger-n1")
    await script.node("n1", ready=False)
    await script.store.forget_node("n1", now=NOW)
    await script.node("n2", ledger_uid="ledger-n1")
    recorded = await script.report(script.seen(allocation), node="n2", ledger_uid="ledger-n1", full=True)
    assert recorded.orphans == (allocation,), "a person gave it up, and it runs on"
    await script.node("n2", ledger_uid="ledger-n2")
    with pytest.raises(InUse):
        await script.node("n3", ledger_uid="ledger-n2")


async def test_an_agent_that_learned_something_is_told_again_what_it_may_have_refused(script: StoreScript) -> None:
    await script.node(features=())
    await script.put()
    allocation = await script.running()
    before = (await script.store.get_allocation(allocation)).revision

    await script.node(version="0.2", features=())
    assert (await script.store.get_allocation(allocation)).revision == before
    await script.node(version="0.2", features=("node-lease",))

    row = await script.store.get_allocation(allocation)
    assert row.revision == before + 1
    assert [e.allocation.id for e in (await script.store.owed("n1")).errands] == [allocation]
