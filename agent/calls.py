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
from agent.asked import bounded_grace_s, entry_of, in_place_of, tombstone
from agent.clock import Clock
from agent.endpoints import Endpoints
from agent.entry import Entry, InPlace, StopAsked, Updated, apply_change
from agent.ledger import Ledger, LedgerUnwritable
from agent.node_lease import NodeLease, Unleased
from agent.observations import Observations
from agent.sync import Sync
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.log import get_logger
from kakuri.model import BY_HAND, FEATURE_LEASE, OnDisconnect, Reason, RestartPolicy

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
        lease: NodeLease,
        clock: Clock,
        *,
        logs_folder: Path,
    ) -> None:
        self.observed_at_ns = 0
        """When a controller last asked."""
        self.features: tuple[str, ...] = (FEATURE_LEASE,) if endpoints.fenceable else ()
        """What a start may require beyond the first version of the wire."""
        self._acted_under = 0
        """An epoch that the ledger's disk did not take."""
        self._binding = asyncio.Lock()
        """Held while it is written down whose controller this agent obeys."""
        self._releasing = False
        self._ledger = ledger
        self._observations = observations
        self._sync = sync
        self._endpoints = endpoints
        self._lease = lease
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
        async with self._binding:
            self._check_fence(request.fence)  # another may have been faster
            unwritable = await self._bind(request.fence)
        async with asyncio.TaskGroup() as tasks:
            # Side by side, so that they share an fsync.
            starts = [tasks.create_task(self._start(s, request.fence, unwritable)) for s in request.starts]
            stops = [tasks.create_task(self._stop(s, request.fence)) for s in request.stops]
        removals = [await self._remove(r, request.fence) for r in request.removals]
        return wire.ApplyResponse(outcomes=[t.result() for t in (*starts, *stops)] + removals)

    async def observe(self, request: wire.ObserveRequest) -> wire.ObserveResponse:
        self._check_fence(request.fence)
        self.observed_at_ns = self._clock.now_ns()
        # Only a cluster that this agent is bound to can bind it to a lease.
        if (request.instance, request.fence.cluster_id) == (self._observations.instance, self._ledger.cluster_id):
            self._lease.renew(request.heard, request.lease_s, request.stop_bound_s)
        wait_s = min(max(request.wait_s, 0.0), MAX_WAIT_S)
        try:
            response = await self._observations.since(request.instance, request.since, wait_s)
        finally:
            self.observed_at_ns = self._clock.now_ns()
        response.sent_at_ns = self._clock.boot_ns()
        return response

    async def release(self, request: wire.ReleaseRequest) -> wire.ReleaseResponse:
        """No cluster's any more, once nothing of the one that holds it is left here."""
        # A ledger that was lost does not know who held it, and the runtime may still have what that cluster started.
        holder = self._ledger.cluster_id or request.held_by
        if not request.fence.cluster_id:
            raise BadRequest("fence.cluster_id is missing: say whose controller this is")
        if holder == BY_HAND:
            raise BadRequest("what was started by hand is no cluster's; stop it on this node")
        if not holder:
            return wire.ReleaseResponse(released=True)
        if request.held_by != holder:
            raise Fenced(f"this agent belongs to the cluster {holder}, not to {request.held_by or '(none named)'}")
        if request.fence.cluster_id == holder:
            self._check_fence(request.fence)
        if not self._sync.listed_all:
            raise NotNow("a runtime of this node does not say what it has, so nobody knows what is left of the cluster")
        left = self._left_of(holder)
        if request.stop:
            await self._stop_for_release(left, request.fence, holder)
            left = self._left_of(holder)
        if left:
            return wire.ReleaseResponse(left=left)
        over = [e.id for e in self._ledger.entries.values() if e.origin == holder]
        self._releasing = True
        try:
            await self._ledger.unbind(holder)
        except LedgerUnwritable as error:
            raise NotNow(str(error)) from error
        finally:
            self._releasing = False
        self._acted_under = 0
        for id_ in over:
            await asyncio.to_thread(shutil.rmtree, self._logs / id_, ignore_errors=True)
            self._sync.kick(id_)
        _log.info("released", cluster=holder, asked_by=request.fence.cluster_id, forgotten=len(over))
        return wire.ReleaseResponse(released=True)

    def _left_of(self, cluster_id: str) -> list[str]:
        """What of it has not ended here, found in the runtime or in the ledger."""
        entries = self._ledger.entries
        found = {s.allocation_id for s in self._observations.all() if s.origin == cluster_id} - entries.keys()
        return sorted(found | {e.id for e in entries.values() if e.origin == cluster_id and not e.released})

    async def _stop_for_release(self, ids: list[str], fence: wire.Fence, holder: str) -> None:
        held = wire.Fence(cluster_id=holder, epoch=self._ledger.epoch)
        for id_ in ids:
            entry = self._ledger.entries.get(id_)
            grace_s = entry.in_place.grace_s if entry is not None else InPlace().grace_s
            asked = StopAsked(0, Reason.STOPPED, grace_s, f"the node was released, as {fence.cluster_id} asked")
            try:
                if entry is None:
                    await self.accept(tombstone(asked, id_, held, self._clock.now_ns()))
                elif entry.stop is None and entry.end is None:
                    await self.ask_stop(id_, asked)
            except LedgerUnwritable as error:
                _log.warning("stop not on the disk", allocation=id_, error=str(error))

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
                "that cluster's controller and its database back, or take the node over with "
                f"`kakuri node release NODE --from {self._ledger.cluster_id}`"
            )
        newest = max(self._ledger.epoch, self._acted_under)
        if fence.epoch < newest:
            raise Fenced(f"epoch {fence.epoch} is over: this agent has acted under {newest}")

    async def _bind(self, fence: wire.Fence) -> str:
        """The agent is this cluster's, and the epoch is on the disk; else why it can't be, when it may go on."""
        try:
            await self._ledger.bind(fence.cluster_id, fence.epoch)
        except LedgerUnwritable as error:
            if self._ledger.cluster_id != fence.cluster_id:
                raise NotNow(str(error)) from error
            self._acted_under = fence.epoch
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
                await self._update(entry, Updated(start.revision, in_place_of(start.in_place)))
            else:
                fresh = entry_of(start, fence, self._clock.now_ns())
                if fresh.leased:
                    await self._lease.bind(fresh.id)
                    if fresh.id in self._ledger.entries or self._ledger.was_forgotten(fresh.id):
                        return await self._start(start, fence, unwritable)  # another call about it was faster
                if self._releasing or self._ledger.cluster_id != fence.cluster_id:
                    return _outcome(start, wire.ApplyOutcome.BUSY, "Released", "the agent was released meanwhile")
                await self.accept(fresh)
        except LedgerUnwritable as error:
            return _outcome(start, wire.ApplyOutcome.BUSY, "LedgerUnwritable", str(error))
        except Unleased as error:
            return _outcome(start, wire.ApplyOutcome.BUSY, "Unleased", str(error))
        return _outcome(start, wire.ApplyOutcome.ACCEPTED)

    async def _update(self, entry: Entry, change: Updated) -> None:
        """Its in-place fields are those of the newer revision. Raises LedgerUnwritable, Unleased."""
        after = apply_change(entry, change)
        if after.leased and not entry.leased and entry.end is None:
            # It may run already: from the moment that this is accepted, it ends with the lease.
            ids = self._sync.ids_of(entry.id)
            if ids is None:
                raise Unleased("the runtime was not asked yet what it has of this")
            if why := self._lease.why_not(after):
                raise Unleased(why)
            await self._lease.bind(entry.id, ids)
            if entry.id not in self._ledger.entries:
                raise Unleased("it was removed meanwhile")
        await self._ledger.record(entry.id, change)
        self._sync.kick(entry.id)
        if after.leased and not entry.leased:
            # A container that was made while the list was written is on it too.
            await self._lease.bind(entry.id, self._sync.ids_of(entry.id) or frozenset())
        elif entry.leased and not after.leased:
            await self._lease.unbind(entry.id)

    async def accept(self, entry: Entry) -> None:
        """The entry is durable, and work on it has begun: also when the caller is cut off. Raises LedgerUnwritable."""
        try:
            await self._ledger.accept(entry)
        finally:
            # Not is_durable: a newer revision may have come while this one was written, and it starts no worker.
            if entry.id in self._ledger.entries and self._ledger.is_accepted(entry.id):
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
        asked = StopAsked(stop.revision, stop.reason, bounded_grace_s(stop.termination_grace_s))
        entry = self._ledger.entries.get(id_)
        found = self._observations.get(id_)
        if BY_HAND in {entry.origin if entry is not None else "", found.origin if found is not None else ""}:
            message = "it was started by hand on this node, and no controller touches it; stop it there"
            return _outcome(stop, wire.ApplyOutcome.REFUSED, Reason.REFUSED, message)
        try:
            if entry is not None:
                await self.ask_stop(id_, asked)
            elif self._ledger.was_forgotten(id_) and (found is None or found.revision):
                # Nothing of it will be reported any more, so this is all that a restored database hears of it.
                return _outcome(stop, wire.ApplyOutcome.ACCEPTED, Reason.FORGOTTEN, "it has ended and was removed")
            else:
                # Also for a forgotten one that is found: its sandbox was slow, and came up since.
                await self.accept(tombstone(asked, id_, fence, self._clock.now_ns()))
        except LedgerUnwritable as error:
            return _outcome(stop, wire.ApplyOutcome.BUSY, "LedgerUnwritable", str(error))
        return _outcome(stop, wire.ApplyOutcome.ACCEPTED)

    async def _remove(self, removal: wire.Remove, fence: wire.Fence) -> wire.ApplyOutcome:
        id_ = removal.allocation_id
        entry = self._ledger.entries.get(id_)
        found = self._observations.get(id_)
        if entry is None and found is not None and found.origin == fence.cluster_id and not found.revision:
            # Another ledger's, or its sandbox was slow and came up since: it was stopped, and has to be once more.
            stop = wire.Stop(allocation_id=id_, revision=removal.revision - 1, reason=Reason.STOPPED)
            stopped = await self._stop(stop, fence)
            if stopped.result != wire.ApplyOutcome.ACCEPTED:
                return _outcome(removal, stopped.result, stopped.reason, stopped.message)
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
        missing = sorted(set(start.required_features) - set(self.features))
        if missing:
            return Reason.INCOMPATIBLE_AGENT, f"this agent lacks {', '.join(missing)}; upgrade it"
        if not _ALLOCATION.fullmatch(start.allocation_id):
            return Reason.REFUSED, f"{start.allocation_id!r} is no allocation's id"
        if start.in_place.restart_policy not in set(RestartPolicy):
            return Reason.REFUSED, f"the restart policy {start.in_place.restart_policy!r} is unknown"
        if start.in_place.on_disconnect not in {"", *OnDisconnect}:
            return Reason.REFUSED, f"on_disconnect {start.in_place.on_disconnect!r} is unknown"
        handler = start.container.handler if entry is None or entry.wish is None else entry.wish.handler
        if start.in_place.on_disconnect == OnDisconnect.REPLACE and (why := self._endpoints.why_unfenceable(handler)):
            return Reason.INCOMPATIBLE_AGENT, f"on_disconnect replace: {why}"
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


def _outcome(
    of: wire.Start | wire.Stop | wire.Remove,
    result: "wire.ApplyOutcome.Result.ValueType",
    reason: str = "",
    message: str = "",
) -> wire.ApplyOutcome:
    return wire.ApplyOutcome(
        allocation_id=of.allocation_id, result=result, reason=reason, message=message, revision=of.revision
    )
