"""plan(): what to do, now, so that what is comes nearer to what is wanted.

One rule: the same snapshot gives the same plan, whatever the order of its parts, and a plan carried out leaves nothing
to plan. Each workload's slots are first sorted into standings (replace.py), then each standing gets its answer here:

    EMPTY                         place
    DONE, FAILED                  nothing; at an earlier spec: place, within the change's limit
    READY, COMING_UP, BROKEN      update in place; at an earlier spec: stop, within the change's limit
    UNSURE, STOPPING, CLEARING    wait for the node
    BACKING_OFF                   wait until due
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from controller.plan.action import (
    Action,
    Forget,
    Place,
    Plan,
    Remove,
    Staying,
    Stop,
    Update,
    WorkloadPlan,
    carried_out,
)
from controller.plan.conditions import Outlook, events_of, status_of, waiting_of
from controller.plan.drain import Evacuation, Part, evacuate, on_draining
from controller.plan.place import Room
from controller.plan.replace import Slot, Slots, Standing, sort_into_slots
from controller.plan.snapshot import NodeView, Snapshot, WorkloadView
from kakuri.model import Allocation, Desired, EventDraft, EventType, Reason, WorkloadSpec, allocation_id
from kakuri.model.workload import REPLACING_FIELDS

KEPT_ENDS = 1
"""Ended allocations kept beside a slot's newest, for the logs of the run before. More only fills the node's disk."""
TOLD_PLACEMENTS = 10
"""Placements of one workload that get an event each; of a larger batch the rest is told in one."""
_AGENT_SEES = ("labels", "restart_policy", "max_restarts", "termination_grace_s", "on_disconnect")
"""The in-place fields that change what an agent does. A change of the others needs no word to it."""


def plan(snapshot: Snapshot) -> Plan:
    """The decisions for every workload of the snapshot, in the order of their ids."""
    room = Room(snapshot)
    nodes = {n.id: n for n in snapshot.nodes}
    drafts = [_Draft(view, snapshot, nodes, room) for view in sorted(snapshot.workloads, key=lambda w: w.id)]
    for draft in drafts:
        draft.draw()
    # A drain looks for places in what all else leaves.
    leaving = evacuate([d.part() for d in drafts], snapshot, room)
    decided = [d.decide(leaving.get(d.id, Evacuation())) for d in drafts]
    # Why a slot has no place is told when all places of this pass are taken: the next pass will see the same room.
    return Plan(tuple(d.tell(room) for d in decided))


class _Draft:
    """The plan of one workload in the making."""

    def __init__(self, view: WorkloadView, snapshot: Snapshot, nodes: Mapping[str, NodeView], room: Room) -> None:
        self._view = view
        self._snapshot = snapshot
        self._nodes = nodes
        self._search = room.search(view.spec, Counter(a.node for a in view.allocations if a.live))
        self._actions: list[Action] = []
        self._nowhere: set[int] = set()
        self._blocked = {t.slot for t in view.tombstones}
        self._sorted: tuple[int, Slots] | None = None

    @property
    def id(self) -> str:
        return self._view.id

    def draw(self) -> None:
        """All is decided but what drains ask for."""
        if self._view.deleting:
            self._end()
        else:
            self._run()

    def part(self) -> Part:
        slots = Slots((), ()) if self._view.deleting else self._slots()
        return Part(self._view, slots, paused=slots.pausing(self._nowhere) is not None)

    def decide(self, evacuation: Evacuation) -> "_Decided":
        self._actions += evacuation.stops
        return _Decided(
            view=self._view,
            actions=tuple(self._actions),
            rows=self._rows(),
            slots=Slots((), ()) if self._view.deleting else self._slots(),
            nowhere=frozenset(self._nowhere),
            staying=evacuation.staying,
            events=evacuation.events,
            snapshot=self._snapshot,
        )

    def _end(self) -> None:
        """Deletion: stop what lives, remove what has ended, forget the workload when nothing is left."""
        if not self._view.allocations:
            self._actions.append(Forget(self._view.id, Reason.DELETED))
        for allocation in self._rows():
            self._dismiss(allocation, Reason.DELETED, "the workload was deleted")

    def _run(self) -> None:
        slots = self._slots()
        for allocation in slots.surplus:
            self._dismiss(allocation, Reason.SCALING_DOWN, f"replicas is {self._view.spec.replicas}")
        for slot in slots.wanted:
            for double in slot.doubles:
                kept = slot.current.id if slot.current else ""
                self._stop(double, Reason.STOPPED, f"slot {slot.number} has {kept} already")
            if slot.standing is Standing.EMPTY:
                self._place(slot)
        self._change(self._slots())
        self._update_in_place(self._slots())
        for slot in self._slots().wanted:
            for old in slot.older[KEPT_ENDS:]:
                if not self._shows_a_drain(old):
                    self._actions.append(Remove(old.id, f"slot {slot.number} has newer ends"))

    def _shows_a_drain(self, end: Allocation) -> bool:
        """That the slot was moved from a node is known by this end until the node's drain is over."""
        node = self._nodes.get(end.node)
        return end.desired_reason == Reason.DRAINED and node is not None and node.drain is not None

    # -- a change of the spec, slot by slot ----------------------------------------------------------------------------
    def _change(self, slots: Slots) -> None:
        """Outdated slots make way for the present spec: first those that are down anyway, then as many of the others
        as max_unavailable allows. Nothing more is touched once a changed slot has come out badly."""
        # What is on a node that is being drained changes when it moves, and moves when it has a place.
        outdated = [s for s in slots.wanted if s.outdated and on_draining(s.current, self._nodes) is None]
        if not outdated or slots.pausing(self._nowhere):
            return
        for slot in outdated:
            if slot.standing in {Standing.BROKEN, Standing.COMING_UP}:
                self._replace(slot)
            elif slot.standing is Standing.FAILED and slot.rerun:
                self._place(slot)
        allowed = self._view.spec.max_unavailable - slots.unavailable - len(slots.settling(self._snapshot.now))
        if slots.pausing(self._nowhere):
            return
        for slot in outdated:
            if allowed <= 0:
                return
            if slot.standing is Standing.READY:
                self._replace(slot)
                allowed -= 1
            elif slot.standing is Standing.DONE and slot.rerun:
                if not self._place(slot):
                    return
                allowed -= 1

    def _replace(self, slot: Slot) -> None:
        """The old one is stopped; its place is filled when it is known to be gone."""
        assert slot.current is not None
        self._stop(slot.current, Reason.UPDATING, _what_changed(slot.current.spec, self._view.spec))

    def _update_in_place(self, slots: Slots) -> None:
        spec = self._view.spec
        in_place = {name: getattr(spec, name) for name in type(spec).model_fields if name not in REPLACING_FIELDS}
        for slot in slots.wanted:
            current = slot.current
            if current is None or current.released or current.state.ended or current.desired is not Desired.RUN:
                continue
            changed = [name for name in _AGENT_SEES if getattr(current.spec, name) != getattr(spec, name)]
            if changed:
                # An outdated allocation keeps the replacing fields that it runs with.
                updated = current.spec.with_(**in_place)
                reason = f"{', '.join(changed)} changed"
                self._actions.append(Update(current.id, self._view.generation, updated, reason))

    # -- single actions ------------------------------------------------------------------------------------------------
    def _place(self, slot: Slot) -> bool:
        view = self._view
        if slot.number in self._blocked:
            return False
        found = self._search.take(avoid=slot.avoid)
        if found is None:
            self._nowhere.add(slot.number)
            return False
        node = found.node
        self._actions.append(
            Place(
                allocation_id=allocation_id(view.id, slot.number, self._snapshot.suffix(view.uid, slot.number)),
                workload_id=view.id,
                workload_uid=view.uid,
                slot=slot.number,
                node=node.id,
                generation=view.generation,
                spec=view.spec,
                spec_hash=view.spec.replacing_hash(),
                failures=slot.failures,
                ledger_uid=node.ledger_uid,
                simulated=node.simulated,
                reason=f"{slot.cause}; {found.why}",
            )
        )
        return True

    def _dismiss(self, allocation: Allocation, reason: Reason, message: str) -> None:
        """For an allocation that nothing is to follow."""
        if allocation.live:
            self._stop(allocation, reason, message)
        elif allocation.desired is not Desired.REMOVE:
            self._actions.append(Remove(allocation.id, reason))

    def _stop(self, allocation: Allocation, reason: Reason, message: str) -> None:
        if allocation.desired is Desired.RUN:
            self._actions.append(Stop(allocation.id, reason, message))

    # -- the rows as far as it is decided ------------------------------------------------------------------------------
    def _rows(self) -> tuple[Allocation, ...]:
        rows = carried_out(self._view.allocations, self._actions, self._snapshot.now)
        return tuple(sorted(rows, key=lambda a: (a.slot, a.created_at, a.id)))

    def _slots(self) -> Slots:
        if self._sorted is None or self._sorted[0] != len(self._actions):
            view = replace(self._view, allocations=self._rows())
            self._sorted = len(self._actions), sort_into_slots(view, self._nodes, self._snapshot.now)
        return self._sorted[1]


@dataclass(frozen=True, slots=True)
class _Decided:
    """What is done for one workload; what is told of it comes when the whole pass is decided."""

    view: WorkloadView
    actions: tuple[Action, ...]
    rows: tuple[Allocation, ...]
    slots: Slots
    nowhere: frozenset[int]
    staying: tuple[Staying, ...]
    events: tuple[EventDraft, ...]
    """Of drains."""
    snapshot: Snapshot

    def tell(self, room: Room) -> WorkloadPlan:
        view = self.view
        if any(isinstance(a, Forget) for a in self.actions):
            events = (_event(view, Reason.DELETED, "nothing of it is left"),)
            return WorkloadPlan(view.id, view.version, self.actions, view.status, status_changed=False, events=events)
        outlook = Outlook(
            view=view,
            rows=self.rows,
            slots=self.slots,
            nodes={n.id: n for n in self.snapshot.nodes},
            nowhere=self.nowhere,
            why_nowhere=room.why_nowhere(view.spec) if self.nowhere else "",
            now=self.snapshot.now,
        )
        status = status_of(outlook)
        return WorkloadPlan(
            workload_id=view.id,
            version=view.version,
            actions=self.actions,
            status=status,
            status_changed=status != view.status,
            events=(*_events_of_actions(view, self.actions), *self.events, *events_of(view, status)),
            waiting=waiting_of(outlook),
            staying=self.staying,
            look_again_at=_look_again_at(self.slots, outlook.nodes, self.snapshot.now),
        )


def _look_again_at(slots: Slots, nodes: Mapping[str, NodeView], now: datetime) -> datetime | None:
    """When a wait is over: a backoff, the trial of a changed or moved slot that others wait for, a drain's deadline."""
    times = [s.due for s in slots.wanted if s.standing is Standing.BACKING_OFF and s.due is not None]
    drains = [d for s in slots.wanted if (d := on_draining(s.current, nodes)) is not None]
    if drains or any(s.outdated for s in slots.wanted):
        times += slots.settling(now)
    times += [d.deadline_at for d in drains if d.deadline_at is not None and d.deadline_at > now]
    return min(times, default=None)


def _events_of_actions(view: WorkloadView, actions: tuple[Action, ...]) -> list[EventDraft]:
    events: list[EventDraft] = []
    places = [a for a in actions if isinstance(a, Place)]
    for place in places[:TOLD_PLACEMENTS]:
        message = f"placed {place.allocation_id} on {place.node}: {place.reason}"
        events.append(_event(view, "Scheduled", message, allocation=place.allocation_id, node=place.node))
    if len(places) > TOLD_PLACEMENTS:
        rest = places[TOLD_PLACEMENTS:]
        events.append(_event(view, "Scheduled", f"placed {len(rest)} more on {len({p.node for p in rest})} nodes"))
    stops: dict[tuple[str, str], list[str]] = {}
    for action in actions:
        if isinstance(action, Stop):
            stops.setdefault((action.reason, action.message), []).append(action.allocation_id)
    for (reason, why), ids in stops.items():
        shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        told = "Replacing" if reason == Reason.UPDATING else reason
        events.append(_event(view, told, f"stopping {shown}: {why}", allocation=ids[0] if len(ids) == 1 else ""))
    updates = [a for a in actions if isinstance(a, Update)]
    if updates:
        events.append(_event(view, "Updated", f"{len(updates)} allocations in place: {updates[0].reason}"))
    return events


def _event(view: WorkloadView, reason: str, message: str, *, allocation: str = "", node: str = "") -> EventDraft:
    return EventDraft(
        object_kind="Workload",
        object_id=view.id,
        type=EventType.NORMAL,
        reason=reason,
        message=message,
        allocation=allocation,
        node=node,
    )


def _what_changed(old: WorkloadSpec, new: WorkloadSpec) -> str:
    changed = sorted(name for name in REPLACING_FIELDS if getattr(old, name) != getattr(new, name))
    # The same fields, yet another hash: the row is of a version that hashed other fields.
    return f"{', '.join(changed)} changed" if changed else "its spec was hashed by another version of kakuri"
