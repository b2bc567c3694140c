"""`make soak`: worlds with random seeds until the time is over, or a promise is broken; then the script that shows it.

`PYTHONPATH=.:tests python -m sim.soak --minutes 10 [--seed N] [--steps 100]`
"""

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sim.moves import play
from sim.world import Broken, World

SQLITE_EVERY = 10
"""One run in so many is over SQLite."""


def run_seed(seed: int, steps: int) -> int:
    """Steps made. Raises Broken."""
    with World(seed, sqlite=seed % SQLITE_EVERY == 0) as world:
        play(world, seed, steps)
        world.finish()
        return world.steps


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sim.soak", description="Random worlds, for as long as you like.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--from-seed", type=int, help="the first; random unless given")
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    parser.add_argument("--keep-going", action="store_true", help="after a broken promise too")
    parser.add_argument("--scripts", type=Path, default=Path("/tmp"), help="where scripts of broken runs are put")
    options = parser.parse_args(argv)
    until = time.monotonic() + options.minutes * 60
    seed = options.seed if options.seed is not None else options.from_seed
    seed = secrets.randbelow(10**9) if seed is None else seed
    seeds = steps = broken = 0
    began = told = time.monotonic()
    while True:
        try:
            steps += run_seed(seed, options.steps)
        except Broken as error:
            broken += 1
            script = options.scripts / f"kakuri-sim-{seed}.py"
            words, _, program = str(error).partition("\n\n")
            script.write_text(program)
            _say(f"seed {seed}: {words}\nplay it again: PYTHONHASHSEED=0 PYTHONPATH=.:tests python {script}")
            if not options.keep_going:
                return 1
        seeds += 1
        seed += 1
        if time.monotonic() > until or options.seed is not None:
            break
        if time.monotonic() - told > 10:
            told = time.monotonic()
            _say(f"{seeds} seeds, {steps} steps, {steps / (told - began):.0f} steps/s")
    _say(f"{seeds} seeds, {steps} steps, {broken} broken; the last seed was {seed - 1}")
    return 1 if broken else 0


def _say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
