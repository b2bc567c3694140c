"""The lease: which controller leads, by the database's own clock, with an epoch that only grows.

One rule: taking it is one statement, so two that try at once can't both have it.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from controller.store.contract import Lease
from controller.store.schema import leases

_NAME = "controller"


class _DatabaseNow(sa.sql.functions.FunctionElement[float]):
    """Seconds since 1970 by the database's clock, moving on within a transaction."""

    type = sa.Double()
    inherit_cache = True
    name = "database_now"


@compiles(_DatabaseNow, "sqlite")
def _now_sqlite(element: _DatabaseNow, compiler: SQLCompiler, **_: Any) -> str:  # noqa: ARG001 - SQLAlchemy's shape
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_DatabaseNow, "postgresql")
def _now_postgresql(element: _DatabaseNow, compiler: SQLCompiler, **_: Any) -> str:  # noqa: ARG001 - see above
    return "extract(epoch from clock_timestamp())::double precision"


def acquire(connection: sa.Connection, holder: str, ttl_s: float, *, alone: bool) -> Lease:
    """alone: no other controller can be there, so whoever has it is gone."""
    free = sa.or_(leases.c.holder.in_(["", holder]), leases.c.expires_at <= _DatabaseNow(), sa.literal(alone))
    taken = connection.execute(
        sa.update(leases)
        .where(leases.c.name == _NAME, free)
        .values(holder=holder, epoch=leases.c.epoch + 1, expires_at=_DatabaseNow() + ttl_s)
        .returning(leases.c.epoch)
    ).one_or_none()
    if taken is not None:
        return Lease(holder, taken.epoch, ttl_s, mine=True)
    return _look(connection)


def _look(connection: sa.Connection) -> Lease:
    """Whose it is, for one that doesn't have it."""
    left = (leases.c.expires_at - _DatabaseNow()).label("left")
    query = sa.select(leases.c.holder, leases.c.epoch, left).where(leases.c.name == _NAME)
    row = connection.execute(query).one()
    return Lease(row.holder, row.epoch, max(0.0, row.left), mine=False)


def renew(connection: sa.Connection, holder: str, epoch: int, ttl_s: float) -> bool:
    """Expired but taken by nobody, it is renewed: the epoch says that nobody led meanwhile."""
    ours = sa.update(leases).where(leases.c.name == _NAME, leases.c.holder == holder, leases.c.epoch == epoch)
    return connection.execute(ours.values(expires_at=_DatabaseNow() + ttl_s)).rowcount == 1


def release(connection: sa.Connection, holder: str, epoch: int) -> None:
    ours = sa.update(leases).where(leases.c.name == _NAME, leases.c.holder == holder, leases.c.epoch == epoch)
    connection.execute(ours.values(holder="", expires_at=0.0))


def epoch(connection: sa.Connection, *, keep: bool) -> int:
    query = sa.select(leases.c.epoch).where(leases.c.name == _NAME)
    if keep:
        query = query.with_for_update(read=True)
    found: int = connection.execute(query).scalar_one()
    return found
