"""A backup of a store, made while controllers write it: SQLite by its own means, PostgreSQL by pg_dump."""

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from controller.store.contract import StoreError, Unavailable
from controller.store.copies import copy_sqlite, put_in_place, what_is_wrong
from controller.store.engine import is_sqlite, shown_url, sqlite_path


async def back_up_store(url: str, to: Path, *, force: bool) -> None:
    """The backup is in the file, whole and durable, readable by its owner alone. force: over what is there."""
    try:
        await asyncio.to_thread(_check_target, to, force=force)
        if is_sqlite(url):
            await asyncio.to_thread(_sqlite, sqlite_path(url), to)
        else:
            await _postgres(url, to)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"no backup was made of {shown_url(url)} in {to}: {error}") from error


def _check_target(to: Path, *, force: bool) -> None:
    if to.exists() and not force:
        raise StoreError(f"{to} is there already; name another file, or say --force to replace it")
    if not to.parent.is_dir():
        raise StoreError(f"there is no folder {to.parent} for the backup")


def _sqlite(path: Path, to: Path) -> None:
    if not path.is_file():
        raise StoreError(f"there is no database {path}")
    if to.exists() and to.samefile(path):
        raise StoreError(f"{to} is the database itself")
    if to.resolve() in _beside(path):
        raise StoreError(f"{to} belongs to the database {path} itself; name another file")
    copy_sqlite(path, to)
    if wrong := what_is_wrong(to):
        raise StoreError(
            f"the backup {to} was made, but is as damaged as {path}: {wrong[0]}; look with `kakuri db check`, and keep "
            "older backups"
        )


def _beside(path: Path) -> set[Path]:
    """The files that a live database has beside it, whether or not they are there now: to replace one breaks it."""
    real = path.resolve()
    return {real.with_name(real.name + end) for end in ("-wal", "-shm", "-journal", ".lock")}


async def _postgres(url: str, to: Path) -> None:
    pg_dump = shutil.which("pg_dump")
    if pg_dump is None:
        raise StoreError(
            "a backup of PostgreSQL is made by its own pg_dump, which is not on this machine: install "
            "postgresql-client, or run `pg_dump --format=custom` where it is; `kakuri db restore` takes a database "
            "that pg_restore has loaded"
        )
    half_done = to.with_name(to.name + ".part")
    half_done.unlink(missing_ok=True)
    half_done.touch(mode=0o600)
    parsed = sa.make_url(url).set(drivername="postgresql")
    environment = {**os.environ, **({"PGPASSWORD": str(parsed.password)} if parsed.password else {})}
    where = parsed.set(password=None).render_as_string()  # a command line is for all to read
    try:
        dumping = await asyncio.create_subprocess_exec(
            *(pg_dump, "--format=custom", f"--file={half_done}", f"--dbname={where}"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, told = await dumping.communicate()
        if dumping.returncode:
            raise StoreError(f"pg_dump made no backup: {told.decode(errors='replace').strip()}")
        put_in_place(half_done, to)
    finally:
        half_done.unlink(missing_ok=True)
