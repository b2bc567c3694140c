"""Each promise is broken on purpose, in our own code, and the world finds it out; left as it is, it is kept."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from agent import fencer, step
from agent.action import Record, StartContainer
from agent.calls import Calls
from agent.entry import Cleared, Ended, Entry, Released
from agent.ledger import Ledger
from agent.node_lease import NodeLease
from agent.worker import Worker
from controller.loops.bounds import NodeBounds
from controller.nodes import wire
from controller.plan import place
from controller.store.contract import Recorded, Unavailable
from controller.store.rules import agents, plans
from kakuri.model import Allocation, Desired
from sim.world import Broken, World

Scenario = Callable[[], None]
Mutation = Callable[[pytest.MonkeyPatch], None]
JOB = {"restart_policy": "Never", "env": {"KAKURI_FAKE": "exit 0"}}


# -- scenarios: each is a small world, or the same one with a crash at each point in turn ------------------------------


def a_leader_is_replaced_and_its_calls_come_late() -> None:
    with World(1, nodes=1) as world:
        world.weather_is(doubled=1.0)
        for replicas in (1, 2, 3, 2, 3, 1, 4):
            world.put("a", replicas=replicas)
            world.wait(0.3)
        world.crash(world.leader, down_s=60.0)
        world.wait(9.0)
        world.put("b")
        world.wait(1.0)
        world.crash("n1", down_s=0.2)
        world.wait(15.0)


def an_agent_is_killed_at_any_point_of_a_job_and_its_runtime_is_wiped() -> None:
    for point in range(1, 30):
        with World(point, nodes=1, controllers=1) as world:
            world.crash_at("n1", point, down_s=2.0)
            world.put("job", **JOB)
            world.wait(1.0)
            world.wipe_runtime("n1")
            world.wait(20.0)


def a_runtime_does_what_it_is_told_and_does_not_answer() -> None:
    with World(3, nodes=1, controllers=1) as world:
        world.weather_is(runtime_silent=0.3)
        world.put("web", replicas=4)
        world.wait(10.0)
        world.finish()


def a_slow_workload_is_replaced() -> None:
    with World(4, nodes=2, controllers=1) as world:
        world.put("web", env={"KAKURI_FAKE": "stubborn"})
        world.wait(3.0)
        world.put("web", env={"KAKURI_FAKE": "stubborn"}, image="demo:2")
        world.wait(30.0)


def a_job_ends_while_nobody_hears_of_it() -> None:
    with World(5, nodes=1, controllers=1) as world:
        world.put("job", restart_policy="Never", env={"KAKURI_FAKE": "exit 3 after 2"})
        world.wait(1.0)
        world.cut("n1", "*", for_s=20.0)
        world.wait(30.0)
        world.finish()


def a_start_comes_again_when_all_is_over() -> None:
    for seed in range(4):
        with World(seed, nodes=1, controllers=1) as world:
            world.weather_is(doubled=1.0)
            world.put("job", **JOB)
            world.wait(3.0)
            world.delete("job")
            world.wait(25.0)


def a_node_falls_silent_and_more_is_asked_for() -> None:
    with World(7, nodes=1, controllers=1) as world:
        world.cut("n1", "*", for_s=60.0)
        world.wait(20.0)
        world.put("web", replicas=2)
        world.wait(5.0)


def a_few_workloads_run_beside_each_other() -> None:
    with World(8, nodes=1, controllers=1) as world:
        world.put("a", replicas=2)
        world.wait(2.0)
        world.put("b", replicas=2)
        world.wait(5.0)


def the_database_fails_while_jobs_end() -> None:
    for seed in range(3):
        with World(seed, nodes=1, controllers=1) as world:
            world.put("job", replicas=4, restart_policy="Never", env={"KAKURI_FAKE": "exit 0 after 2"})
            world.wait(1.5)
            world.weather_is(store_down=0.7)
            world.wait(3.0)
            world.finish()


def a_node_is_cut_off_for_long() -> None:
    with World(10, nodes=2, controllers=1) as world:
        world.put("web", replicas=2, on_disconnect="replace")
        world.wait(10.0)
        world.cut("n1", "*", for_s=100.0)
        world.wait(70.0)


def an_agent_is_dead_for_long() -> None:
    with World(11, nodes=2, controllers=1) as world:
        world.put("web", replicas=2, on_disconnect="replace")
        world.wait(10.0)
        world.crash("n1", down_s=100.0)
        world.wait(70.0)


# -- mutations ---------------------------------------------------------------------------------------------------------


def no_fence(patch: pytest.MonkeyPatch) -> None:
    for rules in (agents, plans):
        patch.setattr(rules, "check_lead", lambda *_: None)
    patch.setattr(Calls, "_check_fence", lambda *_: None)


def the_epoch_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    replay = Ledger._replay

    def without_fence(self: Ledger, record: dict[str, Any]) -> None:
        replay(self, {**record, "fence": {**record["fence"], "epoch": 0}} if "fence" in record else record)

    patch.setattr(Ledger, "_replay", without_fence)


def the_ledger_is_written_after_the_start(patch: pytest.MonkeyPatch) -> None:
    drive = step._drive

    def started_first(entry: Entry, seen: Any, progress: Any, current: Any, now_ns: int) -> Any:
        wanted = drive(entry, seen, progress, current, now_ns)
        if isinstance(wanted, Record) and isinstance(wanted.change, Cleared) and current.state == "created":
            return StartContainer(current.id)
        return wanted

    patch.setattr(step, "_drive", started_first)


def a_failed_call_is_repeated_without_looking(patch: pytest.MonkeyPatch) -> None:
    failed = Worker._failed

    def sure_of_itself(self: Worker, *args: Any) -> None:
        seen = self.seen
        failed(self, *args)
        self.seen = seen

    patch.setattr(Worker, "_failed", sure_of_itself)
    patch.setattr(Worker, "compare", lambda *_: None)


def released_before_it_is_gone(patch: pytest.MonkeyPatch) -> None:
    stop = step._stop

    def ended_at_once(entry: Entry, seen: Any, progress: Any, now_ns: int) -> Any:
        asked = stop(entry, dataclasses.replace(seen, containers=()), progress, now_ns)
        assert isinstance(asked, Record)
        assert isinstance(asked.change, Ended)
        return asked

    patch.setattr(step, "_stop", ended_at_once)
    patch.setattr(step, "_clear_away", lambda *_: Record(Released()))


def replaced_without_waiting(patch: pytest.MonkeyPatch) -> None:
    live = property(lambda row: not row.released and row.desired is Desired.RUN)
    patch.setattr(Allocation, "live", live)


def reaped_before_it_is_recorded(patch: pytest.MonkeyPatch) -> None:
    record = Ledger.record

    async def forgets(self: Ledger, id_: str, change: Any) -> Entry:
        after = await record(self, id_, change)
        if isinstance(change, Released):
            await self.forget(id_)
        return after

    patch.setattr(Ledger, "record", forgets)


def what_is_over_is_forgotten_too_soon(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "was_forgotten", lambda *_: False)


def a_call_that_comes_twice_is_obeyed_twice(patch: pytest.MonkeyPatch) -> None:
    start = Calls._start

    async def as_if_new(self: Calls, given: Any, *args: Any) -> Any:
        self._ledger._latest.pop(given.allocation_id, None)
        return await start(self, given, *args)

    patch.setattr(Calls, "_start", as_if_new)
    patch.setattr(Ledger, "was_forgotten", lambda *_: False)


def placed_on_a_silent_node(patch: pytest.MonkeyPatch) -> None:
    fits = place._fits
    patch.setattr(place, "_fits", lambda spec, node: fits(spec, dataclasses.replace(node, ready=True)))
    patch.setattr(plans._Desk, "_still_there", lambda *_: True)


def a_partial_report_is_taken_for_all(patch: pytest.MonkeyPatch) -> None:
    report = wire.report
    patch.setattr(wire, "report", lambda *args: dataclasses.replace(report(*args), full=True))


def a_report_counts_before_it_is_committed(patch: pytest.MonkeyPatch) -> None:
    from sim.controllers import StorePort

    cross = StorePort._cross

    async def swallowed(self: StorePort, name: str, call: Any) -> Any:
        try:
            return await cross(self, name, call)
        except Unavailable:
            if name == "record_report":
                return Recorded()
            raise

    patch.setattr(StorePort, "_cross", swallowed)


def nothing_is_stopped_for_want_of_a_lease(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> bool:
        return True

    patch.setattr(NodeLease, "_lapse", nothing)
    patch.setattr(fencer.Fencer, "_kill", lambda *_: False)


def there_is_no_fencer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fencer.Fencer, "_kill", lambda *_: False)


def replaced_before_the_lease_is_surely_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NodeBounds, "certain_after_s", property(lambda _: 15.0))


CASES: list[tuple[Mutation, Scenario, str]] = [
    (no_fence, a_leader_is_replaced_and_its_calls_come_late, "obeyed epoch 1 after it had obeyed 2"),
    (the_epoch_is_forgotten, a_leader_is_replaced_and_its_calls_come_late, "obeyed epoch 1 after it had obeyed 2"),
    (
        the_ledger_is_written_after_the_start,
        an_agent_is_killed_at_any_point_of_a_job_and_its_runtime_is_wiped,
        "runs again",
    ),
    (
        a_failed_call_is_repeated_without_looking,
        a_runtime_does_what_it_is_told_and_does_not_answer,
        "it does not settle|a fault of ours",
    ),
    (released_before_it_is_gone, a_slow_workload_is_replaced, "runs twice"),
    (replaced_without_waiting, a_slow_workload_is_replaced, "runs twice"),
    (reaped_before_it_is_recorded, a_job_ends_while_nobody_hears_of_it, "given up as lost"),
    (what_is_over_is_forgotten_too_soon, a_start_comes_again_when_all_is_over, "had ended"),
    (a_call_that_comes_twice_is_obeyed_twice, a_start_comes_again_when_all_is_over, "had ended"),
    (placed_on_a_silent_node, a_node_falls_silent_and_more_is_asked_for, "which is not ready"),
    (a_partial_report_is_taken_for_all, a_few_workloads_run_beside_each_other, "given up as lost"),
    (a_report_counts_before_it_is_committed, the_database_fails_while_jobs_end, "it does not settle"),
    (nothing_is_stopped_for_want_of_a_lease, a_node_is_cut_off_for_long, "runs twice"),
    (there_is_no_fencer, an_agent_is_dead_for_long, "runs twice"),
    (replaced_before_the_lease_is_surely_over, a_node_is_cut_off_for_long, "runs twice"),
]


@pytest.mark.parametrize(("mutate", "scenario", "words"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_broken_promise_is_found(
    mutate: Mutation, scenario: Scenario, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(Broken, match=words):
        scenario()


SCENARIOS = list(dict.fromkeys(c[1] for c in CASES))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.__name__ for s in SCENARIOS])
def test_the_same_world_is_well_without_the_mutation(scenario: Scenario) -> None:
    scenario()
