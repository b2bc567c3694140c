"""The fake CRI runtime as a private runtime, for machines where containerd can't run and for tests of much at once.

What runs on it is simulated, and everything that shows it must say so.
"""

import contextlib
import getpass
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agent.places import socket_path
from agent.private_runtime import DetachedProgram, Runtime, wait_ready
from cri.fake import HANDLERS

_STOP_GRACE_S = 5.0


class PrivateFake:
    """The fake runtime of one state dir. It keeps all in memory: what it ran ends with it."""

    def __init__(self, state_dir: Path, *, handlers: Sequence[str] = HANDLERS) -> None:
        folder = state_dir.resolve() / "fake"
        self._socket = socket_path(folder / "cri.sock", Path(tempfile.gettempdir()) / f"kakuri-{getpass.getuser()}")
        self._handlers = tuple(handlers)
        self._program = DetachedProgram(
            [sys.executable, "-m", "cri.fake", "--socket", str(self._socket), "--handlers", ",".join(handlers)],
            log=folder / "fake.log",
            pid_file=folder / "fake.pid",
        )

    async def start(self) -> Runtime:
        """It runs and answers: adopted if it ran already."""
        pid = self._program.find()
        if pid is None:
            self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            pid = self._program.spawn()
        endpoint = f"unix://{self._socket}"
        await wait_ready(endpoint, self._program)
        return Runtime(kind="fake", endpoint=endpoint, pid=pid, handlers=self._handlers)

    async def stop(self) -> None:
        """It has ended, and so has all that it ran."""
        await self._program.end(_STOP_GRACE_S)
        self._socket.unlink(missing_ok=True)
        # A folder that only stands in for a path too long is of no use without the socket.
        with contextlib.suppress(OSError):
            self._socket.parent.rmdir()

    async def wait_end(self) -> None:
        """Returns when its process is no more."""
        await self._program.wait_end()

    async def keep_up(self) -> None:
        """Its log is bounded."""
        self._program.bound_log()
