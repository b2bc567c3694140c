"""Hypothesis drives a world: a rule a move, and at the end of each run all is healed and has to settle."""

import sys
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sim.moves import MOVES, Move
from sim.world import World

T = TypeVar("T")
LESS = 0.95
"""Hypothesis ends some runs early: so many of the steps that it may make it does make."""


class Drawn:
    """Draws from Hypothesis, so that it can shrink what broke a promise."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def one_of(self, options: Any) -> Any:
        return self._data.draw(st.sampled_from(options))

    def number(self, least: int, most: int) -> int:
        return self._data.draw(st.integers(least, most))


class Worlds(RuleBasedStateMachine):
    sqlite = False
    steps = 0
    """Made in all runs."""

    def __init__(self) -> None:
        super().__init__()
        self._world: World | None = None

    @initialize(seed=st.integers(0, 2**31))
    def begin(self, seed: int) -> None:
        self._world = World(seed, sqlite=self.sqlite)

    def make(self, move: Move, data: st.DataObject) -> None:
        assert self._world is not None
        try:
            move(self._world, Drawn(data))
        except BaseException:
            self._end()
            raise

    def teardown(self) -> None:
        if self._world is None:
            return
        try:
            self._world.finish()
        finally:
            self._end()

    def _end(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            type(self).steps += world.steps
            world.close()


def _as_rule(move: Move) -> Any:
    @rule(data=st.data())
    def make(self: Worlds, data: st.DataObject) -> None:
        self.make(move, data)

    make.__name__ = move.__name__
    return make


for _move in MOVES:
    setattr(Worlds, _move.__name__, _as_rule(_move))


def run(machine: type[Worlds], *, at_least: int, a_run: int) -> None:
    """So many steps have been made, a_run at most in each run, and no promise was broken. The same runs each time."""
    machine.steps = 0
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=int(at_least / a_run / LESS) + 1,
            stateful_step_count=a_run,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate,),  # no shrinking: the script plays it again at once
            suppress_health_check=list(HealthCheck),
        ),
    )
    sys.stderr.write(f"{machine.steps} steps\n")
    assert machine.steps >= at_least
