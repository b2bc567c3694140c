"""kakuri dev: all of kakuri on this machine, in one command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kakuri.cli.failure import Usage
from kakuri.cli.output import put


class Runtime(StrEnum):
    AUTO = "auto"
    CONTAINERD = "containerd"
    FAKE = "fake"


def _port_option(help_: str) -> Any:
    return typer.Option(min=0, max=65_535, metavar="PORT", show_default=False, help=help_)


def dev(
    directory: Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Where all of it is kept.")] = Path(
        ".kakuri"
    ),
    runtime: Annotated[
        Runtime, typer.Option(help="containerd: a private one; fake: nothing really runs; auto: what works here.")
    ] = Runtime.AUTO,
    http_port: Annotated[int | None, _port_option("The HTTP API (8080; 0: any free one).")] = None,
    agent_port: Annotated[int | None, _port_option("The agent's gRPC (9001; 0: any free one).")] = None,
    json_port: Annotated[int | None, _port_option("The agent's JSON lines (9000; 0: any free one).")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave workloads running at the end.")] = False,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="This node's id; else the host's name.")] = None,
) -> None:
    """Run a controller and an agent on this machine until Ctrl-C, and look after both."""
    from pydantic_core import PydanticCustomError  # noqa: PLC0415 - see below

    from kakuri.dev import Wanted, run  # noqa: PLC0415 - aiohttp and psutil are not needed for --help
    from kakuri.host import node_name  # noqa: PLC0415 - see above
    from kakuri.model.fields import check_name  # noqa: PLC0415 - nor is pydantic

    try:
        node = check_name(node or node_name())
    except PydanticCustomError as error:
        raise Usage(f"--node: {error.message()}") from None
    ports = {"http": http_port, "agent": agent_port, "json": json_port}
    run(Wanted(directory, runtime.value, node, keep, ports), lambda line: put([line]))
