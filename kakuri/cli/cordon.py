"""kakuri cordon, kakuri uncordon: whether a node takes new work. What runs there goes on."""

from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.kinds import Target, read_targets
from kakuri.cli.output import put
from kakuri.cli.session import ServerOption, run

if TYPE_CHECKING:
    from kakuri.client import Client

NodesArgument = Annotated[list[str], typer.Argument(metavar="NODE...", help="n1, node/n1 …")]
_TRIES = 5
"""Somebody else may edit the node between our reading and our writing; nobody does so five times in a row."""


def cordon(nodes: NodesArgument, server: ServerOption = None) -> None:
    """Have nodes take no new work. What runs there goes on."""
    _set(nodes, server, schedulable=False, told="cordoned")


def uncordon(nodes: NodesArgument, server: ServerOption = None) -> None:
    """Have nodes take work again. Ends a drain."""
    _set(nodes, server, schedulable=True, told="uncordoned")


def read_nodes(words: list[str]) -> list[Target]:
    return read_targets(["node", *words], ("Node",))


def _set(words: list[str], server: str | None, *, schedulable: bool, told: str) -> None:
    targets = read_nodes(words)

    async def command(client: "Client") -> None:
        for target in targets:
            await _put(client, target.id, schedulable=schedulable)
            put([f"{target} {told}"])

    run(server, command)


async def _put(client: "Client", id_: str, *, schedulable: bool) -> None:
    """The node is as it was but for that."""
    from kakuri.client import ApiError  # noqa: PLC0415 - loaded by run

    for left in reversed(range(_TRIES)):
        node = await client.get("Node", id_)
        manifest = {"kind": "Node", "id": id_, "labels": node.get("labels", {}), "schedulable": schedulable}
        try:
            await client.put("Node", manifest, if_match=f"{node['uid']}.{node['generation']}")
        except ApiError as error:
            if error.reason != "Stale" or not left:
                raise
        else:
            return
