"""Keeps processes running that outlive it: each in a session of its own, found again by its command line.

One rule: a process is never started while one with its command line lives, and never signalled by a pid alone
(psutil compares the start time too).

              found alive                 ended
    (start) ──────────────► running ─────────────────► waiting 0.2 s … 5 s ──► running
        └── nothing found: started ──► running
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
GOOD_LIFE_S = 10.0
"""One that lived so long starts again at the first delay."""
POLL_S = 0.2
"""Only where the system has no pidfd: between two looks at whether a process is still there."""
LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Program:
    """What should run. marks: arguments that tell its command line from all others, each run of them in order."""

    name: str
    command: tuple[str, ...]
    marks: tuple[tuple[str, ...], ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def runs_as(self, command_line: Sequence[str]) -> bool:
        return all(_contains(command_line, mark) for mark in self.marks)


@dataclass(frozen=True, slots=True)
class Ended:
    """A life that is over. exit_code: None for one that was adopted, whose code only its parent learns."""

    exit_code: int | None
    lived_s: float

    def __str__(self) -> str:
        if self.exit_code is None:
            return "ended"
        return f"was killed by signal {-self.exit_code}" if self.exit_code < 0 else f"ended with {self.exit_code}"


@dataclass(frozen=True, slots=True)
class Delays:
    first_s: float = FIRST_DELAY_S
    longest_s: float = LONGEST_DELAY_S
    good_life_s: float = GOOD_LIFE_S

    def after(self, ended: Ended, before_s: float) -> float:
        """How long to wait before the next start. before_s: what it was the last time, 0 for the first."""
        if before_s == 0 or ended.lived_s >= self.good_life_s:
            return self.first_s
        return min(self.longest_s, before_s * 2)


def find(program: Program) -> psutil.Process | None:
    """The process of this user that runs the program, whoever started it."""
    me = os.geteuid()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().effective != me or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid != os.getpid() and program.runs_as(process.cmdline()):
                return process
    return None


class Life:
    """One running process: adopted, or started by us."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None, began: float) -> None:
        self._process = process
        self._child = child
        self._began = began

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def adopted(self) -> bool:
        return self._child is None

    async def ended(self) -> Ended:
        """Returns when the process has ended."""
        await _gone(self._process)
        # A pidfd is readable the moment before the exit code can be had.
        code = await asyncio.to_thread(self._child.wait) if self._child else None
        return Ended(code, asyncio.get_running_loop().time() - self._began)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL when that is not enough within grace_s."""
        with suppress(psutil.NoSuchProcess):
            self._process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await self.ended()
        except TimeoutError:
            with suppress(psutil.NoSuchProcess):
                self._process.kill()
            await self.ended()


def adopt(program: Program) -> Life | None:
    """The life that the program has already."""
    process = find(program)
    return Life(process, None, asyncio.get_running_loop().time()) if process else None


def start(program: Program) -> Life:
    """A new life, in a session of its own: what ends this process or its terminal leaves it alone."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        child = spawn(program.command, log, program.environment)
    return Life(psutil.Process(child.pid), child, asyncio.get_running_loop().time())


def spawn(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own modules, no shell
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, **environment},
        cwd="/",  # so that no folder is held, and `-m` finds nothing of the user's
    )


def rotate(log: Path) -> None:
    """A log over LOG_BYTES gives way to a new one; one old one is kept."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(f"{log.suffix}.1"))


class Watch:
    """One program, kept running until it is told otherwise."""

    def __init__(
        self,
        program: Program,
        *,
        on_start: Callable[[Program], None],
        on_end: Callable[[Program, Ended, float], None],
        delays: Delays = Delays(),
    ) -> None:
        """on_end is told how the life ended and after how many seconds the next one begins; it may raise."""
        self.program = program
        self.life: Life | None = None
        self._on_start = on_start
        self._on_end = on_end
        self._delays = delays

    def adopt(self) -> bool:
        """Whether it runs already; it is looked after from now on."""
        self.life = adopt(self.program)
        return self.life is not None

    async def keep(self) -> None:
        """Never returns. When cancelled the process runs on."""
        delay_s = 0.0
        while True:
            if self.life is None:
                rotate(self.program.log)
                self.life = start(self.program)
            self._on_start(self.program)
            ended = await self.life.ended()
            self.life = None
            delay_s = self._delays.after(ended, delay_s)
            self._on_end(self.program, ended, delay_s)
            await asyncio.sleep(delay_s)

    async def stop(self, grace_s: float) -> None:
        """The process has ended. keep() must have been cancelled before."""
        if self.life is not None:
            await self.life.stop(grace_s)
            self.life = None


async def _gone(process: psutil.Process) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        await _polled(process)
        return
    try:
        if not process.is_running():  # the pid was another's by now
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


async def _polled(process: psutil.Process) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(POLL_S)


def _contains(command_line: Sequence[str], mark: Sequence[str]) -> bool:
    size = len(mark)
    return any(tuple(command_line[i : i + size]) == tuple(mark) for i in range(len(command_line) - size + 1))
