"""kakuri version: of this client, and of the server when one answers."""

from typing import TYPE_CHECKING

from kakuri import __version__
from kakuri.cli.output import put
from kakuri.cli.session import ServerOption, run, server_address, tell

if TYPE_CHECKING:
    from kakuri.client import Client


def version(server: ServerOption = None) -> None:
    """Show the version of this client and of the server."""
    put([f"client {__version__}"])

    async def command(client: "Client") -> None:
        from kakuri.client import ClientError  # noqa: PLC0415 - loaded by run

        try:
            put([f"server {await client.version()} at {server_address(server)}"])
        except ClientError as error:
            tell(f"server unknown: {error}")

    run(server, command)
