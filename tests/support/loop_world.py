"""A world for the loops: the in-memory store, agents that are objects, and time that passes only when told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from builders import NOW, a_manifest, a_registration
from controller.exchange import Errand, LeaseTerms, ObservedAllocation, Report, Sent
from controller.loops.bounds import NodeBounds
from controller.loops.driver import Driver
from controller.nodes import NodeUnreachable
from controller.store import open_store
from controller.store.contract import Put, Store
from kakuri.model import Desired


@dataclass
class ScriptedClock:
    """Time that passes only when told; a sleep ends when its time has come."""

    at: float = 0.0
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.at)

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        until = self.at + seconds
        async with self.moved:
            await self.moved.wait_for(lambda: self.at >= until)

    async def pass_(self, seconds: float) -> None:
        async with self.moved:
            self.at += seconds
            self.moved.notify_all()


@dataclass
class ObjectAgents:
    """Agents that accept all they are told, and run it at once."""

    ledger_uid: str = "ledger-1"
    other_ledgers: dict[str, str] = field(default_factory=dict)
    """By node, of those that have one of their own."""
    away: bool = False
    busy: str = ""
    """Why they put off what they are told."""
    told: list[str] = field(default_factory=list)
    has: dict[str, ObservedAllocation] = field(default_factory=dict)
    revision: int = 1
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def observe(
        self, node: str, address: str, *, epoch: int, instance: str, since: int, wait_s: float, lease: LeaseTerms
    ) -> Report:
        if self.away:
            raise NodeUnreachable("nobody there")
        async with self.changed:
            if since == self.revision and wait_s:
                await self.changed.wait_for(lambda: self.revision != since or self.away)
        if self.away:
            raise NodeUnreachable("hung up")
        return Report(
            node=node,
            instance="i",
            revision=self.revision,
            ledger_uid=self.other_ledgers.get(node, self.ledger_uid),
            full=True,
            allocations=tuple(self.has.values()),
        )

    async def apply(
        self,
        address: str,
        *,
        epoch: int,
        ledger_uid: str,
        errands: Sequence[Errand],
        stops: Sequence[str] = (),
        removals: Sequence[str] = (),
    ) -> list[Sent]:
        if self.away:
            raise NodeUnreachable("nobody there")
        if self.busy:
            return [
                Sent(e.allocation.id, e.allocation.revision, "busy", "LedgerUnwritable", self.busy) for e in errands
            ]
        for errand in errands:
            allocation = errand.allocation
            self.told.append(f"{allocation.desired} {allocation.workload}.{allocation.slot}")
            match allocation.desired:
                case Desired.RUN:
                    self.has[allocation.id] = ObservedAllocation(
                        id=allocation.id,
                        workload=allocation.workload,
                        slot=allocation.slot,
                        origin=self.cluster_id,
                        revision=allocation.revision,
                        state="Running",
                        started_once=True,
                    )
                case Desired.STOP:
                    self.end(allocation.id, "Stopped", revision=allocation.revision)
                case Desired.REMOVE:
                    self.has.pop(allocation.id, None)
        self.told.extend(f"stop orphan {i}" for i in stops)
        self.told.extend(f"remove orphan {i}" for i in removals)
        await self.say()
        orphans = [Sent(i, 2**53, "accepted") for i in (*stops, *removals)]
        return [*(Sent(e.allocation.id, e.allocation.revision, "accepted") for e in errands), *orphans]

    cluster_id: str = ""

    def end(self, id_: str, reason: str, *, revision: int, exit_code: int = 0) -> None:
        self.has[id_] = replace(
            self.has[id_],
            state="Failed" if exit_code else "Succeeded",
            reason=reason,
            exit_code=exit_code,
            released=True,
            revision=revision,
            finished_at=NOW,
        )

    async def say(self) -> None:
        async with self.changed:
            self.revision += 1
            self.changed.notify_all()

    async def go_away(self) -> None:
        async with self.changed:
            self.away = True
            self.changed.notify_all()


@dataclass
class World:
    store: Store
    agents: ObjectAgents
    clock: ScriptedClock
    driver: Driver

    async def put(self, id_: str, **fields: object) -> None:
        await self.store.apply([Put(a_manifest(id_, **fields))], now=self.clock.now())
        self.driver.workloads([id_])

    async def until(self, what: str, holds: object) -> None:
        """Turns the event loop until it holds; time in the world passes too, so that timers go off."""
        assert callable(holds)
        for _ in range(400):
            if await holds():
                return
            await asyncio.sleep(0.002)
            await self.clock.pass_(0.1)
        raise AssertionError(what)

    async def state(self, id_: str) -> str:
        return (await self.store.get_workload(id_)).status.state


@asynccontextmanager
async def a_world(*, with_node: bool = True) -> AsyncIterator[World]:
    store = await open_store("memory://")
    agents = ObjectAgents(cluster_id=store.cluster_id)
    clock = ScriptedClock()
    if with_node:
        await store.register_node("n1", a_registration(ledger_uid=agents.ledger_uid), now=clock.now())
    driver = Driver(store, agents, clock, "me", NodeBounds())
    loops = asyncio.create_task(driver.run())
    try:
        yield World(store, agents, clock, driver)
    finally:
        loops.cancel()
        await asyncio.gather(loops, return_exceptions=True)
        await store.close()
