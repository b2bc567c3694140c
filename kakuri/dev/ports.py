"""Which ports the three servers of `kakuri dev` listen on.

One rule: what runs already keeps its ports; a port that someone else has is told before anything is started.
"""

import errno
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from kakuri.cli.failure import Failure

HOST = "127.0.0.1"
DEFAULTS: Mapping[str, int] = {"http": 8080, "agent": 9001, "json": 9000}


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    agent: int
    json: int


def choose(wanted: Mapping[str, int | None], running: Mapping[str, int], last: Mapping[str, int]) -> Ports:
    """wanted: as the flags say, 0 for any, None when not said. running: of what lives already. last: of the run that
    what lives is of, for what does not live; empty when nothing lives. Raises Failure."""
    chosen: dict[str, int] = {}
    free = iter(_free(len(DEFAULTS)))
    for name, default in DEFAULTS.items():
        flag = wanted.get(name)
        known = running.get(name) or last.get(name)
        if name in running and flag and flag != running[name]:
            raise Failure(
                f"what runs in this folder has its {name} port at {running[name]}; leave --{name}-port out to go on "
                "with it, or end it first (run kakuri dev and press Ctrl-C)"
            )
        chosen[name] = running.get(name) or flag or known or (next(free) if flag == 0 else default)
    _check_distinct(chosen)
    for name, port in chosen.items():
        if name not in running:
            _check_free(name, port)
    return Ports(**chosen)


def _free(count: int) -> Sequence[int]:
    """Ports that nobody has now. All are held until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _check_distinct(chosen: Mapping[str, int]) -> None:
    by_port: dict[int, str] = {}
    for name, port in chosen.items():
        other = by_port.setdefault(port, name)
        if other != name:
            raise Failure(f"port {port} is chosen for both --{other}-port and --{name}-port; they must differ")


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections don't count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Failure(
                    f"port {port} is taken{_holder(port)}; choose another with --{name}-port (0 for any)"
                ) from None
            raise Failure(f"port {port} can't be used: {error.strerror}; choose another with --{name}-port") from None


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            listens = connection.status == psutil.CONN_LISTEN and address and address.port == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
