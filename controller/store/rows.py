"""What every table's SQL shares: writing a kind's rows, selecting by labels and by page.

One rule: a kind costs one statement for what is inserted, one for what is updated and one for what is deleted,
however many rows that are.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import sqlalchemy as sa

from controller.store.batch import R, Rows
from controller.store.tables import Paging
from kakuri.model import NodeRegistration, WorkloadSpec, WorkloadStatus
from kakuri.selector import Operator, Selector

S = TypeVar("S", bound=sa.Select[*tuple[Any, ...]])
AnyRow = sa.Row[*tuple[Any, ...]]


def insert_and_update(
    connection: sa.Connection, table: sa.Table, rows: Rows[R], to_row: Callable[[R], dict[str, Any]]
) -> None:
    if rows.updated:
        parameters = [{"key": r.id, **to_row(r)} for r in rows.updated.values()]
        connection.execute(_update(table), parameters)
    if rows.inserted:
        connection.execute(sa.insert(table), [to_row(r) for r in rows.inserted.values()])


def delete(connection: sa.Connection, table: sa.Table, ids: Iterable[str]) -> None:
    gone = sorted(ids)
    if gone:
        connection.execute(sa.delete(table).where(table.c.id.in_(gone)))


def stamp(connection: sa.Connection, table: sa.Table, versions: Mapping[str, int]) -> None:
    """The rows say at which resource_version they were written: known only now that all else is."""
    if versions:
        parameters = [{"key": id_, "resource_version": version} for id_, version in versions.items()]
        connection.execute(_stamp(table), parameters)


@functools.cache
def _update(table: sa.Table) -> sa.Update:
    # resource_version is for the stamp: a row keeps its old one until then.
    columns = {c.name: sa.bindparam(c.name, type_=c.type) for c in table.c if c.name not in {"id", "resource_version"}}
    return sa.update(table).where(table.c.id == sa.bindparam("key")).values(columns)


@functools.cache
def _stamp(table: sa.Table) -> sa.Update:
    return (
        sa.update(table)
        .where(table.c.id == sa.bindparam("key"))
        .values(resource_version=sa.bindparam("resource_version"))
    )


def paged(query: S, key: sa.Column[str], page: Paging) -> S:
    """In id order, one more than asked for."""
    if page.ids is not None:
        query = query.where(key.in_(sorted(set(page.ids))))
    if page.after is not None:
        query = query.where(key > page.after)
    return query.order_by(key).limit(page.limit + 1)


def selected(query: S, labels: sa.Column[Any], selector: Selector) -> S:
    for requirement in selector.requirements:
        value = labels[requirement.key].as_string()
        match requirement.operator:
            case Operator.IN:
                query = query.where(value.in_(sorted(requirement.values)))
            case Operator.NOT_IN:
                query = query.where(sa.or_(value.is_(None), value.not_in(sorted(requirement.values))))
            case Operator.EXISTS:
                query = query.where(value.is_not(None))
            case Operator.ABSENT:
                query = query.where(value.is_(None))
    return query


def labels_text(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True)


# The same few specs are read over and over: a workload's, and that of each of its allocations.
@functools.lru_cache(maxsize=2048)
def spec_of(text: str) -> WorkloadSpec:
    return WorkloadSpec.model_validate_json(text)


@functools.lru_cache(maxsize=2048)
def status_of(text: str) -> WorkloadStatus:
    return WorkloadStatus.model_validate_json(text)


@functools.lru_cache(maxsize=2048)
def registration_of(text: str) -> NodeRegistration:
    return NodeRegistration.model_validate_json(text)
