"""Runs migrations on a connection that it is given, or on the store named by -x url=… or KAKURI_CONTROLLER_STORE."""

import asyncio
import os

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from controller.store.engine import is_sqlite, make_sqlite_file, sqlite_engine, sqlite_path
from controller.store.postgres import postgres_engine
from controller.store.schema import metadata


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # Both databases roll DDL back; Alembic says so of PostgreSQL alone.
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def _migrate_postgres(url: str) -> None:
    engine = postgres_engine(url, inspects=True)
    async with engine.begin() as connection:
        await connection.run_sync(_migrate)
    await engine.dispose()


def _migrate_sqlite(url: str) -> None:
    path = sqlite_path(url)
    make_sqlite_file(path)
    engine = sqlite_engine(path, writer=True)
    with engine.begin() as connection:
        _migrate(connection)
    engine.dispose()


def _run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("KAKURI_CONTROLLER_STORE")
    if not url:
        raise CommandError("no store is named: give -x url=sqlite:////path/kakuri.db or set KAKURI_CONTROLLER_STORE")
    if is_sqlite(url):
        _migrate_sqlite(url)
    else:
        asyncio.run(_migrate_postgres(url))


if context.is_offline_mode():
    raise CommandError("these migrations look at the database they run on: --sql is not supported")
_run()
