"""Ports of loopback that nobody has, and one that somebody has."""

import socket
from collections.abc import Iterator

import pytest


def unused_port() -> int:
    return unused_ports(1)[0]


def unused_ports(count: int) -> list[int]:
    """All are held until the last is found, so that they differ."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def free_port() -> int:
    return unused_port()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])
