"""A node: what it has on disk and in its runtime, and the product's agent and fencer that live there.

One rule: what survives a kill survives it here: the ledger's file, the fence file, the runtime with its containers.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.calls import Calls
from agent.endpoints import Endpoint, Endpoints
from agent.fencer import Fencer
from agent.lease import FENCE_FILE
from agent.ledger import open_ledger
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.register import Registration
from agent.server import _Agent
from agent.sync import Sync
from controller.store.contract import Unavailable
from kakuri.client import ServerUnreachable
from kakuri.model import Capacity, NodeRegistration, ProvedClass
from sim.clocks import Clock
from sim.controllers import request
from sim.loop import Process, here
from sim.runtimes import HANDLERS, Runtime, SimCri
from sim.wire import Server, Wire


class Node:
    """A machine: what it has on disk and in its runtime, and the agent that lives there, again after each crash."""

    def __init__(self, world: Any, name: str, folder: Path) -> None:
        self.name = name
        self.clock = Clock(world)
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.agent: Process | None = None
        self.calls: Calls | None = None
        self.ledger: Any = None
        self.instance = ""
        self.server: Server | None = None
        self.boots = 1
        self.wants_agent = True
        self._world = world
        self.runtime = Runtime(world, self)
        self.fencer = FencerProcess(world, self)
        self.labels = {"zone": "a" if name in {"n1", "n3"} else "b"}

    @property
    def alive(self) -> bool:
        return self.agent is not None and self.agent.alive

    @property
    def boot(self) -> str:
        return f"boot-{self.boots}"

    def start(self) -> None:
        """An agent runs."""
        if self.alive or not self.wants_agent:
            return
        process = self.agent = Process(self._world.loop, f"agent {self.name}")
        process.write_dying = self._write_torn
        process.machine = self
        process.spawn(self._live(process))

    async def _live(self, process: Process) -> None:
        world, clock = self._world, self.clock
        wire = Wire(world, lambda: self.runtime.server, lambda: False, slow=self.runtime.takes_s, lossless=True)
        ledger = open_ledger(self.folder / "ledger")
        observations = Observations(ledger.uid)
        client = SimCri(f"unix:///{self.name}.sock", wire, self.runtime, clock)
        endpoints = Endpoints([Endpoint(client, HANDLERS)])
        logs = self.folder / "logs"
        lease = NodeLease(ledger, clock, self.folder, fencer_program=self.fencer, boot=self.boot)
        sync = Sync(ledger, observations, endpoints, lease, clock, logs_folder=logs)
        calls = Calls(ledger, observations, sync, endpoints, lease, clock, logs_folder=logs)

        def describe() -> NodeRegistration:
            return NodeRegistration(
                address=f"{self.name}:9001",
                capacity=Capacity(memory_mb=2048, cpu_millicores=8000),
                labels=self.labels,
                runtime_classes=(ProvedClass(id="native", handler="runc"), ProvedClass(id="gvisor", handler="runsc")),
                instance=observations.instance,
                ledger_uid=ledger.uid,
                version="sim",
                runtime="simulated",
                features=calls.features,
            )

        registration = Registration(self.name, describe, clock, observed_at_ns=lambda: calls.observed_at_ns)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sync.run())
            await sync.looked.wait()
            self.calls, self.ledger, self.instance = calls, ledger, observations.instance
            self.server = Server(process, self._answering(_Agent(calls), ledger.uid))
            tasks.create_task(lease.run(sync))
            tasks.create_task(registration.tell_for_ever(Registrar(world, self)))

    def _answering(self, servicer: _Agent, ledger_uid: str) -> Callable[..., Any]:
        async def answer(method: str, request: Any, context: Any) -> Any:
            newest = self._world.witness.epochs.get(ledger_uid, 0)
            response = await getattr(servicer, method)(request, context)
            self._world.witness.told(self.name, ledger_uid, method, request, response, newest=newest)
            return response

        return answer

    def kill(self) -> None:
        """kill -9 of the agent."""
        if self.agent is not None:
            self.agent.kill()
        self.server = self.calls = self.ledger = None

    def reboot(self) -> None:
        """Power off and on: no process is left, no container runs, the boot clock starts again."""
        self.kill()
        self.fencer.kill()
        self.runtime.power_off()
        self.boots += 1
        self.clock.booted_at = self._world.loop.time()
        self.runtime.start()

    def lose_ledger(self) -> None:
        """Somebody moves the state dir away; the agent was killed before."""
        self.kill()
        (self.folder / "ledger").unlink(missing_ok=True)

    def _write_torn(self, write: Callable[[], Any]) -> None:
        """An append of the ledger in the middle of which its process is killed leaves any part of it."""
        path = self.folder / "ledger"
        before = path.stat() if path.exists() else None
        write()
        after = path.stat() if path.exists() else None
        if before and after and before.st_ino == after.st_ino and after.st_size > before.st_size:
            os.truncate(path, self._world.rng.randint(before.st_size, after.st_size))


class FencerProcess:
    """The fencer of a node, a process of its own that outlives agents: the product's, on this world's cgroups."""

    def __init__(self, world: Any, node: Node) -> None:
        self._world = world
        self._node = node
        self.process: Process | None = None

    async def keep_up(self) -> str:
        """As the agent asks for it: it runs and watches."""
        if not self.is_left():
            process = self.process = Process(self._world.loop, f"fencer {self._node.name}")
            process.machine = self._node
            process.spawn(self._watch(process))
            await asyncio.sleep(0.1)
        return ""

    def is_left(self) -> bool:
        return self.process is not None and self.process.alive

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    async def _watch(self, process: Process) -> None:
        fencer = Fencer(self._node.folder / FENCE_FILE, boot=self._node.boot, now_ns=self._node.clock.boot_ns)
        while fencer.is_needed():
            await asyncio.sleep(fencer.look())
        process.kill()


class Registrar:
    """The agent's way to a controller's HTTP API."""

    def __init__(self, world: Any, node: Node) -> None:
        self._world = world
        self._node = node

    async def register_node(self, id_: str, registration: NodeRegistration) -> None:
        world = self._world
        await world.point(here(), "register")
        within_reach = [c for c in world.controllers.values() if not world.is_cut(c.name, self._node.name)]
        if not within_reach:
            await asyncio.sleep(2.0)
            raise ServerUnreachable("controller", "no route to host")
        controller = world.one_of(within_reach)

        async def work() -> None:
            _, changed = await controller.store.register_node(id_, registration, now=controller.clock.now())
            if changed and controller.driver is not None:
                controller.driver.nodes()

        try:
            await request(world, controller, work)
        except Unavailable as error:
            raise ServerUnreachable("controller", error.message) from error
