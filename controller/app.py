"""The composition root: the only module that names concrete adapters. Store, agents, loops and API, put together."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from controller.api import build_api, serving
from controller.api.ports import AgentRefused, AgentUnreachable, LogsNotFound
from controller.exchange import Released
from controller.loops.driver import Driver
from controller.nodes import Agents, LogNotFound, NodeError, NodeUnreachable
from controller.settings import ControllerSettings
from controller.store import open_store
from controller.store.contract import NotFound, Store
from kakuri import __version__
from kakuri.host import split_address
from kakuri.log import get_logger
from kakuri.model import Allocation


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        return datetime.now(tz=UTC)

    def monotonic(self) -> float:
        # One that goes on while the machine sleeps: what is judged by it (leases) runs out elsewhere meanwhile.
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class NodeLogs:
    """Logs from the agent that has them, with what goes wrong in the API's words."""

    def __init__(self, store: Store, agents: Agents) -> None:
        self._store = store
        self._agents = agents

    async def read(self, allocation: Allocation, *, follow: bool, tail: int, previous: bool) -> AsyncIterator[bytes]:
        """The log in chunks. Raises LogsNotFound, AgentUnreachable."""
        try:
            node = await self._store.get_node(allocation.node)
            chunks = self._agents.logs(node.status.address, allocation.id, follow=follow, tail=tail, previous=previous)
            async for chunk in chunks:
                yield chunk
        except NotFound as error:
            raise LogsNotFound(f"node {allocation.node} is gone, and its logs with it") from error
        except LogNotFound as error:
            raise LogsNotFound(error.message) from error
        except NodeError as error:
            raise AgentUnreachable(error.message) from error


class NodeReleases:
    """Releases under the epoch that holds now, whoever leads, with what goes wrong in the API's words."""

    def __init__(self, store: Store, agents: Agents) -> None:
        self._store = store
        self._agents = agents

    async def release(self, address: str, *, held_by: str, stop: bool) -> Released:
        """Raises AgentUnreachable, AgentRefused."""
        try:
            epoch = await self._store.lease_epoch()
            return await self._agents.release(address, epoch=epoch, held_by=held_by, stop=stop)
        except NodeUnreachable as error:
            raise AgentUnreachable(error.message) from error
        except NodeError as error:
            raise AgentRefused(error.message) from error


async def run(settings: ControllerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises StoreError when the store can't be opened, OSError for a taken port."""
    log = get_logger("controller")
    ended = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, ended.set)
    clock = SystemClock()
    store = await open_store(
        settings.store, serving=True, changes_kept=settings.keep_changes, events_kept=settings.keep_events
    )
    agents = Agents(store.cluster_id)
    try:
        # Two that share a name would take the lease from each other as if each were the other's next life.
        holder = f"{settings.holder_name}/{secrets.token_hex(3)}" if store.shared else settings.holder_name
        driver = Driver(store, agents, clock, holder, settings.node_bounds)
        api = build_api(
            store=store,
            kick=driver,
            logs=NodeLogs(store, agents),
            releases=NodeReleases(store, agents),
            version=__version__,
            clock=clock.now,
        )
        async with serving(api, *split_address(settings.http)), asyncio.TaskGroup() as group:
            log.info("serving", http=settings.http, cluster_id=store.cluster_id, version=__version__)
            loops = group.create_task(driver.run())
            await ended.wait()
            log.info("ending")
            loops.cancel()
    finally:
        await agents.close()
        await store.close()
