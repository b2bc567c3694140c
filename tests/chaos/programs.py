"""Programs on hosts, which are killed, stopped and started again; and what keeps up those that should run.

One rule: a program is signalled by the id of a process that we know to be it. Nothing is killed by name.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil

from chaos.hosts import Host

_LOOK_S = 0.1
_AGAIN_S = 0.5
"""As a service manager that restarts at once: a program that ends by itself is started again this soon."""
_GONE_BOUND_S = 15.0


@dataclass
class Program:
    """One program of ours on a host. Its children belong to it when they die with it (PostgreSQL's do)."""

    name: str
    host: Host
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    with_children: bool = False
    wanted: bool = False
    started_at: float = 0.0
    """CLOCK_MONOTONIC, as all times here."""
    unasked_ends: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.wanted = True
        if self.alive:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.host.inside(*self.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
                cwd="/",
            )
        self.started_at = time.monotonic()

    def kill(self) -> None:
        """It is gone, with -9, and stays so until it is started."""
        self.wanted = False
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(_GONE_BOUND_S)

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self, grace_s: float) -> None:
        """It has ended: asked to, and killed after the grace."""
        self.wanted = False
        if self.process is None or self.process.poll() is not None:
            return
        self.go_on()
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        signal_all(self.pids(), number)

    def pids(self) -> list[int]:
        """Of what runs of it now."""
        if self.process is None or self.process.poll() is not None:
            return []
        pids = [self.process.pid]
        if self.with_children:
            with contextlib.suppress(psutil.NoSuchProcess):
                pids += [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        return pids


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def keep_up(programs: Sequence[Program], say: Callable[[str], None]) -> NoReturn:
    """What is wanted and ended by itself is started again, as a service manager would."""
    while True:
        await asyncio.sleep(_LOOK_S)
        for program in programs:
            if program.wanted and not program.alive and time.monotonic() - program.started_at > _AGAIN_S:
                code = program.process.returncode if program.process is not None else None
                program.unasked_ends += 1
                say(f"{program.name} ended by itself with {code} and is started again")
                program.start()
