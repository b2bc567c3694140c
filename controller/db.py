"""`kakuri db …`: what people do to a store by hand: upgrade it, back it up, look it over, bring a backup back.

One rule: each says on stderr what it did and what comes next; 0 when all is well, 1 when not, 2 when told wrongly.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from controller.store import upgrade
from controller.store.backup import back_up_store
from controller.store.bring_back import bring_back
from controller.store.check import check_store
from controller.store.contract import StoreError
from controller.store.open import scheme_of
from kakuri.log import configure

_STORE = "sqlite:////path or postgresql://user@host/name; by default KAKURI_CONTROLLER_STORE"


def run(arguments: Sequence[str]) -> int:
    """The exit code. What is wrong with the arguments ends the process with 2."""
    asked = _parser().parse_args(arguments)
    if not asked.store:
        _parser().error("name the store: --store URL")
    try:
        if scheme_of(asked.store) == "memory":
            _parser().error("a store in memory is gone with its process: there is nothing to do to it")
    except StoreError as error:
        _parser().error(error.message)
    configure(os.environ.get("KAKURI_CONTROLLER_LOG_LEVEL", "info"))
    match asked.verb:
        case "upgrade":
            doing = _upgrade(asked.store)
        case "backup":
            doing = _backup(asked.store, asked.to, force=asked.force)
        case "restore":
            doing = _restore(asked.store, asked.backup, force=asked.force)
        case _:
            doing = _check(asked.store)
    try:
        return asyncio.run(doing)
    except StoreError as error:
        _tell(error.message)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kakuri db", description="Look after the database.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", metavar="URL", default=os.environ.get("KAKURI_CONTROLLER_STORE", ""), help=_STORE)
    verbs.add_parser("upgrade", parents=[store], help="bring its schema to what this version needs")
    backup = verbs.add_parser("backup", parents=[store], help="copy it to a file, while controllers write it")
    backup.add_argument("--to", metavar="FILE", type=Path, required=True)
    backup.add_argument("--force", action="store_true", help="replace a file that is there")
    restore = verbs.add_parser(
        "restore", parents=[store], help="bring a backup back; its nodes are then compared first"
    )
    restore.add_argument(
        "--from", dest="backup", metavar="FILE", type=Path, help="for SQLite; see the docs for PostgreSQL"
    )
    restore.add_argument("--force", action="store_true", help="even when it is another cluster's")
    verbs.add_parser("check", parents=[store], help="look it over; writes nothing")
    return parser


async def _upgrade(store: str) -> int:
    done = await upgrade(store)
    was = f"was at {done.before or 'nothing'}" if done.changed else "had it already"
    copy = f"; a copy from before is {done.backup}" if done.backup else ""
    _tell(f"the store has schema {done.after} ({was}){copy}")
    return 0


async def _backup(store: str, to: Path, *, force: bool) -> int:
    await back_up_store(store, to, force=force)
    _tell(f"the backup is {to}; it holds what workloads' environments hold, secrets too: keep it as such")
    return 0


async def _restore(store: str, backup: Path | None, *, force: bool) -> int:
    done = await bring_back(store, backup, force=force, now=datetime.now(UTC))
    if done.kept is not None:
        _tell(f"what was there before is kept as {done.kept}")
    _tell(
        f"restored, from epoch {done.epoch} on. Start the controllers: they ask every node what it has, and start, "
        "stop and delete nothing until you have looked at the difference and confirmed it: kakuri db confirm"
    )
    return 0


async def _check(store: str) -> int:
    found, notes = await check_store(store)
    for finding in found:
        _tell(f"{finding.what}: {finding.do}")
    for note in notes:
        _tell(f"note: {note}")
    if not found:
        _tell("nothing is wrong with it")
    return 1 if found else 0


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
