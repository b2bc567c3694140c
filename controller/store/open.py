"""Opening a store by its URL: the only thing about a store that a user sees.

sqlite:////var/lib/kakuri/kakuri.db    one file, migrated at start after a backup
postgresql://user:password@host/db     for more than one controller, migrated by `kakuri db upgrade` alone
memory://                              gone with the process
"""

import asyncio
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from controller.store.contract import Store, StoreError, Unavailable
from controller.store.copies import let_shrink
from controller.store.engine import (
    Database,
    SqliteDatabase,
    make_sqlite_file,
    shown_url,
    sqlite_path,
)
from controller.store.memory import MemoryStore
from controller.store.migrate import (
    Upgrade,
    back_up,
    check,
    check_known,
    is_current,
    revision_of,
    upgrade_connection,
)
from controller.store.postgres import PostgresDatabase
from controller.store.schema import cluster
from controller.store.sql import SqlStore
from controller.store.tables import CHANGES_KEPT, EVENTS_KEPT

_UPGRADE_LOCK = 0x6B616B757269
"""Two upgrades of one PostgreSQL database wait for each other; any number that others don't use does."""


async def open_store(
    url: str, *, serving: bool = False, changes_kept: int = CHANGES_KEPT, events_kept: int = EVENTS_KEPT
) -> Store:
    """The store behind the URL, at this code's schema. serving: as a controller, of which a SQLite file has but one.
    Raises SchemaMismatch, Unavailable, or StoreError for a URL that names no store and a file that is served."""
    if scheme_of(url) == "memory":
        return MemoryStore(changes_kept=changes_kept, events_kept=events_kept)
    database = _database(url)
    try:
        if serving:
            database.be_alone()
        if isinstance(database, SqliteDatabase):
            await _upgrade_sqlite(database, sqlite_path(url))
        else:
            check(await database.read(revision_of), database.where, shown_url(url))
        cluster_id = await database.read(_cluster_id)
    except BaseException:
        await database.close()
        raise
    return SqlStore(database, cluster_id, changes_kept=changes_kept, events_kept=events_kept)


async def upgrade(url: str) -> Upgrade:
    """The database behind the URL is at this code's schema."""
    if scheme_of(url) == "memory":
        return Upgrade("", "")
    database = _database(url)
    try:
        if isinstance(database, SqliteDatabase):
            return await _upgrade_sqlite(database, sqlite_path(url))
        return await database.write(lambda connection: _upgrade_postgres(connection, database.where))
    finally:
        await database.close()


def scheme_of(url: str) -> str:
    """Which kind of store it names. Raises StoreError when it names none."""
    scheme = url.partition("://")[0]
    try:
        shown = shown_url(url)
    except sa.exc.ArgumentError:
        scheme, shown = "", url.partition(":")[0]  # no more of it: there may be a password
    if scheme not in {"memory", "sqlite", "postgresql", "postgres"}:
        raise StoreError(
            f"{shown!r} names no store; use sqlite:////path/to/kakuri.db, postgresql://user:password@host/database or "
            "memory://"
        )
    return scheme


def _database(url: str) -> Database:
    if scheme_of(url) != "sqlite":
        return PostgresDatabase(url)
    path = sqlite_path(url)
    make_sqlite_file(path)
    return SqliteDatabase(path)


async def _upgrade_sqlite(database: SqliteDatabase, path: Path) -> Upgrade:
    current = await database.read(revision_of)
    if is_current(current):
        return Upgrade(current, current)
    backup = None
    if current is not None:
        check_known(current, database.where)
        backup = await _back_up(path, current)
    done = await database.write(lambda connection: upgrade_connection(connection, database.where))
    if current is not None:
        await asyncio.to_thread(let_shrink, path)
    return Upgrade(done.before, done.after, backup)


async def _back_up(path: Path, revision: str) -> Path:
    try:
        return await asyncio.to_thread(back_up, path, revision)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(
            f"{path} needs a newer schema, but no backup could be made beside it ({error}); free some space there"
        ) from error


def _upgrade_postgres(connection: sa.Connection, where: str) -> Upgrade:
    # Between two of its statements code is loaded and run, for longer than a controller may be silent.
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
    return upgrade_connection(connection, where)


def _cluster_id(connection: sa.Connection) -> str:
    id_: str = connection.execute(sa.select(cluster.c.cluster_id)).scalar_one()
    return id_
