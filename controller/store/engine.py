"""Databases: where a transaction runs, and what their errors mean in words.

One rule: a transaction is a plain function of a connection, so nothing can be awaited inside it. SQLite runs it in a
thread (one for the writer, two for readers), which costs one switch a transaction where aiosqlite costs four a
statement; PostgreSQL runs it over asyncpg.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from controller.store.contract import StoreError, Unavailable

T = TypeVar("T")

BUSY_S = 5.0
"""How long a writer waits for another process's. Shorter, and a backup's lock is an error; longer, and people wait."""
BUSY_LOOK_S = 0.01
DEADLINE_S = 30.0
"""After it a call answers Unavailable. What it began may still commit: the next pass looks."""
_ATTEMPTS = 10
"""How often a transaction that met another's is run again before it is an error."""


class Database(Protocol):
    where: str
    """Its URL or path for people, without a password."""

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        """Sees one state of the database all through."""

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        """Committed is called in the event loop after the commit, even when the caller has gone."""

    def may_lead(self) -> bool:
        """Whether no other process of this machine leads on it; holds it for this one."""

    def lead_no_more(self) -> None: ...
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
        _write_ahead(cursor)
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


def postgres_engine(url: str, *, inspects: bool = False) -> AsyncEngine:
    """inspects: for looking at what tables there are, which reads JSON of PostgreSQL's own."""
    parsed = sa.make_url(url).set(drivername="postgresql+asyncpg")
    if "sslmode" in parsed.query:  # libpq's word for it, which people's URLs have
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": parsed.query["sslmode"]})
    settings = {
        "application_name": "kakuri",
        "lock_timeout": str(int(BUSY_S * 1000)),
        "statement_timeout": str(int(DEADLINE_S * 1000)),
        "idle_in_transaction_session_timeout": str(int(2 * DEADLINE_S * 1000)),
    }
    return create_async_engine(
        parsed,
        json_deserializer=None if inspects else _as_text,
        pool_pre_ping=True,
        pool_size=5,
        max_overflow=5,
        pool_timeout=DEADLINE_S / 2,
        connect_args={"server_settings": settings, "timeout": 10},
    )


def _as_text(value: str) -> str:
    # asyncpg would decode JSON before schema.JsonText can leave it alone.
    return value


class SqliteDatabase:
    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock: int | None = None
        self._writer = sqlite_engine(path, writer=True)
        self._readers = sqlite_engine(path, writer=False, connections=2)
        # A thread each for as many connections as there are: nothing waits inside the pool.
        self._write_thread = ThreadPoolExecutor(1, "store-write")
        self._read_threads = ThreadPoolExecutor(2, "store-read")

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        return await self._run(self._read_threads, self._readers, transaction, lambda _: None)

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        return await self._run(self._write_thread, self._writer, transaction, committed)

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        engine: sa.Engine,
        transaction: Callable[[sa.Connection], T],
        committed: Callable[[T], None],
    ) -> T:
        def run() -> T:
            with engine.begin() as connection:
                return transaction(connection)

        try:
            future = asyncio.get_running_loop().run_in_executor(threads, run)
        except RuntimeError as error:  # the executor was shut down
            raise Unavailable(f"the store in {self.where} is closed") from error
        future.add_done_callback(lambda done: _on_success(done, committed))
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await asyncio.shield(future)
        except (DBAPIError, TimeoutError, OSError) as error:
            raise _explained(error, self.where) from error

    def may_lead(self) -> bool:
        if self._lock is not None:
            return True
        try:
            lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{self._lock_path} can't be opened: {error.strerror}; make it writable") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def lead_no_more(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def close(self) -> None:
        self.lead_no_more()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._readers.dispose()
        self._writer.dispose()


def _on_success(done: asyncio.Future[T], committed: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        committed(done.result())


class PostgresDatabase:
    def __init__(self, url: str) -> None:
        self.where = shown_url(url)
        self._engine = postgres_engine(url)
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        return await self._to_its_end(self._run(self._readers, transaction), lambda _: None)

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        return await self._to_its_end(self._run(self._engine, transaction), committed)

    async def _to_its_end(self, run: Coroutine[Any, Any, T], committed: Callable[[T], None]) -> T:
        # A caller that goes away (a client that hung up) must not tear a connection in the middle of a statement.
        # close() waits for these tasks.
        task = asyncio.get_running_loop().create_task(run)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: _on_success(done, committed))
        return await asyncio.shield(task)

    async def _run(self, engine: AsyncEngine, transaction: Callable[[sa.Connection], T]) -> T:
        try:
            async with asyncio.timeout(DEADLINE_S):
                for _ in range(_ATTEMPTS - 1):
                    try:
                        return await self._once(engine, transaction)
                    except DBAPIError as error:
                        if not _met_another(error):
                            raise
                return await self._once(engine, transaction)
        except IntegrityError:
            raise
        except (DBAPIError, PoolTimeoutError, TimeoutError, OSError) as error:
            raise _explained(error, self.where) from error

    async def _once(self, engine: AsyncEngine, transaction: Callable[[sa.Connection], T]) -> T:
        async with engine.begin() as connection:
            return await connection.run_sync(transaction)

    def may_lead(self) -> bool:
        return True

    def lead_no_more(self) -> None:
        pass

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=DEADLINE_S)
        await self._engine.dispose()


def _met_another(error: DBAPIError) -> bool:
    # Serialization failure, deadlock, a row that another inserted or deleted first: the next look sees it.
    return _sqlstate(error.orig) in {"40001", "40P01", "23505", "23503"}


def _sqlstate(error: BaseException | None) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def _sqlite_code(error: BaseException | None) -> int:
    """The primary result code: the low byte of the extended one."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _explained(error: Exception, where: str) -> Exception:
    """Unavailable with why, when that is what it is; else the error itself, which is a bug."""
    if isinstance(error, TimeoutError | PoolTimeoutError):
        return Unavailable(f"{where} did not answer in time")
    if not isinstance(error, DBAPIError):
        return Unavailable(f"{where} can't be reached: {error}")
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _explained_sqlite(error, cause, where)
    return _explained_postgres(error, where)


def _explained_sqlite(error: DBAPIError, cause: sqlite3.Error, where: str) -> Exception:
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


def _explained_postgres(error: DBAPIError, where: str) -> Exception:
    state = _sqlstate(error.orig)
    words = str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__
    match state[:2], state:
        case _, "53100":
            return Unavailable(f"the disk of {where} is full; free some space there")
        case _, "25006":
            return Unavailable(f"{where} is read-only (a standby?); use the primary, or make it writable")
        case _, "55P03":
            return Unavailable(f"{where} is locked: another transaction has held a row for over {BUSY_S:.0f} s")
        case (("08" | "28" | "3D" | "40" | "53" | "57" | "58"), _):
            return Unavailable(f"{where} can't be used: {words}")
        case _ if error.connection_invalidated:
            return Unavailable(f"the connection to {where} was lost: {words}")
        case _:
            return error
