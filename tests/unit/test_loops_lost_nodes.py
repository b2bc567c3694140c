"""A node that is silent for long: what the controller may conclude, when, and what it asks of one that returns."""

from dataclasses import dataclass, field

import pytest

from builders import NOW, a_registration
from controller.exchange import LeaseTerms, Report, Sent
from controller.loops.bounds import NodeBounds
from controller.loops.observe import ObservePass
from controller.loops.reconcile import ReconcilePass
from controller.loops.told import Told
from controller.nodes import NodeRefused, NodeUnreachable
from controller.store import open_store
from controller.store.contract import AgentAddress, AllocationFilter, Store
from kakuri.model import Allocation, Desired, State
from support.loop_world import ObjectAgents, ScriptedClock
from support.store_script import StoreScript

BOUNDS = NodeBounds()


@dataclass
class Asked:
    instance: str
    since: int
    lease: LeaseTerms


@dataclass
class NotingAgents(ObjectAgents):
    """Agents that note what they were asked."""

    asked: list[Asked] = field(default_factory=list)
    refuses: bool = False

    async def observe(
        self, node: str, address: str, *, epoch: int, instance: str, since: int, wait_s: float, lease: LeaseTerms
    ) -> Report:
        self.asked.append(Asked(instance, since, lease))
        if self.refuses:
            raise NodeRefused("bound to another cluster")
        if self.away:
            raise NodeUnreachable("nobody there")
        return Report(
            node=node,
            instance="i",
            revision=len(self.asked),
            ledger_uid=self.ledger_uid,
            full=instance != "i",
            allocations=tuple(self.has.values()),
            sent_at_ns=1000 + len(self.asked),
        )


@dataclass
class Scene:
    store: Store
    script: StoreScript
    agents: NotingAgents
    clock: ScriptedClock
    observe: ObservePass
    epoch: int

    async def row(self, workload: str) -> Allocation:
        [row] = (await self.store.list_allocations(AllocationFilter(workload=workload))).items
        return row


@pytest.fixture
async def scene() -> Scene:
    """n1 answers and runs `gives` (replace) and `keeps` (keep)."""
    store = await open_store("memory://")
    clock = ScriptedClock()
    agents = NotingAgents(cluster_id=store.cluster_id)
    epoch = (await store.acquire_lease("me", ttl_s=1000)).epoch
    node, _ = await store.register_node("n1", a_registration(ledger_uid="ledger-1"), now=NOW)
    observe = ObservePass(
        agents, store, clock, AgentAddress("n1", node.status.address, False, "ledger-1"), BOUNDS, Told()
    )
    await observe(epoch=epoch)
    script = StoreScript(store)
    scene = Scene(store, script, agents, clock, observe, epoch)
    await script.put("gives", on_disconnect="replace")
    await script.put("keeps")
    await ReconcilePass(store, clock, lambda: "seed")(["gives", "keeps"], epoch=epoch)
    await agents.apply("", epoch=epoch, ledger_uid="ledger-1", errands=(await store.owed("n1")).errands)
    await observe(epoch=epoch)
    return scene


async def test_each_answer_gives_back_when_the_one_before_was_sent(scene: Scene) -> None:
    assert [a.lease.heard for a in scene.agents.asked] == [0, 1001]
    assert {(a.lease.lease_s, a.lease.stop_bound_s) for a in scene.agents.asked} == {(30, 10)}


async def test_only_what_is_bound_to_the_lease_is_given_up_and_only_when_that_is_certain(scene: Scene) -> None:
    scene.agents.away = True
    await scene.clock.pass_(BOUNDS.certain_after_s - 1)
    assert (await scene.observe(epoch=scene.epoch)).fenced == frozenset()
    assert (await scene.row("gives")).live
    await scene.clock.pass_(1)

    assert (await scene.observe(epoch=scene.epoch)).fenced == {"gives", "keeps"}

    given_up, kept = await scene.row("gives"), await scene.row("keeps")
    assert (given_up.state, given_up.reason, given_up.released) == (State.FAILED, "NodeLost", True)
    assert given_up.desired is Desired.STOP
    assert (kept.state, kept.reason, kept.live) == (State.UNKNOWN, "NodeLost", True)
    status = (await scene.store.get_node("n1")).status
    assert (status.ready, status.reason, status.lost_at) == (False, "NodeLost", scene.clock.now())
    assert (await scene.observe(epoch=scene.epoch)).fenced == frozenset()


async def test_a_new_leader_waits_in_full_from_its_own_first_attempt(scene: Scene) -> None:
    scene.agents.away = True
    await scene.clock.pass_(1000)
    address = AgentAddress("n1", "x:1", True, "ledger-1")
    newcomer = ObservePass(scene.agents, scene.store, scene.clock, address, BOUNDS, Told())

    await newcomer(epoch=scene.epoch)
    await scene.clock.pass_(BOUNDS.certain_after_s - 1)
    assert (await newcomer(epoch=scene.epoch)).fenced == frozenset()
    await scene.clock.pass_(1)
    assert (await newcomer(epoch=scene.epoch)).fenced == {"gives", "keeps"}


async def test_one_that_refuses_us_renews_no_lease_of_ours(scene: Scene) -> None:
    scene.agents.refuses = True
    await scene.clock.pass_(BOUNDS.certain_after_s)

    assert (await scene.observe(epoch=scene.epoch)).fenced == {"gives", "keeps"}


async def test_a_node_that_returns_is_asked_for_all_it_has(scene: Scene) -> None:
    scene.agents.away = True
    await scene.clock.pass_(BOUNDS.certain_after_s)
    await scene.observe(epoch=scene.epoch)
    assert not scene.observe.ready
    scene.agents.away = False
    scene.agents.asked.clear()

    await scene.observe(epoch=scene.epoch)
    await scene.observe(epoch=scene.epoch)

    first, second = scene.agents.asked
    assert (first.instance, second.instance) == ("", "i")
    assert scene.observe.ready
    status = (await scene.store.get_node("n1")).status
    assert (status.ready, status.lost_at) == (True, None)


async def test_no_lease_is_granted_before_the_node_has_heard_what_was_given_up_there(scene: Scene) -> None:
    scene.agents.away = True
    await scene.clock.pass_(BOUNDS.certain_after_s)
    await scene.observe(epoch=scene.epoch)
    scene.agents.away = False
    scene.agents.asked.clear()
    for _ in range(3):
        await scene.observe(epoch=scene.epoch)
    assert [a.lease.heard for a in scene.agents.asked] == [0, 0, 0]

    script = StoreScript(scene.store, epoch=scene.epoch)
    await script.sent(
        *(Sent(e.allocation.id, e.allocation.revision, "accepted") for e in (await scene.store.owed("n1")).errands),
        ledger_uid="ledger-1",
    )

    for _ in range(2):
        await scene.observe(epoch=scene.epoch)
    assert scene.agents.asked[-1].lease.heard > 0


async def test_what_was_given_up_is_to_be_stopped_on_the_node_that_returns(scene: Scene) -> None:
    scene.agents.away = True
    await scene.clock.pass_(BOUNDS.certain_after_s)
    await scene.observe(epoch=scene.epoch)
    scene.agents.away = False
    await scene.observe(epoch=scene.epoch)

    told = {e.allocation.workload: e.allocation.desired for e in (await scene.store.owed("n1")).errands}
    assert told == {"gives": Desired.STOP}
    row = await scene.row("gives")
    assert (row.state, row.released) == (State.FAILED, True), "an end once seen stays"
