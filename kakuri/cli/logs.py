"""kakuri logs: what a workload's container wrote, byte for byte."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kakuri.cli.columns import state
from kakuri.cli.failure import Failure
from kakuri.cli.output import put_bytes
from kakuri.cli.session import ServerOption, run, steady_mirror, tell

if TYPE_CHECKING:
    from kakuri.client import Client

Object = dict[str, Any]


def logs(
    name: Annotated[str, typer.Argument(help="A workload, or one of its allocations (web.0.1a2b3c4d).")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, restarts included.")
    ] = False,
    tail: Annotated[int | None, typer.Option(metavar="LINES", min=-1, help="Only the last so many lines.")] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the run before the present one.")] = False,
    slot: Annotated[int | None, typer.Option(min=0, help="Of this replica; else of the first.")] = None,
    server: ServerOption = None,
) -> None:
    """Show what a workload's container wrote."""
    id_ = name.removeprefix("workload/").removeprefix("allocation/")

    async def command(client: "Client") -> None:
        runs = [id_] if "." in id_ else await _runs(client, id_, slot)
        if follow and not previous:
            await _follow(client, id_.partition(".")[0], runs[0], tail)
        else:
            await _copy(client, runs, tail=tail, previous=previous)

    run(server, command)


async def _runs(client: "Client", workload: str, slot: int | None) -> list[str]:
    """The slot's allocations, newest first."""
    found = (await client.list("Allocation", workload=workload)).items
    slots = sorted({int(a.get("slot", 0)) for a in found})
    if not found:
        shown = await client.get("Workload", workload)  # says so when there is no such workload
        why = shown.get("status", {}).get("message") or shown.get("status", {}).get("reason") or "no allocation yet"
        raise Failure(f"workload/{workload} has not run yet: {why}")
    chosen = slots[0] if slot is None else slot
    if chosen not in slots:
        raise Failure(f"workload/{workload} has no slot {chosen}; it has {', '.join(map(str, slots))}")
    if slot is None and len(slots) > 1:
        tell(f"{len(slots)} slots; this is slot {chosen} (choose with --slot)")
    return _newest_first([a for a in found if int(a.get("slot", 0)) == chosen])


def _newest_first(allocations: Sequence[Object]) -> list[str]:
    return [str(a["id"]) for a in sorted(allocations, key=lambda a: str(a.get("created_at", "")), reverse=True)]


async def _follow(client: "Client", workload: str, allocation: str, tail: int | None) -> None:
    """All its runs from the present one on, each to its end. tail: of the first."""
    await _until(client, workload, allocation, lambda a: bool(a.get("started_once")) or a.get("state") != "Pending")
    goes_on = True
    while goes_on:
        begun = _begun(await client.get("Allocation", allocation))
        await _stream(client, allocation, follow=True, tail=tail, previous=False)
        goes_on = await _until(client, workload, allocation, _began_after(begun))
        tail = None


def _begun(allocation: Object) -> str:
    """When its newest run began: texts of one form, so that the later one is the greater."""
    return str(allocation.get("started_at") or "")


def _began_after(begun: str) -> Callable[[Object], bool]:
    return lambda allocation: _begun(allocation) > begun


async def _until(client: "Client", workload: str, allocation: str, holds: Callable[[Object], bool]) -> bool:
    """Whether it came to that; False when it is gone, or has ended without."""
    told = False
    async for view in steady_mirror(client, "Allocation", workload=workload):
        now = view.objects.get(allocation)
        if now is not None and holds(now):
            return True
        if now is None or now.get("state") in {"Succeeded", "Failed"}:
            return False
        if not told and now.get("reason"):
            tell(f"{allocation} is {state(now)}, {now['reason']}; waiting for it to run")
            told = True
    return False


async def _copy(client: "Client", runs: Sequence[str], *, tail: int | None, previous: bool) -> None:
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    try:
        await _stream(client, runs[0], follow=False, tail=tail, previous=previous)
    except ApiError as error:
        # A replaced allocation has no earlier attempt of its own: the slot's run before is the one before it.
        if not (previous and error.status == 404 and len(runs) > 1):
            raise
        await _stream(client, runs[1], follow=False, tail=tail, previous=False)


async def _stream(client: "Client", allocation: str, *, follow: bool, tail: int | None, previous: bool) -> None:
    async for chunk in client.logs(allocation, follow=follow, tail=tail, previous=previous):
        put_bytes(chunk)
