"""kakuri db: look after the database itself, and confirm one that was restored.

One rule: what touches the database is another process (see processes.py); `confirm` alone asks the server.
"""

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kakuri.cli.failure import Failure, Usage
from kakuri.cli.output import plain, put
from kakuri.cli.processes import become
from kakuri.cli.session import ServerOption, run, tell

if TYPE_CHECKING:
    from kakuri.client import Client


def upgrade(context: typer.Context) -> None:
    """Bring a database's schema to what this version needs."""
    become("controller", "db", "upgrade", *context.args)


def backup(context: typer.Context) -> None:
    """Copy a database to a file, while controllers write it."""
    become("controller", "db", "backup", *context.args)


def restore(context: typer.Context) -> None:
    """Bring a database back from a backup; nothing is ended for its sake until you confirm it."""
    become("controller", "db", "restore", *context.args)


def check(context: typer.Context) -> None:
    """Look a database over, and say what is wrong with it."""
    become("controller", "db", "check", *context.args)


def confirm(
    without: Annotated[
        list[str], typer.Option("--without", metavar="NODE", help="Do not wait for what this node has.")
    ] = [],  # noqa: B006 - typer copies it
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for agents that may have joined after the backup.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: ServerOption = None,
) -> None:
    """Show what a restored database would end and replace on the nodes, and have it count."""

    async def command(client: "Client") -> None:
        hold = await _hold(client, now=now)
        if hold is None:
            tell("no restored database waits to be confirmed")
            return
        put(_lines(hold, without))
        if not yes:
            _ask()
        await client.confirm_restore(without, now=now)
        put(["confirmed"])

    run(server, command)


async def _hold(client: "Client", *, now: bool) -> Mapping[str, Any] | None:
    """What is held, once all agents have had the time to register."""
    while True:
        hold = await client.hold()
        if hold is None or now or not (left_s := hold["wait_s"]):
            return hold
        tell(f"waiting {left_s} s for agents that joined after the backup to register; --now does not wait")
        await asyncio.sleep(left_s)


def _lines(hold: Mapping[str, Any], without: list[str]) -> list[str]:
    lines = [f"the database was restored at {hold['restored_at']}"]
    for node in hold["unread"]:
        waited = "it is not waited for" if node in without else "start its agent, or leave it out with --without"
        lines.append(f"node/{node}: not heard of since; {waited}")
    lines += [f"allocation/{a['id']}: not in the backup; it is ended on {a['node']}" for a in hold["unknown"]]
    lines += [
        f"allocation/{a['id']}: no more on {a['node']}; it is lost, and replaced if it should run"
        for a in hold["missing"]
    ]
    if len(lines) == 1:
        lines.append("the nodes have what the backup says, and nothing else")
    return [plain(line) for line in lines]


def _ask() -> None:
    if not sys.stdin.isatty():
        raise Usage("nobody is there to ask; say --yes when it is right")
    tell("Have it count? [y/N]")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Failure("not confirmed; all is held as before")
