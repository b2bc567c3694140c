"""The database of a world, and how its controllers open it: one memory for all of them, as PostgreSQL is, or a SQLite
file for one.

One rule: a commit in memory is told to the witness before anybody else learns of it.
"""

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from controller.store import open_store
from controller.store.contract import Lease, Store, Unavailable
from controller.store.memory import MemoryStore
from controller.store.records import WorkloadRecord
from controller.store.sql import SqlStore
from controller.store.tables import Tables, Versions
from kakuri.model import Allocation
from sim.loop import Process


class Stores(Protocol):
    cluster_id: str

    @property
    def workloads(self) -> Mapping[str, WorkloadRecord]:
        """As of the last look."""

    async def open(self, process: Process) -> Store:
        """The database, for one life of a controller."""

    async def eyes(self) -> Store:
        """The database, for people and for the witness."""

    async def look(self) -> None:
        """The witness has seen all rows as they are."""

    def close(self) -> None: ...


class Memories:
    """One set of tables, and a store object for each controller's life."""

    def __init__(self, world: Any) -> None:
        self.cluster_id = "sim"
        self._world = world
        self.first = MemoryStore(cluster_id="sim", clock=world.loop.time, new_uid=world.uid)
        self._all: list[tuple[Process, Memory]] = []

    @property
    def workloads(self) -> Mapping[str, WorkloadRecord]:
        return self.first._tables._workloads

    async def open(self, process: Process) -> Store:
        store = Memory(self, self._world)
        self._all = [(p, s) for p, s in self._all if p.alive] + [(process, store)]
        return store

    async def eyes(self) -> Store:
        return Memory(self, self._world)

    def committed(self, by: "Memory", versions: Versions) -> None:
        tables = self.first._tables
        self._world.witness.committed(versions, tables)
        for process, store in self._all:
            if store is not by and process.alive:
                # PostgreSQL's NOTIFY, which comes a little later.
                loop = self._world.loop
                loop.call_later(0.001, store._kick, context=loop.world_context)

    def copy(self) -> dict[str, Any]:
        """A backup."""
        return _copied(self.first._tables.__dict__)

    async def bring_back(self, copy: dict[str, Any], now: datetime) -> None:
        """The database is as it was in the copy, and above all that agents and watchers saw since."""
        tables = self.first._tables
        epoch, version = tables.epoch, tables.resource_version()
        tables.__dict__.update(_copied(copy))
        await self.first.adopt_restored(epoch=epoch + 1, resource_version=version, now=now)
        self._world.witness.restored(tables._allocations)

    async def look(self) -> None:
        """The witness sees every commit."""

    def close(self) -> None:
        pass


def _copied(tables: dict[str, Any]) -> dict[str, Any]:
    """Rows are never changed, only replaced; what holds them is."""
    return {name: _copied_part(part) for name, part in tables.items()}


def _copied_part(part: Any) -> Any:
    match part:
        case dict():
            return {key: set(value) if isinstance(value, set) else value for key, value in part.items()}
        case list():
            return list(part)
        case _:
            return part


class Memory(MemoryStore):
    """The twin as PostgreSQL is used: several stores on the same tables."""

    def __init__(self, memories: Memories, world: Any) -> None:
        super().__init__(cluster_id="sim", clock=world.loop.time, new_uid=world.uid)
        self._memories = memories
        self._tables = memories.first._tables

    async def acquire_lease(self, holder: str, *, ttl_s: float) -> Lease:
        return await self._memories.first.acquire_lease(holder, ttl_s=ttl_s)

    async def renew_lease(self, holder: str, *, epoch: int, ttl_s: float) -> bool:
        return await self._memories.first.renew_lease(holder, epoch=epoch, ttl_s=ttl_s)

    async def release_lease(self, holder: str, *, epoch: int) -> None:
        await self._memories.first.release_lease(holder, epoch=epoch)

    def _committed(self, versions: Versions) -> None:
        first = self._memories.first
        if first._lease[1] != self._tables.epoch:
            first._lease = ("", self._tables.epoch, 0.0)  # a restore was confirmed
        if versions:
            self._memories.committed(self, versions)
        super()._committed(versions)


class Files:
    """A SQLite file, which one controller opens, and opens again after its death."""

    def __init__(self, world: Any, folder: Path) -> None:
        self._world = world
        self._path = folder / "kakuri.db"
        template, self.cluster_id = _template()
        shutil.copy(template, self._path)
        self._eyes: Store | None = None
        self._looked_at = -1
        self._workloads: dict[str, WorkloadRecord] = {}

    async def open(self, process: Process) -> Store:
        store = await open_store(f"sqlite:///{self._path}", serving=True)
        assert isinstance(store, SqlStore)
        process.on_death.append(lambda: _died(store))
        return store

    async def eyes(self) -> Store:
        if self._eyes is None:
            self._eyes = await open_store(f"sqlite:///{self._path}")
        return self._eyes

    async def look(self) -> None:
        eyes = await self.eyes()
        assert isinstance(eyes, SqlStore)
        try:
            found = await eyes._read(self._rows)
        except Unavailable:
            return
        if found is not None:
            self._world.witness.looked(found)

    def _rows(self, tables: Tables) -> list[Allocation] | None:
        """None: nothing was written since the last look."""
        if tables.resource_version() == self._looked_at:
            return None
        self._looked_at = tables.resource_version()
        self._workloads = tables.workloads(tables.workload_ids(after="", limit=1000))
        return tables.allocations_of(self._workloads) if self._workloads else []

    @property
    def workloads(self) -> Mapping[str, WorkloadRecord]:
        return self._workloads

    def close(self) -> None:
        if isinstance(self._eyes, SqlStore):
            _died(self._eyes)


@functools.cache
def _template() -> tuple[Path, str]:
    """A file at the present schema: migrations are not what these tests are about."""
    folder = Path(tempfile.mkdtemp(prefix="kakuri-sim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "template.db"

    async def make() -> str:
        store = await open_store(f"sqlite:///{path}")
        await store.close()
        return store.cluster_id

    return path, asyncio.run(make())


def _died(store: SqlStore) -> None:
    """What a kernel does to a killed process's file descriptors."""
    database: Any = store._database
    database._controller.release()
    for engine in (database._readers, database._writer):
        engine.dispose()
