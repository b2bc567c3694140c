"""Which server, and one command's run against it.

One rule: all that can go wrong ends here, in one message on stderr and an exit code; no command prints a traceback
for what a server, a network or a person did.
"""

import asyncio
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kakuri.cli.failure import Failure, ReaderLeft

if TYPE_CHECKING:
    from kakuri.client import Client, View

DEFAULT_SERVER = "http://127.0.0.1:8080"
RETRY_S = 2.0
"""For so long a refused connection is tried again: a controller that `kakuri dev` restarts is back by then, unless the
machine is busy. Longer, and who forgot to start one waits for the words that say so."""
PATIENT_S = 10.0
"""For a command that waits anyway."""
RECONNECT_S = 0.5

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help=f"The server's address; else KAKURI_SERVER, the config file, or {DEFAULT_SERVER}.",
        show_default=False,
    ),
]

_before_command: list[str] = []


def remember_server(server: str | None) -> None:
    """What --server said before the command's name."""
    _before_command[:] = [server] if server else []


def config_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(base) / "kakuri" / "config.toml"


def server_address(given: str | None) -> str:
    """The server to talk to, from the nearest source that names one."""
    if given:
        return given
    if _before_command:
        return _before_command[0]
    return os.environ.get("KAKURI_SERVER") or _configured() or DEFAULT_SERVER


def _configured() -> str | None:
    path = config_file()
    try:
        server = tomllib.loads(path.read_text("utf-8")).get("server")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}") from None
    if server is not None and not (isinstance(server, str) and server):
        raise Failure(f'{path}: server is not text; write server = "{DEFAULT_SERVER}"')
    return server


def run(server: str | None, command: Callable[["Client"], Awaitable[None]], *, retry_s: float = RETRY_S) -> None:
    """Runs the command with a client that tries a refused connection again for retry_s."""
    from kakuri.client import Client  # noqa: PLC0415 - aiohttp takes longer to import than --help to print

    async def connected() -> None:
        async with Client(server_address(server), retry_s=retry_s) as client:
            await command(client)

    asyncio.run(connected())


async def steady_mirror(client: "Client", kind: str, **filters: str) -> AsyncIterator["View"]:
    """client.mirror that outlives the server's restarts; it says once when the server is lost."""
    from kakuri.client import ServerUnreachable  # noqa: PLC0415 - see run

    seen = False
    lost = False
    while True:
        try:
            async for view in client.mirror(kind, **filters):
                seen, lost = True, False
                yield view
        except ServerUnreachable as error:
            if not seen:
                raise
            if not lost:
                tell(f"lost the server ({error.why}); waiting for it")
            lost = True
        await asyncio.sleep(RECONNECT_S)


def tell(message: str) -> None:
    """To a person: on stderr, so that stdout holds data alone."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - what a command line does


def guarded(command: Callable[[], Any]) -> NoReturn:
    """Runs the whole command line and exits with its code."""
    try:
        command()
        code = 0
        sys.stdout.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except (BrokenPipeError, ReaderLeft):
        code = _reader_left()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # noqa: BLE001 - what is not known is raised again
        code = _told(error)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_left()
    sys.exit(code)


def _reader_left() -> int:
    # `kakuri get | head`: not an error, but Python would complain once more when it closes stdout.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _told(error: Exception) -> int:
    if isinstance(error, Failure):
        tell(f"error: {error}")
        return error.code
    words = _known(error)
    if words is None:
        raise error
    tell(words)
    return 1


def _known(error: Exception) -> str | None:
    """The error in words; None for a fault of our own, whose traceback someone needs."""
    client, manifest = sys.modules.get("kakuri.client"), sys.modules.get("kakuri.manifest")
    if manifest is not None and isinstance(error, manifest.ManifestErrors):
        return str(error)
    if client is not None and isinstance(error, client.ServerUnreachable):
        return (
            f"error: {error}\nStart one with `kakuri dev`, or say where it is with --server, KAKURI_SERVER or "
            f'server = "…" in {config_file()}.'
        )
    if client is not None and isinstance(error, client.ApiError):
        fields = [f"  {e.pointer or 'body'}: {e.message}" for e in error.errors]
        return "\n".join([f"error: {error.detail}", *fields])
    if isinstance(error, OSError):
        return f"error: {error}"
    return None
