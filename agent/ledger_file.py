"""The ledger's bytes on the disk.

One rule: a call returns when its bytes would survive a power cut.
"""

import os
from pathlib import Path

_MODE = 0o600  # environment variables of workloads stand in it


class LedgerFile:
    """An append-only file that exists. All of it blocks: call it from a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        """Bytes that were acknowledged."""

    def append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write_all(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.size += len(line)

    def rewrite(self, lines: bytes) -> None:
        """The file holds exactly this: the old content stays whole until the new is."""
        create(self._path, lines)
        self.size = len(lines)

    def truncate(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.size = size


def create(path: Path, content: bytes) -> None:
    """The file is there with this content, or is as it was."""
    fresh = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
