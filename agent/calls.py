"""What can be asked of an agent: the one set of calls behind gRPC and JSON lines.

One rule: an accepted start, stop or removal is durable in the ledger before it is answered.

    CallError
    ├── BadRequest   what was asked makes no sense
    ├── Fenced       another cluster's, an older epoch's, or meant for another ledger
    ├── NotHere      no such allocation or log
    └── NotNow       temporary: the ledger can't be written
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from agent import logs
from agent.clock import Clock
from agent.endpoints import Endpoints
from agent.entry import Entry, InPlace, StopAsked, Updated
from agent.ledger import Ledger, LedgerUnwritable
from agent.observations import Observations
from agent.sync import Sync
from cri.convert import ContainerWish, PortWish
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.log import get_logger
from kakuri.model import BY_HAND, Reason, RestartPolicy, workload_of

FEATURES: tuple[str, ...] = ()
"""What a start may require beyond the first version of the wire."""
MAX_WAIT_S = 60.0
"""Of a long poll, whatever was asked: a reader that is gone is noticed by then."""
_ALLOCATION = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?\.[0-9]{1,6}\.[0-9a-f]{8}")
_log = get_logger("agent.calls")


class CallError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(CallError):  # noqa: N818 - named as an answer, here and below
    pass


class Fenced(CallError):  # noqa: N818
    pass


class NotHere(CallError):  # noqa: N818
    pass


class NotNow(CallError):  # noqa: N818
    pass


class Calls:
    def __init__(
        self,
        ledger: Ledger,
        observations: Observations,
        sync: Sync,
        endpoints: Endpoints,
        clock: Clock,
        *,
        logs_folder: Path,
    ) -> None:
        self.observed_at_ns = 0
        """When a controller last asked."""
        self._ledger = ledger
        self._observations = observations
        self._sync = sync
        self._endpoints = endpoints
        self._clock = clock
        self._logs = logs_folder

    async def apply(self, request: wire.ApplyRequest) -> wire.ApplyResponse:
        """An outcome for each, in the order starts, stops, removals."""
        self._check_fence(request.fence)
        if request.starts and request.ledger_uid != self._ledger.uid:
            raise Fenced(
                f"these starts are for the ledger {request.ledger_uid or '(none)'}, and this agent's is "
                f"{self._ledger.uid}: its earlier allocations are lost; read its registration again"
            )
        unwritable = await self._bind(request.fence)
        async with asyncio.TaskGroup() as tasks:
            # Side by side, so that they share an fsync.
            starts = [tasks.create_task(self._start(s, request.fence, unwritable)) for s in request.starts]
            stops = [tasks.create_task(self._stop(s, request.fence)) for s in request.stops]
        removals = [await self._remove(r) for r in request.removals]
        return wire.ApplyResponse(outcomes=[t.result() for t in (*starts, *stops)] + removals)

    async def observe(self, request: wire.ObserveRequest) -> wire.ObserveResponse:
        self._check_fence(request.fence)
        self.observed_at_ns = self._clock.now_ns()
        wait_s = min(max(request.wait_s, 0.0), MAX_WAIT_S)
        try:
            return await self._observations.since(request.instance, request.since, wait_s)
        finally:
            self.observed_at_ns = self._clock.now_ns()

    def get_status(self, id_: str) -> wire.AllocationStatus:
        """Of an allocation, or of a workload's newest here."""
        status = self._observations.get(self.find_newest(id_))
        if status is None:
            raise NotHere(f"there is no {id_} on this node")
        return status

    def find_newest(self, id_: str) -> str:
        """The id of the allocation that is meant; the id itself when there is none."""
        if id_ in self._ledger.entries or "." in id_:
            return id_
        mine = [e for e in self._ledger.entries.values() if e.workload_id == id_ and e.wish is not None]
        if mine:
            # What is on its way out, or has ended, is meant only when nothing else is there.
            return max(mine, key=lambda e: (e.stop is None and e.end is None, e.accepted_at_ns, e.id)).id
        return next((s.allocation_id for s in self._observations.all() if s.workload_id == id_), id_)

    async def log(self, request: wire.LogsRequest) -> AsyncIterator[bytes]:
        """What a container of it wrote, in chunks of at most 64 KiB; followed until that container has ended."""
        id_ = request.allocation_id
        folder = self._logs / id_
        if self._observations.get(id_) is None or not _ALLOCATION.fullmatch(id_):
            raise NotHere(f"there is no allocation {id_} on this node")
        attempt = await asyncio.to_thread(logs.newest_attempt, folder)
        if request.previous and attempt is not None:
            attempt = await asyncio.to_thread(logs.previous_attempt, folder, attempt)
        if attempt is None and request.previous:
            raise NotHere(f"{id_} has no earlier run whose log is kept")
        if attempt is None and not request.follow:
            raise NotHere(f"{id_} has no log yet: no container of it was started")
        present = self._attempt_of(id_) if attempt is None else attempt

        def ended() -> bool:
            entry = self._ledger.entries.get(id_)
            return entry is None or entry.end is not None or entry.attempt > present

        follow = request.follow and not request.previous
        async for chunk in logs.read(folder, present, tail=request.tail, follow=follow, ended=ended):
            yield chunk

    def _attempt_of(self, id_: str) -> int:
        entry = self._ledger.entries.get(id_)
        return entry.attempt if entry is not None else 0

    def _check_fence(self, fence: wire.Fence) -> None:
        if not fence.cluster_id:
            raise BadRequest("fence.cluster_id is missing: say whose controller this is")
        if self._ledger.cluster_id not in {"", fence.cluster_id}:
            raise Fenced(
                f"this agent belongs to the cluster {self._ledger.cluster_id} and refuses {fence.cluster_id}; bring "
                "that cluster's controller and its database back, or end its workloads here with "
                "`python -m agent --shutdown` (flags as the agent's) and move its state dir away"
            )
        if fence.epoch < self._ledger.epoch:
            raise Fenced(f"epoch {fence.epoch} is over: this agent has acted under {self._ledger.epoch}")

    async def _bind(self, fence: wire.Fence) -> str:
        """The agent is this cluster's, and the epoch is on the disk; else why it can't be, when it may go on."""
        try:
            await self._ledger.bind(fence.cluster_id, fence.epoch)
        except LedgerUnwritable as error:
            if self._ledger.cluster_id != fence.cluster_id:
                raise NotNow(str(error)) from error
            return str(error)  # stops are carried out all the same
        return ""

    async def _start(self, start: wire.Start, fence: wire.Fence, unwritable: str) -> wire.ApplyOutcome:
        entry = self._ledger.entries.get(start.allocation_id)
        refusal = self._refusal(start, fence, entry)
        if refusal is not None:
            reason, message = refusal
            _log.warning("start refused", allocation=start.allocation_id, reason=reason, why=message)
            return _outcome(start, wire.ApplyOutcome.REFUSED, reason, message)
        if unwritable:
            return _outcome(start, wire.ApplyOutcome.BUSY, "LedgerUnwritable", unwritable)
        try:
            if entry is not None:
                await self._ledger.record(entry.id, Updated(start.revision, in_place_of(start.in_place)))
                self._sync.kick(entry.id)
            else:
                await self.accept(_entry_of(start, fence, self._clock.now_ns()))
        except LedgerUnwritable as error:
            return _outcome(start, wire.ApplyOutcome.BUSY, "LedgerUnwritable", str(error))
        return _outcome(start, wire.ApplyOutcome.ACCEPTED)

    async def accept(self, entry: Entry) -> None:
        """The entry is durable, and work on it has begun: also when the caller is cut off. Raises LedgerUnwritable."""
        try:
            await self._ledger.accept(entry)
        finally:
            if entry.id in self._ledger.entries and self._ledger.is_durable(entry.id):
                self._sync.start(entry.id)

    async def ask_stop(self, id_: str, asked: StopAsked) -> None:
        """It is being stopped, whatever the ledger's disk says. Raises LedgerUnwritable when that is not durable."""
        try:
            await self._ledger.record(id_, asked)
        finally:
            self._sync.kick(id_)

    async def _stop(self, stop: wire.Stop, fence: wire.Fence) -> wire.ApplyOutcome:
        id_ = stop.allocation_id
        if not _ALLOCATION.fullmatch(id_):
            return _outcome(stop, wire.ApplyOutcome.REFUSED, Reason.REFUSED, f"{id_!r} is no allocation's id")
        asked = StopAsked(stop.revision, stop.reason, _bounded_grace_s(stop.termination_grace_s))
        entry = self._ledger.entries.get(id_)
        found = self._observations.get(id_)
        if BY_HAND in {entry.origin if entry is not None else "", found.origin if found is not None else ""}:
            message = "it was started by hand on this node, and no controller touches it; stop it there"
            return _outcome(stop, wire.ApplyOutcome.REFUSED, Reason.REFUSED, message)
        try:
            if entry is not None:
                await self.ask_stop(id_, asked)
            elif not self._ledger.was_forgotten(id_):
                await self.accept(_tombstone(asked, id_, fence, self._clock.now_ns()))
        except LedgerUnwritable as error:
            return _outcome(stop, wire.ApplyOutcome.BUSY, "LedgerUnwritable", str(error))
        return _outcome(stop, wire.ApplyOutcome.ACCEPTED)

    async def _remove(self, removal: wire.Remove) -> wire.ApplyOutcome:
        id_ = removal.allocation_id
        entry = self._ledger.entries.get(id_)
        if entry is None:
            return _outcome(removal, wire.ApplyOutcome.ACCEPTED)
        if not entry.released:
            what = "it has not ended" if entry.end is None else "what is left of it is being removed"
            return _outcome(removal, wire.ApplyOutcome.BUSY, "NotEnded", what)
        try:
            await self.forget(id_)
        except LedgerUnwritable as error:
            return _outcome(removal, wire.ApplyOutcome.BUSY, "LedgerUnwritable", str(error))
        return _outcome(removal, wire.ApplyOutcome.ACCEPTED)

    async def forget(self, id_: str) -> None:
        """Neither entry nor logs of it are left. Only for what is released."""
        await asyncio.to_thread(shutil.rmtree, self._logs / id_, ignore_errors=True)
        await self._ledger.forget(id_)
        self._sync.kick(id_)

    def _refusal(self, start: wire.Start, fence: wire.Fence, entry: Entry | None) -> tuple[str, str] | None:
        """Why this will never run here, if it won't."""
        missing = sorted(set(start.required_features) - set(FEATURES))
        if missing:
            return Reason.INCOMPATIBLE_AGENT, f"this agent lacks {', '.join(missing)}; upgrade it"
        if not _ALLOCATION.fullmatch(start.allocation_id):
            return Reason.REFUSED, f"{start.allocation_id!r} is no allocation's id"
        if start.in_place.restart_policy not in set(RestartPolicy):
            return Reason.REFUSED, f"the restart policy {start.in_place.restart_policy!r} is unknown"
        if entry is not None and entry.wish is None:
            return Reason.STOPPED, "it was stopped before its start came"
        if entry is not None and entry.origin != fence.cluster_id:
            return Reason.REFUSED, f"an allocation of this id is {entry.origin}'s"
        if entry is None and self._ledger.was_forgotten(start.allocation_id):
            return Reason.REFUSED, "it has ended and was removed"
        if entry is None and self._endpoints.find(start.container.handler) is None:
            has = ", ".join(sorted(self._endpoints.handlers)) or "none"
            return Reason.REFUSED, f"this node has no handler {start.container.handler!r} (it has: {has})"
        return None


def in_place_of(given: wire.InPlaceSpec) -> InPlace:
    return InPlace(
        restart_policy=RestartPolicy(given.restart_policy),
        restart_limit=given.restart_limit,
        grace_s=_bounded_grace_s(given.termination_grace_s),
        labels=dict(given.labels),
        generation=given.generation,
    )


def _entry_of(start: wire.Start, fence: wire.Fence, now_ns: int) -> Entry:
    given = start.container
    return Entry(
        id=start.allocation_id,
        workload_id=start.workload_id,
        origin=fence.cluster_id,
        revision=start.revision,
        accepted_at_ns=now_ns,
        workload_uid=start.workload_uid,
        slot=start.slot,
        spec_hash=start.spec_hash,
        epoch=fence.epoch,
        wish=ContainerWish(
            image=given.image,
            command=tuple(given.command),
            args=tuple(given.args),
            env=dict(given.env),
            working_dir=given.working_dir,
            memory_mb=given.memory_mb,
            cpu_millicores=given.cpu_millicores,
            ports=tuple(
                PortWish(p.port, p.host_port, p.host_ip or "127.0.0.1", "udp" if p.protocol == "udp" else "tcp")
                for p in given.ports
            ),
            runtime_class=given.runtime_class,
            handler=given.handler,
        ),
        in_place=in_place_of(start.in_place),
    )


def _tombstone(asked: StopAsked, id_: str, fence: wire.Fence, now_ns: int) -> Entry:
    return Entry(
        id=id_,
        workload_id=workload_of(id_),
        origin=fence.cluster_id,
        revision=asked.revision,
        accepted_at_ns=now_ns,
        slot=int(id_.split(".")[1]),
        epoch=fence.epoch,
        stop=asked,
    )


def _outcome(
    of: wire.Start | wire.Stop | wire.Remove,
    result: "wire.ApplyOutcome.Result.ValueType",
    reason: str = "",
    message: str = "",
) -> wire.ApplyOutcome:
    return wire.ApplyOutcome(
        allocation_id=of.allocation_id, result=result, reason=reason, message=message, revision=of.revision
    )


def _bounded_grace_s(grace_s: int) -> int:
    return min(max(grace_s, 0), 3600)
