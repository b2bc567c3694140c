"""kakuri delete: what is named is wanted no more."""

from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.apply import FilesOption
from kakuri.cli.failure import Failure, Usage
from kakuri.cli.get import SelectorOption
from kakuri.cli.judge import DELETED
from kakuri.cli.kinds import Target, kind_of, read_targets, singular
from kakuri.cli.output import put
from kakuri.cli.session import ServerOption, run, tell
from kakuri.cli.waiting import wait_for

if TYPE_CHECKING:
    from kakuri.client import Client

_AT_ONCE = 1000
"""Objects in one request. More and its transaction holds other writers up; fewer and thousands take long."""
_DELETABLE = ("Workload", "Node", "RuntimeClass")


def delete(
    names: Annotated[list[str] | None, typer.Argument(help="web, workload web db, node/n1 …")] = None,
    files: FilesOption = [],  # noqa: B006 - typer copies it
    selector: SelectorOption = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until workloads and their containers are gone.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="For --wait; then exit 3.")] = 300,
    force: Annotated[
        bool, typer.Option("--force", help="Workloads only: at once, whatever still runs, such as on a silent node.")
    ] = False,
    ignore_missing: Annotated[bool, typer.Option("--ignore-missing", help="What isn't there is no error.")] = False,
    server: ServerOption = None,
) -> None:
    """Delete objects by name, by the files they were applied from, or by labels."""
    words = names or []
    kind, targets = _what(words, files, selector)
    if force and {kind, *(t.kind for t in targets)} - {"Workload", ""}:
        raise Usage("--force is for workloads; a node that is gone is given up by `kakuri node forget`")

    async def command(client: "Client") -> None:
        chosen = targets
        if selector:
            found = (await client.list(kind, selector=selector)).items
            chosen = [Target(kind, str(o["id"])) for o in found]
            if not chosen:
                tell(f"no {singular(kind)} has these labels")
        if force:
            await _warn(client, chosen)
        if selector and not force:
            asked = await _delete_at_once(client, chosen)
        else:
            asked = await _delete(client, chosen, force=force, ignore_missing=ignore_missing)
        if wait:
            await wait_for(client, [t for t in asked if t.kind == "Workload"], DELETED, timeout)

    run(server, command)


def _what(words: list[str], files: list[str], selector: str) -> tuple[str, list[Target]]:
    """The kind that -l is about, and what is named."""
    ways = [bool(files), bool(selector), bool(words) and not (selector and len(words) == 1)]
    if sum(ways) != 1:
        raise Usage("say what to delete, in one way: by names, by -f FILE, or by -l LABELS (with a kind before it)")
    if files:
        from kakuri.manifest import parse  # noqa: PLC0415 - pydantic takes longer to import than --help to print

        # In reverse: what comes later may need what comes first.
        return "", [Target(m.kind, m.id) for m in reversed(parse(files))]
    if not selector:
        return "", read_targets(words, _DELETABLE)
    kind = kind_of(words[0]) if words else "Workload"
    if kind not in {"Workload", "Node"}:
        raise Usage("-l works on workloads and nodes")
    return kind, []


async def _warn(client: "Client", targets: list[Target]) -> None:
    """Where each may still run is said before it is gone, for nobody can be asked afterwards."""
    for target in targets:
        live = [o for o in (await client.list("Allocation", workload=target.id)).items if not o.get("released")]
        if live:
            where = ", ".join(sorted({str(o.get("node")) for o in live}))
            tell(f"warning: {target} may still run on {where} until the node has been told to end it")


async def _delete_at_once(client: "Client", targets: list[Target]) -> list[Target]:
    """What was asked to go: all in few requests, or one by one where one of them stands in the way of the others."""
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    asked: list[Target] = []
    for start in range(0, len(targets), _AT_ONCE):
        some = targets[start : start + _AT_ONCE]
        try:
            outcomes = await client.apply([], deletes=[{"kind": t.kind, "id": t.id} for t in some])
        except ApiError:
            # What is gone by now is what was asked for.
            asked += await _delete(client, some, force=False, ignore_missing=True)
            continue
        put(f"{target} {outcome.result}" for target, outcome in zip(some, outcomes, strict=True))
        asked += some
    return asked


async def _delete(client: "Client", targets: list[Target], *, force: bool, ignore_missing: bool) -> list[Target]:
    """What was asked to go. All are tried; the first failure is told at the end."""
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    asked: list[Target] = []
    failures: list[str] = []
    for target in targets:
        try:
            await client.delete(target.kind, target.id, force=force)
        except ApiError as error:
            if not (error.status == 404 and ignore_missing):
                failures.append(f"{target}: {error.detail}")
            continue
        asked.append(target)
        put([f"{target} {'deleting' if target.kind == 'Workload' and not force else 'deleted'}"])
    if failures:
        raise Failure("\n".join(failures))
    return asked
