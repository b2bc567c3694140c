"""What people do to nodes: drain them, and say that one is gone.

One rule: what may still run somewhere is never let go of in silence: it leaves a tombstone, which its node is held to
as soon as it can be told anything.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from controller.store.batch import Batch
from controller.store.contract import InUse, NotFound
from controller.store.records import NodeRecord, Usage
from controller.store.rules.fence import check_lead
from controller.store.tables import RELEASED, Tables
from kakuri.model import Allocation, Desired, Drain, EventDraft, EventType, Node, Reason, State, Tombstone


def drain(
    tables: Tables, id_: str, wanted: Drain | None, *, keep_deadline: bool = False, now: datetime
) -> tuple[tuple[Node, frozenset[str]], Batch]:
    """The node, and the workloads to plan again. The same deadline again changes nothing; None ends a drain.
    keep_deadline: a drain that goes on keeps its own."""
    batch = Batch(now)
    old = _existing(tables, id_)
    owners = frozenset(tables.owners_on(id_))
    usage = tables.usage([id_]).get(id_, Usage())
    if wanted is not None and old.drain is not None:
        wanted = old.drain if keep_deadline else replace_deadline(old.drain, wanted.deadline_at)
    if wanted == old.drain:
        return (old.shown(usage, tables.tombstones_on([id_])), owners), batch
    # A drained node stays cordoned when its drain is ended: uncordon it to have it take work again.
    new = _drained_otherwise(batch, old, wanted, schedulable=old.schedulable and wanted is None)
    return (new.shown(usage, tables.tombstones_on([id_])), owners), batch


def take_back_drain(
    tables: Tables, id_: str, began: Drain, *, before: Drain | None, schedulable: bool, now: datetime
) -> tuple[frozenset[str], Batch]:
    """The node is drained, and takes work, as before that drain began, unless a person has said otherwise since.
    Returns the workloads to plan again."""
    batch = Batch(now)
    old = tables.nodes([id_]).get(id_)
    if old is None or old.drain is None or old.schedulable:
        return frozenset(), batch
    if (old.drain.asked_at, old.drain.deadline_at) != (began.asked_at, began.deadline_at):
        return frozenset(), batch
    _drained_otherwise(batch, old, before, schedulable=schedulable)
    return frozenset(tables.owners_on(id_)), batch


def _drained_otherwise(batch: Batch, old: NodeRecord, drain_: Drain | None, *, schedulable: bool) -> NodeRecord:
    generation = old.generation + (schedulable != old.schedulable)
    new = replace(old, drain=drain_, schedulable=schedulable, generation=generation)
    batch.nodes.update(new)
    batch.tell(drain_event(old.id, old.drain, drain_))
    return new


def replace_deadline(old: Drain, deadline_at: datetime | None) -> Drain:
    """A drain that goes on with another deadline is the same drain."""
    return old if deadline_at == old.deadline_at else old.with_(deadline_at=deadline_at)


def drain_event(id_: str, old: Drain | None, new: Drain | None) -> EventDraft:
    if new is None:
        return _event(id_, EventType.NORMAL, "DrainEnded", "the drain was ended")
    until = f"deadline {new.deadline_at:%Y-%m-%dT%H:%M:%SZ}" if new.deadline_at else "no deadline"
    began = "is being drained" if old is None else "goes on being drained"
    return _event(id_, EventType.NORMAL, "DrainStarted", f"it {began}, {until}")


def record_drained(tables: Tables, id_: str, seen: Drain, *, epoch: int, now: datetime) -> tuple[None, Batch]:
    """Nothing is left to do of the drain that was seen. It is told once; of an earlier drain, never."""
    check_lead(tables, epoch)
    batch = Batch(now)
    old = tables.nodes([id_]).get(id_)
    if old is None or old.drain is None or old.drain.asked_at != seen.asked_at or old.drain.drained_at is not None:
        return None, batch
    batch.nodes.update(replace(old, drain=old.drain.with_(drained_at=now)))
    batch.tell(_event(id_, EventType.NORMAL, Reason.DRAINED, "nothing is left there, and what was moved runs"))
    return None, batch


def forget(tables: Tables, id_: str, *, released: bool, now: datetime) -> tuple[frozenset[str], Batch]:
    """The node is gone; what it had is lost, and is replaced elsewhere where it should run. released: its agent has
    answered that it is no cluster's any more, so it need not be silent. Returns the workloads to plan again."""
    batch = Batch(now)
    old = _existing(tables, id_)
    if old.ready and not released:
        raise InUse(
            f'node "{id_}" is ready, so what runs there can be ended properly; drain it (kakuri drain {id_}), or stop '
            "its agent first"
        )
    owners = frozenset(tables.owners_on(id_))
    tables.keep_workloads(owners)
    rows = tables.allocations_on(id_)
    why = f"node {id_} was {'released' if released else 'forgotten'}"
    given_up = [r for r in rows if r.live and not r.state.ended]
    retire(tables, batch, id_, rows, why=why, now=now, how=RELEASED if released else "")
    told = f"{len(given_up)} allocations there are given up" if given_up else "nothing was known to run there"
    batch.tell(_event(id_, EventType.WARNING, Reason.NODE_FORGOTTEN, f"{why}; {told}"))
    for row in given_up:
        batch.tell(
            EventDraft(
                object_kind="Workload",
                object_id=row.workload,
                type=EventType.WARNING,
                reason=Reason.NODE_LOST.value,
                message=f"{why}: {row.id} is given up; it may still run there until that node is back",
                allocation=row.id,
                node=id_,
            )
        )
    return owners | {t.workload for t in tables.tombstones_on([id_])}, batch


def retire(
    tables: Tables, batch: Batch, id_: str, rows: Sequence[Allocation], *, why: str, now: datetime, how: str = ""
) -> None:
    """The node is shown no more. Its allocations' rows stay, ended: they say what must not run again (a job that has
    run); the planner drops them like those of any node, and the node's own row goes with the last of them."""
    released = how == RELEASED
    for tombstone in tables.tombstones_on([id_]):
        if released:
            # Its agent has said that nothing of ours is left there; to tell it more would make it ours again.
            batch.tombstones.delete(tombstone.id)
        elif tombstone.blocks:
            # The person who says that the node is gone says that nothing runs there any more.
            batch.tombstones.insert(tombstone.with_(blocks=False, reason=Reason.NODE_FORGOTTEN.value))
    left = 0
    for row in rows:
        # Of what has ended, too, when its node was not told so: it may have accepted a start that came late.
        if row.live or (not released and row.accepted_revision < row.revision):
            bury(batch, row, Reason.NODE_FORGOTTEN, why)
        if row.desired is Desired.REMOVE:
            batch.delete_allocation(row)
            continue
        left += 1
        after = _given_up(row, why, now)
        if released:
            after = after.with_(ledger_uid=RELEASED)
        if after != row:
            batch.update_allocation(after)
    if left or how == RELEASED:
        batch.forgotten[id_] = how
    else:
        batch.nodes.delete(id_)


def _given_up(row: Allocation, why: str, now: datetime) -> Allocation:
    """Ended and released, with nothing left to tell its node: the tombstone does."""
    after = row.with_(accepted_revision=row.revision, released=True)
    if row.state.ended:
        return after
    stopped = {"desired": Desired.STOP, "desired_reason": Reason.NODE_LOST.value} if row.desired is Desired.RUN else {}
    end = {"state": State.FAILED, "reason": Reason.NODE_LOST.value, "message": why, "finished_at": now}
    return after.with_(**end, **stopped, observed_at=now)


def bury(batch: Batch, row: Allocation, reason: Reason, message: str) -> None:
    """The row may go: its node is told to end and forget the allocation as soon as it can be told anything."""
    tombstone = Tombstone(
        id=row.id,
        node=row.node,
        workload=row.workload,
        slot=row.slot,
        reason=reason.value,
        message=message,
        blocks=False,
        created_at=batch.now,
    )
    batch.tombstones.insert(tombstone)


def record_buried(
    tables: Tables, node: str, ids: Collection[str], *, epoch: int, now: datetime
) -> tuple[frozenset[str], Batch]:
    """The node has nothing of these any more. Returns the workloads that they held up."""
    check_lead(tables, epoch)
    batch = Batch(now)
    there = tables.nodes([node])
    found = [t for t in tables.tombstones_on([node]) if t.id in ids]
    for tombstone in found:
        batch.tombstones.delete(tombstone.id)
    if found and node in there:
        batch.nodes.touch(node)
        batch.tell(_event(node, EventType.NORMAL, "Buried", f"it has nothing more of {_some(t.id for t in found)}"))
    return frozenset(t.workload for t in found), batch


def _some(ids: Iterable[str]) -> str:
    ordered = sorted(ids)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _existing(tables: Tables, id_: str) -> NodeRecord:
    found = tables.nodes([id_]).get(id_)
    if found is None:
        raise NotFound(f'node "{id_}" does not exist')
    return found


def _event(id_: str, type_: EventType, reason: str, message: str) -> EventDraft:
    return EventDraft(object_kind="Node", object_id=id_, type=type_, reason=reason, message=message, node=id_)
