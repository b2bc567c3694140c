"""PostgreSQL: transactions over asyncpg, a connection apart for the lease, one that listens, and its errors in words.

One rule: what the server said was rolled back is run again; what it said nothing of is never run again, since it may
have been committed. The caller is told so.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from controller.store import engine
from controller.store.changes import CHANNEL
from controller.store.contract import Unavailable
from controller.store.engine import MAYBE_WRITTEN, NOT_IN_TIME, on_success, shown_url
from kakuri.log import OncePer, get_logger

T = TypeVar("T")

IDLE_IN_TRANSACTION_S = 5.0
"""A transaction whose controller says nothing for so long is ended by the server, and its locks are free. Shorter, and
a controller whose machine stutters loses its work; longer, and a controller that is stopped or cut off keeps the lease
row from the one that takes over, which has ten seconds in all."""
VANISHED_S = 5.0
"""A peer that acknowledges nothing for so long is gone, for either end. Longer, and what a cut network left behind
holds locks there and connections here; shorter, and a few lost packets break a connection."""
CONNECT_S = 10.0
LISTEN_AGAIN_S = 1.0
"""Between two attempts to listen. All that its loss costs is time: who waits looks by itself too."""
CLOSE_S = 2.0
_ATTEMPTS = 10
"""How often a transaction that met another's is run again before it is an error."""


def postgres_engine(url: str, *, inspects: bool = False, deadline_s: float | None = None, **pool: Any) -> AsyncEngine:
    """inspects: for looking at what tables there are, which reads JSON of PostgreSQL's own. pool: as SQLAlchemy's."""
    parsed = sa.make_url(url).set(drivername="postgresql+asyncpg")
    if "sslmode" in parsed.query:  # libpq's word for it, which people's URLs have
        parsed = parsed.difference_update_query(["sslmode"]).update_query_dict({"ssl": parsed.query["sslmode"]})
    limit_s = deadline_s or engine.DEADLINE_S
    settings = {
        "application_name": "kakuri",
        "lock_timeout": _ms(min(engine.BUSY_S, limit_s)),
        "statement_timeout": _ms(limit_s),
        "idle_in_transaction_session_timeout": _ms(IDLE_IN_TRANSACTION_S),
        "tcp_keepalives_idle": "2",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": str(int(VANISHED_S) - 2),
        "tcp_user_timeout": _ms(VANISHED_S),
    }
    made = create_async_engine(
        parsed,
        json_deserializer=None if inspects else _as_text,
        pool_pre_ping=True,
        connect_args={"server_settings": settings, "timeout": CONNECT_S},
        **pool,
    )
    sa.event.listen(made.sync_engine, "connect", _notice_a_vanished_server)
    return made


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def _as_text(value: str) -> str:
    # asyncpg would decode JSON before schema.JsonText can leave it alone.
    return value


def _notice_a_vanished_server(connection: DBAPIConnection, _: object) -> None:
    # The driver has no option for it, and idle connections of the pool are asked nothing that a deadline could end.
    transport = connection.driver_connection._transport  # noqa: SLF001 - see above
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family == socket.AF_UNIX:
        return
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(VANISHED_S) - 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(VANISHED_S * 1000)),
    ):
        peer.setsockopt(level, option, value)


class PostgresDatabase:
    shared = True
    alone = False

    def __init__(self, url: str) -> None:
        self.where = shown_url(url)
        self._engine = postgres_engine(url, pool_size=5, max_overflow=5, pool_timeout=engine.DEADLINE_S / 2)
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._leases = postgres_engine(url, deadline_s=engine.LEASE_DEADLINE_S, pool_size=1, max_overflow=1)
        self._listeners = postgres_engine(url, poolclass=sa.pool.NullPool)
        self._running: set[asyncio.Task[Any]] = set()
        self._listener: _Listener | None = None

    async def read(self, transaction: Callable[[sa.Connection], T]) -> T:
        attempt = _Attempt(self._readers, transaction, writes=False)
        return await self._to_its_end(attempt, engine.DEADLINE_S, lambda _: None)

    async def write(
        self, transaction: Callable[[sa.Connection], T], *, committed: Callable[[T], None] = lambda _: None
    ) -> T:
        return await self._to_its_end(_Attempt(self._engine, transaction, writes=True), engine.DEADLINE_S, committed)

    async def lead(self, transaction: Callable[[sa.Connection], T]) -> T:
        return await self._to_its_end(
            _Attempt(self._leases, transaction, writes=True), engine.LEASE_DEADLINE_S, lambda _: None
        )

    async def _to_its_end(self, attempt: "_Attempt[T]", deadline_s: float, committed: Callable[[T], None]) -> T:
        # A caller that goes away (a client that hung up) must not tear a connection in the middle of a statement.
        # close() waits for these tasks.
        task = self._start(attempt.run(), deadline_s + CLOSE_S)
        task.add_done_callback(lambda done: on_success(done, committed))
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.shield(task)
        except IntegrityError:
            raise
        except (DBAPIError, PoolTimeoutError, TimeoutError, OSError) as error:
            # Not waited for: to part from a server that says nothing takes its own time.
            task.cancel()
            raise _explained(error, self.where, committing=attempt.committing) from error

    def _start(self, run: Coroutine[Any, Any, T], bound_s: float) -> asyncio.Task[T]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(run)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        bound = loop.call_later(bound_s, task.cancel)  # for one whose caller has gone
        task.add_done_callback(lambda _: bound.cancel())
        return task

    def listen(self, notified: Callable[[], None]) -> None:
        self._listener = _Listener(self._listeners, notified)

    def be_alone(self) -> None:
        pass

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        if self._running:
            await asyncio.wait(self._running, timeout=engine.DEADLINE_S)
        for made in (self._engine, self._leases, self._listeners):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await made.dispose()


class _Attempt(Generic[T]):
    """A transaction being tried until it has met no other. committing: how it ended is the server's to say."""

    def __init__(self, on: AsyncEngine, transaction: Callable[[sa.Connection], T], *, writes: bool) -> None:
        self._engine = on
        self._transaction = transaction
        self._writes = writes
        self.committing = False

    async def run(self) -> T:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._once()
            except DBAPIError as error:
                if not _met_another(error):
                    raise
                self.committing = False
        return await self._once()

    async def _once(self) -> T:
        async with self._engine.connect() as connection:
            result = await connection.run_sync(self._transaction)
            self.committing = self._writes
            await connection.commit()
            return result


class _Listener:
    """Listens until it is closed, over connections of its own, one after the other. It is not cancelled while it
    connects: the driver would leave the socket open."""

    def __init__(self, on: AsyncEngine, notified: Callable[[], None]) -> None:
        self._engine = on
        self._notified = notified
        self._over = asyncio.Event()
        self._closed = asyncio.Event()
        self._log = get_logger("store")
        self._say = OncePer(60, asyncio.get_running_loop().time)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        self._closed.set()
        self._over.set()
        _, late = await asyncio.wait([self._task], timeout=CLOSE_S)
        for task in late:
            task.cancel()

    async def _run(self) -> None:
        while not self._closed.is_set():
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever it is: kicks only make things sooner
                if self._say(_words(error)):
                    self._log.warning("not told of others' commits", error=_words(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_AGAIN_S):
                    await self._closed.wait()

    async def _listen(self) -> None:
        """Returns when the connection is lost, or no longer wanted."""
        async with self._engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            over = asyncio.Event()
            driver.add_termination_listener(lambda _: over.set())
            await driver.add_listener(CHANNEL, lambda *_: self._notified())
            self._notified()  # of what was committed before this connection heard
            self._over = over
            if not self._closed.is_set():
                await over.wait()


def _met_another(error: DBAPIError) -> bool:
    # Serialization failure, deadlock, a row that another inserted or deleted first: rolled back, and the next look sees
    # it.
    return _sqlstate(error.orig) in {"40001", "40P01", "23505", "23503"}


def _sqlstate(error: BaseException | None) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def _words(error: BaseException | None) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _explained(error: Exception, where: str, *, committing: bool) -> Exception:
    """Unavailable with why, when that is what it is; else the error itself, which is a bug."""
    unknown = f"; {MAYBE_WRITTEN}" if committing else ""
    if isinstance(error, TimeoutError | PoolTimeoutError):
        return Unavailable(f"{where} {NOT_IN_TIME}{unknown}")
    if not isinstance(error, DBAPIError):
        return Unavailable(f"{where} can't be reached: {error}{unknown}")
    words = _words(error.orig)
    match _sqlstate(error.orig)[:2], _sqlstate(error.orig):
        case _, "53100":
            return Unavailable(f"the disk of {where} is full; free some space there{unknown}")
        case _, "25006":
            return Unavailable(f"{where} is read-only (a standby?); use the primary, or make it writable")
        case _, "25P03":
            return Unavailable(f"{where} waited over {IDLE_IN_TRANSACTION_S:.0f} s for this controller to go on")
        case _, "55P03":
            return Unavailable(f"{where} is locked: another transaction has held a row for over {engine.BUSY_S:.0f} s")
        case (("08" | "28" | "3D" | "40" | "53" | "57" | "58"), _):
            return Unavailable(f"{where} can't be used: {words}{unknown}")
        case _ if error.connection_invalidated:
            return Unavailable(f"the connection to {where} was lost: {words}{unknown}")
        case _:
            return error
