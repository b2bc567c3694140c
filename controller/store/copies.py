"""Copies of a SQLite database: whole, durable, for nobody else's eyes, and there by their name only once they are done.

One rule: what was there by that name is there until the new one is.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from controller.store.engine import sqlite_file


def copy_sqlite(source: Path, target: Path) -> None:
    """A copy as of one moment, its write-ahead log included, while others read and write. Raises OSError and
    sqlite3.Error; then the target is as it was."""
    half_done = target.with_name(target.name + ".part")
    half_done.unlink(missing_ok=True)
    half_done.touch(mode=0o600)
    try:
        with closing(sqlite_file(source)) as read, closing(sqlite3.connect(half_done)) as written:
            read.backup(written)  # in one step: a second look after each write of others might never end
            written.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, without a log beside it
        put_in_place(half_done, target)
    finally:
        half_done.unlink(missing_ok=True)


def put_in_place(file: Path, target: Path) -> None:
    """The file has the target's name, and a power cut takes that back no more."""
    sync(file)
    file.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """The file, or the folder's list of names, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def let_shrink(path: Path) -> None:
    """The file gives back what is freed in it, as newer ones do. Best effort: it takes the file's size once more."""
    try:
        with closing(sqlite_file(path)) as connection:
            if connection.execute("PRAGMA auto_vacuum").fetchone() == (0,):
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("VACUUM")
    except sqlite3.Error:
        return


def what_is_wrong(path: Path) -> list[str]:
    """What SQLite itself finds damaged in the file, some of it; nothing of a sound one."""
    try:
        with closing(sqlite_file(path)) as connection:
            connection.execute("PRAGMA query_only = ON")
            found = [row[0] for row in connection.execute("PRAGMA integrity_check(20)")]
            broken = connection.execute("PRAGMA foreign_key_check").fetchmany(20)
    except sqlite3.Error as error:
        return [str(error)]
    lines = [line for line in found if line != "ok"]
    return lines + [
        f"row {row} of {table} refers to a row of {parent} that is not there" for table, row, parent, _ in broken
    ]
