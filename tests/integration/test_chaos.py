"""Two minutes of `make chaos`: three controllers, three agents, sixty workloads, and all that can be done to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import database
from support.dev import can_run_containerd
from support.needs import need

pytestmark = pytest.mark.real

SEED = 7
BOUND_S = 540
TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.timeout(BOUND_S + 60)
def test_under_two_minutes_of_faults_nothing_is_lost_and_nothing_doubled() -> None:
    can_run_containerd()
    need(database.find_binaries() is not None, "PostgreSQL is not on this machine: apt-get install postgresql")
    run = subprocess.Popen(
        [sys.executable, "-m", "chaos", "--minutes", "2", "--rounds", "1", "--seed", str(SEED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        told, _ = run.communicate(timeout=BOUND_S)
    except BaseException:
        run.terminate()  # it removes all that it made
        told, _ = run.communicate(timeout=60)
        sys.stderr.write(told)
        raise

    assert run.returncode == 0, told
