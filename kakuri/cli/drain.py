"""kakuri drain: a node takes no new work, and what runs there is moved elsewhere.

One rule: it says what moves as it moves, and of what does not move why not; it is done when the server says so.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kakuri.cli.cordon import read_nodes
from kakuri.cli.failure import Failure, NotReady, Usage
from kakuri.cli.output import plain, put
from kakuri.cli.session import ServerOption, run, tell

if TYPE_CHECKING:
    from kakuri.client import Client

LOOK_S = 1.0
"""Between two looks. Shorter and each node that is watched is planned for more often."""
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

Progress = Mapping[str, Any]


def drain(
    node: Annotated[str, typer.Argument(help="n1, node/n1")],
    deadline: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Then stop what is still there, jobs too: 90s, 10m, 2h; none: never. "
            "Default: as the drain that goes on has it, else never.",
        ),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the node is drained.")] = True,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For waiting; then exit 3. 0: one look.")
    ] = 600,
    server: ServerOption = None,
) -> None:
    """Move what runs on a node elsewhere, within each workload's max_unavailable, and say what can't move."""
    wanted = {} if not deadline else {"deadline_s": None if deadline == "none" else read_seconds(deadline)}
    (target,) = read_nodes([node])

    async def command(client: "Client") -> None:
        first = await client.drain(target.id, **wanted)
        by_hand = ", ".join(first.get("by_hand", []))
        if by_hand:
            tell(f"{target}: {by_hand} started by hand there, and is left alone")
        if not wait:
            put([f"{target} draining"])
            return
        teller = _Teller(str(target))
        teller.look(first)
        await _until_drained(client, target.id, teller, timeout)
        put([f"{target} drained"])

    run(server, command)


def read_seconds(text: str) -> int:
    """10m in seconds."""
    match = re.fullmatch(r"([0-9]{1,7})([smhd]?)", text)
    if match is None:
        raise Usage(f"{text!r} is no time; write 90s, 10m or 2h")
    return int(match[1]) * _UNITS[match[2]]


async def _until_drained(client: "Client", node: str, teller: "_Teller", timeout_s: float) -> None:
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    try:
        async with asyncio.timeout(timeout_s or None):
            while not teller.drained:
                if timeout_s == 0:
                    teller.look(await client.drain_progress(node))
                    break
                await asyncio.sleep(LOOK_S)
                teller.look(await steady(lambda: client.drain_progress(node)))
    except TimeoutError:
        pass
    except ApiError as error:
        if error.reason == "NotDraining":
            raise Failure(f"{teller.node}: somebody ended the drain") from None
        raise
    if not teller.drained:
        raise NotReady("\n".join([f"{teller.node} is not drained within {timeout_s:g} s; it goes on:", *teller.open]))


async def steady(ask: Callable[[], Any]) -> Any:
    """The answer, once the server gives one; it may be away for a while."""
    from kakuri.client import ServerUnreachable  # noqa: PLC0415 - loaded by run

    lost = False
    while True:
        try:
            return await ask()
        except ServerUnreachable as error:
            if not lost:
                tell(f"lost the server ({error.why}); waiting for it")
            lost = True
        await asyncio.sleep(LOOK_S)


class _Teller:
    """Says what is new in each look: a line for each allocation and each slot whose story has changed."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.drained = False
        self.open: list[str] = []
        self._told: dict[str, str] = {}
        self._moved = 0

    def look(self, progress: Progress) -> None:
        now = {str(x["allocation"]): str(x["why"]) for x in progress["left"]}
        waits = {f"{x['workload']} slot {x['slot']}": f"moved, {x['why']}" for x in progress["waiting"]}
        for name, why in {**now, **waits}.items():
            if self._told.get(name) != why:
                tell(plain(f"{name}: {why}"))
        if progress["moved"] != self._moved:
            rest = len(now) + len(waits)
            tell(f"{self.node}: {progress['moved']} moved, {rest} to go" if rest else f"{self.node}: all moved")
        self._told = {**now, **waits}
        self._moved = progress["moved"]
        self.open = [plain(f"  {name}: {why}") for name, why in self._told.items()]
        self.drained = progress["state"] == "Drained"
