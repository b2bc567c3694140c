"""The node's allocations: a worker for each, and what makes workers look: relists, which are the truth, and events,
which are hints.

One rule: what bears our labels but is in no ledger is told of and left alone, until somebody stops it by its id.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from agent import logs
from agent.clock import Clock
from agent.endpoints import Endpoint, Endpoints, Listing, list_ours
from agent.gate import Gate
from agent.ledger import Ledger
from agent.means import Means
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.progress import SECOND, SETTLE_S
from agent.pulls import Pulls
from agent.seen import Seen
from agent.status import found_status
from agent.worker import Worker
from cri.client import CriClient
from cri.convert import LABEL_ALLOCATION, ObservedContainer, ObservedSandbox
from cri.errors import CriError, Unimplemented
from cri.v1 import runtime_pb2 as pb
from kakuri.log import OncePer, get_logger

RELIST_S = 10.0
"""With events. Shorter costs an idle node its quiet; longer, and a lost event is found out late."""
RELIST_WITHOUT_EVENTS_S = 2.0
NEW_STREAM_S = 10.0
"""For so long after it began to listen it lists as if it heard nothing: containerd may give the first event to the
stream of an agent that was killed."""
FIRST_LOOK_S = 5.0
"""How long a start waits for a slow runtime before it serves without having looked."""
LISTEN_AGAIN_S = 0.5
ROTATE_S = 5.0
"""For one log. A runtime that hangs on one container holds up the looks at all others for as long; shorter, and a slow
disk keeps its logs from being rotated."""
CANARY = "canary"
"""The origin of the sandboxes that prove a handler."""
_ENDED = (pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT)
_log = get_logger("agent.sync")


class Sync:
    """run() is the node at work; start() and kick() may be called while it runs."""

    def __init__(
        self,
        ledger: Ledger,
        observations: Observations,
        endpoints: Endpoints,
        lease: NodeLease,
        clock: Clock,
        *,
        logs_folder: Path,
    ) -> None:
        self.looked = asyncio.Event()
        """All entries have workers, and the runtimes were asked, as far as they answered."""
        self.listed_all = False
        """Whether each runtime answered when they were asked last what they have of ours."""
        self._ledger = ledger
        self._observations = observations
        self._endpoints = endpoints
        self._lease = lease
        self._clock = clock
        self._logs = logs_folder
        self._once = OncePer(60, lambda: clock.now_ns() / 1e9)
        self._workers: dict[str, Worker] = {}
        self._found: dict[str, Endpoint] = {}
        self._relist = asyncio.Event()
        self._deaf: set[str] = set()
        """Endpoints without events."""
        self._hears_from_ns = 0
        self._closing = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._means: Means | None = None

    def start(self, id_: str) -> None:
        """The entry has a worker; it is new in the ledger. What was found of it before is looked at first."""
        if self._tasks is None or id_ in self._workers:
            return  # run() begins with all entries
        entry = self._ledger.entries[id_]
        unheard = id_ in self._found or entry.wish is None
        self._found.pop(id_, None)
        # What is new to ledger and runtime need not be looked for. Should the name be taken, the start finds it out.
        seen = Seen() if unheard else Seen(looked_at_ns=self._clock.now_ns())
        self._spawn(id_, seen)

    def kick(self, id_: str) -> None:
        """Its entry has changed, or was forgotten."""
        if id_ not in self._ledger.entries and id_ not in self._found:
            self._observations.withdraw(id_)
        if (worker := self._workers.get(id_)) is not None:
            worker.kick()
        elif id_ in self._ledger.entries and self._ledger.is_accepted(id_):
            self.start(id_)  # its acceptance failed, and went to the disk with this change

    def ids_of(self, id_: str) -> frozenset[str] | None:
        """Its sandboxes and containers in the runtime; None while that is not known."""
        worker = self._workers.get(id_)
        return worker.seen.ids if worker is not None and worker.seen.looked else None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._means = Means(
                ledger=self._ledger,
                observations=self._observations,
                endpoints=self._endpoints,
                pulls=Pulls(tasks),
                gate=Gate(),
                lease=self._lease,
                clock=self._clock,
                logs=self._logs,
                once=self._once,
                closing=self._closing,
            )
            try:
                async with asyncio.timeout(FIRST_LOOK_S):
                    listings = await self._list_all()
            except TimeoutError:
                listings = {}
            self._adopt(listings)
            self.looked.set()
            for endpoint in self._endpoints.all:
                tasks.create_task(self._listen(endpoint))
            await self._relist_for_ever()

    async def drain(self, bound_s: float) -> None:
        """Nothing new is begun, and what workers were at is done, if it took no longer than that. A start that is cut
        off in its middle would be left half done by some runtimes."""
        self._closing.set()
        for worker in self._workers.values():
            worker.kick()
        if self._running:
            await asyncio.wait(self._running, timeout=bound_s)

    async def relist(self) -> None:
        """Each worker has been told what the runtimes have now, and what nobody knows is told of."""
        before = {worker: worker.actions for worker in self._workers.values()}
        listings = await self._list_all()
        whole = len(listings) == len(self._endpoints.all)
        by_allocation = _by_allocation(listings.values())
        for id_, worker in list(self._workers.items()):
            if worker in before and (whole or self._is_listed(id_, listings)):
                worker.compare(by_allocation.get(id_, Listing((), ())), before[worker])
        self._tell_found(listings, whole=whole)

    def _adopt(self, listings: Mapping[Endpoint, Listing]) -> None:
        now_ns = self._clock.now_ns()
        by_allocation = _by_allocation(listings.values())
        adopted = 0
        for id_, entry in self._ledger.entries.items():
            seen = Seen()
            if entry.wish is not None and self._is_listed(id_, listings):
                listing = by_allocation.get(id_, Listing((), ()))
                seen = seen.listed(listing.sandboxes, listing.containers, now_ns)
                adopted += not seen.empty
            # An agent that was killed in the middle of a start left a runtime that may still be at it.
            midway = seen.empty and not entry.released and not entry.cleared
            self._spawn(id_, seen, settle_at_ns=now_ns + SETTLE_S * SECOND if midway else 0)
        self._tell_found(listings, whole=len(listings) == len(self._endpoints.all))
        _log.info("adopted", entries=len(self._ledger.entries), in_runtime=adopted, found=len(self._found))

    def _is_listed(self, id_: str, listings: Mapping[Endpoint, Listing]) -> bool:
        entry = self._ledger.entries.get(id_)
        return entry is not None and self._endpoints.find_for(entry.wish) in listings

    def _spawn(self, id_: str, seen: Seen, *, settle_at_ns: int = 0) -> None:
        assert self._tasks is not None
        assert self._means is not None
        worker = Worker(id_, self._means, seen, settle_at_ns=settle_at_ns)
        self._workers[id_] = worker
        worker.tell()
        task = self._tasks.create_task(self._work(id_, worker), name=id_)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _work(self, id_: str, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            del self._workers[id_]

    async def _list_all(self) -> Mapping[Endpoint, Listing]:
        """By endpoint; one that doesn't answer is not in it, which says nothing of what it has."""
        listings: dict[Endpoint, Listing] = {}

        async def add(endpoint: Endpoint) -> None:
            try:
                listings[endpoint] = await list_ours(endpoint.client)
            except CriError as error:
                if self._once(f"list {endpoint.client.endpoint}"):
                    _log.warning("runtime not listed", endpoint=endpoint.client.endpoint, error=error.message)

        async with asyncio.TaskGroup() as tasks:
            for endpoint in self._endpoints.all:
                tasks.create_task(add(endpoint))
        return listings

    def _tell_found(self, listings: Mapping[Endpoint, Listing], *, whole: bool) -> None:
        found: dict[str, Endpoint] = {}
        for endpoint, listing in listings.items():
            for id_, ours in _by_allocation([listing]).items():
                if id_ in self._ledger.entries or not ours.sandboxes or ours.sandboxes[-1].owner.origin == CANARY:
                    continue
                found[id_] = endpoint
                status = found_status(ours.sandboxes, ours.containers, simulated=endpoint.simulated)
                if self._observations.publish(status):
                    _log.info("found", allocation=id_, origin=status.origin, endpoint=endpoint.client.endpoint)
        self.listed_all = whole
        if whole:
            for id_ in self._found.keys() - found.keys() - self._ledger.entries.keys():
                self._observations.withdraw(id_)
            self._found = found
        else:
            self._found.update(found)

    async def _relist_for_ever(self) -> NoReturn:
        while True:
            hears = not self._deaf and self._clock.now_ns() >= self._hears_from_ns
            period_s = RELIST_S if hears else RELIST_WITHOUT_EVENTS_S
            self._relist.clear()
            await self._clock.wait(self._relist, self._clock.now_ns() + int(period_s * 1e9))
            await self.relist()
            await self._rotate_logs()

    async def _rotate_logs(self) -> None:
        for id_, worker in list(self._workers.items()):
            running = worker.running
            if running is None:
                continue
            client, container = running

            async def reopen(client: CriClient = client, container_id: str = container.id) -> None:
                await client.reopen_container_log(container_id)

            try:
                async with asyncio.timeout(ROTATE_S):
                    await logs.rotate(self._logs / id_, container.attempt, reopen)
            except (CriError, OSError) as error:
                if self._once(f"rotate {id_}"):
                    _log.warning("log not rotated", allocation=id_, error=str(error))

    async def _listen(self, endpoint: Endpoint) -> None:
        while True:
            self._hears_from_ns = self._clock.now_ns() + int(NEW_STREAM_S * 1e9)
            try:
                async for event in endpoint.client.events():
                    self._hint(event)
            except Unimplemented:
                self._deaf.add(endpoint.client.endpoint)
                self._relist.set()
                _log.info("runtime has no events", endpoint=endpoint.client.endpoint, relist_s=RELIST_WITHOUT_EVENTS_S)
                return
            except CriError as error:
                if self._once(f"events {endpoint.client.endpoint}"):
                    _log.info("events ended", endpoint=endpoint.client.endpoint, error=error.message)
            await asyncio.sleep(LISTEN_AGAIN_S)
            # What happened meanwhile is told by nobody.
            self._relist.set()

    def _hint(self, event: pb.ContainerEventResponse) -> None:
        if event.container_event_type not in _ENDED:
            return  # what is created and started is our own doing
        worker = self._workers.get(event.pod_sandbox_status.labels.get(LABEL_ALLOCATION, ""))
        if worker is not None:
            worker.hint(event.container_id)


def _by_allocation(listings: Iterable[Listing]) -> Mapping[str, Listing]:
    ids: dict[str, tuple[list[ObservedSandbox], list[ObservedContainer]]] = defaultdict(lambda: ([], []))
    for listing in listings:
        for sandbox in listing.sandboxes:
            ids[sandbox.allocation_id][0].append(sandbox)
        for container in listing.containers:
            ids[container.allocation_id][1].append(container)
    return {id_: Listing(tuple(s), tuple(c)) for id_, (s, c) in ids.items() if id_}
