"""Which allocations leave the nodes that are being drained, and why the others stay for now.

One rule: before its drain's deadline nothing is stopped that has no place elsewhere, a job is left to finish, and a
workload has no more slots down than max_unavailable says, whatever took them down; from the deadline on all is stopped.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controller.plan.action import Staying, Stop
from controller.plan.place import Room, Search
from controller.plan.replace import STEADY_S, Slot, Slots, Standing
from controller.plan.snapshot import NodeView, Snapshot, WorkloadView
from kakuri.model import Allocation, Desired, Drain, EventDraft, EventType, Reason, RestartPolicy, WorkloadSpec


@dataclass(frozen=True, slots=True)
class Part:
    """A workload as the rest of the plan leaves it."""

    view: WorkloadView
    slots: Slots
    paused: bool
    """Its change is paused: what has the earlier spec would come up with one that did not."""


@dataclass(frozen=True, slots=True)
class Evacuation:
    """What the drains do to one workload."""

    stops: tuple[Stop, ...] = ()
    staying: tuple[Staying, ...] = ()
    events: tuple[EventDraft, ...] = ()


@dataclass(frozen=True, slots=True)
class _Claim:
    """A place that an allocation on its way will need."""

    workload: str
    slot: int
    spec: WorkloadSpec


@dataclass(frozen=True, slots=True)
class _Leaver:
    """An allocation that may leave as soon as it has a place. counts: it takes one of those that may be down."""

    part: Part
    slot: Slot
    allocation: Allocation
    counts: bool

    @property
    def claim(self) -> _Claim:
        return _Claim(self.part.view.id, self.slot.number, self.part.view.spec)


def on_draining(allocation: Allocation | None, nodes: Mapping[str, NodeView]) -> Drain | None:
    """The drain of the node where it is live and wanted, if there is one."""
    if allocation is None or allocation.released or allocation.state.ended or allocation.desired is not Desired.RUN:
        return None
    node = nodes.get(allocation.node)
    return node.drain if node is not None else None


def is_over(drain: Drain, now: datetime) -> bool:
    return drain.deadline_at is not None and drain.deadline_at <= now


def evacuate(parts: Sequence[Part], snapshot: Snapshot, room: Room) -> dict[str, Evacuation]:
    """By workload. room: as all that is placed by the plan leaves it; it is only looked at."""
    nodes = {n.id: n for n in snapshot.nodes}
    if not any(n.drain is not None for n in snapshot.nodes):
        return {}
    return _Pass(parts, snapshot, room, nodes).decide()


class _Pass:
    def __init__(self, parts: Sequence[Part], snapshot: Snapshot, room: Room, nodes: Mapping[str, NodeView]) -> None:
        self._parts = [p for p in sorted(parts, key=lambda p: p.view.id) if not p.view.deleting]
        self._snapshot = snapshot
        self._room = room
        self._nodes = nodes
        self._taken = {p.view.id: Counter(a.node for a in p.view.allocations if a.live) for p in parts}
        self._down = {p.view.id: p.slots.unavailable + len(p.slots.settling(snapshot.now)) for p in self._parts}
        self._stops: dict[str, list[Stop]] = {}
        self._staying: dict[str, list[Staying]] = {}
        # What was stopped for a drain before and has no place yet comes first.
        self._claims = [_Claim(a.workload, a.slot, a.spec) for a in snapshot.leaving]

    def decide(self) -> dict[str, Evacuation]:
        leavers = [leaver for part in self._parts for leaver in self._sort(part)]
        # Again until nothing more leaves: places are given in one order however the stops came about, so that the
        # next pass comes to the same.
        while True:
            leavers, left = self._round(leavers)
            if not left:
                break
        return {
            p.view.id: Evacuation(
                tuple(self._stops.get(p.view.id, ())),
                tuple(sorted(self._staying.get(p.view.id, ()), key=lambda s: s.allocation_id)),
                tuple(self._overdue(p)),
            )
            for p in self._parts
        }

    def _sort(self, part: Part) -> Iterable[_Leaver]:
        """Stops what the deadline has caught up with, and notes what stays whether or not it has a place."""
        now = self._snapshot.now
        for slot in part.slots.wanted:
            current = slot.current
            drain = on_draining(current, self._nodes)
            if drain is None or current is None:
                continue
            leaver = _Leaver(part, slot, current, counts=slot.available)
            if is_over(drain, now):
                self._stop(leaver, f"{current.node} is being drained, and the deadline has passed")
            elif why := _why_it_stays(part, slot, current, drain, self._nodes[current.node], now):
                self._stay(leaver, why)
            else:
                yield leaver

    def _overdue(self, part: Part) -> Iterable[EventDraft]:
        """For each node what of this workload the deadline stops there."""
        rows = {a.id: a for a in part.view.allocations}
        found: dict[str, list[str]] = {}
        for stop in self._stops.get(part.view.id, ()):
            node = self._nodes[rows[stop.allocation_id].node]
            if node.drain is not None and is_over(node.drain, self._snapshot.now):
                found.setdefault(node.id, []).append(stop.allocation_id)
        for node_id, ids in sorted(found.items()):
            shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
            yield EventDraft(
                object_kind="Node",
                object_id=node_id,
                type=EventType.WARNING,
                reason="DrainDeadline",
                message=f"the deadline of its drain has passed: stopping {shown}",
                node=node_id,
            )

    def _round(self, leavers: Sequence[_Leaver]) -> tuple[list[_Leaver], bool]:
        """Those that have not left, and whether any has."""
        room = self._room.copy()
        searches: dict[tuple[str, str], Search] = {}

        def search(claim: _Claim) -> Search:
            key = claim.workload, claim.spec.replacing_hash()
            if key not in searches:
                searches[key] = room.search(claim.spec, self._taken.get(claim.workload, Counter()))
            return searches[key]

        for claim in sorted(self._claims, key=lambda c: (c.workload, c.slot)):
            search(claim).take()
        waiting: list[_Leaver] = []
        for leaver in leavers:
            if not self._has_turn(leaver) or search(leaver.claim).take() is None:
                waiting.append(leaver)
            else:
                self._stop(leaver, f"{leaver.allocation.node} is being drained")
        if len(waiting) < len(leavers):
            return waiting, True
        nowhere: dict[str, str] = {}  # in words that are made once a workload, for they look at every node
        for leaver in waiting:
            view = leaver.part.view
            if not self._has_turn(leaver):
                down, limit = self._down[view.id], view.spec.max_unavailable
                self._stay(leaver, f"waits its turn: {down} not up for {STEADY_S} s, max_unavailable is {limit}")
                continue
            if view.id not in nowhere:
                nowhere[view.id] = room.why_nowhere(view.spec)
            self._stay(leaver, f"has no place elsewhere: {nowhere[view.id]}")
        return waiting, False

    def _has_turn(self, leaver: _Leaver) -> bool:
        """Whether one more of its workload may be down, or it is down anyway."""
        view = leaver.part.view
        return not leaver.counts or self._down[view.id] < view.spec.max_unavailable

    def _stop(self, leaver: _Leaver, message: str) -> None:
        id_ = leaver.part.view.id
        self._stops.setdefault(id_, []).append(Stop(leaver.allocation.id, Reason.DRAINED, message))
        self._claims.append(_Claim(id_, leaver.slot.number, leaver.allocation.spec))
        self._down[id_] += leaver.counts

    def _stay(self, leaver: _Leaver, message: str) -> None:
        self._staying.setdefault(leaver.part.view.id, []).append(Staying(leaver.allocation.id, message))


def _why_it_stays(part: Part, slot: Slot, allocation: Allocation, drain: Drain, node: NodeView, now: datetime) -> str:
    """Why it is left where it is for now, whether or not there is a place elsewhere; "" when it need not be."""
    policy = part.view.spec.restart_policy
    if not node.ready:
        return f"can't be ended there: {silence(node)}"
    if policy is not RestartPolicy.ALWAYS:
        until = "there is no deadline" if drain.deadline_at is None else f"the deadline is {_moment(drain.deadline_at)}"
        return f"is a job (restart_policy {policy}) that is left to finish; {until}"
    if slot.standing is Standing.UNSURE:
        return f"is not known to run or not: {allocation.reason or 'no reason was told'}"
    if slot.outdated and part.paused:
        return "has the earlier spec of a change that is paused; apply a spec that comes up"
    if slot.due is not None and slot.due > now:
        return f"has run for less than {STEADY_S} s"
    return ""


def silence(node: NodeView) -> str:
    """That a node is not heard of, and the ways out."""
    why = node.message or "its agent does not answer"
    return f"{node.id} is silent ({why}); next: bring it back, or `kakuri node forget {node.id}`"


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
