"""PURE: (what the ledger says, what the runtime has, how it went so far, now) → the one next step of an allocation.

One rule: the step is found anew each time from what is, never from what was done before, so that a lost reply, a
restart and a plain run take the same road. How it ends, and where that differs from Kubernetes:

- Its own exit: Completed (0), Error, OOMKilled, StartError (128: it never ran), under restart_policy.
- Stopped by us: reason Stopped. Succeeded when the exit code is 0 or that of the signal we sent (143, 137); any other
  is Failed, and so is what was stopped before it ever ran. NodeLost is always Failed/NodeLost.
- A dead sandbox ends the attempt: what still runs in it is stopped, and the next attempt gets a new sandbox.
- A start may be cut off, by the death of the agent that asked for it or of the runtime. containerd then says of the
  container that it was only created, or that its start failed; neither means that it never ran, so it is not started
  again. Only when something else shows that it never ran (it was cut off while it was being created, or there is no
  note of its start, see agent/notes.py) does the same allocation go on with another attempt, whatever its policy, and
  no crash is counted. Else it may have run: the attempt ends as Error with its exit code unknown, and under Never that
  is the end.
- Of a container that ended while containerd was down, how it ended may be unknown too: a failure all the same.
- A stop climbs (agent/ladder.py) until a look shows that nothing runs. A container that was cleared and is only created
  may be starting just then, for an earlier call without an answer: a stop removes it before it says that it has ended.
- A sandbox that comes up without an answer is adopted. A container that does is removed and made anew: containerd 1.7
  goes on with a creation that its caller gave up, and may make one that can't run.
"""

from typing import Literal, assert_never

from agent.action import (
    CreateContainer,
    Done,
    EnsureImage,
    InspectContainer,
    InspectSandbox,
    Look,
    ProbePorts,
    Record,
    RunSandbox,
    StartContainer,
    Step,
    Wait,
)
from agent.entry import AttemptOver, Cleared, End, Ended, Entry, Exit, Released
from agent.progress import SECOND, Progress
from agent.removal import end_container, remove_container, remove_sandbox
from agent.seen import Seen
from cri.convert import ObservedContainer, ObservedSandbox
from kakuri.model import Reason, RestartPolicy, State

FIRST_BACKOFF_S = 10
MAX_BACKOFF_S = 300
GOOD_RUN_S = 600
"""A run this long forgets the crashes before it. Shorter, and what crashes every few minutes hammers on for ever;
longer, and one bad night slows the restarts of the next day."""
SANDBOX_TRIES = 4
"""Failed sandboxes before the allocation gives up, so that another node is tried. Fewer, and a hiccup costs a
placement; more, and a broken node holds its workloads for minutes."""
PORT_TRIES = 3
"""Looks at a host port that is taken, over about 12 s: what listened there may be ending."""
CUT_OFF_TRIES = 4
"""Attempts whose starts may be cut off in a row. Fewer, and a node whose agent is killed a few times loses its jobs;
more, and a fault that only looks like it goes on for long."""
START_ERROR_CODE = 128
UNKNOWN_CODE = 255
_HUNG_UP_WORDS = (
    "context canceled",  # Go's words for a caller that hung up
    "context deadline exceeded",  # or that had waited for as long as it would
    "signal: killed",  # and for a program that it ran for that caller
)
_CUT_OFF_WORDS = (
    *_HUNG_UP_WORDS,
    "already has a filestore file",  # runsc's, of what an earlier start of this container left
    "its start had begun before",  # our wrappers', agent/noting_wrapper.py
    "unable to copy pipes",  # a shim\'s, of pipes that went with the containerd before
)
_LEFT_BY_A_START = ("failed to start shim: mkdir", "file exists")  # containerd's, of one that it was killed in
_SHIM_GONE = "failed to create TTRPC connection"  # containerd's, of a sandbox that is just dying
_AT_CREATION = "failed to create"
SIGNALLED = frozenset({137, 143})
"""Killed and terminated: the exit codes of the signals that a stop sends."""


def step(
    entry: Entry, seen: Seen, progress: Progress, now_ns: int, *, may_start: bool = True, lapsed: bool = False
) -> Step:
    """What comes next. What failed lately is waited for, but only when it is what comes next.

    may_start: False while it is bound to the node's lease and the lease is not held. Then it waits to be kicked.
    lapsed: that lease is over, and the stop for it is on its way. What ended it meanwhile is not told as its own end.
    """
    wanted = _wanted(entry, seen, progress, now_ns)
    if not may_start and isinstance(wanted, RunSandbox | CreateContainer | StartContainer):
        return Wait()
    if lapsed and isinstance(wanted, Record) and isinstance(wanted.change, Ended | AttemptOver):
        return Wait()
    trouble = progress.troubles.get(type(wanted))
    if trouble is not None and _is_ahead(trouble.retry_at_ns, now_ns):
        return Wait(trouble.retry_at_ns)
    return wanted


def _is_ahead(at_ns: int, now_ns: int) -> bool:
    """What lies further ahead than any wait was set by a clock that has jumped back since: it is not waited for."""
    return now_ns < at_ns <= now_ns + MAX_BACKOFF_S * SECOND


def _wanted(entry: Entry, seen: Seen, progress: Progress, now_ns: int) -> Step:
    if not seen.looked:
        return Look()
    if entry.end is not None:
        return _clear_away(entry, seen, progress, now_ns)
    if entry.stop is not None or entry.wish is None:
        return _stop(entry, seen, progress, now_ns)
    return _run(entry, seen, progress, now_ns)


def _run(entry: Entry, seen: Seen, progress: Progress, now_ns: int) -> Step:
    for container in seen.containers:
        if container.attempt != entry.attempt:
            return remove_container(entry, seen, progress, container, now_ns)
    current = seen.container(entry.attempt)
    if current is not None:
        return _drive(entry, seen, progress, current, now_ns)
    if entry.cleared:
        # It was there before it was cleared, so somebody removed it. It may have run: never run this attempt again.
        lost = Exit(None, Reason.ERROR, "its container is no longer in the runtime", now_ns, now_ns)
        return Record(_after_exit(entry, lost))
    return _begin(entry, seen, progress, now_ns)


def _drive(entry: Entry, seen: Seen, progress: Progress, current: ObservedContainer, now_ns: int) -> Step:
    """A container of the present attempt is there."""
    sandbox = seen.sandbox(current.sandbox_id)
    alive = sandbox is not None and sandbox.ready
    match current.state:
        case "running":
            if not entry.cleared:
                return Record(Cleared(entry.attempt))
            if not alive:
                return end_container(entry, seen, progress, current, now_ns)
            if current.id not in seen.inspected:
                return InspectContainer(current.id)
            assert sandbox is not None
            return _checked(entry, seen, sandbox, now_ns) or Wait()
        case "created":
            if not entry.cleared and (not alive or current.id != progress.created):
                return remove_container(entry, seen, progress, current, now_ns)
            if not entry.cleared:
                return Record(Cleared(entry.attempt))
            refused = progress.troubles.get(StartContainer)
            if refused is not None and refused.unsure:
                cut_off = _cut_off(refused.message, now_ns, never_ran=seen.begun.get(current.id) is False)
                return Record(_after_exit(entry, cut_off))
            if refused is not None and refused.final:
                return Record(_after_exit(entry, _start_error(refused.message, now_ns)))
            if not alive:
                died = Exit(None, Reason.SANDBOX_FAILED, "its sandbox died before the container started", 0, now_ns)
                return Record(_after_exit(entry, died))
            return StartContainer(current.id)
        case "exited":
            if current.id not in seen.inspected:
                return InspectContainer(current.id)
            if sandbox is not None and sandbox.id not in seen.inspected:
                return InspectSandbox(sandbox.id)  # did it die of that?
            return Record(_after_exit(entry, _exit_of(seen, current, now_ns, sandbox_alive=alive)))
        case "unknown":
            # The runtime lost track of it. Only what is certainly over may be followed by another.
            return end_container(entry, seen, progress, current, now_ns)
        case _:
            assert_never(current.state)


def _begin(entry: Entry, seen: Seen, progress: Progress, now_ns: int) -> Step:
    """No container of the present attempt is there, and none was: towards one."""
    assert entry.wish is not None
    live = [s for s in seen.sandboxes if s.ready and s.id not in progress.doomed]
    for sandbox in seen.sandboxes:
        if not live or sandbox is not live[-1]:
            return remove_sandbox(seen, progress, sandbox)
    if _is_ahead(entry.not_before_ns, now_ns):
        return Wait(entry.not_before_ns)
    if not progress.image_ready:
        return Wait() if progress.pulling else EnsureImage(entry.wish.image)
    if not live:
        if (gave_up := _gave_up(entry, progress, now_ns)) is not None:
            return Record(gave_up)
        if not progress.ports_free and any(p.host_port for p in entry.wish.ports):
            return ProbePorts()
        return RunSandbox()
    if (unfit := _checked(entry, seen, live[-1], now_ns)) is not None:
        return unfit
    refused = progress.troubles.get(CreateContainer)
    if refused is not None and refused.final:
        return Record(_after_exit(entry, _start_error(refused.message, now_ns)))
    return CreateContainer(live[-1].id, entry.attempt)


def _checked(entry: Entry, seen: Seen, sandbox: ObservedSandbox, now_ns: int) -> Step | None:
    """None when the sandbox is known to be of the handler that was asked for: else it must not run in there."""
    assert entry.wish is not None
    if sandbox.id not in seen.inspected:
        return InspectSandbox(sandbox.id)
    if sandbox.handler == entry.wish.handler:
        return None
    message = (
        f"asked for the handler {entry.wish.handler}, but the sandbox reports {sandbox.handler or 'none'}; "
        "check the runtime's configuration on this node"
    )
    return Record(Ended(End(State.FAILED, Reason.SANDBOX_FAILED, message, None, now_ns)))


def _gave_up(entry: Entry, progress: Progress, now_ns: int) -> Ended | None:
    # What has run once is kept at: its end would be final, while a replacement follows what never started.
    if entry.started_once:
        return None
    for kind, tries in ((RunSandbox, SANDBOX_TRIES), (ProbePorts, PORT_TRIES)):
        trouble = progress.troubles.get(kind)
        if trouble is not None and trouble.count >= tries:
            message = f"gave up after {trouble.count} tries: {trouble.message}"
            return Ended(End(State.FAILED, trouble.reason, message, None, now_ns))
    return None


def _stop(entry: Entry, seen: Seen, progress: Progress, now_ns: int) -> Step:
    """Towards an end that somebody asked for. The end is durable before anything that has run is removed."""
    for container in seen.containers:
        if container.may_run:
            return end_container(entry, seen, progress, container, now_ns)
    current = seen.container(entry.attempt) if entry.wish is not None else None
    if current is not None and current.state == "created" and entry.cleared:
        return remove_container(entry, seen, progress, current, now_ns)
    if current is None or current.state == "created":
        lost = entry.cleared and current is None
        return Record(Ended(_stopped(entry, None, now_ns, lost=lost)))
    if current.id not in seen.inspected:
        return InspectContainer(current.id)
    # A sandbox that died with it is no news: it was about to go.
    exit_ = _exit_of(seen, current, now_ns, sandbox_alive=True)
    return Record(Ended(_stopped(entry, exit_, now_ns, lost=False), exit_))


def _clear_away(entry: Entry, seen: Seen, progress: Progress, now_ns: int) -> Step:
    """The end is durable: nothing may be left in the runtime."""
    for container in seen.containers:
        return remove_container(entry, seen, progress, container, now_ns)
    for sandbox in seen.sandboxes:
        return remove_sandbox(seen, progress, sandbox)
    if entry.released:
        return Done()
    if seen.looked_at_ns < progress.settle_at_ns <= now_ns + MAX_BACKOFF_S * SECOND:
        # A sandbox whose start got no answer may still come up.
        return Wait(progress.settle_at_ns) if _is_ahead(progress.settle_at_ns, now_ns) else Look()
    return Record(Released())


def _after_exit(entry: Entry, exit_: Exit) -> AttemptOver | Ended:
    """What follows the end of the present attempt: another attempt, or the end of all."""
    if exit_.cut_off and (entry.attempt < CUT_OFF_TRIES or entry.last is None or not entry.last.cut_off):
        return AttemptOver(entry.attempt, exit_, entry.crashes, exit_.finished_at_ns)
    policy = entry.in_place.restart_policy
    good = exit_.exit_code == 0
    if policy is RestartPolicy.NEVER or (policy is RestartPolicy.ON_FAILURE and good):
        message = exit_.message if exit_.exit_code is not None else f"exit code unknown: {exit_.message}"
        return Ended(_end(exit_, exit_.reason, message), exit_)
    limit = entry.in_place.restart_limit
    if 0 <= limit <= entry.attempt:
        times = "no restart is allowed" if limit == 0 else f"restarted {limit} time{'s' if limit > 1 else ''}"
        message = f"{times}; the last run: {told(exit_)}"
        return Ended(_end(exit_, Reason.BACKOFF_LIMIT_EXCEEDED, message, failed=True), exit_)
    if not exit_.ran and exit_.reason == Reason.SANDBOX_FAILED and entry.last is not None and entry.last.ran:
        # The run before ended because the sandbox was dying, and this one was born into that: one crash, not two.
        return AttemptOver(entry.attempt, exit_, entry.crashes, exit_.finished_at_ns)
    long = exit_.ran and exit_.finished_at_ns - exit_.started_at_ns >= GOOD_RUN_S * SECOND
    crashes = 0 if long else entry.crashes
    return AttemptOver(entry.attempt, exit_, crashes + 1, exit_.finished_at_ns + backoff_s(crashes) * SECOND)


def backoff_s(crashes: int) -> int:
    """How long the next attempt waits after this many crashes before the present one: the first restart is at once."""
    return 0 if crashes == 0 else int(min(FIRST_BACKOFF_S * 2 ** min(crashes - 1, 10), MAX_BACKOFF_S))


def told(exit_: Exit) -> str:
    """An exit in words."""
    code = "exit code unknown" if exit_.exit_code is None else f"exit code {exit_.exit_code}"
    words = f"{code} ({exit_.reason})"
    return f"{words}: {exit_.message}" if exit_.message else words


def is_end_unknown(container: ObservedContainer) -> bool:
    """Containerd's way to say that it was down when the container ended, and that it does not know how it did."""
    return container.exit_code == UNKNOWN_CODE and container.reason == "Unknown"


def _exit_of(seen: Seen, container: ObservedContainer, now_ns: int, *, sandbox_alive: bool) -> Exit:
    code = container.exit_code
    ran = container.started_at_ns > 0
    message = container.message
    left_by_a_start = all(words in message for words in _LEFT_BY_A_START)
    if not ran and (left_by_a_start or any(words in message for words in _CUT_OFF_WORDS)):
        cut_off_at_creation = _AT_CREATION in message and any(words in message for words in _HUNG_UP_WORDS)
        begun = seen.begun.get(container.id, not cut_off_at_creation)
        return _cut_off(message, container.finished_at_ns or now_ns, never_ran=not begun)
    if is_end_unknown(container):
        code, message = None, message or "the runtime was down when it ended"
    reason: str
    if container.reason == Reason.OOM_KILLED:
        reason = Reason.OOM_KILLED
    elif code == 0:
        reason = Reason.COMPLETED
    elif not sandbox_alive or (not ran and _SHIM_GONE in message):
        reason, message = Reason.SANDBOX_FAILED, message or "its sandbox died"
    elif not ran:
        reason = Reason.START_ERROR
    else:
        reason = Reason.ERROR
    if code is None and not message:
        message = "the runtime does not know how it ended"
    return Exit(code, reason, message, container.started_at_ns, container.finished_at_ns or now_ns)


def _cut_off(message: str, at_ns: int, *, never_ran: bool) -> Exit:
    """The end of a start that was cut off."""
    if never_ran:
        why = f"its start was cut off before it ran: {message}"
        return Exit(START_ERROR_CODE, Reason.START_ERROR, why, 0, at_ns, cut_off=True)
    return Exit(None, Reason.ERROR, f"its start was cut off, and it may have run: {message}", 0, at_ns)


def _start_error(message: str, now_ns: int) -> Exit:
    return Exit(START_ERROR_CODE, Reason.START_ERROR, message, 0, now_ns)


def _end(exit_: Exit, reason: str, message: str, *, failed: bool = False) -> End:
    return End(_success(exit_.exit_code == 0 and not failed), reason, message, exit_.exit_code, exit_.finished_at_ns)


def _stopped(entry: Entry, exit_: Exit | None, now_ns: int, *, lost: bool) -> End:
    asked = entry.stop.reason if entry.stop is not None else ""
    if asked == Reason.NODE_LOST or entry.wish is None:
        words = entry.stop.message if entry.stop is not None else ""
        message = words or "the agent's ledger does not know it any more; what was left of it was removed"
        code = exit_.exit_code if exit_ is not None else None
        return End(State.FAILED, asked or Reason.STOPPED, message, code, now_ns)
    why = f"stopped ({asked})" if asked and asked != Reason.STOPPED else "stopped"
    if lost:
        return End(
            State.FAILED,
            Reason.STOPPED,
            f"{why}; its container is no longer in the runtime, and may have run",
            None,
            now_ns,
        )
    if exit_ is None and entry.last is None:
        return End(State.FAILED, Reason.STOPPED, f"{why} before it ran", None, now_ns)
    how = exit_ or entry.last
    assert how is not None
    if how.reason == Reason.OOM_KILLED and entry.in_place.restart_policy is RestartPolicy.NEVER:
        # Under any other policy it would have been started again: it is the stop that made it the end.
        return End(State.FAILED, how.reason, how.message, how.exit_code, now_ns)
    if how.exit_code == 0 and entry.in_place.restart_policy is not RestartPolicy.ALWAYS:
        return End(State.SUCCEEDED, Reason.COMPLETED, how.message, 0, how.finished_at_ns)
    ours = exit_ is not None and exit_.exit_code in SIGNALLED and exit_.reason != Reason.OOM_KILLED
    # Of an end that we asked for, "exit code 143 (Error)" would be said as if it were a fault.
    message = why if ours else f"{why}; {told(how)}"
    return End(_success(ours or how.exit_code == 0), Reason.STOPPED, message, how.exit_code, now_ns)


def _success(good: bool) -> Literal[State.SUCCEEDED, State.FAILED]:
    return State.SUCCEEDED if good else State.FAILED
