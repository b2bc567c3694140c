"""The reconcile pass: what is wanted against what is, for the workloads that may differ. Load → plan → apply.

One rule: it takes no hint. Whatever marked a workload dirty, the pass looks at all of it again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.loops.ports import Clock, PlanStore
from controller.plan.action import Plan
from controller.plan.reconcile import plan
from controller.plan.snapshot import Snapshot, WorkloadView
from controller.store.contract import Applied
from kakuri import metrics
from kakuri.log import get_logger

MAX_WORKLOADS = 200
"""A pass: more and its transaction holds up other writers; fewer and a burst takes more round trips."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass leaves for the next: stale ids at once, look_again at their times, nodes that have errands."""

    applied: Applied
    look_again: tuple[tuple[datetime, str], ...]


class ReconcilePass:
    def __init__(self, store: PlanStore, clock: Clock, seed: Callable[[], str]) -> None:
        """seed: fresh text each time; the new allocations' ids come from it."""
        self._store = store
        self._clock = clock
        self._seed = seed
        self._log = get_logger("reconcile")

    async def __call__(self, ids: Sequence[str], *, epoch: int) -> Passed:
        """Plans these workloads and writes the plan. Raises Fenced when another controller leads, Unavailable."""
        started = self._clock.monotonic()
        snapshot = await self._store.load_snapshot(ids, now=self._clock.now(), seed=self._seed())
        decided = plan(snapshot)
        applied = Applied()
        if not decided.empty:
            applied = await self._store.apply_plan(decided, epoch=epoch, now=snapshot.now)
        took = self._clock.monotonic() - started
        metrics.RECONCILE_PASS_SECONDS.observe(took)
        for action in decided.actions:
            metrics.RECONCILE_ACTIONS.labels(type(action).__name__.lower()).inc()
        if not decided.empty:
            self._log.info("reconciled", **_told(snapshot, decided, applied), took_s=round(took, 4))
        return Passed(
            applied=applied,
            look_again=tuple(
                (w.look_again_at, w.workload_id) for w in decided.workloads if w.look_again_at is not None
            ),
        )


def _told(snapshot: Snapshot, decided: Plan, applied: Applied) -> dict[str, object]:
    """The canonical line: what the pass saw, what it decided, and what came of it."""
    changed = {w.workload_id for w in decided.workloads if not w.empty}
    return {
        "saw": [_seen(w) for w in sorted(snapshot.workloads, key=lambda w: w.id) if w.id in changed][:20],
        "nodes": f"{sum(n.ready and n.schedulable for n in snapshot.nodes)} of {len(snapshot.nodes)} take work",
        **decided.log_fields(),
        "became": [
            f"{w.workload_id}: {w.status.state}" + (f"/{w.status.reason}" if w.status.reason else "")
            for w in decided.workloads
            if w.status_changed
        ][:20],
        **({"stale": sorted(applied.stale)} if applied.stale else {}),
    }


def _seen(view: WorkloadView) -> str:
    wanted = "deleting" if view.deleting else f"wants {view.spec.replicas}"
    states = Counter(f"{a.state}" + (f"/{a.reason}" if a.reason else "") for a in view.allocations)
    has = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "nothing"
    return f"{view.id} (generation {view.generation}) {wanted}, has {has}"
