"""kakuri events: what happened, once or as it happens."""

from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.failure import Usage
from kakuri.cli.get import OutputOption, show, show_changes
from kakuri.cli.kinds import read_targets
from kakuri.cli.output import Output
from kakuri.cli.session import ServerOption, run, steady_mirror

if TYPE_CHECKING:
    from kakuri.client import Client


def events(
    about: Annotated[
        str, typer.Option("--for", metavar="OBJECT", help="Only of this: web, workload/web, node/n1.")
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with each new event.")] = False,
    form: OutputOption = Output.TABLE,
    server: ServerOption = None,
) -> None:
    """Show what happened to objects, oldest first."""
    filters = _filters(about)

    async def command(client: "Client") -> None:
        if watch:
            await show_changes(steady_mirror(client, "Event", **filters), "Event", form)
            return
        show("Event", (await client.list("Event", **filters)).items, form)

    run(server, command)


def _filters(about: str) -> dict[str, str]:
    if not about:
        return {}
    targets = read_targets([about], ("Workload", "Node", "RuntimeClass"))
    if len(targets) != 1:
        raise Usage("--for takes one object")
    return {"object_kind": targets[0].kind, "object_id": targets[0].id}
