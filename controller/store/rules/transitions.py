"""How an allocation's row goes from one state to the next, and what is told of it.

One rule: nothing goes back. A state only becomes a later one, a revision and a count of restarts only grow, and an
ended allocation's end stays as it was first recorded.
"""

from datetime import datetime

from controller.exchange import ObservedAllocation, Sent
from controller.plan.action import Stop, carried_out
from controller.plan.replace import BROKEN_REASONS
from kakuri.model import Allocation, Desired, EventDraft, EventType, OnDisconnect, Reason, State

_TROUBLE = BROKEN_REASONS | {Reason.RUNTIME_UNREACHABLE, Reason.INCOMPATIBLE_AGENT}
"""Reasons of a live allocation that people look for in `describe`."""


def lost(row: Allocation, message: str, *, now: datetime) -> Allocation:
    """Its agent has it no more: it is told to stop it, which cleans what is left and answers with a released end."""
    if row.released:
        return row
    if row.desired is Desired.RUN:
        (stopped,) = carried_out([row], [Stop(row.id, Reason.NODE_LOST.value, message)], now)
        return stopped
    if row.accepted_revision < row.revision:
        return row
    return row.with_(revision=row.revision + 1)  # the stop was accepted by a ledger that is gone: say it again


def observed(row: Allocation, seen: ObservedAllocation, *, ledger_uid: str, now: datetime) -> Allocation:
    """The row after its agent said this of it; the same row when that is nothing new."""
    state = _state_after(row.state, seen.state)
    follows = state.value == seen.state and not row.state.ended
    ended = state.ended
    # What is told of was not removed, however new a stop its agent knows of: that of an orphan is newer than any row.
    newest = row.revision - 1 if row.desired is Desired.REMOVE else row.revision
    after = row.with_(
        accepted_revision=max(row.accepted_revision, min(seen.revision, newest)),
        ledger_uid=ledger_uid if seen.revision else row.ledger_uid,
        state=state,
        reason=seen.reason if follows else row.reason,
        message=seen.message if follows else row.message,
        exit_code=row.exit_code if row.state.ended and row.exit_code is not None else seen.exit_code,
        restarts=max(row.restarts, seen.restarts),
        started_once=row.started_once or seen.started_once,
        released=row.released or (ended and seen.released),
        simulated=seen.simulated,
        handler=seen.handler or row.handler,
        sandbox_id=seen.sandbox_id,
        container_id=seen.container_id,
        ip=seen.ip,
        started_at=seen.started_at or row.started_at,
        finished_at=row.finished_at if row.state.ended else (seen.finished_at or (now if ended else None)),
    )
    if seen.revision == row.revision:
        after = _bound(after)
    if ended and row.desired is Desired.RUN:
        # An update that was not accepted is none any more: a ledger that was made anew would take it for a start.
        after = after.with_(accepted_revision=row.revision)
    return row if after == row else after.with_(observed_at=now)


def _state_after(state: State, said: str) -> State:
    # A word that a newer agent made up says nothing to us.
    try:
        later = State(said)
    except ValueError:
        return state
    return later if state.may_become(later) else state


def answered(row: Allocation, sent: Sent, *, ledger_uid: str, now: datetime) -> Allocation | None:
    """The row after its agent answered an Apply; None when an accepted removal ends it."""
    if sent.result == "busy":
        return row
    newest = sent.revision == row.revision
    if newest and row.desired is Desired.REMOVE and sent.result == "accepted":
        return None
    after = row.with_(
        accepted_revision=max(row.accepted_revision, min(sent.revision, row.revision)), ledger_uid=ledger_uid
    )
    never_ran = row.accepted_revision == 0 and not row.started_once and not row.state.ended
    if newest and sent.result == "refused" and row.desired is Desired.RUN and never_ran:
        after = after.with_(
            state=State.FAILED,
            reason=sent.reason or Reason.REFUSED.value,
            message=sent.message,
            finished_at=now,
            released=True,
        )
    if newest and sent.result == "accepted" and sent.reason == Reason.FORGOTTEN and not row.released:
        # Its agent knows that it has ended and will say no more of it: it was removed after the backup that this
        # database was restored from.
        end = {"state": State.FAILED, "reason": row.desired_reason, "message": sent.message, "finished_at": now}
        after = after.with_(released=True, **({} if row.state.ended else end))
    if newest and sent.result == "accepted":
        after = _bound(after)
    return row if after == row else after.with_(observed_at=now)


def _bound(row: Allocation) -> Allocation:
    """Bound to the node's lease as its spec says, now that the agent has accepted the newest revision. Not by that of a
    stop: the agent may never have had the spec before it, or have refused it."""
    if row.desired is not Desired.RUN or row.lease_bound:
        return row
    return row.with_(lease_bound=row.spec.on_disconnect is OnDisconnect.REPLACE)


def fenced(row: Allocation, message: str, *, now: datetime) -> Allocation:
    """Its node's lease is certainly over, so it has ended, for it is bound to that lease. The node is told to stop it
    all the same when it is back."""
    if row.released or not row.lease_bound:
        return row
    end = {"state": State.FAILED, "reason": Reason.NODE_LOST.value, "message": message, "finished_at": now}
    return row.with_(
        **({} if row.state.ended else end),
        desired=Desired.STOP if row.desired is Desired.RUN else row.desired,
        desired_reason=Reason.NODE_LOST.value if row.desired is Desired.RUN else row.desired_reason,
        revision=row.revision + 1,
        released=True,
        observed_at=now,
    )


def told(before: Allocation, after: Allocation) -> list[EventDraft]:
    """What is worth telling of the change, in the order in which it happened."""
    drafts: list[EventDraft] = []
    if after.desired_reason == Reason.NODE_LOST and before.desired is Desired.RUN:
        drafts.append(_event(after, EventType.WARNING, Reason.NODE_LOST.value, f"lost on {after.node}; it is replaced"))
    if after.started_once and not before.started_once:
        how = f" with handler {after.handler}" if after.handler else ""
        drafts.append(_event(after, EventType.NORMAL, "Started", f"started{how}"))
    if after.restarts > before.restarts:
        drafts += _restart(before, after)
    if after.state.ended and not before.state.ended:
        drafts.append(_end(after))
    elif not after.state.ended and after.reason in _TROUBLE and _why(after) != _why(before):
        drafts.append(_event(after, EventType.WARNING, after.reason, after.message))
    return drafts


def _why(row: Allocation) -> tuple[str, str]:
    return row.reason, row.message


def _restart(before: Allocation, after: Allocation) -> list[EventDraft]:
    code = after.exit_code if after.exit_code is not None else before.exit_code
    with_code = f" with exit code {code}" if code is not None else ""
    oom = any(Reason.OOM_KILLED in text for text in (after.reason, after.message, before.reason, before.message))
    drafts = []
    if oom:
        message = f"killed{with_code}: over its memory limit of {after.spec.memory_mb} MiB"
        drafts.append(_event(after, EventType.WARNING, Reason.OOM_KILLED.value, message))
    why = f" ({Reason.OOM_KILLED.value})" if oom else ""
    drafts.append(_event(after, EventType.WARNING, "Restarted", f"ended{with_code}{why}; started again"))
    return drafts


def _end(row: Allocation) -> EventDraft:
    wanted = row.state is State.SUCCEEDED or (row.desired is not Desired.RUN and row.desired_reason != Reason.NODE_LOST)
    with_code = f" with exit code {row.exit_code}" if row.exit_code is not None else ""
    more = f": {row.message}" if row.message else ""
    return _event(
        row,
        EventType.NORMAL if wanted else EventType.WARNING,
        row.reason or row.state.value,
        f"{row.state.value}{with_code}{more}",
    )


def _event(row: Allocation, type_: EventType, reason: str, message: str) -> EventDraft:
    return EventDraft(
        object_kind="Workload",
        object_id=row.workload,
        type=type_,
        reason=reason,
        message=message,
        allocation=row.id,
        node=row.node,
    )
