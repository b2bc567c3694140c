"""Sees what runs, from outside of kakuri: a process of its own, so that nothing else of the run slows it down.

Three ways, all the while: the kernel's cgroups (which answer when agent and runtime don't), each runtime's own list,
and what was written down: containerd's events and the lines that the containers write.

One rule: it only looks. What it saw is judged by others, from the file that it leaves.

    python -m chaos.witness FILE [NAME=STATE_DIR …]
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from agent.places import NAMESPACE, Places
from agent.prerequisites import find_program
from chaos import cgroups
from chaos.cgroups import Identity
from chaos.logs import CLOCK_STEP_S, Lines
from chaos.spans import Span, find_overlaps
from cri.client import CriClient
from cri.errors import CriError
from kakuri.log import configure

PERIOD_S = 0.05
"""Of both kinds of looks; twice as often as is promised, for a busy machine makes some of them late."""
LOGS_PERIOD_S = 0.1
_LIST_BOUND_S = 1.0
_AGAIN_S = 0.2
_WRITE_S = 2.0
_EVENT = re.compile(r"(?P<at>\S+ \S+) \S+ \S+ \S+ (?P<topic>\S+) (?P<body>\{.*\})")


@dataclass
class Looks:
    """How often one thing was looked at, and the longest time between two answers."""

    answered: int = 0
    unanswered: int = 0
    longest_gap_s: float = 0.0
    last_at: float = 0.0

    def note(self, now: float) -> None:
        if self.last_at:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
        self.answered += 1
        self.last_at = now


@dataclass
class Seen:
    """One container. Its span begins when a process of the workload was seen in it."""

    identity: Identity
    span: Span | None = None
    started_event_at: float | None = None


@dataclass
class Witness:
    nodes: Mapping[str, Places]
    seen: dict[tuple[str, str], Seen] = field(default_factory=dict)
    """(host, container)."""
    sandboxes: set[tuple[str, str]] = field(default_factory=set)
    attempts: dict[tuple[str, str, int], str] = field(default_factory=dict)
    """(host, allocation, attempt) → container, as the runtime lists it."""
    lines: dict[str, Lines] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    passes: Looks = field(default_factory=Looks)
    lists: dict[str, Looks] = field(default_factory=dict)
    together: dict[str, str] = field(default_factory=dict)
    """What containers of one slot were at the moment they were found."""
    began_at: float = 0.0

    async def run(self, ended: asyncio.Event, told: Path) -> None:
        """Looks until ended; what was seen is in the file, anew every two seconds."""
        self.began_at = boottime()
        self.lines = {name: Lines(p.state_dir / "logs") for name, p in self.nodes.items()}
        self.lists = {name: Looks() for name in self.nodes}
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(self._look_for_ever()), tasks.create_task(self._read_for_ever())]
            work += [tasks.create_task(self._list_for_ever(name)) for name in self.nodes]
            work += [tasks.create_task(self._listen_for_ever(name)) for name in self.nodes]
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _WRITE_S)
                self._tell(told)
            for task in work:
                task.cancel()
        self._tell(told)

    async def _look_for_ever(self) -> NoReturn:
        while True:
            began = time.monotonic()
            self.look()
            self.passes.note(began)
            await asyncio.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))

    def look(self) -> None:
        """One pass over the cgroups of all hosts."""
        alive: dict[str, list[tuple[str, str]]] = {}
        for host, places in self.nodes.items():
            before = boottime()
            for container, pids in cgroups.container_pids(places):
                after = boottime()
                if pids and self._lives(host, container, pids, before, after):
                    identity = self.seen[host, container].identity
                    alive.setdefault(identity.allocation.rpartition(".")[0], []).append((host, container))
                before = after
        for ones in alive.values():
            if len(ones) > 1:
                self._look_again(ones)

    def _lives(self, host: str, container: str, pids: list[int], before: float, after: float) -> bool:
        """Whether the workload's process is among these, which were read between the two times."""
        seen = self._identified(host, container)
        if seen is None or (seen.span is None and not cgroups.is_started(pids)):
            return False
        span = Span(host, seen.identity.allocation, container, after, before)
        seen.span = span if seen.span is None else seen.span.joined(span)
        return True

    def _identified(self, host: str, container: str) -> Seen | None:
        key = (host, container)
        if key in self.sandboxes:
            return None
        if key not in self.seen:
            try:
                identity = cgroups.identify(self.nodes[host], container)
            except (OSError, ValueError):
                return None  # its bundle is being made, or is gone: the next pass, or what was known before, tells
            if identity is None:
                self.sandboxes.add(key)
                return None
            self.seen[key] = Seen(identity)
        return self.seen[key]

    def _look_again(self, ones: list[tuple[str, str]]) -> None:
        """Each was seen alive, but not at the same moment; so each is looked at once more, and all is written down."""
        told = []
        for host, container in ones:
            before = boottime()
            pids = cgroups.read_pids(self.nodes[host], container)
            if pids:
                self._lives(host, container, pids, before, before)
            told.append(f"{self.seen[host, container].identity} on {host}, {container[:12]}: {cgroups.describe(pids)}")
        self.together.setdefault(" and ".join(sorted(c for _, c in ones)), f"{boottime():.2f}: {' | '.join(told)}")

    async def _list_for_ever(self, host: str) -> NoReturn:
        client = CriClient(self.nodes[host].endpoint)
        looks = self.lists[host]
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(_LIST_BOUND_S):
                    for container in await client.list_containers():
                        allocation = container.labels.get("kakuri.dev/allocation", "")
                        self.attempts[host, allocation, container.metadata.attempt] = container.id
                looks.note(began)
            except (CriError, TimeoutError):
                looks.unanswered += 1
                looks.last_at = 0.0
            await asyncio.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))

    async def _listen_for_ever(self, host: str) -> NoReturn:
        """containerd's own events; a containerd that is killed ends the stream, and the next one is listened to."""
        ctr = find_program("ctr") or "ctr"
        argv = [ctr, "--address", str(self.nodes[host].socket), "--namespace", NAMESPACE, "events"]
        while True:
            quiet = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet
            )
            assert process.stdout is not None
            try:
                async for line in process.stdout:
                    self._hear(host, line.decode(errors="replace"))
                await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.sleep(_AGAIN_S)

    def _hear(self, host: str, line: str) -> None:
        event = _EVENT.match(line)
        if event is None:
            return
        self.events[event["topic"]] += 1
        container = json.loads(event["body"]).get("container_id", "")
        if event["topic"] == "/tasks/start" and (seen := self._identified(host, container)) is not None:
            seen.started_event_at = _from_wall(event["at"])

    async def _read_for_ever(self) -> NoReturn:
        while True:
            for lines in self.lines.values():
                lines.read()
            await asyncio.sleep(LOGS_PERIOD_S)

    def spans(self) -> list[Span]:
        """What is certain of each container: seen in its cgroup, and stretched by what it wrote and by its event."""
        spans = {}
        for key, seen in self.seen.items():
            span = seen.span
            if span is None:
                continue
            if seen.started_event_at is not None and seen.started_event_at < span.alive_from:
                span = replace(span, alive_from=seen.started_event_at)  # it had started then, and had not ended
            spans[key] = span
        for host, lines in self.lines.items():
            for line in lines.found:
                container = self.attempts.get((host, line.allocation, line.attempt), f"log of {line.attempt}")
                if line.at is not None:
                    known = spans.get((host, container))
                    wrote = Span(host, line.allocation, container, line.at + CLOCK_STEP_S, line.at)
                    spans[host, container] = wrote if known is None else known.joined(wrote)
        return list(spans.values())

    def _tell(self, told: Path) -> None:
        spans = self.spans()
        job_runs: dict[str, set[str]] = {}
        for (host, container), seen in self.seen.items():
            if seen.identity.kind == "job" and (seen.span is not None or seen.started_event_at is not None):
                run = f"{host} {seen.identity.allocation} {container[:12]}"
                job_runs.setdefault(seen.identity.nonce, set()).add(run)
        starts = Counter(line.nonce for lines in self.lines.values() for line in lines.found if line.word == "start")
        text = json.dumps(
            {
                "seconds": boottime() - self.began_at,
                "passes": asdict(self.passes),
                "lists": {name: asdict(looks) for name, looks in self.lists.items()},
                "events": dict(self.events),
                "lines": sum(len(lines.found) for lines in self.lines.values()),
                "overlaps": [str(o) for o in find_overlaps(spans)],
                "together": list(self.together.values()),
                "job_runs": {nonce: sorted(runs) for nonce, runs in job_runs.items()},
                "starts": dict(starts),
                "spans": [asdict(span) for span in spans],
            }
        )
        half = told.with_suffix(".half")
        half.write_text(text)
        half.replace(told)


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _from_wall(text: str) -> float:
    """An event's time as the machine's own. Both clocks are read now: a step of the wall's later does no harm."""
    date, clock = text.split(" ")
    seconds = datetime.fromisoformat(f"{date}T{clock[:15]}+00:00").timestamp()
    return seconds - time.time() + boottime()


async def main() -> None:
    told, nodes = Path(sys.argv[1]), [argument.split("=", 1) for argument in sys.argv[2:]]
    configure("warning")
    with contextlib.suppress(OSError):
        os.nice(-10)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    witness = Witness({name: Places.of(Path(state_dir)) for name, state_dir in nodes})
    await witness.run(ended, told)


if __name__ == "__main__":
    asyncio.run(main())
