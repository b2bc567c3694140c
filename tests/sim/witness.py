"""The witness: it sees every change of every runtime, every commit and every word of every agent, and knows what must
never be.

One rule: it asks nobody. What it says is broken is broken in the world, whatever the product believes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cri.convert import (
    ANNOTATION_WORKLOAD_UID,
    LABEL_ALLOCATION,
    LABEL_CLUSTER,
    LABEL_SLOT,
    LABEL_SPEC_HASH,
    LABEL_WORKLOAD,
)
from cri.v1 import runtime_pb2 as pb
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.model import Allocation, Desired, OnDisconnect, Reason, RestartPolicy, State

Slot = tuple[str, int]
"""A workload's id and one of its slots: the next workload of that id must wait, too."""


@dataclass
class Run:
    """A container that runs or ran."""

    node: str
    container: str
    allocation: str
    slot: Slot
    spec: str
    """The workload's uid and the hash of what was asked for."""
    started_at: float
    ended_at: float | None = None
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.allocation} on {self.node}"


@dataclass
class Witness:
    world: Any
    violations: list[str] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    """By container."""
    live: dict[Slot, Run] = field(default_factory=dict)
    rows: dict[str, Allocation] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    """Allocations that have ended for good, and how anybody can know."""
    done: dict[tuple[Slot, str], Run] = field(default_factory=dict)
    """Jobs that were over by themselves: slot and spec."""
    end_unknown: set[str] = field(default_factory=set)
    """Containers that somebody removed: how they ended may be known to nobody."""
    ends: dict[tuple[str, str], tuple[str, str, int | None]] = field(default_factory=dict)
    """What agents told of ends: by ledger and allocation."""
    forgotten: set[tuple[str, str]] = field(default_factory=set)
    """What agents were told to forget, and did: by ledger and allocation."""
    epochs: dict[str, int] = field(default_factory=dict)
    """The newest that each ledger has acted under."""
    lost_ledgers: set[str] = field(default_factory=set)
    """Nodes that lost one, or were given up by a person, ever: what ran there may be lost."""
    may_be_lost: set[str] = field(default_factory=set)
    """Allocations that were bound to their node's lease, ever, or were in a database when it was brought back."""
    brought_back: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    """Allocations that a person gave up without knowing that they are gone: forgotten nodes', or deleted by force."""
    resource_version: int = 0
    starts: int = 0
    _powering_off: str = ""

    def broken(self, what: str) -> None:
        self.violations.append(f"at {self.world.loop.time():.3f} s: {what}")

    def tell(self, what: str) -> None:
        """For stories."""

    # -- runtimes --------------------------------------------------------------------------------------------------
    def happened(self, node: str, foreign: Mapping[str, str], event: pb.ContainerEventResponse) -> None:
        """A runtime's own record of a sandbox or a container has changed."""
        id_, kind = event.container_id, event.container_event_type
        if id_ in foreign:
            if kind in {pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT} and self._powering_off != node:
                self.broken(f"the container {foreign[id_]} on {node} was touched, and is not ours")
            return
        if not event.containers_statuses:
            return
        status = event.containers_statuses[0]
        if status.labels.get(LABEL_CLUSTER) != self.world.stores.cluster_id:
            return
        if kind == pb.CONTAINER_STARTED_EVENT:
            self._started(node, id_, status)
        elif kind == pb.CONTAINER_STOPPED_EVENT:
            self._ended(id_, status)

    def power_off(self, node: str) -> None:
        self._powering_off = node

    def powered(self) -> None:
        self._powering_off = ""

    def _started(self, node: str, container: str, status: pb.ContainerStatus) -> None:
        labels = status.labels
        slot = (labels[LABEL_WORKLOAD], int(labels[LABEL_SLOT]))
        allocation = labels[LABEL_ALLOCATION]
        spec = f"{status.annotations[ANNOTATION_WORKLOAD_UID]} {labels[LABEL_SPEC_HASH]}"
        run = Run(node, container, allocation, slot, spec, self.world.loop.time())
        self.starts += 1
        name = f"{slot[0]}.{slot[1]}"
        if slot in self.live and not self.given_up & {allocation, self.live[slot].allocation}:
            self.broken(f"{name} runs twice: {run} beside {self.live[slot]}")
        if container in self.runs:
            self.broken(f"the container of {run} was started twice")
        if allocation in self.gone and allocation not in self.given_up:
            self.broken(f"{run} runs again, though {self.gone[allocation]}")
        row = self.rows.get(allocation)
        over = self.done.get((slot, run.spec))
        if over is not None and row is not None and _runs_once(row, over.exit_code, same=over.allocation == allocation):
            how = f"exit code {over.exit_code}"
            self.broken(f"the job {name} runs again as {run}: {over} was over with {how} at {over.ended_at:.3f} s")
        self.runs[container] = self.live[slot] = run
        self.tell(f"{allocation} runs on {node}")

    def _ended(self, container: str, status: pb.ContainerStatus) -> None:
        run = self.runs.get(container)
        if run is None or run.ended_at is not None:
            return
        run.ended_at, run.exit_code = self.world.loop.time(), status.exit_code
        self.tell(f"{run} ended with {run.exit_code}")
        if self.live.get(run.slot) is run:
            del self.live[run.slot]
            for other in self.runs.values():
                if other.slot == run.slot and other.ended_at is None:
                    self.live[run.slot] = other  # it ran beside one that was given up
        row = self.rows.get(run.allocation)
        if row is None or run.exit_code in {137, 143} or run.allocation in self.given_up:
            return
        want = self.world.people.wants.get(run.slot[0])
        if want is not None and (want.spec is None or run.slot[1] >= want.spec.replicas):
            return  # a person has taken the slot away: what comes again there is a new job
        # What its agent does not know yet of the policy counts for nothing.
        if row.accepted_revision == row.revision and _runs_once(row, run.exit_code, same=True):
            self.done[run.slot, run.spec] = run

    def wiped(self, node: str) -> None:
        """What a runtime does not have any more is not known to have ended well: under OnFailure it is run again."""
        self.done = {key: run for key, run in self.done.items() if run.node != node or self._is_once(run)}
        self.end_unknown |= {id_ for id_, run in self.runs.items() if run.node == node}

    def _is_once(self, run: Run) -> bool:
        row = self.rows.get(run.allocation)
        return row is not None and row.spec.restart_policy is RestartPolicy.NEVER

    def forgive(self, workload: str, slots: Iterable[int]) -> None:
        """A person took these slots away: what comes again there is a new job."""
        taken = {(workload, number) for number in slots}
        self.done = {key: run for key, run in self.done.items() if key[0] not in taken}

    # -- agents ----------------------------------------------------------------------------------------------------
    def told(self, node: str, ledger_uid: str, method: str, request: Any, response: Any, *, newest: int) -> None:
        """An agent has carried out a call. newest: the epoch that it had acted under when the call came."""
        if method == "Apply":
            epoch = request.fence.epoch
            if epoch < newest:
                self.broken(f"{node} obeyed epoch {epoch} after it had obeyed {newest}")
            self.epochs[ledger_uid] = max(epoch, self.epochs.get(ledger_uid, 0))
            answers = response.outcomes[len(request.starts) + len(request.stops) :]
            removed = [o for o in answers if o.result == wire.ApplyOutcome.ACCEPTED]
            self.forgotten |= {(ledger_uid, o.allocation_id) for o in removed}
        if method == "Observe":
            for status in response.allocations:
                if status.revision:
                    self._told_of(ledger_uid, status)

    def _told_of(self, ledger_uid: str, status: Any) -> None:
        key = ledger_uid, status.allocation_id
        if key in self.forgotten:
            # Should something of it turn up all the same, that is ended once more.
            if status.state in {State.PENDING, State.RUNNING}:
                self.broken(f"{status.allocation_id} had ended and was forgotten, and is {status.state} again")
            return
        code = status.exit_code if status.HasField("exit_code") else None
        said = status.state, status.reason, code
        before = self.ends.get(key)
        if before is not None and before != said:
            self.broken(f"{status.allocation_id} had ended as {before}, and its agent says now {said}")
        if State(status.state).ended:
            self.ends[key] = said
            self.gone.setdefault(status.allocation_id, f"its agent had told that it ended ({status.reason})")

    # -- the store -------------------------------------------------------------------------------------------------
    def committed(self, versions: Any, tables: Any) -> None:
        """A transaction on the twin, with the tables as they are right after it."""
        first, last = min(versions.values()), max(versions.values())
        if first <= self.resource_version:
            self.broken(f"resource_version went from {self.resource_version} to {first}")
        self.resource_version = last
        for kind, id_ in versions:
            if kind == "Allocation":
                self._row(id_, tables._allocations.get(id_), tables._nodes)

    def looked(self, rows: Iterable[Allocation]) -> None:
        """All rows as they are, however many commits later."""
        now = {r.id: r for r in rows}
        for id_ in self.rows.keys() - now.keys():
            self._row(id_, None, {})
        changed = [r for r in now.values() if r != self.rows.get(r.id)]
        for row in sorted(changed, key=lambda r: r.id not in self.rows):
            if row.id not in self.rows:
                self.gone.pop(row.id, None)  # it came and ended, or it could not be known, between two looks
            self._row(row.id, row, {})

    def _row(self, id_: str, row: Allocation | None, nodes: Any) -> None:
        before = self.rows.get(id_)
        if row is None:
            if before is not None and before.released:
                self.gone.setdefault(id_, "its row was removed")
            self.rows.pop(id_, None)
            return
        self.rows[id_] = row
        if before is None:
            self._check_new(row, nodes)
        else:
            self._check_change(before, row)
        if row.spec.on_disconnect is OnDisconnect.REPLACE:
            self.may_be_lost.add(id_)
        if row.state.ended:
            self.gone.setdefault(id_, f"it had ended in the database ({row.reason})")

    def _check_new(self, row: Allocation, nodes: Any) -> None:
        if row.id in self.gone:
            self.broken(f"{row.id} is placed again, though {self.gone[row.id]}")
        node = nodes.get(row.node)
        if node is not None and not (node.ready and node.schedulable):
            why = "cordoned" if node.ready else f"not ready ({node.reason})"
            self.broken(f"{row.id} was placed on {row.node}, which is {why}")
        doubles = [r.id for r in self.rows.values() if r.live and r.id != row.id and _slot(r) == _slot(row)]
        if row.live and doubles:
            self.broken(f"{row.id} was placed beside {doubles[0]}")

    def _check_change(self, before: Allocation, row: Allocation) -> None:
        if not before.state.may_become(row.state):
            self.broken(f"{row.id} went from {before.state} back to {row.state}")
        if before.state.ended:
            for name in ("exit_code", "reason", "finished_at"):
                was, now = getattr(before, name), getattr(row, name)
                if was != now and not (name == "exit_code" and was is None):
                    self.broken(f"the end of {row.id} was {name} {was}, and is {now} now")
        for name in ("revision", "accepted_revision", "restarts", "released", "started_once"):
            if name == "accepted_revision" and row.id in self.brought_back:
                continue  # what counted as accepted is said again once its node is heard of
            if getattr(row, name) < getattr(before, name):
                self.broken(f"{name} of {row.id} went back from {getattr(before, name)} to {getattr(row, name)}")
        if before.desired is not Desired.RUN and row.desired is Desired.RUN:
            self.broken(f"{row.id} was to {before.desired}, and is to run again")
        lost = Reason.NODE_LOST in {row.reason, row.desired_reason}
        was_lost = Reason.NODE_LOST in {before.reason, before.desired_reason}
        if lost and not was_lost and row.node not in self.lost_ledgers and row.id not in self.may_be_lost:
            self.broken(f"{row.id} was given up as lost on {row.node}, which lost nothing")

    def restored(self, rows: Mapping[str, Allocation]) -> None:
        """An old database is brought back: what came since is not in it, and may be lost or done again. But nothing may
        run twice, and what has ended never runs again."""
        self.rows = dict(rows)
        self.may_be_lost |= rows.keys()
        self.brought_back |= rows.keys()
        self.done.clear()

    # -- at the end ------------------------------------------------------------------------------------------------
    def check_jobs(self) -> None:
        """What a job's container ended with is what the database says of it."""
        for run in self.runs.values():
            row = self.rows.get(run.allocation)
            over = self.done.get((run.slot, run.spec)) is run
            if not over or row is None or not row.state.ended or run.node in self.lost_ledgers:
                continue
            if row.exit_code is None and run.container in self.end_unknown:
                continue
            if run.exit_code not in {255, row.exit_code} and row.restarts == 0:
                self.broken(f"{run} ended with {run.exit_code}, and the database says {row.exit_code} ({row.reason})")


def _runs_once(row: Allocation, exit_code: int | None, *, same: bool) -> bool:
    """Whether what ended like this is over for good. same: asked about the same allocation. Under OnFailure, a run
    whose end was lost with its node may be made again elsewhere."""
    policy = row.spec.restart_policy
    return policy is RestartPolicy.NEVER or (policy is RestartPolicy.ON_FAILURE and exit_code == 0 and same)


def _slot(row: Allocation) -> Slot:
    return row.workload, row.slot
