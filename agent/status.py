"""PURE: what is told of an allocation, from what the ledger and the runtime say of it.

One rule: a state never goes back, and a reason is one that a person can do something with.
"""

from collections.abc import Sequence

from agent import ladder
from agent.action import CreateContainer, EnsureImage, Look, ProbePorts, Record, RunSandbox, StartContainer, Step
from agent.entry import Entry, StopAsked
from agent.progress import SECOND, Progress, Trouble
from agent.removal import grace_of
from agent.seen import Seen
from agent.step import told
from cri.convert import ObservedContainer, ObservedSandbox
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.model import Reason, State

SILENT_LOOKS = 3
"""Looks in a row that the runtime may leave unanswered before people are told: a restart of it takes about as long."""
_STARTING: tuple[type[Step], ...] = (EnsureImage, ProbePorts, RunSandbox, CreateContainer, StartContainer, Record, Look)


def status_of(
    entry: Entry, seen: Seen, progress: Progress, *, ran: bool, simulated: bool, waits: str = ""
) -> wire.AllocationStatus:
    """ran: it was told to be Running before, so it can't become Pending. waits: why it may not start now.

    A container that has ended counts as running until the ledger says what its end means: an end, or another attempt.
    """
    current = seen.container(entry.attempt) if entry.wish is not None else None
    running = current is not None and current.state == "running" and entry.end is None
    ran = ran or entry.started_once or running
    status = wire.AllocationStatus(
        allocation_id=entry.id,
        workload_id=entry.workload_id,
        workload_uid=entry.workload_uid,
        origin=entry.origin,
        revision=entry.revision,
        restarts=entry.restarts,
        started_once=ran,
        released=entry.released,
        simulated=simulated,
        slot=entry.slot,
        image=entry.wish.image if entry.wish is not None else "",
        memory_mb=entry.wish.memory_mb if entry.wish is not None else 0,
        cpu_millicores=entry.wish.cpu_millicores if entry.wish is not None else 0,
    )
    _add_runtime(status, entry, seen, current)
    ending = current is not None and current.state == "exited" and ran
    state = _state(entry, seen, progress, running=running or ending, ran=ran, waits=waits)
    status.state, status.reason, status.message = state
    if entry.end is not None:
        status.finished_at_ns = entry.end.finished_at_ns
        if entry.end.exit_code is not None:
            status.exit_code = entry.end.exit_code
    elif not running and entry.last is not None and entry.last.exit_code is not None:
        status.exit_code = entry.last.exit_code
    return status


def found_status(
    sandboxes: Sequence[ObservedSandbox], containers: Sequence[ObservedContainer], *, simulated: bool
) -> wire.AllocationStatus:
    """Of what bears our labels and isn't in the ledger. One allocation's, at least one sandbox."""
    newest = max(sandboxes, key=lambda s: s.created_at_ns)
    owner = newest.owner
    running = any(c.state == "running" for c in containers)
    status = wire.AllocationStatus(
        allocation_id=owner.allocation_id,
        workload_id=owner.workload_id,
        workload_uid=owner.workload_uid,
        origin=owner.origin or owner.cluster_id,
        slot=owner.slot,
        state=State.RUNNING if running else State.PENDING,
        message="found in the runtime, but not in this agent's ledger: it is left alone until somebody stops it",
        started_once=bool(containers),
        simulated=simulated,
        handler=newest.handler,
        sandbox_id=newest.id,
    )
    if containers:
        status.container_id = max(containers, key=lambda c: c.attempt).id
    return status


def _add_runtime(status: wire.AllocationStatus, entry: Entry, seen: Seen, current: ObservedContainer | None) -> None:
    sandbox = seen.sandboxes[-1] if seen.sandboxes else None
    if current is not None:
        status.container_id = current.id
        status.started_at_ns = current.started_at_ns
        sandbox = seen.sandbox(current.sandbox_id) or sandbox
    if not status.started_at_ns and entry.last is not None:
        status.started_at_ns = entry.last.started_at_ns
    if sandbox is not None:
        status.sandbox_id = sandbox.id
        status.handler = sandbox.handler
        status.ip = sandbox.ip


def _state(
    entry: Entry, seen: Seen, progress: Progress, *, running: bool, ran: bool, waits: str
) -> tuple[State, str, str]:
    trouble = _worst(progress, _STARTING)
    silent = progress.troubles.get(Look)
    silent = silent if silent is not None and silent.count >= SILENT_LOOKS else None
    if entry.end is not None:
        return entry.end.state, entry.end.reason, entry.end.message
    if entry.stop is not None:
        return State.TERMINATING, entry.stop.reason or Reason.STOPPED, _stopping(entry, entry.stop, progress, silent)
    if silent is not None:
        return State.RUNNING if ran else State.PENDING, Reason.RUNTIME_UNREACHABLE, silent.message
    if running:
        return State.RUNNING, Reason.NONE, _history(entry)
    if ran and entry.cleared and not seen.looked and seen.empty:
        # It may well run: the runtime was only not asked yet.
        return State.RUNNING, Reason.NONE, _history(entry)
    if ran:
        return State.RUNNING, Reason.CRASH_LOOP_BACK_OFF, _between(entry, trouble, waits)
    if trouble is not None:
        return State.PENDING, trouble.reason or Reason.STARTING, trouble.message
    if entry.last is not None:
        return State.PENDING, entry.last.reason, _between(entry, None, waits)
    return State.PENDING, Reason.PULLING if progress.pulling else Reason.STARTING, waits


def _worst(progress: Progress, kinds: Sequence[type[Step]]) -> Trouble | None:
    return next((t for k in kinds if (t := progress.troubles.get(k)) is not None and t.message), None)


def _stopping(entry: Entry, stop: StopAsked, progress: Progress, silent: Trouble | None) -> str:
    parts = [stop.message]
    if progress.climb is not None:
        parts.append(ladder.told(progress.climb, grace_of(entry)))
    else:
        others = [t for kind, t in progress.troubles.items() if kind not in _STARTING or kind in {Record, Look}]
        silent = max(others, key=lambda t: t.retry_at_ns, default=None)
    if silent is not None:
        parts.append(silent.message)
    return "; ".join(part for part in parts if part)


def _history(entry: Entry) -> str:
    if entry.last is None:
        return ""
    times = "once" if entry.restarts == 1 else f"{entry.restarts} times"
    return f"restarted {times}; the run before ended with {told(entry.last)}"


def _between(entry: Entry, trouble: Trouble | None, waits: str) -> str:
    parts = []
    if entry.last is not None:
        wait_s = max(entry.not_before_ns - entry.last.finished_at_ns, 0) // SECOND
        when = f"restarting {wait_s} s after it" if wait_s else "restarting"
        parts.append(f"the last run ended with {told(entry.last)}; {when}")
    if trouble is not None:
        parts.append(f"{trouble.reason}: {trouble.message}" if trouble.reason else trouble.message)
    if waits:
        parts.append(waits)
    return "; ".join(parts)
