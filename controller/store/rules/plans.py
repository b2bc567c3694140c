"""What the planner may look at, and carrying out what it decided.

One rule: a WorkloadPlan was made for one version of its workload; for any other nothing of it is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller.plan.action import Forget, Place, Plan, Remove, WorkloadPlan, carried_out
from controller.plan.snapshot import Snapshot
from controller.store.batch import Batch
from controller.store.contract import Applied, Invalid
from controller.store.records import NodeRecord, Usage, WorkloadRecord
from controller.store.rules.fence import check_lead
from controller.store.rules.nodes import bury
from controller.store.tables import RELEASED, Tables
from kakuri.model import Allocation, Desired, Reason, Tombstone


def load_snapshot(tables: Tables, workload_ids: Sequence[str], *, now: datetime, seed: str) -> Snapshot:
    # Versions before allocations: should a write come between, the version is the older one and the plan is stale.
    workloads = tables.workloads(workload_ids) if workload_ids else {}
    allocations: dict[str, list[Allocation]] = {id_: [] for id_ in workloads}
    for row in tables.allocations_of(workloads) if workloads else []:
        allocations[row.workload].append(row)
    classes = tables.runtime_classes()
    usage = tables.usage()
    host_ports = tables.host_ports()
    nodes = tables.nodes()
    holding: dict[str, list[Tombstone]] = {}
    for tombstone in tables.tombstones_of(workloads) if workloads else []:
        there = nodes.get(tombstone.node)
        # A node that answers is about to end it: not long to wait for.
        if tombstone.blocks or (there is not None and there.ready):
            holding.setdefault(tombstone.workload, []).append(tombstone)
    draining = [n.id for n in nodes.values() if n.drain is not None]
    return Snapshot(
        now=now,
        workloads=tuple(w.view(tuple(allocations[w.id]), holding.get(w.id, ())) for w in workloads.values()),
        nodes=tuple(
            n.view(usage.get(n.id, Usage()), host_ports.get(n.id, frozenset()), classes) for n in nodes.values()
        ),
        runtime_classes=classes,
        seed=seed,
        leaving=tuple(tables.leaving(draining) if draining else ()),
    )


def apply_plan(tables: Tables, plan: Plan, *, epoch: int, now: datetime) -> tuple[Applied, Batch]:
    check_lead(tables, epoch)
    todo = [w for w in plan.workloads if not w.empty]
    desk = _load(tables, todo, now)
    written, stale = set(), set()
    for step in todo:
        if desk.carry_out(step):
            written.add(step.workload_id)
        else:
            stale.add(step.workload_id)
    applied = Applied(
        frozenset(written), frozenset(stale), frozenset(desk.nodes_to_tell), again=frozenset(desk.cleared.values())
    )
    return applied, desk.batch


def _load(tables: Tables, todo: Sequence[WorkloadPlan], now: datetime) -> "_Desk":
    targets = {a.node for w in todo for a in w.actions if isinstance(a, Place)}
    removed = {a.allocation_id for w in todo for a in w.actions if isinstance(a, Remove)}
    # Nodes before workloads. Nobody loses or forgets one of these from here on, and a row keeps its node.
    left = {r.node for r in tables.allocations(removed)} if removed else set()
    nodes = tables.nodes(targets | left) if targets or left else {}
    workloads = tables.workloads([w.workload_id for w in todo]) if todo else {}
    acted_on = [w.workload_id for w in todo if w.actions and w.workload_id in workloads]
    rows = tables.allocations_of(acted_on) if acted_on else []
    allocations: dict[str, dict[str, Allocation]] = {}
    for row in rows:
        allocations.setdefault(row.workload, {})[row.id] = row
    return _Desk(now, Batch(now), nodes, workloads, allocations)


@dataclass
class _Desk:
    now: datetime
    batch: Batch
    nodes: dict[str, NodeRecord]
    """Those that get something or are to remove something, as far as they are not forgotten."""
    workloads: dict[str, WorkloadRecord]
    allocations: dict[str, dict[str, Allocation]]
    """By workload, by id."""
    nodes_to_tell: set[str] = field(default_factory=set)
    cleared: dict[str, str] = field(default_factory=dict)
    """Allocations that went without a word to their node → their workloads."""

    def carry_out(self, step: WorkloadPlan) -> bool:
        """Whether the plan was for the workload as it is."""
        record = self.workloads.get(step.workload_id)
        if record is None or record.version != step.version:
            return False
        places = [a for a in step.actions if isinstance(a, Place)]
        if any(p.workload_uid != record.uid or not self._still_there(p) for p in places):
            return False
        before = self.allocations.get(record.id, {})
        for draft in step.events:
            self.batch.tell(draft)
        if any(isinstance(a, Forget) for a in step.actions):
            self._forget(record, before)
            return True
        after = carried_out(before.values(), step.actions, self.now)
        _check_slots(after)
        for row in after:
            if row.id not in before:
                self.batch.insert_allocation(row)
            elif row is not before[row.id] and row.desired is Desired.REMOVE and self._clear(row):
                continue
            elif row is not before[row.id]:
                self.batch.update_allocation(row)
            else:
                continue
            self.nodes_to_tell.add(row.node)
        self._follow(record, step)
        return True

    def _clear(self, row: Allocation) -> bool:
        """Whether the row goes at once, since its node can't be told now or, of what it had, nothing more."""
        node = self.nodes.get(row.node)
        if node is not None and node.lost_at is None and row.ledger_uid != RELEASED:
            return False
        if node is not None and row.ledger_uid != RELEASED:
            bury(self.batch, row, Reason.NODE_LOST, f"node {row.node} was lost")
            self.batch.nodes.touch(node.id)
        self.batch.delete_allocation(row)
        self.cleared[row.id] = row.workload
        return True

    def _still_there(self, place: Place) -> bool:
        # A node that came back with another ledger since must not be sent a start that names the old one.
        node = self.nodes.get(place.node)
        # One that fell silent since may be lost already, and what is placed there would not be among what it lost. Nor
        # is anything placed where a person has been told since that nothing will be.
        return node is not None and node.ready and node.schedulable and node.ledger_uid == place.ledger_uid

    def _forget(self, record: WorkloadRecord, rows: Mapping[str, Allocation]) -> None:
        if rows:
            raise Invalid(f"{record.id} can't be forgotten while it has the allocation {min(rows)}")
        self.batch.workloads.delete(record.id)

    def _follow(self, record: WorkloadRecord, step: WorkloadPlan) -> None:
        status = step.status if step.status_changed else record.status
        waits = Reason.UNSCHEDULABLE in {status.reason, *(w.reason for w in step.waiting)}
        if status != record.status or waits != record.waits_for_place:
            self.batch.workloads.update(
                replace(record, version=record.version + 1, status=status, waits_for_place=waits)
            )


def _check_slots(rows: Iterable[Allocation]) -> None:
    live: dict[int, str] = {}
    for row in rows:
        if not row.live:
            continue
        if row.slot in live:
            raise Invalid(f"{row.id} can't be placed beside {live[row.slot]}: a slot never has two live allocations")
        live[row.slot] = row.id
