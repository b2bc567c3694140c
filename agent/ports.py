"""Are the host ports that a sandbox wants free on this machine?

One rule: asked right before the sandbox, and only an answer for now: CNI's portmap would take a port that a program
listens on without a word, and its connections would go astray.
"""

import errno
import socket
from collections.abc import Iterable, Mapping

from agent.entry import Entry
from cri.convert import PortWish
from kakuri.model import ips_overlap


def find_conflict(entry: Entry, entries: Mapping[str, Entry]) -> str:
    """Who has one of its host ports, in words; empty when all are free."""
    assert entry.wish is not None
    for wish in entry.wish.ports:
        if not wish.host_port:
            continue
        holder = _holder(entry, wish, entries.values())
        if holder:
            return f"host port {wish.host_ip}:{wish.host_port}/{wish.protocol} is held by {holder} on this node"
        if taken := _try_bind(wish):
            return taken
    return ""


def _holder(entry: Entry, wish: PortWish, entries: Iterable[Entry]) -> str:
    for other in entries:
        # Of two that want it, the one that came first has it.
        first = (other.accepted_at_ns, other.id) < (entry.accepted_at_ns, entry.id)
        if other.id == entry.id or other.released or other.wish is None or not first:
            continue
        for port in other.wish.ports:
            same = port.host_port == wish.host_port and port.protocol == wish.protocol
            if same and ips_overlap(port.host_ip, wish.host_ip):
                return other.id
    return ""


def _try_bind(wish: PortWish) -> str:
    kind = socket.SOCK_DGRAM if wish.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:
            # What only lingers in TIME_WAIT is no conflict.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((wish.host_ip, wish.host_port))
        except OSError as error:
            return _refused(wish, error)
    return ""


def _refused(wish: PortWish, error: OSError) -> str:
    port = f"host port {wish.host_ip}:{wish.host_port}/{wish.protocol}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{port} is in use by another program on this node"
        case errno.EADDRNOTAVAIL:
            return f"{port}: this node does not have the address {wish.host_ip}"
        case _:
            # Such as a low port without privilege: the runtime may well be allowed to.
            return ""
