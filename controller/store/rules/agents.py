"""What agents say: registrations, reports, and answers to what they were told.

One rule: what is said again writes nothing; and what the loops were told is written by the leader alone, lest one that
woke up late calls a node silent that another one hears.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime

from controller.exchange import Report, Sent
from controller.store.batch import Batch
from controller.store.contract import InUse, NotFound, Recorded
from controller.store.records import NodeRecord, Usage
from controller.store.rules.fence import check_lead
from controller.store.rules.nodes import bury
from controller.store.rules.restore import note_unknown, seen, unseen
from controller.store.rules.transitions import answered, fenced, lost, observed, told
from controller.store.tables import RELEASED, Tables
from kakuri.model import BY_HAND, Allocation, ByHand, Desired, EventDraft, EventType, Node, NodeRegistration, Reason


def register_node(
    tables: Tables, id_: str, registration: NodeRegistration, *, now: datetime, new_uid: Callable[[], str]
) -> tuple[tuple[Node, bool], Batch]:
    batch = Batch(now)
    old = tables.nodes([id_]).get(id_)
    usage = tables.usage([id_]).get(id_, Usage())
    if registration.ledger_uid and (old is None or old.ledger_uid != registration.ledger_uid):
        _check_name(tables, id_, registration.ledger_uid)
    if old is not None and old.registration == registration:
        return (old.shown(usage), False), batch
    if old is None:
        forgotten = tables.forgotten_nodes()
        new = _new_node(id_, registration, now, new_uid(), schedulable=forgotten.get(id_) != RELEASED)
        batch.insert_node(new, forgotten=id_ in forgotten)
        if not new.schedulable:
            message = "it was released and has registered here again; it stays cordoned until a person uncordons it"
            batch.tell(_node_event(id_, EventType.WARNING, "Cordoned", message))
    else:
        new = replace(old, registration=registration, registered_at=now)
        if old.registration is None:
            new = replace(new, message=_NOT_YET_HEARD)
        batch.nodes.update(new)
    if old is None or old.registration is None or old.registration.instance != registration.instance:
        message = f"an agent registered, reached at {registration.address}"
        batch.tell(_node_event(id_, EventType.NORMAL, "Registered", message))
    if old is not None and old.registration is not None:
        _tell_again(tables, batch, old.registration, registration, id_)
    if old is not None and old.ledger_uid not in {"", registration.ledger_uid}:
        message = "its agent came back with another ledger: what ran there before is lost"
        batch.tell(_node_event(id_, EventType.WARNING, "LedgerLost", message))
        tables.keep_workloads(tables.owners_on(id_))
        for row in tables.allocations_on(id_):
            if row.ledger_uid != registration.ledger_uid:
                _record(batch, row, lost(row, f"node {id_} came back without its ledger", now=now))
    return (new.shown(usage), True), batch


def _tell_again(tables: Tables, batch: Batch, before: NodeRegistration, now: NodeRegistration, node: str) -> None:
    """What an agent refused for want of a feature is said to it once more when it has that feature."""
    if now.ledger_uid != before.ledger_uid or not set(now.features) - set(before.features):
        return
    tables.keep_workloads(tables.owners_on(node))
    for row in tables.allocations_on(node):
        if row.desired is Desired.RUN and not row.state.ended:
            batch.update_allocation(row.with_(revision=row.revision + 1))


def _check_name(tables: Tables, id_: str, ledger_uid: str) -> None:
    """No other node has this ledger: by another name, what runs there would be lost here and go on there."""
    before = next((n.id for n in tables.nodes().values() if n.ledger_uid == ledger_uid and n.id != id_), None)
    if before is not None:
        raise InUse(
            f'the agent that registers as "{id_}" is that of node "{before}": a node keeps its name. Start it with '
            f"--node {before}; or, to rename it, say first that {before} is gone (kakuri node forget {before})"
        )


_NOT_YET_HEARD = "its agent registered and was not yet heard of since"


def _new_node(id_: str, registration: NodeRegistration, now: datetime, uid: str, *, schedulable: bool) -> NodeRecord:
    return NodeRecord(
        id=id_,
        uid=uid,
        labels={},
        schedulable=schedulable,
        generation=1,
        created_at=now,
        ready=False,
        reason=Reason.NEVER_SEEN.value,
        message=_NOT_YET_HEARD,
        registration=registration,
        registered_at=now,
    )


def set_node_ready(
    tables: Tables, id_: str, *, epoch: int, ready: bool, reason: str, message: str, now: datetime
) -> tuple[bool, Batch]:
    check_lead(tables, epoch)
    batch = Batch(now)
    old = tables.nodes([id_]).get(id_)
    if old is None:
        raise NotFound(f'node "{id_}" does not exist')
    if (old.ready, old.reason, old.message) == (ready, reason, message):
        return False, batch
    if old.lost_at is not None and not ready and reason == Reason.NODE_SILENT:
        return False, batch  # lost says more, and stays true until it is heard of
    lost_at = None if ready else old.lost_at
    batch.nodes.update(replace(old, ready=ready, reason=reason, message=message, lost_at=lost_at))
    if (old.ready, old.reason) != (ready, reason):
        type_ = EventType.NORMAL if ready else EventType.WARNING
        batch.tell(_node_event(id_, type_, reason or ("Ready" if ready else "NotReady"), message))
    if old.ready != ready:
        tables.keep_workloads(tables.owners_on(id_))
        for row in tables.allocations_on(id_):
            if row.live and not row.state.ended:
                batch.allocations.touch(row.id)
                batch.workloads.touch(row.workload)
    return True, batch


def set_node_lost(tables: Tables, id_: str, *, epoch: int, message: str, now: datetime) -> tuple[frozenset[str], Batch]:
    check_lead(tables, epoch)
    batch = Batch(now)
    old = tables.nodes([id_]).get(id_)
    if old is None:
        raise NotFound(f'node "{id_}" does not exist')
    if tables.restored() is not None:
        return frozenset(), batch  # what was bound to its lease, and what not, may have changed since the backup
    if old.lost_at is None:
        lost_now = replace(old, ready=False, reason=Reason.NODE_LOST.value, message=message, lost_at=now)
        batch.nodes.update(lost_now)
        batch.tell(_node_event(id_, EventType.WARNING, Reason.NODE_LOST.value, message))
    tables.keep_workloads(tables.owners_on(id_))
    dirty: set[str] = set()
    for row in tables.allocations_on(id_):
        if row.released and row.desired is Desired.REMOVE:
            # Only the node's word is waited for, and nobody knows when it comes.
            bury(batch, row, Reason.NODE_LOST, f"node {id_} was lost")
            batch.nodes.touch(id_)
            batch.delete_allocation(row)
            dirty.add(row.workload)
            continue
        after = fenced(row, f"node {id_} is lost: {message}", now=now)
        if after is not row:
            _record(batch, row, after)
            dirty.add(row.workload)
        elif old.lost_at is None and row.live and not row.state.ended:
            # It is kept for the node, and what is said of it changes.
            batch.allocations.touch(row.id)
            batch.workloads.touch(row.workload)
            dirty.add(row.workload)
    return frozenset(dirty), batch


def owes_stops(tables: Tables, node: str, told: Collection[str]) -> bool:
    held = tables.restored() is not None
    given_up = (t for t in tables.tombstones_on([node]) if not (held and t.reason == Reason.RESTORED))
    return any(t.id not in told for t in given_up) or tables.owes_stops(node)


def record_report(tables: Tables, report: Report, *, epoch: int, now: datetime) -> tuple[Recorded, Batch]:
    check_lead(tables, epoch)
    batch = Batch(now)
    released = _note_by_hand(tables, batch, report)
    if report.full:
        _note_inventory(tables, batch, report.node, epoch)
    held = tables.restored() is not None
    ours = {o.id: o for o in report.allocations if o.origin == tables.cluster_id}
    ids = None if report.full else {*ours, *report.gone}
    rows = _rows_on(tables, report.node, ids)
    dirty: set[str] = set()
    after: Allocation | None
    for row in rows.values():
        if row.id in ours:
            after = observed(row, ours[row.id], ledger_uid=report.ledger_uid, now=now)
            if row.observed_at is None:
                after = seen(after, ours[row.id], now=now)
        elif held and (report.full or row.id in report.gone):
            after = unseen(row)
        elif report.full or row.id in report.gone:
            after = _missing(row, report, now)
        else:
            continue
        if after is not row:
            _record(batch, row, after)
            dirty.add(row.workload)
            released = released or (after is not None and after.released and not row.released)
    unknown = ours.keys() - rows.keys()
    # A live row that is bound to another node is no orphan: its node answers for it. One that was given up there is:
    # that node has another name now.
    elsewhere = {a.id for a in tables.allocations(unknown) if a.live} if unknown else set()
    unknown -= elsewhere
    if held:
        note_unknown(tables, batch, report, ours, unknown)
    recorded = Recorded(
        dirty=frozenset(dirty),
        orphans=() if held else tuple(sorted(unknown)),
        released=released,
        unsent=any(a.accepted_revision < a.revision for a in batch.allocations.updated.values())
        or tables.has_errands(report.node, besides=batch.allocations.updated),
    )
    return recorded, batch


def _note_inventory(tables: Tables, batch: Batch, node: str, epoch: int) -> None:
    """That all the node has was read under this epoch: once an epoch, so that it costs one write a takeover."""
    record = batch.nodes.updated.get(node) or tables.nodes([node]).get(node)
    if record is not None and record.inventory_epoch < epoch:
        batch.nodes.update(replace(record, inventory_epoch=epoch))


def _note_by_hand(tables: Tables, batch: Batch, report: Report) -> bool:
    """What was started at the agent is no row of ours, but it takes room, and people ask what it is. Returns whether
    some of it is gone."""
    told = {o.id: o for o in report.allocations if o.origin == BY_HAND}
    if not (told or report.gone or report.full):
        return False
    node = tables.nodes([report.node]).get(report.node)
    if node is None:
        return False
    runs = {} if report.full else {r.id: r for r in node.by_hand if r.id not in {*told, *report.gone}}
    for id_, run in told.items():
        if not run.released:
            runs[id_] = ByHand(id=id_, state=run.state, memory_mb=run.memory_mb, cpu_millicores=run.cpu_millicores)
    by_hand = tuple(runs[id_] for id_ in sorted(runs))
    if by_hand == node.by_hand:
        return False
    batch.nodes.update(replace(node, by_hand=by_hand))
    return any(r.id not in runs for r in node.by_hand)


def _rows_on(tables: Tables, node: str, ids: set[str] | None) -> dict[str, Allocation]:
    if ids is not None and not ids:
        return {}
    owners = set(tables.owners_on(node, ids))
    if not owners:
        return {}
    tables.keep_workloads(owners)
    rows = tables.allocations_on(node) if ids is None else tables.allocations(ids)
    # One that was placed since the owners were read is not kept, and can't be in the report.
    return {a.id: a for a in rows if a.node == node and a.workload in owners}


def _missing(row: Allocation, report: Report, now: datetime) -> Allocation | None:
    """What becomes of a row that its agent has no more."""
    if row.desired is Desired.REMOVE:
        return None
    if row.accepted_revision == 0:
        return row  # not there yet
    if report.full and row.id in report.spared:
        return row  # accepted while the answer was on its way
    return lost(row, f"node {row.node} has it no more", now=now)


def record_sent(
    tables: Tables, node: str, ledger_uid: str, sent: Sequence[Sent], *, epoch: int, now: datetime
) -> tuple[frozenset[str], Batch]:
    check_lead(tables, epoch)
    batch = Batch(now)
    rows = _rows_on(tables, node, {s.allocation_id for s in sent})
    dirty: set[str] = set()
    for answer in sent:
        row = rows.get(answer.allocation_id)
        if row is None:
            continue
        after = answered(row, answer, ledger_uid=ledger_uid, now=now)
        if after is row:
            continue
        if after is None:
            del rows[row.id]
        else:
            rows[row.id] = after
        _record(batch, row, after)
        if answer.result == "refused" and after is not None and after.state == row.state:
            batch.tell(_refusal(row, answer))
        if after is None or after.state != row.state:
            dirty.add(row.workload)
    return frozenset(dirty), batch


def _refusal(row: Allocation, answer: Sent) -> EventDraft:
    return EventDraft(
        object_kind="Workload",
        object_id=row.workload,
        type=EventType.WARNING,
        reason=answer.reason or Reason.REFUSED.value,
        message=f"node {row.node} refused a change: {answer.message}",
        allocation=row.id,
        node=row.node,
    )


def _record(batch: Batch, before: Allocation, after: Allocation | None) -> None:
    if after is None:
        batch.delete_allocation(before)
    elif after is not before:
        batch.update_allocation(after)
        for draft in told(before, after):
            batch.tell(draft)


def _node_event(id_: str, type_: EventType, reason: str, message: str) -> EventDraft:
    return EventDraft(object_kind="Node", object_id=id_, type=type_, reason=reason, message=message, node=id_)
