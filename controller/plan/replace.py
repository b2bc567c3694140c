"""The slots of a workload, each sorted into one standing: what its allocations are, and what may follow them.

One rule: this says what is, and what the next allocation of a slot inherits; reconcile.py alone decides what is done.

    live allocation, told to run    READY  COMING_UP  BROKEN  UNSURE
    live allocation, on its way out STOPPING  CLEARING
    ended for good                  DONE  FAILED
    free for a new allocation       BACKING_OFF  EMPTY
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

from controller.plan.snapshot import NodeView, WorkloadView
from kakuri.model import Allocation, Desired, Reason, RestartPolicy, State

FIRST_BACKOFF_S = 10
"""After a slot's first failed start. Shorter and a broken node is hammered; longer and a passing fault is felt."""
LONGEST_BACKOFF_S = 300
"""Longer and a slot stays down long after its cause is gone; shorter and a hopeless one costs the node too much."""

STEADY_S = 1
"""How long a changed slot must have run before a change takes the next one down. Shorter and an image that dies as it
starts goes through all slots before its death is known; longer and every change takes that much longer a slot."""


class Standing(StrEnum):
    READY = "ready"
    COMING_UP = "coming up"
    BROKEN = "broken"
    """Live, and known not to work: it sits in a backoff of its agent."""
    UNSURE = "unsure"
    """Live, and not known to work or not: its node is silent, or its runtime can't be reached."""
    STOPPING = "stopping"
    CLEARING = "clearing"
    """Ended and to be replaced, once nothing of it is left on its node."""
    DONE = "done"
    FAILED = "failed"
    BACKING_OFF = "backing off"
    """Its last allocation failed to start; the next waits until `due`."""
    EMPTY = "empty"


AVAILABLE = frozenset({Standing.READY, Standing.DONE})
"""As due: running, or ended as a job should. Any other slot counts against max_unavailable."""

BROKEN_REASONS = frozenset(
    {
        Reason.IMAGE_PULL_BACK_OFF,
        Reason.CRASH_LOOP_BACK_OFF,
        Reason.SANDBOX_FAILED,
        Reason.HOST_PORT_IN_USE,
        Reason.START_ERROR,
    }
)


TRIED_REASONS = frozenset({Reason.START_ERROR, Reason.BACKOFF_LIMIT_EXCEEDED})
"""The sandbox was there, and the agent tried the command as often as the restart policy allows: an end like any other,
though no process ever ran. Another node would fare no better with a command that the image has not."""


class End(StrEnum):
    """What an allocation that has ended means for its slot."""

    DONE = "done"
    FAILED = "failed"
    LOST = "lost"
    FAILED_START = "failed to start"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot. `current`: its live allocation, else its newest."""

    number: int
    standing: Standing
    current: Allocation | None = None
    outdated: bool = False
    """The current allocation has another spec than the workload."""
    doubles: tuple[Allocation, ...] = ()
    """Live allocations beside the current one. There should be none."""
    older: tuple[Allocation, ...] = ()
    """Released allocations beside the current one, newest first."""
    failures: int = 0
    """Failed starts in a row that the next allocation inherits."""
    avoid: str = ""
    """The node that the next allocation had better not be on."""
    due: datetime | None = None
    """When time alone changes what may follow: the next try of BACKING_OFF; READY has run for STEADY_S."""
    cause: str = ""
    """Why the next allocation is made."""

    @property
    def available(self) -> bool:
        return self.standing in AVAILABLE

    @property
    def came_out_badly(self) -> bool:
        """Its allocation has the present spec and did not come up, or failed: the next slot would fare no better."""
        if self.current is None or self.outdated:
            return False
        match self.standing:
            case Standing.BROKEN | Standing.FAILED | Standing.BACKING_OFF:
                return True
            case Standing.COMING_UP:
                return self.current.failures > 0
            case Standing.CLEARING:
                return self.current.desired is Desired.RUN
            case Standing.READY | Standing.UNSURE | Standing.STOPPING | Standing.DONE | Standing.EMPTY:
                return False

    @property
    def rerun(self) -> bool:
        """It ended for good, at a spec that has changed since, and nothing of it is left."""
        ended = self.standing in {Standing.DONE, Standing.FAILED}
        return ended and self.outdated and self.current is not None and self.current.released


@dataclass(frozen=True, slots=True)
class Slots:
    """A workload's allocations in their slots, and those of slots that it has no more."""

    wanted: tuple[Slot, ...]
    surplus: tuple[Allocation, ...]

    def pausing(self, nowhere: Collection[int]) -> Slot | None:
        """The first slot that pauses a change, if any. nowhere: slots for which no node has room; one that had an
        allocation before lost it to the change, one that never had one says nothing of the spec, nor does one that
        had to leave a node."""
        for slot in self.wanted:
            if slot.came_out_badly:
                return slot
            if slot.number in nowhere and slot.current is not None and slot.current.desired_reason != Reason.DRAINED:
                return slot
        return None

    @property
    def unavailable(self) -> int:
        return sum(not s.available for s in self.wanted)

    def settling(self, now: datetime) -> list[datetime]:
        """For each slot that has the present spec and runs since too short a time to trust it: when it may be."""
        return [s.due for s in self.wanted if s.standing is Standing.READY and s.due is not None and s.due > now]


def sort_into_slots(view: WorkloadView, nodes: Mapping[str, NodeView], now: datetime) -> Slots:
    """Every allocation row of the workload, sorted. Rows that are being removed count as gone already."""
    by_slot: dict[int, list[Allocation]] = defaultdict(list)
    for allocation in sorted(view.allocations, key=_age):
        if allocation.live or allocation.desired is not Desired.REMOVE:
            by_slot[allocation.slot].append(allocation)
    spec_hash = view.spec.replacing_hash()
    wanted = tuple(_sort(n, by_slot.pop(n, []), view, spec_hash, nodes, now) for n in range(view.spec.replicas))
    return Slots(wanted, tuple(a for number in sorted(by_slot) for a in by_slot[number]))


STOP_REASONS = frozenset(
    {
        Reason.STOPPED,
        Reason.UPDATING,
        Reason.SCALING_DOWN,
        Reason.DRAINED,
        Reason.DELETED,
        Reason.FORCE_DELETED,
        Reason.NODE_FORGOTTEN,
        Reason.RESTORED,
    }
)
"""What an agent says of an end that was asked for."""


def end_of(allocation: Allocation, policy: RestartPolicy, *, outdated: bool) -> End:
    """What the end of this allocation means under the workload's present restart policy. outdated: of another spec."""
    # A database that was brought back may not know that it had asked for a stop.
    stopped_by_us = allocation.desired is not Desired.RUN or allocation.reason in STOP_REASONS
    if allocation.state is State.SUCCEEDED:
        # A job may finish its work while the stop is on its way to it; then it is done all the same. Not so when a
        # change took it down: until its successor is up, the slot counts against max_unavailable.
        finished = allocation.reason == Reason.COMPLETED and policy is not RestartPolicy.ALWAYS and not outdated
        if finished or not stopped_by_us:
            return End.DONE
    if Reason.NODE_LOST in {allocation.reason, allocation.desired_reason}:
        # What may have run must not run twice under Never.
        return End.FAILED if policy is RestartPolicy.NEVER else End.LOST
    if allocation.desired_reason == Reason.DRAINED and policy is RestartPolicy.NEVER and allocation.started_once:
        return End.FAILED
    if stopped_by_us:
        return End.STOPPED
    tried = allocation.started_once or allocation.reason in TRIED_REASONS
    return End.FAILED if tried else End.FAILED_START


def backoff(failures: int) -> timedelta:
    """The wait after this many failed starts in a row."""
    # 2**5 is past the longest already; more would only make a large number.
    return timedelta(seconds=min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 5)))


def _age(allocation: Allocation) -> tuple[datetime, str]:
    return allocation.created_at, allocation.id


def _sort(
    number: int,
    allocations: list[Allocation],
    view: WorkloadView,
    spec_hash: str,
    nodes: Mapping[str, NodeView],
    now: datetime,
) -> Slot:
    """allocations: the slot's, oldest first."""
    live = [a for a in allocations if a.live]
    released = tuple(reversed([a for a in allocations if not a.live]))
    if live:
        kept = max(live, key=lambda a: _worth(a, spec_hash))
        outdated = kept.spec_hash != spec_hash
        standing = _standing(kept, view.spec.restart_policy, nodes.get(kept.node), outdated=outdated)
        return Slot(
            number,
            standing,
            current=kept,
            outdated=outdated,
            doubles=tuple(a for a in live if a is not kept),
            older=released,
            due=_steady_at(kept) if standing is Standing.READY and not outdated else None,
        )
    if not released:
        return Slot(number, Standing.EMPTY, cause=f"slot {number} has no allocation")
    return _follow(number, released[0], released[1:], view, spec_hash, now)


def _worth(allocation: Allocation, spec_hash: str) -> tuple[object, ...]:
    """Which of several live ones to keep: wanted, alive, of the present spec, proven to run; then the newest that its
    agent accepted."""
    return (
        allocation.desired is Desired.RUN,
        not allocation.state.ended,
        allocation.spec_hash == spec_hash,
        allocation.started_once,
        allocation.accepted_revision > 0,
        _age(allocation),
    )


def _standing(allocation: Allocation, policy: RestartPolicy, node: NodeView | None, *, outdated: bool) -> Standing:
    """The standing of a live allocation."""
    if allocation.state.ended:
        match end_of(allocation, policy, outdated=outdated):
            case End.DONE:
                return Standing.DONE
            case End.FAILED:
                return Standing.FAILED
            case End.LOST | End.FAILED_START | End.STOPPED:
                return Standing.CLEARING
    if allocation.desired is not Desired.RUN or allocation.state is State.TERMINATING:
        return Standing.STOPPING
    if node is None or not node.ready or allocation.reason == Reason.RUNTIME_UNREACHABLE:
        return Standing.UNSURE
    if allocation.ready:
        return Standing.READY
    if allocation.reason in BROKEN_REASONS:
        return Standing.BROKEN
    # Running with a reason that this version doesn't know: it may well serve, so a change must not take it for down.
    return Standing.COMING_UP if allocation.state is State.PENDING else Standing.UNSURE


def _follow(
    number: int, last: Allocation, older: tuple[Allocation, ...], view: WorkloadView, spec_hash: str, now: datetime
) -> Slot:
    """A slot whose allocations are all released, by how the last one ended."""
    outdated = last.spec_hash != spec_hash
    slot = partial(Slot, number, current=last, outdated=outdated, older=older)
    inherited = 0 if outdated or last.started_once else last.failures
    match end_of(last, view.spec.restart_policy, outdated=outdated):
        case End.DONE:
            return slot(standing=Standing.DONE, cause=f"{last.id} ended with an earlier spec")
        case End.FAILED:
            return slot(standing=Standing.FAILED, cause=f"{last.id} failed with an earlier spec")
        case End.STOPPED:
            why = last.desired_reason or Reason.STOPPED
            return slot(standing=Standing.EMPTY, cause=f"{last.id} was stopped ({why})", failures=inherited)
        case End.LOST:
            return slot(standing=Standing.EMPTY, cause=f"{last.id} was lost on {last.node}", failures=inherited)
        case End.FAILED_START if outdated:
            # Another spec is another chance: neither the wait nor the count is inherited.
            return slot(standing=Standing.EMPTY, cause=f"{last.id} failed to start with an earlier spec")
        case End.FAILED_START:
            failures = last.failures + 1
            due = _ended_at(last) + backoff(failures)
            return slot(
                standing=Standing.BACKING_OFF if due > now else Standing.EMPTY,
                cause=f"{last.id} failed to start on {last.node} ({last.reason}); this is try {failures + 1}",
                failures=failures,
                avoid=last.node,
                due=due,
            )


def _ended_at(allocation: Allocation) -> datetime:
    return _heard(allocation, allocation.finished_at)


def _steady_at(allocation: Allocation) -> datetime:
    return _heard(allocation, allocation.started_at) + timedelta(seconds=STEADY_S)


def _heard(allocation: Allocation, happened_at: datetime | None) -> datetime:
    """When it happened by the node's clock, but never later than when we heard of it: a node whose clock is ahead must
    not hold a slot up."""
    return min((t for t in (happened_at, allocation.observed_at) if t is not None), default=allocation.created_at)
