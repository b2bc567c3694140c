"""How far a node's drain has come: what is left there and why, and what was moved and does not run yet.

One rule: it is told from the snapshot and the plan made of it, so people read what the next pass will do. A node is
drained when nothing of ours is live there and every slot that had to leave it is up elsewhere, done, or wanted no more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.plan.action import Plan, Stop, WorkloadPlan
from controller.plan.drain import silence
from controller.plan.reconcile import plan
from controller.plan.replace import Standing, sort_into_slots
from controller.plan.snapshot import NodeView, Snapshot, WorkloadView
from kakuri.model import Allocation, Desired, Reason


@dataclass(frozen=True, slots=True)
class Left:
    """A live allocation on the node, and why it is there yet."""

    allocation: str
    workload: str
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Moving:
    """A slot that had to leave the node and is not up elsewhere yet."""

    workload: str
    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class Progress:
    left: tuple[Left, ...]
    waiting: tuple[Moving, ...]
    moved: int
    """Slots that had to leave and need nothing more."""

    @property
    def done(self) -> bool:
        return not self.left and not self.waiting


def concerned(rows: Iterable[Allocation]) -> list[str]:
    """The workloads that a drain is about, of all rows on its node: what only ended there is not planned for it."""
    return sorted({a.workload for a in rows if a.live or a.desired_reason == Reason.DRAINED})


def progress_of(node_id: str, snapshot: Snapshot) -> Progress:
    """snapshot: with every workload that the drain of this node is about."""
    nodes = {n.id: n for n in snapshot.nodes}
    decided = _by_workload(plan(snapshot))
    left: list[Left] = []
    waiting: list[Moving] = []
    moved = 0
    for view in sorted(snapshot.workloads, key=lambda w: w.id):
        here = sorted((a for a in view.allocations if a.node == node_id), key=lambda a: (a.slot, a.id))
        for row in (a for a in here if a.live):
            why = _why_left(row, nodes.get(node_id), decided[view.id])
            left.append(Left(row.id, view.id, row.state.value, why))
        for slot in sorted({a.slot for a in here if not a.live and a.desired_reason == Reason.DRAINED}):
            why = _why_not_up(view, slot, node_id, snapshot, nodes, decided[view.id])
            if why:
                waiting.append(Moving(view.id, slot, why))
            else:
                moved += 1
    return Progress(tuple(left), tuple(waiting), moved)


def _by_workload(decided: Plan) -> dict[str, WorkloadPlan]:
    return {w.workload_id: w for w in decided.workloads}


def _why_left(row: Allocation, node: NodeView | None, decided: WorkloadPlan) -> str:
    if row.state.ended:
        return "has ended; what is left of it is being cleared away"
    if row.desired is not Desired.RUN:
        if node is None:
            return "can't be ended: its node is not registered"
        if not node.ready:
            return f"can't be ended there: {silence(node)}"
        return f"is stopping ({row.desired_reason or 'asked to'}, grace {row.spec.termination_grace_s} s)" + (
            f": {row.message}" if row.message else ""
        )
    staying = next((s.message for s in decided.staying if s.allocation_id == row.id), None)
    if staying is not None:
        return staying
    stop = next((a for a in decided.actions if isinstance(a, Stop) and a.allocation_id == row.id), None)
    return f"is about to be stopped: {stop.message or stop.reason}" if stop is not None else "is looked at soon"


def _why_not_up(
    view: WorkloadView,
    number: int,
    node_id: str,
    snapshot: Snapshot,
    nodes: Mapping[str, NodeView],
    decided: WorkloadPlan,
) -> str:
    """Why the slot that left is not up elsewhere; "" when nothing more is to come of it."""
    if view.deleting or number >= view.spec.replicas:
        return ""
    slot = sort_into_slots(view, nodes, snapshot.now).wanted[number]
    if slot.standing in {Standing.READY, Standing.DONE, Standing.FAILED}:
        return ""
    if slot.current is not None and slot.current.live and slot.current.node == node_id:
        return ""  # told of as left
    told = next((w for w in decided.waiting if w.slot == number), None)
    return f"{told.reason}: {told.message}" if told is not None else "waits for the next pass"
