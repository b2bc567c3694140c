"""The machine's own name, and addresses on it: the few words about hosts that controller, agent and dev share."""

import re
import socket


def node_name() -> str:
    """The name of this machine as a node's id."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")[:63].strip("-")
    return name or "local"


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of host:port. ValueError says what would be right."""
    host, colon, port = address.rpartition(":")
    good_host = bool(host) and (":" not in host or (host.startswith("[") and host.endswith("]")))
    if not colon or not good_host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"{address!r} is not an address; use host:port, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def check_address(address: str) -> str:
    """The address, when it is one. Raises ValueError."""
    split_address(address)
    return address
