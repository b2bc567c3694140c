"""The node in the controller's books: what it has, where its agent is, which runtime classes it proved.

One rule: told again until it is heard, and now and then after that, for the controller's database may be another one;
a controller that is away disturbs nothing here.
"""

import asyncio
import os
import platform
import re
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NoReturn, Protocol

import psutil

from agent.clock import Clock
from agent.settings import Settings
from kakuri.client import Client, ClientError
from kakuri.log import OncePer, get_logger
from kakuri.model import Capacity, NodeRegistration

AGAIN_S = 30.0
"""Shorter costs both sides their quiet; longer, and a new database waits for the node."""
UNHEARD_S = 5.0
"""How often it is told while no controller observes."""
OBSERVED_WITHIN_S = 75.0
"""A long poll ends within a minute, so a controller that observes was heard of by then."""
LAST_BACKOFF_S = 5.0
MIN_RESERVE_MB = 256
"""Memory that is not offered: kernel, containerd and agent need some, else the machine dies before a workload does."""
_log = get_logger("agent.register")


class Registrar(Protocol):
    async def register_node(self, id_: str, registration: NodeRegistration) -> object: ...


class AnyOf:
    """Controllers of one cluster: whichever answers will do. The one that answered last is asked first."""

    def __init__(self, registrars: Sequence[Registrar]) -> None:
        self._registrars = deque(registrars)

    async def register_node(self, id_: str, registration: NodeRegistration) -> object:
        """Raises ClientError when none of them takes it."""
        for _ in range(len(self._registrars) - 1):
            try:
                return await self._registrars[0].register_node(id_, registration)
            except ClientError:
                self._registrars.rotate(-1)
        return await self._registrars[0].register_node(id_, registration)


class Registration:
    """Says who we are, until cancelled."""

    def __init__(
        self,
        node: str,
        describe: Callable[[], NodeRegistration],
        clock: Clock,
        *,
        observed_at_ns: Callable[[], int],
    ) -> None:
        """describe: what holds now. observed_at_ns: when a controller last asked."""
        self._node = node
        self._describe = describe
        self._clock = clock
        self._observed_at_ns = observed_at_ns
        self._changed = asyncio.Event()
        self._once = OncePer(60, lambda: clock.now_ns() / 1e9)

    def changed(self) -> None:
        """Tell it soon."""
        self._changed.set()

    async def run(self, servers: Sequence[str]) -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(server)) for server in servers]
            await self.tell_for_ever(AnyOf(clients))

    async def tell_for_ever(self, client: Registrar) -> NoReturn:
        backoff_s = 0.1
        told: NodeRegistration | None = None
        while True:
            self._changed.clear()
            registration = self._describe()
            try:
                await client.register_node(self._node, registration)
            except ClientError as error:
                if self._once(str(error)):
                    _log.warning("not registered", node=self._node, error=str(error))
                wait_s = backoff_s
                backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)
            else:
                if registration != told:
                    classes = [c.id for c in registration.runtime_classes]
                    _log.info("registered", node=self._node, address=registration.address, runtime_classes=classes)
                told = registration
                backoff_s = 0.1
                silent_ns = self._clock.now_ns() - self._observed_at_ns()
                wait_s = AGAIN_S if silent_ns < OBSERVED_WITHIN_S * 1e9 else UNHEARD_S
            await self._clock.wait(self._changed, self._clock.now_ns() + int(wait_s * 1e9))


def measure_capacity() -> Capacity:
    """What the machine has to offer: its cores, and its memory without a reserve."""
    total_mb = psutil.virtual_memory().total // 2**20
    reserve_mb = max(MIN_RESERVE_MB, total_mb // 20)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Capacity(memory_mb=max(total_mb - reserve_mb, 1), cpu_millicores=cores * 1000)


def node_labels(settings: Settings) -> Mapping[str, str]:
    """What the agent says of its machine, and what it was told to say."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    found = {
        "kakuri.dev/hostname": socket.gethostname(),
        "kakuri.dev/arch": machine,
        "kakuri.dev/os": platform.system().lower(),
    }
    return {**{k: _as_value(v) for k, v in found.items()}, **settings.label}


def _as_value(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("-._")
