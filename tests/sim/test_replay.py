"""A run can be told to somebody else: a broken one prints a program that breaks in the same place."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_mutations import released_before_it_is_gone

from sim.moves import play
from sim.world import Broken, World

ROOT = Path(__file__).parents[2]


def test_a_broken_run_prints_a_program_that_breaks_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    released_before_it_is_gone(monkeypatch)
    with pytest.raises(Broken) as first, World(1) as world:
        play(world, 1, 200)
    what, _, program = str(first.value).partition("\n\n")
    with pytest.raises(Broken) as again:
        exec(compile(program, "replay", "exec"), {})
    assert str(again.value).partition("\n\n")[0] == what
    assert "runs twice" in what


def test_the_same_seed_goes_the_same_way_whatever_the_order_of_texts() -> None:
    assert len({_digest_in_a_process_of_its_own(hash_seed) for hash_seed in ("1", "2")}) == 1


def digest(seed: int, steps: int) -> str:
    """Of all that the product said, and when."""
    with World(seed) as world:
        world.listening = True
        play(world, seed, steps)
        told = "\n".join(
            f"{at:.6f} {who} {event} {sorted(map(str, fields.items()))}" for at, who, event, fields in world.told
        )
        # Folders have names of their own.
        return hashlib.sha256(told.replace(str(world._folder), "").encode()).hexdigest()


def _digest_in_a_process_of_its_own(hash_seed: str) -> str:
    program = "from sim.test_replay import digest; print(digest(11, 60))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "sim")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()
