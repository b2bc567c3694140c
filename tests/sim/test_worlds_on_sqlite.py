"""One run in ten is over SQLite: the same world with the real transactions, on a file.

It is slower, so its runs are shorter.
"""

import pytest

from sim.machine import Worlds, run

STEPS = 1_000


class WorldsOnSqlite(Worlds):
    sqlite = True


@pytest.mark.timeout(900)
def test_no_promise_is_broken_over_sqlite_either() -> None:
    run(WorldsOnSqlite, at_least=STEPS, a_run=75)
