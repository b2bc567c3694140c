"""What a person may do on a node by hand, over JSON lines: start, stop and ask.

One rule: what is started by hand is of origin "hand", which no controller touches; and by hand nothing of a
controller's is touched.
"""

import secrets
from collections.abc import Mapping
from typing import Protocol

from agent.calls import CallError, Calls
from agent.clock import Clock
from agent.entry import Entry, InPlace, StopAsked
from agent.jsonlines import Answer, Refused
from agent.ledger import Ledger, LedgerUnwritable
from cri.convert import ContainerWish, PortWish
from kakuri.model import BUILT_IN, BY_HAND, Reason, State, WorkloadManifest, allocation_id, workload_of

KEPT_ENDS = 100
"""Ended ones that GetStatus still knows; nobody else will ever remove them."""


class Classes(Protocol):
    """What the node proved."""

    @property
    def proved(self) -> Mapping[str, str]:
        """Runtime class → handler."""

    def why_not(self, runtime_class: str) -> str:
        """Why the node does not offer this class."""


class ByHand:
    def __init__(self, calls: Calls, ledger: Ledger, classes: Classes, clock: Clock) -> None:
        self._calls = calls
        self._ledger = ledger
        self._classes = classes
        self._clock = clock

    async def start_by_hand(self, workload: WorkloadManifest) -> Answer:
        handler = self._handler(workload)
        newest = self._ledger.entries.get(self._calls.find_newest(workload.id))
        if newest is not None and not newest.released:
            return self._already(newest, workload)
        await self._forget_old(workload.id)
        entry = self._entry(workload, handler)
        try:
            await self._calls.accept(entry)
        except LedgerUnwritable as error:
            raise Refused("Unavailable", str(error)) from error
        return Answer(workload.id, State.PENDING)

    async def stop(self, id_: str) -> Answer:
        found = self._calls.find_newest(id_)
        entry = self._ledger.entries.get(found)
        asked = StopAsked(0, Reason.STOPPED, entry.in_place.grace_s if entry is not None else 10)
        try:
            origin = entry.origin if entry is not None else self._calls.get_status(found).origin
            if origin != BY_HAND:
                raise Refused("InvalidArgument", f"{id_} is run by a controller; delete the workload there")
            if entry is None:
                # Its ledger is lost, and a person says now that it may go.
                await self._calls.accept(_tombstone(found, asked, self._clock.now_ns()))
            elif entry.end is not None:
                return Answer(id_, entry.end.state)
            else:
                await self._calls.ask_stop(found, asked)
        except LedgerUnwritable as error:
            raise Refused("Unavailable", f"it is being stopped, but that is not on the disk: {error}") from error
        except CallError as error:
            raise Refused("NotFound", error.message) from error
        return Answer(id_, State.TERMINATING)

    async def get_status(self, id_: str) -> Answer:
        try:
            return Answer(id_, self._calls.get_status(id_).state)
        except CallError as error:
            entry = self._ledger.entries.get(self._calls.find_newest(id_))
            if entry is not None:
                return Answer(id_, State.PENDING)  # accepted a moment ago
            raise Refused("NotFound", error.message) from error

    def _handler(self, workload: WorkloadManifest) -> str:
        handler = self._classes.proved.get(workload.runtime_class)
        if handler is None:
            offered = ", ".join(sorted(self._classes.proved)) or "none yet"
            why = self._classes.why_not(workload.runtime_class)
            raise Refused(
                "InvalidArgument",
                f"workload.runtime_class: this node does not offer {workload.runtime_class!r} (it offers: {offered})"
                + (f": {why}" if why else ""),
            )
        least = next((c.min_memory_mb for c in BUILT_IN if c.id == workload.runtime_class), 0)
        if workload.memory_mb < least:
            raise Refused(
                "InvalidArgument",
                f"workload.memory_mb: {workload.runtime_class} needs at least {least}, else its sandbox can't start",
            )
        return handler

    def _already(self, newest: Entry, workload: WorkloadManifest) -> Answer:
        if newest.origin != BY_HAND:
            raise Refused("AlreadyExists", f"{workload.id} is run here by a controller; use another id")
        if newest.stop is not None or newest.end is not None:
            raise Refused("AlreadyExists", f"the last {workload.id} has not gone yet; try again in a moment")
        if newest.spec_hash != workload.replacing_hash():
            raise Refused("AlreadyExists", f"{workload.id} runs already with another spec; stop it first")
        status = self._calls.get_status(newest.id)
        return Answer(workload.id, status.state)

    async def _forget_old(self, workload_id: str) -> None:
        over = [e for e in self._ledger.entries.values() if e.origin == BY_HAND and e.released]
        over.sort(key=lambda e: e.accepted_at_ns)
        surplus = {e.id for e in over[: max(len(over) - KEPT_ENDS, 0)]}
        for entry in over:
            if entry.workload_id == workload_id or entry.id in surplus:
                try:
                    await self._calls.forget(entry.id)
                except LedgerUnwritable as error:
                    raise Refused("Unavailable", str(error)) from error

    def _entry(self, workload: WorkloadManifest, handler: str) -> Entry:
        limit = workload.restart_limit
        return Entry(
            id=allocation_id(workload.id, 0, secrets.token_hex(4)),
            workload_id=workload.id,
            origin=BY_HAND,
            revision=1,
            accepted_at_ns=self._clock.now_ns(),
            spec_hash=workload.replacing_hash(),
            wish=ContainerWish(
                image=workload.image,
                command=workload.command,
                args=workload.args,
                env=dict(workload.env),
                working_dir=workload.working_dir or "",
                memory_mb=workload.memory_mb,
                cpu_millicores=workload.cpu_millicores,
                ports=tuple(
                    PortWish(p.port, p.host_port or 0, p.host_ip, "udp" if p.protocol == "udp" else "tcp")
                    for p in workload.ports
                ),
                runtime_class=workload.runtime_class,
                handler=handler,
            ),
            in_place=InPlace(
                restart_policy=workload.restart_policy,
                restart_limit=-1 if limit is None else limit,
                grace_s=workload.termination_grace_s,
                labels=dict(workload.labels),
            ),
        )


def _tombstone(id_: str, asked: StopAsked, now_ns: int) -> Entry:
    return Entry(id=id_, workload_id=workload_of(id_), origin=BY_HAND, revision=1, accepted_at_ns=now_ns, stop=asked)
