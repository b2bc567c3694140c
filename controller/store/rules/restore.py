"""A database that was brought back from an earlier state: what nodes do since then is not in it.

One rule: until a person has confirmed it nothing is ended, lost or started for its sake; it is only compared.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime

from controller.exchange import ObservedAllocation, Report
from controller.store.batch import Adopt, Batch, Confirm
from controller.store.contract import Held, Hold, Missing, NotFound
from controller.store.tables import Tables
from kakuri.model import Allocation, Desired, EventDraft, EventType, Reason, Tombstone

REGISTERED_WITHIN_S = 60.0
"""By then every agent that can reach a controller has registered (every 30 s at the least, see agent/register.py), so a
node that joined after the backup is known again, and waited for. Shorter, and what runs there is placed a second time;
longer, and all stands still for as long."""


def adopt(tables: Tables, *, epoch: int, resource_version: int, now: datetime) -> tuple[None, Batch]:
    batch = Batch(now)
    batch.restore = Adopt(max(epoch, tables.lease_epoch()), max(resource_version, tables.resource_version()))
    return None, batch


def hold(tables: Tables) -> Hold | None:
    restored = tables.restored()
    if restored is None:
        return None
    nodes = tables.nodes()
    unread = tuple(id_ for id_, n in nodes.items() if n.registration is not None and n.inventory_epoch < restored.epoch)
    read = nodes.keys() - set(unread)
    return Hold(
        restored_at=restored.at,
        unread=unread,
        unknown=tuple(t for t in tables.tombstones_on(nodes) if t.reason == Reason.RESTORED),
        missing=tuple(Missing(a.id, a.workload, a.slot, a.node) for a in tables.unseen_on(read)),
    )


def confirm(tables: Tables, *, without: Collection[str], served_s: float, now: datetime) -> tuple[None, Batch]:
    batch = Batch(now)
    held = hold(tables)
    if held is None:
        raise NotFound("no restored database waits to be confirmed")
    if (left_s := wait_s(served_s)) > 0:
        raise Held(
            f"a node that joined after the backup is known only when its agent has registered again: wait {left_s} s, "
            "or confirm at once (--now) if there is none: what one has besides may run twice until it is read"
        )
    if waited_for := sorted(set(held.unread) - set(without)):
        shown = ", ".join(waited_for[:5]) + (f" and {len(waited_for) - 5} more" if len(waited_for) > 5 else "")
        raise Held(
            f"not yet heard of since the database was restored: {shown}. Start the agent there, or confirm without it "
            f"(--without {waited_for[0]}): what that node has besides is then ended when it is back, and may run twice "
            "until then"
        )
    batch.restore = Confirm()
    for node in tables.nodes():
        unknown = [t.id for t in held.unknown if t.node == node]
        missing = [m.id for m in held.missing if m.node == node]
        if unknown or missing:
            batch.tell(_confirmed(node, unknown, missing))
    return None, batch


def wait_s(served_s: float) -> int:
    """How long a confirmation waits, when agents could register for so long already."""
    return math.ceil(max(0.0, REGISTERED_WITHIN_S - served_s))


def seen(row: Allocation, said: ObservedAllocation, *, now: datetime) -> Allocation:
    """For the first time, since the restore or ever. What is wanted is said again where its node has an older word of
    it than a restored row claims: it may have heard otherwise since, which need not bind it to the lease."""
    if row.desired is not Desired.RUN or row.state.ended or said.revision >= row.accepted_revision:
        return row.with_(observed_at=now)
    return row.with_(observed_at=now, accepted_revision=said.revision, lease_bound=False)


def unseen(row: Allocation) -> Allocation:
    """Its node has it not."""
    return row if row.observed_at is None else row.with_(observed_at=None)


def note_unknown(
    tables: Tables, batch: Batch, report: Report, ours: Mapping[str, ObservedAllocation], unknown: AbstractSet[str]
) -> None:
    """What the node has and no row is kept in mind, and its slot is not placed anew, until the node has it no more."""
    noted = {t.id: t for t in tables.tombstones_on([report.node])}
    new = sorted(unknown - noted.keys())
    gone = [
        t.id
        for t in noted.values()
        if t.reason == Reason.RESTORED and (t.id in report.gone or (report.full and t.id not in ours))
    ]
    for id_ in new:
        batch.tombstones.insert(
            Tombstone(
                id=id_,
                node=report.node,
                workload=ours[id_].workload,
                slot=ours[id_].slot,
                reason=Reason.RESTORED.value,
                message="it was started after the backup that the database was restored from",
                blocks=True,
                created_at=batch.now,
            )
        )
    for id_ in gone:
        batch.tombstones.delete(id_)
    if (new or gone) and report.node in tables.nodes([report.node]):
        batch.nodes.touch(report.node)


def _confirmed(node: str, unknown: Iterable[str], missing: Iterable[str]) -> EventDraft:
    parts = [
        f"{what}: {', '.join(list(ids)[:5])}"
        for what, ids in (("to be stopped there", unknown), ("lost there", missing))
        if ids
    ]
    return EventDraft(
        object_kind="Node",
        object_id=node,
        type=EventType.WARNING,
        reason="RestoreConfirmed",
        message=f"a person confirmed the restored database; {'; '.join(parts)}",
        node=node,
    )
