"""A SQLite file has one controller: it holds the lock file beside it for as long as it lives, kill -9 included.

One rule: the lock is a flock, which ends with its process; the pid in the file is only what people are told.
"""

import fcntl
import os
from pathlib import Path

from controller.store.contract import StoreError, Unavailable


class OneController:
    def __init__(self, database: Path) -> None:
        real = database.resolve()  # one file by two names is one file
        self._path = real.with_name(real.name + ".lock")
        self._database = database
        self._lock: int | None = None

    @property
    def held(self) -> bool:
        return self._lock is not None

    def take(self, advice: str) -> None:
        """No other process has it until release(). Raises StoreError that says who has it, and the advice; Unavailable
        when the lock file can't be written."""
        if self._lock is not None:
            return
        try:
            lock = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{self._path} can't be opened: {error.strerror}; make it writable") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            by = f" (pid {pid})" if pid.isdigit() else ""
            raise StoreError(f"{self._database} has a controller already{by}: {advice}") from None
        self._lock = lock
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
