"""What is done to a cell: programs killed and stopped, cables cut, each mended after a while.

One rule: the schedule is a function of the seed and of time alone, so that a seed names a run.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from chaos.cell import AGENTS, CONTROLLERS, DATABASE, Cell
from chaos.hosts import Way
from chaos.programs import signal_all

AT_ONCE = 3
"""Faults that last at the same time. More, and nothing ever works; then nothing can go wrong either."""
_SHORT_S = (0.3, 6.0)
_LONG_SHARE = 0.25
_LONG_BEYOND_S = (1.0, 10.0)
"""A long fault lasts for longer than a node's lease and all that is waited after it: then its work is replaced."""


@dataclass(frozen=True)
class Kill:
    """Killed with -9, all at once, and started again when the time is over. The runtime and the fencer are started by
    their agent, whenever it likes to."""

    target: str
    parts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Stop:
    """SIGSTOP, and SIGCONT when the time is over."""

    target: str
    part: str
    seconds: float


@dataclass(frozen=True)
class Cut:
    """The host's cable: what it sends or gets is lost. peer: only with that host."""

    target: str
    way: Way
    seconds: float
    peer: str = ""


Fault = Kill | Stop | Cut


@dataclass(frozen=True)
class Due:
    after_s: float
    """From the one before."""
    fault: Fault


@dataclass
class Faults:
    """run() carries out a schedule; counts has what was done, by kind."""

    cell: Cell
    say: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)
    _busy: set[str] = field(default_factory=set)
    """Hosts with a fault: one at a time each, so that its end mends it whole."""

    async def run(self, schedule: Iterator[Due], seconds: float) -> None:
        """For so long; when it returns, also by being cancelled, all is mended."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for due in schedule:
                if time.monotonic() + due.after_s > until:
                    break
                await asyncio.sleep(due.after_s)
                if due.fault.target in self._busy or len(self._busy) >= AT_ONCE:
                    continue
                self._busy.add(due.fault.target)
                left_s = until - time.monotonic()
                tasks.create_task(self.do(due.fault, max(0.1, min(due.fault.seconds, left_s))))

    async def do(self, fault: Fault, seconds: float) -> None:
        """The fault has come and gone."""
        kind = describe(fault)
        self.counts[kind.partition(":")[0]] += 1
        self.say(f"{kind} for {seconds:.1f} s")
        self._busy.add(fault.target)
        try:
            match fault:
                case Kill():
                    self._kill(fault)
                    await asyncio.sleep(seconds)
                case Stop():
                    pids = self._pids(fault.target, fault.part)
                    signal_all(pids, signal.SIGSTOP)
                    try:
                        await asyncio.sleep(seconds)
                    finally:
                        signal_all(pids, signal.SIGCONT)
                case Cut():
                    peer = self.cell.network.hosts[fault.peer].address if fault.peer else ""
                    self.cell.network.cut(fault.target, fault.way, peer)
                    try:
                        await asyncio.sleep(seconds)
                    finally:
                        self.cell.network.heal(fault.target, peer)
        finally:
            if isinstance(fault, Kill):
                self._start(fault.target)
            self._busy.discard(fault.target)

    def _kill(self, fault: Kill) -> None:
        # First the one that would start the others.
        if "agent" in fault.parts:
            self.cell.nodes[fault.target].program.kill()
        for part in fault.parts:
            match part:
                case "agent":
                    pass
                case "controller":
                    self.cell.controllers[fault.target].kill()
                case "postgres":
                    self.cell.database.kill()
                case _:
                    signal_all(self._pids(fault.target, part), signal.SIGKILL)

    def _start(self, target: str) -> None:
        for program in self.cell.programs:
            if program.host.name == target:
                program.start()

    def _pids(self, target: str, part: str) -> list[int]:
        match part:
            case "containerd":
                return self.cell.nodes[target].runtime_pids()
            case "fencer":
                return self.cell.nodes[target].fencer_pids()
            case _:
                return [pid for p in self.cell.programs if p.host.name == target for pid in p.pids()]


def describe(fault: Fault) -> str:
    match fault:
        case Kill():
            return f"killed {' and '.join(fault.parts)}: {fault.target}"
        case Stop():
            return f"stopped {fault.part}: {fault.target}"
        case Cut():
            kind = "an agent's" if fault.target in AGENTS else "a controller's"
            whose = "the database's" if fault.target == DATABASE else kind
            if fault.peer:
                return f"cut {whose} cable to one host, {fault.way}: {fault.target} from {fault.peer}"
            return f"cut {whose} cable, {fault.way}: {fault.target}"


def schedule(seed: int, *, every_s: float, lost_s: float) -> Iterator[Due]:
    """For ever. lost_s: how long a fault must last at least so that a node's work is replaced."""
    chance = random.Random(seed)
    while True:
        after_s = chance.uniform(0.2, 1.8) * every_s
        short, long = chance.uniform(*_SHORT_S), lost_s + chance.uniform(*_LONG_BEYOND_S)
        seconds = long if chance.random() < _LONG_SHARE else short
        yield Due(after_s, _choose(chance, seconds, short))


def _choose(chance: random.Random, seconds: float, short_s: float) -> Fault:
    """Most of what lasts long is done to nodes: there it has consequences. The fencer is the last who can keep a
    promise, so it is never held down while its agent is.
    """
    node, controller = chance.choice(AGENTS), chance.choice(CONTROLLERS)
    way = chance.choice(list(Way))
    faults: Sequence[tuple[int, Fault]] = [
        (3, Kill(controller, ("controller",), short_s)),
        (3, Stop(controller, "controller", seconds)),
        (2, Cut(controller, way, seconds)),
        (4, Kill(node, ("agent",), seconds)),
        (3, Kill(node, ("containerd",), short_s)),
        (3, Kill(node, ("agent", "containerd"), seconds)),
        (2, Kill(node, ("fencer",), short_s)),
        (3, Stop(node, "agent", seconds)),
        (3, Stop(node, "containerd", seconds)),
        (1, Stop(node, "fencer", short_s)),
        (4, Cut(node, Way.BOTH, seconds)),
        (3, Cut(node, way, seconds)),
        (2, Cut(node, way, seconds, peer=controller)),
        (2, Cut(controller, way, seconds, peer=DATABASE)),
        (2, Kill(DATABASE, ("postgres",), short_s)),
        (2, Stop(DATABASE, "postgres", short_s)),
        (1, Cut(DATABASE, way, short_s)),
    ]
    [fault] = chance.choices([f for _, f in faults], [weight for weight, _ in faults])
    return fault
