"""A world small enough for properties: rows that plans are applied to, and agents that do one thing when told.

One rule: nothing here decides anything; it keeps to what stores and agents promise (design §1, §4), so that whatever
goes wrong in it is the planner's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from builders import NOW, a_snapshot, a_view
from controller.plan.action import Forget, Plan, carried_out
from controller.plan.reconcile import plan
from controller.plan.snapshot import NodeView, Snapshot, WorkloadView
from kakuri.model import Allocation, Desired, State, WorkloadStatus


@dataclass
class ToyWorld:
    nodes: dict[str, NodeView]
    workloads: dict[str, WorkloadView] = field(default_factory=dict)
    now: datetime = NOW
    passes: int = 0

    # -- the store -------------------------------------------------------------------------------------------------
    def snapshot(self) -> Snapshot:
        self.passes += 1
        return a_snapshot(self.workloads.values(), self.nodes.values(), now=self.now, seed=f"pass {self.passes}")

    def plan(self) -> Plan:
        return plan(self.snapshot())

    def apply(self, decided: Plan) -> None:
        for part in decided.workloads:
            view = self.workloads[part.workload_id]
            if any(isinstance(a, Forget) for a in part.actions):
                del self.workloads[view.id]
                continue
            rows = carried_out(view.allocations, part.actions, self.now)
            status = WorkloadStatus.model_validate_json(part.status.model_dump_json())
            self.workloads[view.id] = replace(view, version=view.version + 1, allocations=rows, status=status)

    def settle(self, *, do: Callable[[Allocation], Allocation | None], passes: int = 200) -> None:
        """Plans, applies and lets agents act on every row until nothing changes; time goes on when only it is waited
        for. do: what an agent makes of a row; None for a row that is gone."""
        for _ in range(passes):
            decided = self.plan()
            self.apply(decided)
            changed = [self.change(a.id, do) for a in self.rows()]
            if decided.empty and not any(changed):
                times = [w.look_again_at for w in decided.workloads if w.look_again_at is not None]
                if not times:
                    return
                self.now = max(self.now + timedelta(seconds=1), min(times))
        raise AssertionError(f"the world does not settle: {self.plan().log_fields()}")

    # -- people ----------------------------------------------------------------------------------------------------
    def put(self, id_: str, **fields: Any) -> None:
        """Creates the workload, or changes these fields of its spec."""
        if id_ not in self.workloads:
            self.workloads[id_] = a_view(id_, **fields)
            return
        view = self.workloads[id_]
        spec = view.spec.with_(**fields)
        if spec != view.spec and not view.deleting:
            self.workloads[id_] = replace(view, spec=spec, generation=view.generation + 1, version=view.version + 1)

    def delete(self, id_: str) -> None:
        if id_ in self.workloads:
            self.workloads[id_] = replace(self.workloads[id_], deleting=True)

    # -- agents ----------------------------------------------------------------------------------------------------
    def rows(self) -> list[Allocation]:
        return [a for w in sorted(self.workloads.values(), key=lambda w: w.id) for a in w.allocations]

    def change(self, id_: str, do: Callable[[Allocation], Allocation | None]) -> bool:
        """Whether the row is another afterwards. A silent node says nothing."""
        row = next((a for a in self.rows() if a.id == id_), None)
        if row is None or not self.nodes[row.node].ready:
            return False
        after = do(row)
        if after == row:
            return False
        view = self.workloads[row.workload]
        rows = [after if a.id == id_ else a for a in view.allocations]
        kept = tuple(a for a in rows if a is not None)
        self.workloads[view.id] = replace(view, allocations=kept, version=view.version + 1)
        return True

    def run(self, row: Allocation) -> Allocation | None:
        """An agent on which all goes well."""
        if row.desired is not Desired.RUN:
            return self.obey(row)
        if row.state is State.PENDING or (row.state is State.RUNNING and row.reason):
            started = {"started_once": True, "started_at": self.now, "reason": "", "message": ""}
            return row.with_(state=State.RUNNING, accepted_revision=row.revision, **started)
        return row.with_(released=row.state.ended)

    def obey(self, row: Allocation) -> Allocation | None:
        """An agent that does what it is told: ends what should stop, forgets what should be removed."""
        if row.desired is Desired.REMOVE:
            return None
        if row.desired is Desired.STOP and not row.released:
            return self.end(row, State.FAILED, row.desired_reason).with_(released=True)
        return row

    def run_job(self, row: Allocation) -> Allocation | None:
        """An agent whose containers run for one round and succeed."""
        if row.desired is Desired.RUN and row.state is State.RUNNING:
            return self.end(row, State.SUCCEEDED, "Completed", exit_code=0)
        return self.run(row)

    def end(self, row: Allocation, state: State, reason: str, exit_code: int | None = None) -> Allocation:
        if row.state.ended:
            return row
        return row.with_(state=state, reason=reason, message="", exit_code=exit_code, finished_at=self.now)
