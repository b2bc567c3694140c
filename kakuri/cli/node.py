"""kakuri node: say that a node is gone, or have its agent let go of the cluster that holds it."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.cordon import read_nodes
from kakuri.cli.drain import LOOK_S, steady
from kakuri.cli.failure import NotReady
from kakuri.cli.output import put
from kakuri.cli.session import ServerOption, run, tell

if TYPE_CHECKING:
    from kakuri.client import Client, Object

NodeArgument = Annotated[str, typer.Argument(help="n1, node/n1")]


def forget(node: NodeArgument, server: ServerOption = None) -> None:
    """Give up a node that is gone, and what it had; that is replaced elsewhere, and ended if the node is back."""
    (target,) = read_nodes([node])

    async def command(client: "Client") -> None:
        live = [o for o in (await client.list("Allocation", node=target.id)).items if not o.get("released")]
        await client.forget(target.id)
        if live:
            names = ", ".join(sorted(str(o["id"]) for o in live))
            tell(f"warning: {names} may still run on {target.id}; it is told to end them if it is back")
        put([f"{target} forgotten"])

    run(server, command)


def release(
    node: NodeArgument,
    held_by: Annotated[
        str, typer.Option("--from", metavar="CLUSTER_ID", help="The cluster that holds it; else this server's own.")
    ] = "",
    stop: Annotated[bool, typer.Option("--stop", help="End what runs there of that cluster.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For what ends there; then exit 3. 0: one look.")
    ] = 300,
    server: ServerOption = None,
) -> None:
    """Have a node's agent let go of the cluster that holds it, so that another one's controller may have it."""
    (target,) = read_nodes([node])

    async def command(client: "Client") -> None:
        def once() -> Awaitable["Object"]:
            return client.release(target.id, held_by, stop=stop)

        async def ask() -> "Object":
            return await (once() if timeout == 0 else steady(once))

        left: list[str] | None = None
        released = False
        try:
            async with asyncio.timeout(timeout or None):
                while not released:
                    answer = await ask()
                    released = answer["released"]
                    if not released and answer["left"] != left:
                        left = list(answer["left"])
                        tell(f"{target}: still to end there: {_names(left)}")
                    if timeout == 0:
                        break
                    if not released:
                        await asyncio.sleep(LOOK_S)
        except TimeoutError:
            pass
        if not released:
            raise NotReady(f"{target} is not released within {timeout:g} s: {_names(left or [])} has not ended")
        put([f"{target} released"])
        if held_by:
            tell("this server's cluster has it as soon as there is something to run there")
        else:
            tell("while its --server is this one its agent registers here again, and stays cordoned")

    run(server, command)


def _names(left: list[str]) -> str:
    return ", ".join(left) or "something that it does not name"
