"""Bringing a database back from a backup: the copy is made ready beside the present file, and takes its place at once.

One rule: what comes back is above all that any agent or watcher may have seen of what is lost, and is held until a
person confirms it (rules/restore.py): it must not end what was started since.
"""

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from controller.store import changes, leases, migrate
from controller.store.contract import StoreError, Unavailable
from controller.store.copies import copy_sqlite, put_in_place, sync, what_is_wrong
from controller.store.engine import SqliteDatabase, is_sqlite, shown_url, sqlite_file, sqlite_path
from controller.store.one_controller import OneController
from controller.store.postgres import PostgresDatabase
from controller.store.schema import cluster
from controller.store.sql import SqlStore

EPOCHS = 1_000_000
"""Added to the newest epoch known. Fewer than there were since the backup, and agents refuse the controller."""
VERSIONS = 2**32
"""Added to the newest resource_version known. Fewer than there were since, and a watcher misses changes."""


@dataclass(frozen=True, slots=True)
class BroughtBack:
    """kept: the database that was there before, if one was (SQLite)."""

    kept: Path | None
    epoch: int


@dataclass(frozen=True, slots=True)
class _Reached:
    cluster_id: str
    epoch: int
    resource_version: int


async def bring_back(url: str, backup: Path | None, *, force: bool, now: datetime) -> BroughtBack:
    """The store is the backup's and held; without a backup, the one that a person has loaded. force: even another
    cluster's. Raises StoreError and Unavailable, and then all is as it was."""
    if not is_sqlite(url):
        return await _adopt_loaded(url, backup, now)
    if backup is None:
        raise StoreError("name the backup: --from FILE")
    path = sqlite_path(url)
    controller = OneController(path)
    controller.take("stop it first, and start it again after the restore")
    ready = path.with_name(path.name + ".restoring")
    try:
        await asyncio.to_thread(_copy, backup, ready)
        epoch = await _make_ready(ready, await asyncio.to_thread(_present, path), path, force=force, now=now)
        return BroughtBack(await asyncio.to_thread(_swap, ready, path, now), epoch)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"{path} was not restored from {backup}: {error}") from error
    finally:
        for left in (ready, *_beside(ready)):
            left.unlink(missing_ok=True)
        controller.release()


def _copy(backup: Path, ready: Path) -> None:
    if not backup.is_file():
        raise StoreError(f"there is no backup {backup}")
    if wrong := what_is_wrong(backup):
        raise StoreError(f"{backup} is damaged or no SQLite database ({wrong[0]}); take another backup")
    copy_sqlite(backup, ready)


def _present(path: Path) -> _Reached | None:
    """How far the database went that is to be replaced, as far as it can be read."""
    if not path.exists():
        return None
    try:
        with closing(sqlite_file(path)) as connection:
            reached = connection.execute(
                "SELECT cluster_id, (SELECT max(epoch) FROM leases), resource_version FROM cluster"
            ).fetchone()
    except sqlite3.Error:
        return None
    return _Reached(*reached) if reached else None


async def _make_ready(ready: Path, present: _Reached | None, path: Path, *, force: bool, now: datetime) -> int:
    """The copy has this code's schema, its own past is below it, and it is held. Returns its epoch."""
    database = SqliteDatabase(ready)
    store: SqlStore | None = None
    try:
        revision = await database.read(migrate.revision_of)
        if revision is None:
            raise StoreError("the backup has no schema of kakuri's; take another one")
        migrate.check_known(revision, "the backup")
        await database.write(lambda connection: migrate.upgrade_connection(connection, "the backup"))
        own = await database.read(_reached)
        if present is not None and present.cluster_id != own.cluster_id and not force:
            raise StoreError(
                f"the backup is of the cluster {own.cluster_id}, and {path} of {present.cluster_id}, whose agents "
                "refuse any other; say --force when that is meant"
            )
        store = SqlStore(database, own.cluster_id)
        return await _adopt(store, [r for r in (own, present) if r is not None], now)
    finally:
        await (store or database).close()


async def _adopt(store: SqlStore, reached: list[_Reached], now: datetime) -> int:
    epoch = max(r.epoch for r in reached) + EPOCHS
    version = max(r.resource_version for r in reached) + VERSIONS
    await store.adopt_restored(epoch=epoch, resource_version=version, now=now)
    return epoch


def _reached(connection: sa.Connection) -> _Reached:
    id_: str = connection.execute(sa.select(cluster.c.cluster_id)).scalar_one()
    return _Reached(id_, leases.epoch(connection, keep=False), changes.current(connection))


def _swap(ready: Path, path: Path, now: datetime) -> Path | None:
    with closing(sqlite_file(ready)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    kept = None
    if path.exists():
        kept = path.with_name(f"{path.name}.before-restore-{now:%Y%m%dT%H%M%S}")
        _finish_log(path)
        os.link(path, kept)  # refused when it is there
        # A log that could not be finished is the old database's: beside the new one it would be taken for its own.
        for log, name in zip(_beside(path), _beside(kept), strict=True):
            if log.exists():
                log.replace(name)
        sync(path.parent)
    put_in_place(ready, path)
    return kept


def _finish_log(path: Path) -> None:
    try:
        with closing(sqlite_file(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error:
        return  # too damaged: it is kept as it is


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


async def _adopt_loaded(url: str, backup: Path | None, now: datetime) -> BroughtBack:
    if backup is not None:
        raise StoreError(
            f"PostgreSQL is restored by its own tools: stop all controllers, load the backup into {shown_url(url)} "
            f"(pg_restore --clean --if-exists --dbname=URL {backup}), then run `kakuri db restore` without --from"
        )
    database = PostgresDatabase(url)
    try:
        migrate.check(await database.read(migrate.revision_of), database.where, shown_url(url))
        if await database.read(_someone_listens):
            raise StoreError(f"a controller is connected to {database.where}; stop all controllers first")
        own = await database.read(_reached)
        return BroughtBack(None, await _adopt(SqlStore(database, own.cluster_id), [own], now))
    finally:
        await database.close()


def _someone_listens(connection: sa.Connection) -> bool:
    """Each controller has one connection that does nothing else."""
    listening = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'kakuri' "
        "AND query = :query"
    )
    found: int = connection.execute(listening, {"query": f'LISTEN "{changes.CHANNEL}"'}).scalar_one()
    return found > 0
