"""What the worlds found, each shown by the smallest thing that shows it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.calls import Fenced
from agent.entry import End, Ended, StopAsked
from agent.ledger import Ledger, LedgerUnwritable, open_ledger
from builders import NOW, a_manifest, a_node_manifest, a_registration, a_spec, a_stop, an_allocation, an_end, later
from controller.exchange import ObservedAllocation
from controller.plan.action import Place, carried_out
from controller.plan.reconcile import plan
from controller.plan.replace import End as Outcome
from controller.plan.replace import end_of
from controller.store.contract import Put, Unavailable
from controller.store.memory import MemoryStore
from controller.store.rules.transitions import observed
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.model import Desired, RestartPolicy, State
from sim.controllers import StorePort
from sim.seams import patched
from sim.world import World
from support.agents import WEB, Agent, start_of, stop_of
from support.steps import ENTRY


def test_a_new_allocation_is_newer_than_its_predecessor_whatever_the_clock_says() -> None:
    old = an_end()
    spec = a_spec()
    place = Place(
        "web.0.00000002", "web", "uid", 0, "n1", 1, spec, spec.replacing_hash(), 0, "l", simulated=False, reason=""
    )
    rows = carried_out([old], [place], now=later(-3600))
    assert max(rows, key=lambda r: r.created_at).id == "web.0.00000002"


async def test_nothing_is_placed_where_a_person_was_told_meanwhile_that_nothing_will_be() -> None:
    store = MemoryStore()
    await store.register_node("n1", a_registration(), now=NOW)
    lease = await store.acquire_lease("me", ttl_s=10)
    await store.set_node_ready("n1", epoch=lease.epoch, ready=True, reason="Ready", message="", now=NOW)
    await store.apply([Put(a_manifest("web"))], now=NOW)
    decided = plan(await store.load_snapshot(["web"], now=NOW, seed="s"))
    await store.apply([Put(a_node_manifest("n1", schedulable=False))], now=NOW)
    applied = await store.apply_plan(decided, epoch=lease.epoch, now=NOW)
    assert applied.stale == {"web"}


def test_a_node_is_ready_again_though_the_answer_that_it_is_not_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    cross = StorePort._cross
    lost: list[str] = []

    async def lose_one_answer(self: StorePort, name: str, call: Any) -> Any:
        result = await cross(self, name, call)
        if name == "set_node_ready" and not lost and self._world.steps:
            lost.append(name)
            raise Unavailable("the answer was lost")
        return result

    monkeypatch.setattr(StorePort, "_cross", lose_one_answer)
    with World(1, nodes=1, controllers=1) as world:
        world.cut("n1", "*", for_s=20.0)
        world.wait(25.0)
        assert lost
        world.finish()


async def test_a_start_and_its_update_at_once_are_one_start(agent: Agent) -> None:
    await asyncio.gather(agent.apply(start_of(WEB)), agent.apply(start_of(WEB, revision=2)))
    await agent.until_state(WEB, "Running")


async def test_an_end_that_the_disk_refused_does_not_come_back_with_the_next_change(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger")
    await ledger.accept(ENTRY)
    append = ledger._file.append
    refused: list[bytes] = []

    def refuse_once(line: bytes) -> None:
        if not refused:
            refused.append(line)
            raise OSError(28, "No space left on device")
        append(line)

    ledger._file.append = refuse_once  # type: ignore[method-assign]
    end = asyncio.create_task(ledger.record(ENTRY.id, Ended(End(State.SUCCEEDED, "Completed", "", 0, 1))))
    await asyncio.sleep(0)
    await ledger.record(ENTRY.id, StopAsked(9, "Deleted", 1))
    with pytest.raises(LedgerUnwritable):
        await end
    assert _told(ledger) == (None, 9)
    ledger.close()
    assert _told(open_ledger(tmp_path / "ledger")) == (None, 9)


def _told(ledger: Ledger) -> tuple[End | None, int]:
    return ledger.entries[ENTRY.id].end, ledger.entries[ENTRY.id].revision


async def test_an_epoch_that_the_disk_did_not_take_counts_all_the_same(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.apply(start_of(WEB))

    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(agent.ledger._file, "append", full)
        patch.setattr(agent.ledger._file, "rewrite", full)
        agent.epoch = 3
        await agent.apply(stop_of(WEB))
    agent.epoch = 2
    with pytest.raises(Fenced):
        await agent.apply(stop_of(WEB, revision=3))


async def test_what_comes_up_of_a_forgotten_allocation_is_ended_too(agent: Agent) -> None:
    await agent.apply(stop_of(WEB))
    await agent.until_released(WEB)
    await agent.apply(wire.Remove(allocation_id=WEB, revision=3))
    found = wire.AllocationStatus(allocation_id=WEB, workload_id="web", origin=agent.fence.cluster_id, state="Pending")
    agent.observations.publish(found)
    await agent.apply(stop_of(WEB))
    await agent.until_released(WEB)


def test_an_end_that_a_forgotten_stop_made_is_no_failure() -> None:
    stopped = an_end(state=State.FAILED, reason="Updating", exit_code=1)
    assert stopped.desired is Desired.RUN
    assert end_of(stopped, RestartPolicy.ALWAYS, outdated=False) is Outcome.STOPPED


def test_what_is_still_told_of_has_not_accepted_its_removal() -> None:
    row = a_stop(desired=Desired.REMOVE, revision=4, accepted_revision=3, state=State.FAILED)
    told = ObservedAllocation(row.id, "web", 0, "c", revision=2**53, state="Failed", released=True)
    assert observed(row, told, ledger_uid="l", now=NOW).accepted_revision == 3
    assert (
        observed(an_allocation(revision=4, accepted_revision=1), told, ledger_uid="l", now=NOW).accepted_revision == 4
    )


def test_what_a_paused_change_left_behind_and_is_lost_then_is_not_waited_for() -> None:
    with World(None, nodes=2) as world:
        world.put("api", replicas=2, restart_policy="Never", env={"KAKURI_FAKE": "exit 0 after 600"})
        world.wait(10.0)
        world.put("api", replicas=2, restart_policy="Never", env={"KAKURI_FAKE": "exit 3"})
        world.wait(60.0)
        (left,) = world.witness.live.values()
        world.lose_ledger(left.node)
        world.finish()
        assert world.witness.rows[left.allocation].desired_reason == "NodeLost"


def test_a_restore_is_not_confirmed_before_a_node_that_joined_later_could_register() -> None:
    with World(None, nodes=2) as world:
        world.cordon("n2")
        world.forget("n1")
        world.put("api", replicas=1)
        world.back_up()
        world.wait(60.0)
        assert world.witness.live["api", 0].node == "n1", "which the backup does not know"
        world.restore()
        world.uncordon("n2")
        began = world.loop.time()
        world.wait(3.0)
        assert _confirm(world, served_s=world.loop.time() - began) == "refused"
        world.wait(60.0)
        assert _confirm(world, served_s=world.loop.time() - began) == "accepted"
        world.finish()


def _confirm(world: World, served_s: float) -> str:
    def confirm(controller: Any) -> Any:
        return controller.store.confirm_restore(served_s=served_s, now=controller.clock.now())

    with patched(world):
        return world.people.ask(confirm, kick=lambda c: c.driver.nodes())


async def test_a_removal_of_what_is_found_stops_it_first(agent: Agent) -> None:
    found = wire.AllocationStatus(allocation_id=WEB, workload_id="web", origin=agent.fence.cluster_id, state="Pending")
    agent.observations.publish(found)
    removal = wire.Remove(allocation_id=WEB, revision=3)
    assert [o.result for o in await agent.apply(removal)] == [wire.ApplyOutcome.BUSY]
    await agent.until_released(WEB)
    assert [o.result for o in await agent.apply(removal)] == [wire.ApplyOutcome.ACCEPTED]


def test_an_update_of_what_has_ended_meanwhile_is_not_sent_as_a_start_to_a_new_ledger() -> None:
    row = an_allocation(revision=4, accepted_revision=3, state=State.RUNNING)
    told = ObservedAllocation(row.id, "web", 0, "c", revision=3, state="Failed", reason="NodeLost", released=True)
    after = observed(row, told, ledger_uid="l", now=NOW)
    assert (after.desired, after.released, after.accepted_revision) == (Desired.RUN, True, 4)


def test_what_a_new_ledger_finds_is_told_of_though_the_lease_still_names_it() -> None:
    with World(None, nodes=1, controllers=1) as world:
        world.put("api", on_disconnect="replace")
        world.wait(5.0)
        (runs,) = world.witness.live.values()
        world.crash("c1", down_s=60.0)  # nobody stops what is found
        world.lose_ledger("n1", down_s=1.0)
        world.wait(2.0)
        calls = world.nodes["n1"].calls
        assert calls is not None
        assert calls._observations.get(runs.allocation) is not None
