"""The ledger's bytes on the disk.

One rule: a call returns when its bytes would survive a power cut.
"""

import os
from pathlib import Path

from agent.files import put_file, write_all


class LedgerFile:
    """An append-only file that exists. All of it blocks: call it from a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        """Bytes that were acknowledged."""

    def append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            write_all(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.size += len(line)

    def rewrite(self, lines: bytes) -> None:
        """The file holds exactly this: the old content stays whole until the new is."""
        put_file(self._path, lines)
        self.size = len(lines)

    def truncate(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.size = size
