"""kakuri wait: returns when workloads have got somewhere."""

from typing import TYPE_CHECKING, Annotated

import typer

from kakuri.cli.failure import Usage
from kakuri.cli.get import SelectorOption
from kakuri.cli.judge import FOR, read_goal
from kakuri.cli.kinds import Target, read_targets
from kakuri.cli.output import put
from kakuri.cli.session import PATIENT_S, ServerOption, run
from kakuri.cli.waiting import wait_for

if TYPE_CHECKING:
    from kakuri.client import Client


def wait(
    names: Annotated[list[str] | None, typer.Argument(help="Workloads: web, workload/web …")] = None,
    goal: Annotated[str, typer.Option("--for", help=f"What to wait for: {FOR}.")] = "state=Running",
    selector: SelectorOption = "",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Then exit 3; 0 looks once.")] = 300,
    server: ServerOption = None,
) -> None:
    """Wait until workloads are Running, updated, ended or gone. Exit 3 when they don't get there."""
    wanted = read_goal(goal)
    if bool(names) == bool(selector):
        raise Usage("name the workloads to wait for, or choose them by -l")
    targets = read_targets(names or [], ("Workload",))

    async def command(client: "Client") -> None:
        chosen = targets
        if selector:
            chosen = [
                Target("Workload", str(o["id"])) for o in (await client.list("Workload", selector=selector)).items
            ]
        await wait_for(client, chosen, wanted, timeout)
        put(f"{target} {wanted.state or wanted.text}" for target in chosen)

    run(server, command, retry_s=min(timeout, PATIENT_S))
