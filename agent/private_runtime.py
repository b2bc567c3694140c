"""A runtime that the agent starts for itself and that outlives it: a process in a session of its own.

One rule: it is found again by what it is (its pid file, else its command line), never by being our child, so that an
agent that was killed finds what its predecessor started, and starts nothing twice.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, Protocol

import psutil

from agent.endpoints import EndTask
from agent.files import put_file
from agent.notes import Notes
from cri.client import CriClient
from cri.errors import CriError
from kakuri.log import OncePer, get_logger

READY_DEADLINE_S = 60.0
"""From the start of a runtime to its first good status. Too short and a slow disk looks broken; too long and a real
fault is told late."""
_RETRY_S = 0.02
_STATUS_DEADLINE_S = 5.0
_KILL_DEADLINE_S = 10.0
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.2, 5.0
_GOOD_RUN_S = 60.0
_UPKEEP_S = 10.0
_MAX_LOG_BYTES = 8 * 1024 * 1024
_LOG_TAIL_BYTES = 2000

_log = get_logger("runtime")


class RuntimeUnavailable(Exception):  # noqa: N818 - says a state, as the errors of the CRI do
    """The runtime can't run here, or did not come up; the message says why and where to look."""


@dataclass(frozen=True)
class Runtime:
    """A private runtime that answers."""

    kind: Literal["containerd", "fake"]
    endpoint: str
    pid: int
    handlers: tuple[str, ...]
    """Configured; a canary sandbox has to show that they work."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Known handler that isn't configured → why."""
    cgroup_parent: str = ""
    """Give this to each sandbox, so that its cgroups are under one of this runtime."""
    notes: Notes | None = None
    """What is on record of its containers apart from the runtime."""
    end_task: EndTask | None = field(default=None, compare=False)


class PrivateRuntime(Protocol):
    """What the agent does with a runtime of its own."""

    async def start(self) -> Runtime:
        """It runs and answers: adopted if it ran already."""

    async def stop(self) -> None:
        """It has ended, and nothing of it is left but what it keeps on disk. Idempotent."""

    async def wait_end(self) -> None:
        """Returns when the process that start found or made is no more."""

    async def keep_up(self) -> None:
        """What piles up on the machine while it runs is cleared away, its log too. Called every few seconds."""


async def supervise(runtime: PrivateRuntime, restarted: Callable[[Runtime], None]) -> NoReturn:
    """The runtime is started again whenever it dies, until this is cancelled. Containers live on meanwhile.

    restarted: is told how it runs now.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_up(runtime))
        await _restart(runtime, restarted)
    raise AssertionError("a task that never returns has returned")


async def _restart(runtime: PrivateRuntime, restarted: Callable[[Runtime], None]) -> NoReturn:
    backoff_s = _FIRST_BACKOFF_S
    once = OncePer(60, time.monotonic)
    while True:
        since = time.monotonic()
        await runtime.wait_end()
        if time.monotonic() - since > _GOOD_RUN_S:
            backoff_s = _FIRST_BACKOFF_S
        _log.warning("runtime ended", next_start_s=backoff_s)
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)
        try:
            now = await runtime.start()
        except (RuntimeUnavailable, OSError) as error:
            if once(str(error)):
                _log.error("runtime not started", error=str(error))
            continue
        _log.info("runtime restarted", pid=now.pid)
        restarted(now)


async def _keep_up(runtime: PrivateRuntime) -> NoReturn:
    once = OncePer(3600, time.monotonic)
    while True:
        await asyncio.sleep(_UPKEEP_S)
        try:
            await runtime.keep_up()
        except OSError as error:
            if once(str(error)):
                _log.warning("runtime not kept up", error=str(error))


class DetachedProgram:
    """A program that runs once on this machine for one state dir."""

    def __init__(self, argv: Sequence[str], *, log: Path, pid_file: Path, env: Mapping[str, str] | None = None) -> None:
        """argv: its arguments, without the program itself, must be no other process's."""
        self._argv = tuple(argv)
        self._log = log
        self._pid_file = pid_file
        self._env = env
        self._child: int | None = None

    def find(self) -> int | None:
        """Its pid while it runs, whoever started it."""
        if self._child is not None:
            # Before its program is loaded, a new process has no command line to be told by.
            if not _reap(self._child):
                return self._child
            self._child = None
        try:
            noted = int(self._pid_file.read_text())
        except (OSError, ValueError):
            noted = 0
        if noted > 0 and self._is_ours(noted):
            return noted
        # Killed between the start and the note, an agent leaves a runtime that only its command line tells.
        found = next((p.pid for p in psutil.process_iter() if self._is_ours(p.pid)), None)
        if found is not None:
            self._note(found)
        return found

    def spawn(self) -> int:
        """A new process runs, in a session of its own. Returns its pid. Call it only when find found none."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.bound_log()
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._child = os.posix_spawn(
            "/bin/sh",
            # A folder that we were started in could not be unmounted while it runs.
            ["sh", "-c", 'cd / && exec "$@"', "sh", *self._argv],
            os.environ if self._env is None else self._env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            # A signal that a shell had us ignore would be ignored by every container.
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            setsigmask=[],
        )
        self._note(self._child)
        return self._child

    async def wait_end(self) -> None:
        """Returns when it doesn't run, at once if it didn't."""
        while (pid := self.find()) is not None:
            await _wait_exit(pid)

    async def end(self, grace_s: float) -> None:
        """It has ended: asked to first, killed after the grace."""
        for signal_, bound_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_DEADLINE_S)):
            pid = self.find()
            if pid is None:
                break
            try:
                os.kill(pid, signal_)
            except ProcessLookupError:
                break
            try:
                async with asyncio.timeout(bound_s):
                    await self.wait_end()
            except TimeoutError:
                _log.warning("runtime still runs", pid=pid, signal=signal_.name, after_s=bound_s)
        self._pid_file.unlink(missing_ok=True)

    def bound_log(self) -> None:
        """The log has at most its bound; what was there before is kept once, beside it."""
        try:
            if self._log.stat().st_size <= _MAX_LOG_BYTES:
                return
            # The process holds the file open (in append mode), so it is copied and cut rather than renamed.
            shutil.copyfile(self._log, self._log.with_name(self._log.name + ".1"))
            os.truncate(self._log, 0)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("runtime log not bounded", path=str(self._log), error=str(error))

    def last_words(self) -> str:
        """The end of its log, for a person."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def _is_ours(self, pid: int) -> bool:
        try:
            return tuple(psutil.Process(pid).cmdline()[1:]) == self._argv[1:]
        except psutil.Error:
            return False

    def _note(self, pid: int) -> None:
        put_file(self._pid_file, f"{pid}\n".encode())


async def wait_ready(endpoint: str, program: DetachedProgram) -> None:
    """The runtime there says that it is ready, its network too. RuntimeUnavailable if it ends or takes too long."""
    path = endpoint.removeprefix("unix://")
    seen = "it does not listen"
    try:
        async with asyncio.timeout(READY_DEADLINE_S):
            while True:
                if program.find() is None:
                    raise RuntimeUnavailable(f"the runtime ended at once; its last words: {program.last_words()}")
                if _listens(path):
                    seen = await _not_ready(endpoint)
                    if not seen:
                        return
                await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        why = f"the runtime at {endpoint} is not ready after {READY_DEADLINE_S:.0f} s: {seen}"
        raise RuntimeUnavailable(f"{why}; its last words: {program.last_words()}") from error


async def _not_ready(endpoint: str) -> str:
    client = CriClient(endpoint)
    try:
        async with asyncio.timeout(_STATUS_DEADLINE_S):
            status = (await client.status()).status
    except CriError as error:
        return error.message
    except TimeoutError:
        return f"no status within {_STATUS_DEADLINE_S:.0f} s"
    finally:
        await client.close()
    return "; ".join(f"{c.type} is false: {c.message or c.reason}" for c in status.conditions if not c.status)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _reap(child: int) -> bool:
    """Whether this child of ours has ended; it is no zombie then."""
    try:
        ended, _ = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return True
    return ended != 0


async def _wait_exit(pid: int) -> None:
    if sys.platform != "linux":
        # Elsewhere only the fake runs, and nothing waits on how soon its end is seen.
        await asyncio.sleep(0.5)
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(handle, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
