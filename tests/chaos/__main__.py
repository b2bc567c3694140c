"""`python -m chaos`: a whole kakuri, and all that can be done to one; then the verdict. Exit code 0: nothing was lost
and nothing doubled; 1: what was is printed, and the folder with all logs is kept.

One rule: nothing is left on the machine, whatever happened; that is a part of the verdict.
"""

import argparse
import asyncio
import signal
import sys
import time
import traceback
from pathlib import Path

from chaos.cell import Cell, Waits
from chaos.mutation import MUTATIONS, mutated_copy
from chaos.run import Report, Run
from kakuri.log import configure

ROOT = Path(__file__).resolve().parent.parent.parent
INTERRUPTED = "interrupted"


def main() -> int:
    arguments = _parse()
    configure("warning")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored, when a shell's background job
    waits = Waits(arguments.lease_s, arguments.stop_bound_s, arguments.slack_s)
    cell = Cell(waits)
    report = Report()
    try:
        tree = mutated_copy(ROOT, cell.folder / "tree", arguments.mutate) if arguments.mutate else arguments.tree
        run = Run(
            cell,
            report,
            seed=arguments.seed,
            minutes=arguments.minutes,
            workloads=arguments.workloads,
            every_s=arguments.fault_every_s,
            change_every_s=arguments.change_every_s,
            rounds=arguments.rounds,
        )
        run.say(f"seed {arguments.seed}; all logs are in {cell.folder}")
        try:
            cell.open(tree)
            asyncio.run(run.directed() if arguments.mutate else run.whole())
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest is the tidying, which is bounded
            run.say("everything is ended")
            cell.close()
            report.wrong += [f"LEFT BEHIND: {left}" for left in cell.leftovers()]
    except KeyboardInterrupt:
        report.wrong.append(INTERRUPTED)
    except Exception:  # noqa: BLE001 - whatever it was, it is told with the rest
        report.wrong.append(f"COULD NOT GO ON: {traceback.format_exc()}")
    _print(*report.lines)
    if report.wrong == [INTERRUPTED]:
        cell.forget()
        return 1
    if arguments.mutate:
        return _judge_mutation(arguments.mutate, report, cell)
    if report.wrong:
        _print(f"FAILED (seed {arguments.seed}; logs in {cell.folder}):", *report.wrong[:50])
        return 1
    cell.forget()
    _print("GOOD: nothing lost, nothing doubled, nothing left behind")
    return 0


def _judge_mutation(name: str, report: Report, cell: Cell) -> int:
    """0 when the run has failed as it must: by an overlap, and by nothing else."""
    overlaps = [w for w in report.wrong if w.startswith("OVERLAP")]
    if not overlaps or len(overlaps) < len(report.wrong):
        _print(f"{name} was not caught as it should be (logs in {cell.folder}):", *report.wrong[:50])
        return 1
    cell.forget()
    _print(f"FAILED, as it must with {name}:", *overlaps[:5])
    return 0


def _print(*lines: str) -> None:
    sys.stdout.write("\n  ".join(lines) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__, allow_abbrev=False)
    number = parser.add_argument
    number("--minutes", type=float, default=10, help="how long faults are made (%(default)s)")
    number("--seed", type=int, default=int(time.time()) % 1_000_000, help="names a schedule of faults (by the clock)")
    number("--workloads", type=int, default=60, help="of which a third keep changing (%(default)s)")
    number("--fault-every-s", type=float, default=4.0, help="on average; some are left out (%(default)s)")
    number("--change-every-s", type=float, default=1.5, help="on average (%(default)s)")
    number("--rounds", type=int, default=3, help="how often each measure is taken (%(default)s)")
    number("--lease-s", type=float, default=15.0, help="the controllers' --node-lease-s (%(default)s)")
    number("--stop-bound-s", type=float, default=5.0, help="the controllers' --node-stop-bound-s (%(default)s)")
    number("--slack-s", type=float, default=2.0, help="the controllers' --clock-slack-s (%(default)s)")
    number("--tree", type=Path, default=ROOT, help="where controllers' and agents' code is taken from (%(default)s)")
    number("--mutate", choices=sorted(MUTATIONS), help="with a promise broken, and one fault that must show it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
