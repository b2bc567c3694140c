"""agent.json in the state dir: where to find what, for whoever started the agent.

One rule: a disk that is full keeps nobody from stops: the file is written as soon as it can be.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from agent.files import put_file
from kakuri.log import get_logger

AGAIN_S = 2.0
_log = get_logger("agent")


class Announcing:
    def __init__(self, path: Path, told: Mapping[str, object], runtime_pid: int | None) -> None:
        self._path = path
        self._told = told
        self._runtime_pid = runtime_pid
        self._news = asyncio.Event()
        self._news.set()

    def change(self, runtime_pid: int) -> None:
        """The runtime was started again."""
        self._runtime_pid = runtime_pid
        self._news.set()

    async def run(self) -> NoReturn:
        warned = False
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                self.write()
            except OSError as error:
                if not warned:
                    _log.warning("not announced", path=str(self._path), error=error.strerror, again_s=AGAIN_S)
                warned = True
                await asyncio.sleep(AGAIN_S)
                self._news.set()
            else:
                warned = False

    def write(self) -> None:
        """The file says how it is now. Raises OSError."""
        told = {**self._told, "runtime_pid": self._runtime_pid}
        put_file(self._path, json.dumps(told, indent=2).encode() + b"\n")
