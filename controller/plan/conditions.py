"""What is told of a workload: its status, its conditions, why each slot waits, and the events of what turned.

One rule: this is a function of the rows as they are after the plan's actions, so the next pass over an unchanged world
tells the same and writes nothing. For the same reason no stored message has a duration or a moment of this pass in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from controller.plan.action import Waiting
from controller.plan.replace import STEADY_S, Slot, Slots, Standing
from controller.plan.snapshot import NodeView, WorkloadView
from kakuri.model import Allocation, Condition, Desired, EventDraft, EventType, Reason, State, Tombstone, WorkloadStatus

_WORST_FIRST = (
    Reason.UNSCHEDULABLE,
    Reason.IMAGE_PULL_BACK_OFF,
    Reason.CRASH_LOOP_BACK_OFF,
    Reason.HOST_PORT_IN_USE,
    Reason.SANDBOX_FAILED,
    Reason.START_ERROR,
    Reason.BACK_OFF,
)
_MILD = (
    Reason.NODE_LOST,
    Reason.RUNTIME_UNREACHABLE,
    Reason.NODE_SILENT,
    Reason.PULLING,
    Reason.STARTING,
    Reason.UPDATING,
    Reason.DRAINED,
    Reason.STOPPED,
    Reason.SCHEDULING,
)
_QUIET = frozenset({*_MILD, Reason.SCALING_DOWN}) - {
    Reason.NODE_LOST,
    Reason.RUNTIME_UNREACHABLE,
    Reason.NODE_SILENT,
}
"""Reasons that are the usual course of things: a workload with these alone goes on."""
_TOLD_HERE = frozenset({Reason.UNSCHEDULABLE, Reason.BACK_OFF, Reason.NODE_LOST, Reason.NODE_SILENT})
"""Reasons that an event is made of here. What an agent reports is told where the report is recorded."""


@dataclass(frozen=True)
class Outlook:
    """A workload after its plan's actions, with all that its status is told from."""

    view: WorkloadView
    rows: tuple[Allocation, ...]
    slots: Slots
    nodes: Mapping[str, NodeView]
    nowhere: frozenset[int]
    """Slots that should have an allocation and for which no node has room."""
    why_nowhere: str
    now: datetime

    @cached_property
    def pausing(self) -> Slot | None:
        """The slot that pauses a change, while there is anything left to change."""
        if not any(s.outdated for s in self.slots.wanted):
            return None
        return self.slots.pausing(self.nowhere)

    @cached_property
    def down(self) -> int:
        """How many slots count against max_unavailable."""
        return self.slots.unavailable + len(self.slots.settling(self.now))

    def settled(self, slot: Slot) -> bool:
        """It has ended and nothing more is to become of it."""
        ended = slot.standing in {Standing.DONE, Standing.FAILED} and slot.number not in self.nowhere
        return ended and (not slot.outdated or self.pausing is not None)


def status_of(outlook: Outlook) -> WorkloadStatus:
    """The workload's status, in the words of its worst slot."""
    view = outlook.view
    wanted = outlook.slots.wanted
    state, reason, message = _state(outlook)
    shown = _shown(outlook)
    nodes = {a.node for a in shown}
    return WorkloadStatus(
        state=state,
        reason=reason,
        message=message,
        node=nodes.pop() if len(nodes) == 1 else None,
        nodes=len({a.node for a in shown}),
        desired=0 if view.deleting else view.spec.replicas,
        updated=sum(_is_updated(s) for s in wanted),
        ready=sum(s.standing is Standing.READY for s in wanted),
        failed=sum(s.standing is Standing.FAILED for s in wanted),
        succeeded=sum(s.standing is Standing.DONE for s in wanted),
        conditions=(_available(outlook, reason), _progressing(outlook)),
        exit_code=_exit_code(wanted),
        restarts=sum(a.restarts for a in shown),
        observed_generation=view.generation,
        simulated=any(a.simulated for a in shown),
    )


def waiting_of(outlook: Outlook) -> tuple[Waiting, ...]:
    """What each slot waits on that is not as it should be, the surplus ones included."""
    if outlook.view.deleting:
        return tuple(_leaving(outlook, a, Reason.DELETED) for a in outlook.rows)
    slots = [w for s in outlook.slots.wanted if (w := _why(outlook, s)) is not None]
    return (*slots, *(_leaving(outlook, a, Reason.SCALING_DOWN) for a in outlook.slots.surplus))


def events_of(view: WorkloadView, status: WorkloadStatus) -> tuple[EventDraft, ...]:
    """What the new status has that the stored one had not, as far as it is worth telling."""
    events: list[EventDraft] = []
    before = view.status
    if status.reason in _TOLD_HERE and (status.reason, status.message) != (before.reason, before.message):
        events.append(_event(view, EventType.WARNING, status.reason, status.message))
    old = next((c for c in before.conditions if c.type == "Progressing"), None)
    new = next(c for c in status.conditions if c.type == "Progressing")
    if new.reason == Reason.PAUSED and (old is None or (old.reason, old.message) != (new.reason, new.message)):
        events.append(_event(view, EventType.WARNING, new.reason, new.message))
    if new.reason == Reason.UP_TO_DATE and status.desired and (old is None or old.reason != Reason.UP_TO_DATE):
        done = f"{status.ready} ready, {status.succeeded} succeeded of {status.desired}"
        events.append(_event(view, EventType.NORMAL, new.reason, f"generation {view.generation}: {done}"))
    return tuple(events)


def _event(view: WorkloadView, type_: EventType, reason: str, message: str) -> EventDraft:
    return EventDraft(object_kind="Workload", object_id=view.id, type=type_, reason=reason, message=message)


# -- one slot ----------------------------------------------------------------------------------------------------------
def _why(outlook: Outlook, slot: Slot) -> Waiting | None:
    """Why this slot is not as it should be; None when it is, or when it has failed for good."""
    if slot.number in outlook.nowhere:
        return Waiting(slot.number, Reason.UNSCHEDULABLE, outlook.why_nowhere)
    current = slot.current
    if (blocked := _blocked(outlook, slot)) is not None:
        return blocked
    if current is None:
        return Waiting(slot.number, Reason.SCHEDULING, "waits for a place")
    match slot.standing:
        case Standing.READY | Standing.DONE | Standing.FAILED:
            return _turn(outlook, slot, current) if slot.outdated else None
        case Standing.COMING_UP:
            fallback = f"{current.id} waits for {current.node} to start it"
            return Waiting(slot.number, current.reason or Reason.STARTING, current.message or fallback)
        case Standing.BROKEN:
            return Waiting(slot.number, current.reason, current.message or f"{current.id} on {current.node}")
        case Standing.UNSURE:
            return _unsure(outlook, slot, current)
        case Standing.STOPPING:
            return _leaving(outlook, current, Reason.STOPPED)
        case Standing.CLEARING:
            ended = f"{current.id} ended on {current.node}{_in_words(current)}"
            message = f"{ended}; it is replaced once nothing is left of it"
            return Waiting(slot.number, current.reason or Reason.ERROR, message)
        case Standing.BACKING_OFF:
            assert slot.due is not None
            when = slot.due.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            failed = f"{current.id} failed to start on {current.node}{_in_words(current)}"
            message = f"{failed}; try {slot.failures + 1} is due at {when}, on another node if one fits"
            return Waiting(slot.number, Reason.BACK_OFF, message)
        case Standing.EMPTY:
            return Waiting(slot.number, Reason.SCHEDULING, "waits for a place")


def _blocked(outlook: Outlook, slot: Slot) -> Waiting | None:
    """For a slot that would be placed if it were not for what a tombstone says of it."""
    tombstone = next((t for t in outlook.view.tombstones if t.slot == slot.number), None)
    if tombstone is None or not (slot.standing is Standing.EMPTY or slot.rerun):
        return None
    may_run = f"{tombstone.id} may still run on {tombstone.node} ({tombstone.message})"
    return Waiting(slot.number, tombstone.reason, f"{may_run}; {_cure(outlook.nodes.get(tombstone.node), tombstone)}")


def _cure(node: NodeView | None, tombstone: Tombstone) -> str:
    if node is None:
        return f"it is placed when {tombstone.node} is registered again and has nothing of it"
    if node.ready:
        return "it is being ended there, and placed when nothing of it is left"
    return f"it is placed when that node has nothing of it, or after `kakuri node forget {node.id}`"


def _turn(outlook: Outlook, slot: Slot, current: Allocation) -> Waiting:
    if (pausing := outlook.pausing) is not None:
        return Waiting(slot.number, Reason.PAUSED, f"keeps the earlier spec: slot {pausing.number} did not come up")
    if current.live and current.state.ended:
        return Waiting(slot.number, Reason.UPDATING, f"waits until nothing of {current.id} is left on {current.node}")
    node = outlook.nodes.get(current.node)
    if node is not None and node.drain is not None and current.live:
        return Waiting(slot.number, Reason.UPDATING, f"{node.id} is being drained: it changes when it moves")
    limit = outlook.view.spec.max_unavailable
    told = f"waits its turn: {outlook.down} not up for {STEADY_S} s, max_unavailable is {limit}"
    return Waiting(slot.number, Reason.UPDATING, told)


def _unsure(outlook: Outlook, slot: Slot, current: Allocation) -> Waiting:
    if (silence := _silence(outlook, current.node)) is not None:
        node = outlook.nodes.get(current.node)
        if node is not None and node.lost:
            kept = f"{current.id} is kept for it; next: bring it back, or `kakuri node forget {node.id}`"
            return Waiting(slot.number, Reason.NODE_LOST, f"{silence}; {kept}")
        return Waiting(slot.number, Reason.NODE_SILENT, f"{silence}; {current.id} is kept for it")
    return Waiting(slot.number, current.reason, current.message or f"{current.id} on {current.node}")


def _leaving(outlook: Outlook, allocation: Allocation, reason: Reason) -> Waiting:
    """For an allocation that was told to stop, or that is being removed."""
    why = allocation.desired_reason or reason
    if (silence := _silence(outlook, allocation.node)) is not None:
        return Waiting(allocation.slot, why, f"{allocation.id} can't be ended: {silence}")
    if allocation.live and why == Reason.NODE_LOST:
        lost = f"{allocation.id} was lost; {allocation.node} is clearing away what is left of it"
        return Waiting(allocation.slot, why, lost)
    if allocation.live:
        return Waiting(allocation.slot, why, f"{allocation.id} is stopping on {allocation.node}")
    verb = "is being removed from" if allocation.desired is Desired.REMOVE else "has ended on"
    return Waiting(allocation.slot, why, f"{allocation.id} {verb} {allocation.node}")


def _silence(outlook: Outlook, node_id: str) -> str | None:
    """Why this node is not heard of, if it isn't."""
    node = outlook.nodes.get(node_id)
    if node is None:
        return f"node {node_id} is not registered"
    if not node.ready:
        how = "lost" if node.lost else "silent"
        return f"node {node_id} is {how}" + (f" ({node.message})" if node.message else "")
    return None


def _in_words(allocation: Allocation) -> str:
    told = ": ".join(text for text in (allocation.reason, allocation.message) if text)
    return f" ({told})" if told else ""


def _failure(slot: Slot) -> Waiting:
    """The end of a slot that has failed for good."""
    assert slot.current is not None
    end = slot.current
    if end.desired_reason == Reason.DRAINED and end.reason != Reason.COMPLETED:
        message = f"{end.id} was stopped because {end.node} was drained; a job that has run is not run again"
        return Waiting(slot.number, Reason.DRAINED, message)
    exit_ = f"exit code {end.exit_code}" if end.exit_code is not None else f"{end.id} failed on {end.node}"
    return Waiting(slot.number, end.reason or Reason.ERROR, end.message or exit_)


# -- all slots together ------------------------------------------------------------------------------------------------
def _state(outlook: Outlook) -> tuple[State, str, str]:
    view = outlook.view
    wanted = outlook.slots.wanted
    if view.deleting:
        return State.TERMINATING, Reason.DELETED, _last_words(outlook)
    if not wanted:
        return State.PENDING, Reason.SCALED_TO_ZERO, "replicas is 0"
    troubles = _troubles(outlook)
    failures = [_failure(s) for s in wanted if s.standing is Standing.FAILED and outlook.settled(s)]
    if any(s.current is not None and s.current.live and s.current.state is State.RUNNING for s in wanted):
        return State.RUNNING, *_worst([*troubles, *failures], len(wanted))
    if not all(outlook.settled(s) for s in wanted):
        pending = troubles or [w for s in wanted if (w := _why(outlook, s)) is not None]
        return State.PENDING, *_worst(pending, len(wanted))
    if failures:
        return State.FAILED, *_worst(failures, len(wanted))
    return State.SUCCEEDED, Reason.COMPLETED, ""


def _troubles(outlook: Outlook) -> list[Waiting]:
    """Of each slot that is neither as due nor failed for good."""
    ends = {Standing.READY, Standing.DONE, Standing.FAILED}
    out = [s for s in outlook.slots.wanted if s.standing not in ends or s.number in outlook.nowhere]
    return [w for s in out if (w := _why(outlook, s)) is not None]


def _worst(told: list[Waiting], slots: int) -> tuple[str, str]:
    """The reason and message of the worst, with how many share it."""
    if not told:
        return Reason.NONE, ""
    worst = min(told, key=lambda w: (_rank(w.reason), w.slot))
    if slots == 1:
        return worst.reason, worst.message
    alike = sum((w.reason, w.message) == (worst.reason, worst.message) for w in told)
    others = len(told) - alike
    more = f" and {alike - 1} more" if alike > 1 else ""
    rest = f"; {others} more {'waits' if others == 1 else 'wait'} too" if others else ""
    return worst.reason, f"slot {worst.slot}{more}: {worst.message}{rest}"


def _rank(reason: str) -> int:
    if reason in _WORST_FIRST:
        return [str(r) for r in _WORST_FIRST].index(reason)
    if reason in _MILD:
        return 200 + [str(r) for r in _MILD].index(reason)
    return 100


def _last_words(outlook: Outlook) -> str:
    """What a deletion waits on."""
    live = [a for a in outlook.rows if a.live]
    if not live:
        return "nothing of it runs any more; its nodes are forgetting it"
    # What waits for a silent node is told first: a person may have to do something.
    stuck = [a for a in live if _silence(outlook, a.node) is not None]
    first = _leaving(outlook, min(stuck or live, key=lambda a: a.id), Reason.DELETED).message
    if stuck:
        first += f"; next: bring it back, or `kakuri delete --force {outlook.view.id}`"
    return first if len(live) == 1 else f"{first}, and {len(live) - 1} more"


def _shown(outlook: Outlook) -> list[Allocation]:
    """The allocations that the status counts: live ones, and the ends of finished slots."""
    ended = [s.current for s in outlook.slots.wanted if s.standing in {Standing.DONE, Standing.FAILED}]
    return [*(a for a in outlook.rows if a.live), *(a for a in ended if a is not None and a.released)]


def _is_updated(slot: Slot) -> bool:
    gone = {Standing.STOPPING, Standing.CLEARING, Standing.BACKING_OFF, Standing.EMPTY}
    return slot.current is not None and not slot.outdated and slot.standing not in gone


def _exit_code(wanted: tuple[Slot, ...]) -> int | None:
    """Of the first slot that failed; of the first slot when all have succeeded."""
    for slot in wanted:
        if slot.standing is Standing.FAILED and slot.current is not None:
            return slot.current.exit_code
    if wanted and all(s.standing is Standing.DONE for s in wanted) and wanted[0].current is not None:
        return wanted[0].current.exit_code
    return None


# -- conditions --------------------------------------------------------------------------------------------------------
def _available(outlook: Outlook, reason: str) -> Condition:
    """Whether enough slots are as due: all but max_unavailable, and at least one."""
    spec = outlook.view.spec
    available = sum(s.available for s in outlook.slots.wanted)
    counted = f"{available} of {spec.replicas} available"
    if outlook.view.deleting or spec.replicas == 0:
        return _condition(outlook, "Available", status=False, reason=reason, message="")
    enough = available >= max(1, spec.replicas - spec.max_unavailable)
    why = "" if enough else reason or Reason.UPDATING
    return _condition(outlook, "Available", status=enough, reason=why, message=counted)


def _progressing(outlook: Outlook) -> Condition:
    """Whether the workload comes nearer to its spec, or is there."""
    view, wanted = outlook.view, outlook.slots.wanted
    if view.deleting:
        return _condition(outlook, "Progressing", status=True, reason=Reason.DELETED, message="")
    troubles = _troubles(outlook)
    failures = [_failure(s) for s in wanted if s.standing is Standing.FAILED and not s.outdated]
    worst = min([*troubles, *failures], key=lambda w: (_rank(w.reason), w.slot), default=None)
    earlier = sum(s.outdated for s in wanted)
    if (pausing := outlook.pausing) is not None:
        cause = _why(outlook, pausing) or _failure(pausing)
        message = (
            f"the change to generation {view.generation} is paused: slot {pausing.number} did not come up "
            f"({cause.reason}: {cause.message}); {earlier} of {len(wanted)} keep the earlier spec; "
            "next: apply a spec that comes up"
        )
        return _condition(outlook, "Progressing", status=False, reason=Reason.PAUSED, message=message)
    stuck = worst is not None and (worst.reason not in _QUIET)
    if worst is not None and stuck:
        message = worst.message if len(wanted) == 1 else f"slot {worst.slot}: {worst.message}"
        return _condition(outlook, "Progressing", status=False, reason=worst.reason, message=message)
    if earlier:
        message = f"{len(wanted) - earlier} of {len(wanted)} have the present spec"
        return _condition(outlook, "Progressing", status=True, reason=Reason.UPDATING, message=message)
    if worst is not None:
        return _condition(outlook, "Progressing", status=True, reason=worst.reason, message="")
    if any(a.live for a in outlook.slots.surplus):
        return _condition(outlook, "Progressing", status=True, reason=Reason.SCALING_DOWN, message="")
    return _condition(outlook, "Progressing", status=True, reason=Reason.UP_TO_DATE, message="")


def _condition(outlook: Outlook, type_: str, *, status: bool, reason: str, message: str) -> Condition:
    """The condition, with since as it was while the status has not changed."""
    before = next((c for c in outlook.view.status.conditions if c.type == type_), None)
    since = before.since if before is not None and before.status == status else outlook.now
    return Condition(type=type_, status=status, reason=reason, message=message, since=since)
