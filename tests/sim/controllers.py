"""A controller: the product's driver, on a store and a network that fail.

One rule: all of its code is the product's; what is simulated is what lies around it, the time, and its death.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from controller.loops.bounds import NodeBounds
from controller.loops.driver import Driver
from controller.nodes import Agents
from controller.store.contract import Applied, Recorded, Store, Unavailable
from kakuri.client import ServerUnreachable
from sim.clocks import Clock
from sim.loop import Process, here
from sim.wire import Stub

ANSWER_S = 30.0
"""How long anybody waits for an answer of its API."""


class Controller:
    """A machine on which a controller runs, again after each crash."""

    def __init__(self, world: Any, name: str) -> None:
        self.name = name
        self.clock = Clock(world)
        self.process: Process | None = None
        self.driver: Driver | None = None
        self.store: StorePort | None = None
        self.cut_from_store = False
        self._world = world

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def answers(self) -> bool:
        """Whether a person's request reaches it."""
        return self.process is not None and self.alive and not self.process.stopped and self.driver is not None

    def start(self) -> None:
        if self.alive:
            return
        self.process = Process(self._world.loop, f"controller {self.name}")
        self.process.spawn(self._live(self.process))

    async def _live(self, process: Process) -> None:
        store = await self._world.stores.open(process)
        self.store = StorePort(self._world, self, store)
        agents = SimAgents(self._world, self, store.cluster_id)
        self.driver = Driver(self.store, agents, self.clock, self.name, NodeBounds())
        await self.driver.run()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.driver = self.store = None


class _InOrder(frozenset[str]):
    """Walked in order: Python's own order of texts differs from run to run."""

    def __iter__(self) -> Any:
        return iter(sorted(super().__iter__()))


class StorePort:
    """A controller's way to its store: transactions fail before or after they are committed, and answers take time."""

    def __init__(self, world: Any, controller: Controller, store: Store) -> None:
        self.cluster_id = store.cluster_id
        self._world = world
        self._controller = controller
        self._store = store

    def on_commit(self, kick: Callable[[], None]) -> None:
        self._store.on_commit(kick)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **named: Any) -> Any:
            return await self._cross(name, lambda: method(*args, **named))

        return call

    async def _cross(self, name: str, call: Callable[[], Any]) -> Any:
        world, weather, process = self._world, self._world.weather, here()
        await world.point(process, name)
        if self._controller.cut_from_store:
            await asyncio.sleep(5.0)
            raise Unavailable("the database can't be reached")
        if world.chance(weather.store_down):
            world.note("transaction failed", name)
            raise Unavailable("the connection to the database was lost")
        result = await call()
        await world.point(process, name)
        if world.chance(weather.store_down):
            world.note("commit's answer lost", name)
            raise Unavailable("the connection to the database was lost, and whether this was done is unknown")
        if world.chance(weather.store_slow):
            await asyncio.sleep(world.rng.uniform(0.01, weather.store_slow_s))
        else:
            await asyncio.sleep(0.0005)
        return _ordered(result)


def _ordered(result: Any) -> Any:
    match result:
        case frozenset():
            return _InOrder(result)
        case Recorded():
            return replace(result, dirty=_InOrder(result.dirty))
        case Applied():
            sets = {n: _InOrder(getattr(result, n)) for n in ("written", "stale", "nodes")}
            return replace(result, **sets)
        case _:
            return result


class SimAgents(Agents):
    """The product's client of the agents, on the world's network."""

    def __init__(self, world: Any, controller: Controller, cluster_id: str) -> None:
        super().__init__(cluster_id)
        self._world = world
        self._controller = controller

    def _stub(self, address: str) -> Any:
        return Stub(self._world.wire_to_agent(self._controller.name, address.partition(":")[0]))


async def request(world: Any, controller: Controller, work: Callable[[], Any]) -> None:
    """The work is done in the controller's process, as for HTTP. Raises ServerUnreachable when no answer comes."""
    await asyncio.sleep(world.latency())
    process = controller.process
    if process is None or not process.alive or controller.driver is None:
        raise ServerUnreachable(controller.name, "connection refused")
    answer = world.loop.create_future()

    def fail(error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)
            answer.exception()  # whoever asked may be gone

    def broken() -> None:
        fail(ServerUnreachable(controller.name, "the connection broke", connected=True))

    async def serve() -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - passed on, as an HTTP status is
            fail(error)
        else:
            if not answer.done():
                answer.set_result(None)

    process.on_death.append(broken)
    try:
        process.spawn(serve())
        async with asyncio.timeout(ANSWER_S):
            await answer
    except TimeoutError as error:
        raise ServerUnreachable(controller.name, "no answer in time", connected=True) from error
    finally:
        if broken in process.on_death:
            process.on_death.remove(broken)
    await asyncio.sleep(world.latency())
    if world.chance(world.weather.lost):
        raise ServerUnreachable(controller.name, "the answer was lost", connected=True)
