"""What a pass decided: a closed union of actions, each with its reason, and what each workload waits on.

An action is so exact that carrying it out leaves nothing to choose.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from kakuri.model import Allocation, Desired, EventDraft, OnDisconnect, Reason, State, WorkloadSpec, WorkloadStatus


@dataclass(frozen=True, slots=True)
class Place:
    """A new allocation row, bound to a node; its start is sent after the commit."""

    allocation_id: str
    workload_id: str
    workload_uid: str
    slot: int
    node: str
    generation: int
    spec: WorkloadSpec
    spec_hash: str
    failures: int
    ledger_uid: str
    simulated: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Update:
    """The in-place fields of a live allocation follow the workload's: spec, generation, revision + 1."""

    allocation_id: str
    generation: int
    spec: WorkloadSpec
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """desired becomes stop, revision + 1, and the state Terminating unless it has ended."""

    allocation_id: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Remove:
    """desired becomes remove, revision + 1: the agent may forget it; the row goes when the agent has."""

    allocation_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The workload's row goes: it was deleted, and nothing of it is left."""

    workload_id: str
    reason: str


Action = Place | Update | Stop | Remove | Forget


@dataclass(frozen=True, slots=True)
class Waiting:
    """What keeps a slot from being as it should, and why."""

    slot: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Staying:
    """An allocation that is on a node which is being drained, and why it is not stopped yet."""

    allocation_id: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """The decision for one workload: applied whole, or not at all when its version moved on."""

    workload_id: str
    version: int
    actions: tuple[Action, ...]
    status: WorkloadStatus
    status_changed: bool
    events: tuple[EventDraft, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    staying: tuple[Staying, ...] = ()
    look_again_at: datetime | None = None
    """When time alone may change the decision."""

    @property
    def empty(self) -> bool:
        """Nothing to write."""
        return not self.actions and not self.status_changed and not self.events


@dataclass(frozen=True, slots=True)
class Plan:
    workloads: tuple[WorkloadPlan, ...]

    @property
    def empty(self) -> bool:
        return all(w.empty for w in self.workloads)

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(a for w in self.workloads for a in w.actions)

    def log_fields(self) -> dict[str, object]:
        """The canonical line of the pass: what it saw, did and waits on, and why."""
        counts = Counter(type(a).__name__.lower() for a in self.actions)
        return {
            "looked_at": len(self.workloads),
            **dict(sorted(counts.items())),
            "actions": [_told(a) for a in self.actions[:20]],
            "waiting": [
                f"{w.workload_id}.{x.slot}: {x.reason}: {x.message}" for w in self.workloads for x in w.waiting
            ][:20],
        }


def carried_out(rows: Iterable[Allocation], actions: Iterable[Action], now: datetime) -> tuple[Allocation, ...]:
    """A workload's allocation rows as every store has them after these actions of its plan."""
    after = {row.id: row for row in rows}
    for action in actions:
        match action:
            case Place():
                after[action.allocation_id] = _new_row(action, _later_than(after.values(), action.slot, now))
            case Update(id_, generation, spec):
                row = after[id_]
                after[id_] = row.with_(
                    generation=generation,
                    spec=spec,
                    revision=row.revision + 1,
                    # What becomes bound is so when the agent has accepted it; what no longer is, at once.
                    lease_bound=row.lease_bound and spec.on_disconnect is OnDisconnect.REPLACE,
                )
            case Stop(id_, reason, message):
                row = after[id_]
                asked = row.with_(desired=Desired.STOP, desired_reason=reason, revision=row.revision + 1)
                leaving = {} if row.state.ended else {"state": State.TERMINATING, "reason": reason, "message": message}
                after[id_] = asked.with_(**leaving)
            case Remove(id_, reason):
                row = after[id_]
                after[id_] = row.with_(desired=Desired.REMOVE, desired_reason=reason, revision=row.revision + 1)
            case Forget():
                after.clear()
    return tuple(after.values())


def _later_than(rows: Iterable[Allocation], slot: int, now: datetime) -> datetime:
    """Now, or a moment after the slot's newest: what is the newest must not hang on a clock that was set back, nor on
    that of another controller."""
    newest = max((r.created_at for r in rows if r.slot == slot), default=None)
    return now if newest is None or newest < now else newest + timedelta(microseconds=1)


def _new_row(place: Place, now: datetime) -> Allocation:
    return Allocation(
        id=place.allocation_id,
        workload=place.workload_id,
        workload_uid=place.workload_uid,
        slot=place.slot,
        node=place.node,
        runtime_class=place.spec.runtime_class,
        generation=place.generation,
        spec_hash=place.spec_hash,
        spec=place.spec,
        failures=place.failures,
        reason=Reason.STARTING,
        message=f"placed on {place.node}",
        ledger_uid=place.ledger_uid,
        lease_bound=place.spec.on_disconnect is OnDisconnect.REPLACE,
        simulated=place.simulated,
        created_at=now,
    )


def _told(action: Action) -> str:
    match action:
        case Place():
            return f"place {action.allocation_id} on {action.node}: {action.reason}"
        case Update() | Stop() | Remove():
            return f"{type(action).__name__.lower()} {action.allocation_id}: {action.reason}"
        case Forget():
            return f"forget {action.workload_id}: {action.reason}"
