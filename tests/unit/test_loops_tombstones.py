"""What was given up is ended where it may still run; and drains that the loops bring to their end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from builders import NOW, a_registration
from controller.exchange import LeaseTerms, Owed, Report, Sent
from controller.loops.bounds import NodeBounds
from controller.loops.dispatch import DispatchPass
from controller.loops.driver import DRAINS_S, IDLE_DRAINS_S, SWEEP_S
from controller.loops.observe import ObservePass
from controller.loops.reap import Orphans
from controller.loops.told import Told
from controller.store import open_store
from controller.store.contract import AgentAddress, Delete, EventFilter
from kakuri.model import Drain
from support.loop_world import ScriptedClock, World, a_world
from support.store_script import StoreScript

GHOST = "web.0.00000000"
ADDRESS = AgentAddress("n1", "127.0.0.1:9001", True, "ledger-n1")


@dataclass
class Answering:
    """An agent that answers stops and removals as it is told to."""

    stop: Any = "accepted"
    removal: Any = "accepted"
    told: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    leases: list[int] = field(default_factory=list)

    async def observe(self, node: str, address: str, *, instance: str, lease: LeaseTerms, **_: Any) -> Report:
        self.leases.append(lease.heard)
        return Report(node, "instance", 1, "ledger-n1", full=not instance, sent_at_ns=5)

    async def apply(self, address: str, *, stops: Sequence[str], removals: Sequence[str], **_: Any) -> list[Sent]:
        self.told.append((tuple(stops), tuple(removals)))
        return [*(Sent(i, 2**53, self.stop) for i in stops), *(Sent(i, 2**53, self.removal) for i in removals)]


@dataclass
class Given:
    script: StoreScript
    agent: Answering
    dispatch: DispatchPass
    told: Told

    def observe(self) -> ObservePass:
        """What a new leader begins with."""
        return ObservePass(self.agent, self.script.store, ScriptedClock(), ADDRESS, NodeBounds(), self.told)  # type: ignore[arg-type]

    async def left(self) -> list[str]:
        return [t.id for t in (await self.script.store.owed("n1")).tombstones]


@pytest.fixture
async def given() -> Given:
    """n1 with a tombstone of web."""
    store = await open_store("memory://")
    script = StoreScript(store)
    await script.node()
    await script.put()
    await script.running()
    await store.apply([Delete("Workload", "web", force=True)], now=NOW)
    agent = Answering()
    told = Told()
    return Given(script, agent, DispatchPass(agent, store, ScriptedClock(), ADDRESS, told), told)  # type: ignore[arg-type]


async def test_a_tombstone_goes_when_its_node_took_both_the_stop_and_the_removal(given: Given) -> None:
    assert not (await given.dispatch(Orphans(), epoch=0)).busy
    assert given.agent.told == [((GHOST,), (GHOST,))], "a stop too, so that a delayed start of it is refused"
    assert await given.left() == []
    await given.dispatch(Orphans(), epoch=0)
    assert len(given.agent.told) == 1


@pytest.mark.parametrize(
    ("stop", "removal"),
    [
        pytest.param("accepted", "busy", id="it has not ended"),
        pytest.param("busy", "accepted", id="its ledger can't be written"),
        pytest.param("refused", "accepted", id="it was started by hand"),
    ],
)
async def test_a_tombstone_stays_as_long_as_either_is_not_taken(given: Given, stop: Any, removal: Any) -> None:
    given.agent.stop, given.agent.removal = stop, removal
    for _ in range(2):
        dispatched = await given.dispatch(Orphans(), epoch=0)
        assert dispatched.busy is ("busy" in {stop, removal})
    assert await given.left() == [GHOST]
    assert len(given.agent.told) == 2, "told again until it is gone"


@pytest.mark.parametrize(
    ("stop", "granted"),
    [
        pytest.param("accepted", True, id="it can't start any more, though it does not end"),
        pytest.param("busy", False, id="it may wait for a lease to begin with"),
    ],
)
async def test_what_can_not_be_ended_keeps_its_node_from_no_lease(given: Given, stop: Any, granted: bool) -> None:
    given.agent.stop, given.agent.removal = stop, "busy"
    observe = given.observe()
    for _ in range(2):
        await observe(epoch=0)
    assert given.agent.leases == [0, 0], "nothing was stopped there yet"
    await given.dispatch(Orphans(), epoch=0)
    for _ in range(2):
        await observe(epoch=0)
    assert bool(given.agent.leases[-1]) is granted


async def test_what_is_reported_as_an_orphan_too_is_told_once(given: Given) -> None:
    await given.dispatch(Orphans(stops=(GHOST, "x.0.00000000")), epoch=0)
    assert given.agent.told == [((GHOST, "x.0.00000000"), (GHOST,))]


async def test_the_answer_about_a_tombstone_says_nothing_of_a_row_of_that_id(given: Given) -> None:
    """A forgotten node that is back: the row of a job that ran there stays, and is removed in its own time."""
    script = given.script
    await script.put("job", restart_policy="Never")
    row = await script.running("job")
    await script.node(ready=False)
    await script.store.forget_node("n1", now=NOW)
    await script.node()
    assert sorted(await given.left()) == [row, GHOST]
    given.agent.removal = "busy"
    await given.dispatch(Orphans(), epoch=0)
    kept = await script.store.get_allocation(row)
    assert (kept.reason, kept.released) == ("NodeLost", True)
    given.agent.removal = "accepted"
    await given.dispatch(Orphans(), epoch=0)
    assert await given.left() == []
    assert await script.store.get_allocation(row) == kept


# -- the loops together ------------------------------------------------------------------------------------------------
async def run_web(world: World, **fields: Any) -> None:
    await world.put("web", **fields)

    async def runs() -> bool:
        return await world.state("web") == "Running"

    await world.until("web runs", runs)


async def test_a_forced_deletion_is_carried_out_on_a_node_that_answers() -> None:
    async with a_world() as world:
        await run_web(world)
        await world.store.apply([Delete("Workload", "web", force=True)], now=world.clock.now())
        world.driver.nodes()

        async def gone() -> bool:
            return not (await world.store.owed("n1")).tombstones

        await world.until("the node was told", gone)
        for what in ("stop", "remove"):
            assert any(t.startswith(f"{what} orphan web.0.") for t in world.agents.told)


async def test_a_drain_ends_when_its_workload_runs_elsewhere_and_says_so_once() -> None:
    async with a_world() as world:
        await run_web(world)
        (placed,) = (await world.store.load_snapshot(["web"], now=NOW, seed="")).workloads[0].allocations
        drain = Drain(asked_at=world.clock.now())
        await world.store.drain_node("n1", drain, now=world.clock.now())
        world.driver.nodes()
        for _ in range(20):
            await world.clock.pass_(1)
        assert (await world.store.get_allocation(placed.id)).live, "there is no place for it"

        # Both nodes have the same here: what matters is where the controller places it.
        world.agents.other_ledgers["n2"] = "ledger-2"
        other = a_registration(ledger_uid="ledger-2", address="127.0.0.1:9002")
        await world.store.register_node("n2", other, now=world.clock.now())
        world.driver.nodes()

        async def drained() -> bool:
            shown = (await world.store.get_node("n1")).status.drain
            return shown is not None and shown.drained_at is not None

        await world.until("n1 is drained", drained)
        events = await world.store.list_events(EventFilter(object_id="n1"))
        assert [e.count for e in events.items if e.reason == "Drained"] == [1]
        assert await world.store.get_workload("web")
        assert (await world.store.get_workload("web")).status.node == "n2"


async def test_a_deadline_stops_a_job_and_is_told_once() -> None:
    async with a_world() as world:
        await run_web(world, restart_policy="Never")
        until = world.clock.now().replace(year=world.clock.now().year + 1)
        await world.store.drain_node("n1", Drain(asked_at=world.clock.now(), deadline_at=until), now=world.clock.now())
        world.driver.nodes()
        for _ in range(20):
            await world.clock.pass_(1)
        assert await world.state("web") == "Running"
        now = world.clock.now()
        await world.store.drain_node("n1", Drain(asked_at=now, deadline_at=now), now=now)
        world.driver.nodes()

        async def ended() -> bool:
            return await world.state("web") == "Failed"

        await world.until("the job was stopped", ended)
        assert (await world.store.get_workload("web")).status.reason == "Drained"

        async def told() -> bool:
            events = await world.store.list_events(EventFilter(object_id="n1"))
            return [e.count for e in events.items if e.reason == "Drained"] == [1]

        await world.until("the end is told", told)


async def test_a_node_that_was_released_and_is_back_is_another_one_and_gets_ready_again() -> None:
    async with a_world() as world:
        await run_web(world)
        first = (await world.store.get_node("n1")).uid
        await world.store.forget_node("n1", released=True, now=world.clock.now())
        # Before any loop has looked: the node's name, address and ledger are the same.
        back = a_registration(ledger_uid=world.agents.ledger_uid)
        await world.store.register_node("n1", back, now=world.clock.now())
        world.driver.nodes()

        async def ready() -> bool:
            return (await world.store.get_node("n1")).status.ready

        await world.until("it is ready", ready)
        node = await world.store.get_node("n1")
        assert (node.uid != first, node.schedulable) == (True, False)


async def test_a_drain_that_can_not_end_is_looked_at_ever_more_rarely_until_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_world() as world:
        await run_web(world)
        waited: list[float] = []

        async def wait(timeout_s: float) -> bool:
            await asyncio.sleep(0)
            waited.append(timeout_s)
            return len(waited) == 8  # a kick then

        monkeypatch.setattr(world.driver._drains_kick, "wait", wait)
        await world.store.drain_node("n1", Drain(asked_at=world.clock.now()), now=world.clock.now())
        world.driver.nodes()

        async def long_enough() -> bool:
            await world.clock.pass_(DRAINS_S)
            return waited.count(0) == 2

        await world.until("a kick has it looked at soon again", long_enough)
        pauses = [w + DRAINS_S for w in waited if w != SWEEP_S]
        assert pauses[:6] == [2, 4, 8, 16, IDLE_DRAINS_S, IDLE_DRAINS_S]


async def test_a_kick_wakes_no_node_that_has_nothing_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    looked = asyncio.Event()
    async with a_world() as world:
        await run_web(world)

        async def owed(node: str, **_: Any) -> Owed:
            asked.append(node)
            return Owed([], [])

        async def to_tell() -> set[str]:
            looked.set()
            return set()

        for _ in range(50):
            await asyncio.sleep(0)
        monkeypatch.setattr(world.store, "owed", owed)
        monkeypatch.setattr(world.store, "nodes_to_tell", to_tell)
        world.driver.nodes()
        await looked.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert asked == []
