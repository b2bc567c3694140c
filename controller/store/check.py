"""Looking a store over: what is damaged in the file, and which of our own promises its rows break.

One rule: it writes nothing, and may run beside a controller: all is read in one transaction.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from controller.store import restored
from controller.store.contract import SchemaMismatch, StoreError
from controller.store.copies import what_is_wrong
from controller.store.engine import Database, SqliteDatabase, is_sqlite, sqlite_path
from controller.store.migrate import check as check_schema
from controller.store.migrate import revision_of
from controller.store.postgres import PostgresDatabase
from controller.store.schema import allocations, changes, cluster, events, leases, nodes, runtime_classes, workloads
from kakuri.model import ByHand, Desired, Drain, NodeRegistration, State, WorkloadSpec, WorkloadStatus

_FROM_BACKUP = "restore a backup (kakuri db restore)"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """what is wrong, and what to do about it."""

    what: str
    do: str


async def check_store(url: str) -> tuple[list[Finding], list[str]]:
    """What is wrong with the store, and what else a person should know of it. Raises StoreError when it can't be
    looked at."""
    if not is_sqlite(url):
        return await _look(PostgresDatabase(url), url)
    path = sqlite_path(url)
    if not await asyncio.to_thread(path.is_file):
        raise StoreError(f"there is no database {path}")
    if wrong := await asyncio.to_thread(what_is_wrong, path):
        return [Finding(line, f"{_FROM_BACKUP}; look after the disk") for line in wrong], []
    return await _look(SqliteDatabase(path), url)


async def _look(database: Database, url: str) -> tuple[list[Finding], list[str]]:
    try:
        return await database.read(lambda connection: _look_at(connection, database.where, url))
    finally:
        await database.close()


def _look_at(connection: sa.Connection, where: str, url: str) -> tuple[list[Finding], list[str]]:
    try:
        check_schema(revision_of(connection), where, url)
    except SchemaMismatch as error:
        return [Finding(error.message, "the rest was not looked at")], []
    found = [finding for look in _LOOKS for finding in look(connection)]
    return found, list(_notes(connection))


def _notes(connection: sa.Connection) -> Iterator[str]:
    held = restored.read(connection)
    if held is not None:
        yield f"it was restored at {held.at:%Y-%m-%dT%H:%M:%SZ} and waits for `kakuri db confirm`"
    if connection.dialect.name != "sqlite":
        return
    if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() != 2:
        yield "its file was made before it could shrink: freed pages are used again, but the file gets no smaller"


def _one_row_each(connection: sa.Connection) -> Iterator[Finding]:
    for table, what in ((cluster, "says whose it is"), (leases, "holds the lease")):
        count = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        if count != 1:
            yield Finding(f"the table {table.name}, whose one row {what}, has {count} rows", _FROM_BACKUP)


def _slots(connection: sa.Connection) -> Iterator[Finding]:
    a = allocations.c
    live = sa.select(a.workload_id, a.slot, sa.func.count()).where(sa.not_(a.released))
    twice = live.group_by(a.workload_uid, a.workload_id, a.slot).having(sa.func.count() > 1)
    for workload, slot, count in connection.execute(twice):
        yield Finding(
            f"slot {slot} of workload {workload} has {count} live allocations",
            f"delete the workload (kakuri delete {workload}) and apply it again",
        )


def _references(connection: sa.Connection) -> Iterator[Finding]:
    for column, parent in (
        (allocations.c.workload_id, workloads),
        (allocations.c.node, nodes),
        (workloads.c.runtime_class, runtime_classes),
    ):
        child = column.table
        gone = sa.select(child.c.id).where(column.not_in(sa.select(parent.c.id))).order_by(child.c.id)
        yield from _named(connection.scalars(gone), f"in {child.name} name a row that {parent.name} has not")


def _revisions(connection: sa.Connection) -> Iterator[Finding]:
    a = allocations.c
    ahead = sa.select(a.id).where(a.accepted_revision > a.revision).order_by(a.id)
    yield from _named(connection.scalars(ahead), "in allocations have accepted a revision that they never had")


def _words(connection: sa.Connection) -> Iterator[Finding]:
    a = allocations.c
    for column, known in ((a.state, State), (a.desired, Desired)):
        strange = sa.select(a.id).where(column.not_in(sorted(w.value for w in known))).order_by(a.id)
        yield from _named(connection.scalars(strange), f"in allocations have an unknown {column.name}")


def _versions(connection: sa.Connection) -> Iterator[Finding]:
    newest, held_after = connection.execute(
        sa.select(sa.func.max(cluster.c.resource_version), sa.func.max(cluster.c.changes_held_after))
    ).one()
    if newest is None:
        return  # told by _one_row_each
    for table in (workloads, allocations, nodes, runtime_classes, events, changes):
        last = connection.scalar(sa.select(sa.func.max(table.c.resource_version)))
        if last is not None and last > newest:
            yield Finding(
                f"{table.name} has the resource_version {last}, and the counter stands at {newest}",
                f"{_FROM_BACKUP}: watchers miss changes",
            )
    count = connection.execute(sa.select(sa.func.count()).select_from(changes)).scalar_one()
    first, last = connection.execute(
        sa.select(sa.func.min(changes.c.resource_version), sa.func.max(changes.c.resource_version))
    ).one()
    whole = (count, first or held_after + 1, last or newest) == (newest - held_after, held_after + 1, newest)
    if not whole:
        yield Finding(
            f"the log of changes has {count} rows from {first} to {last}, and should have all from {held_after + 1} to "
            f"{newest}",
            f"{_FROM_BACKUP}: watchers miss changes",
        )


def _json(connection: sa.Connection) -> Iterator[Finding]:
    readers: tuple[tuple[sa.Column[Any], Callable[[str], object]], ...] = (
        (workloads.c.spec, WorkloadSpec.model_validate_json),
        (workloads.c.status, WorkloadStatus.model_validate_json),
        (allocations.c.spec, WorkloadSpec.model_validate_json),
        (nodes.c.registration, NodeRegistration.model_validate_json),
        (nodes.c.by_hand, TypeAdapter(tuple[ByHand, ...]).validate_json),
        (nodes.c.drain, Drain.model_validate_json),
    )
    for column, read in readers:
        rows = connection.execute(sa.select(column.table.c.id, column).where(column.is_not(None)).order_by("id"))
        unreadable = [id_ for id_, text in rows if not _readable(read, text)]
        yield from _named(unreadable, f"in {column.table.name} have a {column.name} that can't be read")


def _readable(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except ValidationError:
        return False
    return True


def _named(ids: Iterable[str], what: str) -> Iterator[Finding]:
    found = list(ids)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        yield Finding(f"{', '.join(found[:_SHOWN])}{more} {what}", _FROM_BACKUP)


_LOOKS = (_one_row_each, _slots, _references, _revisions, _words, _versions, _json)
