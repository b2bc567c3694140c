"""Databases: where a transaction runs, and what SQLite's errors mean in words (PostgreSQL: postgres.py).

One rule: a transaction is a plain function of a connection, so nothing can be awaited inside it. SQLite runs it in a
thread (one for the writer, two for readers), which costs one switch a transaction where aiosqlite costs four a
statement.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError

from controller.store.contract import StoreError, Unavailable
from controller.store.one_controller import OneController

T = TypeVar("T")

BUSY_S = 5.0
"""How long a writer waits for another process's. Shorter, and a backup's lock is an error; longer, and people wait."""
BUSY_LOOK_S = 0.01
WAL_BYTES = 64 * 2**20
"""A write-ahead log that outgrew this is emptied between two writes. It grows for as long as some reader is always on;
smaller, and writers wait for readers more often; larger, and it is the disk that fills."""
WAL_KEPT_BYTES = 16 * 2**20
"""What stays of it on the disk when it begins anew, so that its blocks need not be found again."""
_WAL_BUSY_S = 0.2
"""How long emptying it waits for readers, with the writers behind it."""
_WAL_AGAIN_S = 60.0
FREE_PAGES_KEPT = 512
"""Free pages (2 MiB) that stay in a file for what comes next; fewer, and pages are given back and taken in turn."""
_BITE_PAGES = 2000
"""Given back at once (8 MiB), within a write that then takes up to a tenth of a second longer."""
_ONE_CONTROLLER = "SQLite is for one controller; use PostgreSQL for several"
DEADLINE_S = 30.0
"""After it a call answers Unavailable. What it began may still commit: the next pass looks. Shorter, and a large apply
on a busy disk is an error; longer, and a loop stands still behind a database that will not answer."""
LEASE_DEADLINE_S = 2.5
"""The same for the lease: longer than the lease's time less its renewals', and one failed attempt loses the lead."""
NOT_IN_TIME = "did not answer in time"
MAYBE_WRITTEN = "what was to be written may be there or not: look before you write it again"


class Database(Protocol):
    where: str
    """Its URL or path for people, without a password."""
    shared: bool
    """Whether other controllers may write to it."""

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        """Sees one state of the database all through."""

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        """Committed is called in the event loop after the commit, even when the caller has gone."""

    async def lead(self, transaction: Callable[[sa.Connection], T]) -> T:
        """As write, for the lease: with LEASE_DEADLINE_S, and kept from waiting for other calls where that can be."""

    def listen(self, notified: Callable[[], None]) -> None:
        """Notified is called, in this event loop, after commits of other processes too, where the database tells."""

    @property
    def alone(self) -> bool:
        """No other controller can be there: whoever the lease names is gone."""

    def be_alone(self) -> None:
        """Where there may be but one controller, this process is it. Raises StoreError when there is another."""

    async def close(self) -> None: ...


def is_sqlite(url: str) -> bool:
    return sa.make_url(url).get_backend_name() == "sqlite"


def sqlite_path(url: str) -> Path:
    path = sa.make_url(url).database
    if not path or path == ":memory:":
        raise StoreError(f"{url} names no file; use sqlite:////path/to/kakuri.db, or memory:// for a store in memory")
    return Path(path)


def shown_url(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def make_sqlite_file(path: Path) -> None:
    """The file is there, empty when it is new. Raises Unavailable."""
    try:
        path.touch(mode=0o600)  # workloads' environments often hold secrets
    except OSError as error:
        raise Unavailable(f"{path} can't be made or written: {error.strerror}; name another file or folder") from error


def sqlite_file(path: Path, *, timeout_s: float = BUSY_S) -> sqlite3.Connection:
    """A plain connection to a file that is there."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=timeout_s)


def sqlite_engine(path: Path, *, writer: bool, connections: int = 1) -> sa.Engine:
    """An engine on a file that is there: one that vanished is an error and no new, empty database.

    A writer's transactions are IMMEDIATE: with a plain BEGIN, two that read first and write then meet in "database is
    locked" without waiting."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"}),
        pool_size=connections,
        max_overflow=0,
        poolclass=sa.pool.QueuePool,
        connect_args={"timeout": BUSY_S, "check_same_thread": False, "cached_statements": 256},
    )
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        cursor = connection.cursor()
        if writer:  # a reader changes nothing of a file that is only looked at
            cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file: an older one stays as it was made
            _write_ahead(cursor)
        cursor.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        if not writer:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    @sa.event.listens_for(engine, "handle_error")
    def _drop_connection(context: sa.engine.ExceptionContext) -> None:
        # A connection that was opened while the file was read-only, or that met a broken disk, stays so for good.
        if _sqlite_code(context.original_exception) in {
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        }:
            context.is_disconnect = True

    return engine


def _write_ahead(cursor: DBAPICursor) -> None:
    """The database is in WAL mode. Two that make it so at once don't wait for each other as all else does."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_LOOK_S)
        else:
            return


def give_back_free_pages(connection: sa.Connection) -> None:
    """The file is a bite smaller when much of it is free. A file from before auto_vacuum stays as large as it is."""

    def pragma(name: str) -> int:
        value: int = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        return value

    free = pragma("freelist_count")
    spare = free - max(pragma("page_count") // 4, FREE_PAGES_KEPT)
    # One by one: the statement gives back a page a step, and the driver steps once through what has no columns.
    for _ in range(min(spare, _BITE_PAGES)):
        connection.exec_driver_sql("PRAGMA incremental_vacuum(1)")


class SqliteDatabase:
    shared = False

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._wal = path.with_name(path.name + "-wal")
        self._wal_looked = 0.0
        self._controller = OneController(path)
        self._writer = sqlite_engine(path, writer=True)
        self._readers = sqlite_engine(path, writer=False, connections=2)
        # A thread each for as many connections as there are: nothing waits inside the pool.
        self._write_thread = ThreadPoolExecutor(1, "store-write")
        self._read_threads = ThreadPoolExecutor(2, "store-read")

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        future = self._begin(self._read_threads, self._readers, transaction)
        return await self._end(future, DEADLINE_S, f"{self.where} {NOT_IN_TIME}")

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        return await self._write(transaction, committed, DEADLINE_S)

    async def lead(self, transaction: Callable[[sa.Connection], T]) -> T:
        return await self._write(transaction, lambda _: None, LEASE_DEADLINE_S)

    def listen(self, notified: Callable[[], None]) -> None:
        pass

    async def _write(
        self, transaction: Callable[[sa.Connection], T], committed: Callable[[T], None], deadline_s: float
    ) -> T:
        future = self._begin(self._write_thread, self._writer, transaction, then=self._bound_wal)
        future.add_done_callback(lambda done: on_success(done, committed))
        return await self._end(future, deadline_s, f"{self.where} {NOT_IN_TIME}; {MAYBE_WRITTEN}")

    def _begin(
        self,
        threads: ThreadPoolExecutor,
        engine: sa.Engine,
        transaction: Callable[[sa.Connection], T],
        then: Callable[[], None] = lambda: None,
    ) -> asyncio.Future[T]:
        def run() -> T:
            with engine.begin() as connection:
                result = transaction(connection)
            then()
            return result

        try:
            return asyncio.get_running_loop().run_in_executor(threads, run)
        except RuntimeError as error:  # the executor was shut down
            raise Unavailable(f"the store in {self.where} is closed") from error

    async def _end(self, future: asyncio.Future[T], deadline_s: float, too_late: str) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise Unavailable(too_late) from error
        except (DBAPIError, OSError) as error:
            raise _explained(error, self.where) from error

    def _bound_wal(self) -> None:
        """In the writer's thread. Best effort: a reader that never ends is told of by the file's size alone."""
        try:
            if self._wal.stat().st_size < WAL_BYTES or time.monotonic() - self._wal_looked < _WAL_AGAIN_S:
                return
            self._wal_looked = time.monotonic()
            with closing(sqlite_file(Path(self.where), timeout_s=_WAL_BUSY_S)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (OSError, sqlite3.Error):
            return

    @property
    def alone(self) -> bool:
        return self._controller.held

    def be_alone(self) -> None:
        self._controller.take(_ONE_CONTROLLER)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)
        self._controller.release()

    def _close(self) -> None:
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._readers.dispose()
        self._writer.dispose()


def on_success(done: asyncio.Future[T], committed: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        committed(done.result())


def _sqlite_code(error: BaseException | None) -> int:
    """The primary result code: the low byte of the extended one."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _explained(error: Exception, where: str) -> Exception:
    """Unavailable with why, when that is what it is; else the error itself, which is a bug."""
    if not isinstance(error, DBAPIError):
        return Unavailable(f"{where} can't be reached: {error}")
    cause = error.orig
    match _sqlite_code(cause):
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"the disk of {where} is full; free some space there")
        case sqlite3.SQLITE_READONLY:
            return Unavailable(f"{where} is read-only ({cause}); make the file and its folder writable")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"{where} is locked: another process has been writing it for over {BUSY_S:.0f} s")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return Unavailable(f"{where} can't be read or written ({cause}); look after its disk and its folder")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreError(f"{where} is damaged or no SQLite database ({cause}); restore a backup of it")
        case _:
            return error
