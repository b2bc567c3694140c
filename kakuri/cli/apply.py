"""kakuri apply: what the files say becomes what is wanted, all of it or nothing."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.failure import Failure, NotReady
from kakuri.cli.judge import SETTLED
from kakuri.cli.kinds import Target, singular
from kakuri.cli.output import put
from kakuri.cli.session import ServerOption, run, steady_mirror, tell
from kakuri.cli.waiting import wait_for

if TYPE_CHECKING:
    from kakuri.client import ApiError, Client, Outcome
    from kakuri.manifest import Entry

FilesOption = Annotated[
    list[str],
    typer.Option("--file", "-f", metavar="PATH", help="A file, a folder (not its subfolders) or - for stdin."),
]


def apply(
    files: FilesOption,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until services are ready and jobs have ended.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="For --wait; then exit 3.")] = 300,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    server: ServerOption = None,
) -> None:
    """Make what the files say what is wanted: all of it, or nothing when something is wrong."""
    from kakuri.manifest import read  # noqa: PLC0415 - pydantic takes longer to import than --help to print

    entries = read(files)

    async def command(client: "Client") -> None:
        outcomes = await _apply(client, entries, dry_run=dry_run, patience_s=timeout if wait and not dry_run else None)
        mark = " (dry run)" if dry_run else ""
        put(f"{singular(o.kind)}/{o.id} {o.result}{mark}" for o in outcomes)
        if wait and not dry_run:
            await wait_for(client, [Target(o.kind, o.id) for o in outcomes if o.kind == "Workload"], SETTLED, timeout)

    run(server, command)


async def _apply(
    client: "Client", entries: Sequence["Entry"], *, dry_run: bool, patience_s: float | None
) -> list["Outcome"]:
    """patience_s: for so long ids that are still being deleted are waited for; None: not at all."""
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    # What was not written is left out, so that the server's own defaults hold.
    objects = [e.manifest.model_dump(mode="json", exclude_unset=True) | {"kind": e.manifest.kind} for e in entries]
    while True:
        try:
            return await client.apply(objects, dry_run=dry_run)
        except ApiError as error:
            if error.reason != "Terminating" or patience_s is None:
                raise _placed(error, entries) from error
        await _until_gone(client, {e.manifest.id for e in entries if e.manifest.kind == "Workload"}, patience_s)


async def _until_gone(client: "Client", ids: set[str], patience_s: float) -> None:
    """Returns when none of these workloads is being deleted."""
    told = False
    try:
        async with asyncio.timeout(patience_s):
            async for view in steady_mirror(client, "Workload"):
                leaving = sorted(id_ for id_ in ids if view.objects.get(id_, {}).get("deleted_at"))
                if not leaving:
                    return
                if not told:
                    tell(f"still being deleted, waiting for them to go: {', '.join(leaving)}")
                told = True
    except TimeoutError:
        raise NotReady(f"not applied: still being deleted after {patience_s:g} s") from None


def _placed(error: "ApiError", entries: Sequence["Entry"]) -> Exception:
    """The server's error with the places in the files that it is about."""
    lines = []
    for fault in error.errors:
        root, _, rest = fault.pointer.removeprefix("/").partition("/")
        index, _, inside = rest.partition("/")
        if root != "objects" or not index.isascii() or not index.isdigit() or int(index) >= len(entries):
            return error
        entry = entries[int(index)]
        lines.append(str(entry.error(entry.location(f"/{inside}" if inside else ""), fault.message)))
    return Failure("the server refused it, nothing was applied:\n" + "\n".join(lines)) if lines else error
