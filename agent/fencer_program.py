"""The fencer as the agent sees it: a program of its own that is started when something is bound to the node's lease.

One rule: it counts as running only while it holds its lock: before that it does not watch yet, and after it no more.
"""

import asyncio
import fcntl
import sys
from pathlib import Path

from agent import fencer
from agent.lease import FENCE_FILE, FENCE_LOCK
from agent.private_runtime import DetachedProgram
from kakuri.log import get_logger

READY_S = 2.0
"""From its start to its lock, which takes a tenth of a second. Meanwhile nobody looks whether the lease is over, so
this must stay well below the bound of a stop."""
END_GRACE_S = 2.0
_log = get_logger("agent.fencer")


async def keep_watched(state_dir: Path) -> None:
    """A fencer runs, if an agent before this one left anything bound. To be called before a runtime is waited for."""
    fence = fencer.read_fence(state_dir / FENCE_FILE)
    if fence is None or not fence.bound or not fencer.can_fence():
        return
    if why := await DetachedFencer(state_dir).keep_up():
        _log.warning("no fencer", error=why)


class DetachedFencer:
    def __init__(self, state_dir: Path) -> None:
        self._lock = state_dir / FENCE_LOCK
        self._log = state_dir / "fencer.log"
        self._program = DetachedProgram(
            [sys.executable, "-m", "agent.fencer", str(state_dir)],
            log=self._log,
            pid_file=state_dir / "fencer.pid",
        )

    async def keep_up(self) -> str:
        """It runs and watches; else why not."""
        try:
            if self._watches():
                self._program.bound_log()
                return ""
            if self._program.find() is None:
                self._program.spawn()
            async with asyncio.timeout(READY_S):
                while not self._watches():
                    if self._program.find() is None:
                        return f"the fencer ended at once; its last words: {self._program.last_words()}"
                    await asyncio.sleep(0.02)
        except OSError as error:
            return f"the fencer can't be started: {error.filename or ''} {error.strerror or error}"
        except TimeoutError:
            return f"the fencer does not watch {READY_S:g} s after its start; see {self._log}"
        return ""

    def is_left(self) -> bool:
        """Whether it runs, needed or not."""
        return self._program.find() is not None

    async def end(self) -> None:
        """It does not run any more."""
        await self._program.end(END_GRACE_S)

    def _watches(self) -> bool:
        with self._lock.open("a") as lock:
            try:
                # Shared: two that look at once must not take each other for it.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
