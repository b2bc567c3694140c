"""Whatever is killed, cut, delayed, lost, doubled or stopped: nothing is lost, nothing doubled, and all settles."""

import pytest

from sim.machine import Worlds, run

STEPS = 19_000


class WorldsInMemory(Worlds):
    pass


@pytest.mark.timeout(900)
def test_no_promise_is_broken_whatever_happens() -> None:
    run(WorldsInMemory, at_least=STEPS, a_run=150)
