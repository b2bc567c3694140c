"""PURE: how the steps of one allocation went since the agent started: what is ready, what failed, when to try again.

One rule: all of this may be forgotten. A restarted agent begins with none of it and only asks once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from agent import ladder
from agent.action import (
    Action,
    CreateContainer,
    EnsureImage,
    ProbePorts,
    Record,
    RemoveContainer,
    RemoveSandbox,
    RunSandbox,
    StartContainer,
    Step,
    StopContainer,
    StopSandbox,
)
from agent.entry import AttemptOver
from agent.ladder import Climb, Rung
from agent.seen import Seen
from kakuri.model import Reason

SECOND = 1_000_000_000
SETTLE_S = 30
"""How long after a RunPodSandbox without an answer its sandbox may still come up. Shorter, and a replacement may run
beside it; longer, and a replacement waits for nothing."""
START_BOUND_S = 120
"""How long a start that somebody else asked for may be under way: as long as one of ours."""
START_TRIES = 4
"""Refused starts of a container that stays created, over about 8 s."""
PORT_DELAYS_S = (2, 10, 30, 60, 120, 300)


class Outcome(StrEnum):
    """How an action failed."""

    REFUSED = "refused"
    """It was not done, and the runtime said why."""
    TIMED_OUT = "timed out"
    """No answer in time: it may have been done."""
    UNREACHABLE = "unreachable"
    """The runtime is away: it may have been done."""
    TAKEN = "taken"
    """The name is reserved, or the start under way: it was done, or is being done."""
    CUT_OFF = "cut off"
    """The runtime went away in the middle of it: it may have been done in part."""
    GONE = "gone"
    """What it was about is not there."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of action that failed, and when it may be tried again."""

    count: int
    reason: str
    message: str
    retry_at_ns: int
    final: bool = False
    """Another try would be refused too."""
    unsure: bool = False
    """It may have been done in part, and nobody is at it any more; another try could do it twice."""
    since_ns: int = 0
    """When the first of these failures in a row was."""


@dataclass(frozen=True, slots=True)
class Progress:
    image_ready: bool = False
    pulling: bool = False
    ports_free: bool = False
    """As of just now: holds for one RunPodSandbox."""
    settle_at_ns: int = 0
    """Until then, a sandbox that isn't there may still come up."""
    created: str = ""
    """The container that the runtime said it has made. One that came up without a word may be no good."""
    climb: Climb | None = None
    """Of the container that is being stopped."""
    doomed: frozenset[str] = frozenset()
    """Sandboxes that were told to end. They may do so late, so nothing is put into them any more."""
    troubles: Mapping[type[Step], Trouble] = field(default_factory=dict)

    def without(self, *kinds: type[Step]) -> "Progress":
        left = {k: t for k, t in self.troubles.items() if k not in kinds}
        return self if len(left) == len(self.troubles) else replace(self, troubles=left)


def settled(progress: Progress, seen: Seen) -> Progress:
    """A container that was seen to have ended, or to be gone, is no longer being stopped."""
    climb = progress.climb
    if climb is None or not seen.looked or any(c.id == climb.container_id and c.may_run for c in seen.containers):
        return progress
    return replace(progress, climb=None).without(StopContainer, StopSandbox, RemoveSandbox)


def beginning(progress: Progress, action: Action, now_ns: int) -> Progress:
    """As the action begins."""
    match action:
        case StopContainer():
            climb = progress.climb
            if climb is None or climb.container_id != action.id:
                return replace(progress, climb=ladder.begun(action.id, action.grace_s, now_ns))
            return replace(progress, climb=ladder.tried(climb, action.grace_s, now_ns))
        case StopSandbox() | RemoveSandbox():
            return replace(progress, doomed=progress.doomed | {action.id})
        case _:
            return progress


def after_success(progress: Progress, action: Action) -> Progress:
    """What failed before of this kind no longer matters."""
    match action:
        case EnsureImage():
            return replace(progress, image_ready=True, pulling=False).without(EnsureImage)
        case ProbePorts():
            # The count of tries goes on, for when the sandbox then finds them taken.
            return replace(progress, ports_free=True)
        case RunSandbox():
            # Its name is ours now: an earlier one that got no answer can't come up any more.
            return replace(progress, ports_free=False, settle_at_ns=0).without(RunSandbox, ProbePorts)
        case StartContainer() | Record(change=AttemptOver()):
            return progress.without(CreateContainer, StartContainer, Record)
        case _:
            return progress.without(type(action))


def after_failure(progress: Progress, action: Action, outcome: Outcome, message: str, now_ns: int) -> Progress:
    """When to try again, and what people are told meanwhile."""
    kind = type(action)
    before = progress.troubles.get(kind)
    count = before.count if before is not None else 0
    since_ns = before.since_ns if before is not None else now_ns
    lasts_s = (now_ns - since_ns) / SECOND
    delay_s, counts, reason = _sentence(action, outcome, count, lasts_s)
    trouble = Trouble(
        count=count + 1 if counts else count,
        reason=reason,
        message=message,
        retry_at_ns=now_ns + int(delay_s * SECOND),
        final=_is_final(action, outcome, count + 1),
        unsure=isinstance(action, StartContainer)
        and (outcome is Outcome.CUT_OFF or (outcome is Outcome.TAKEN and lasts_s >= START_BOUND_S)),
        since_ns=since_ns,
    )
    after = replace(progress, troubles={**progress.troubles, kind: trouble})
    match action:
        case RunSandbox():
            unsure = outcome not in {Outcome.REFUSED, Outcome.GONE}
            settle_at_ns = now_ns + SETTLE_S * SECOND if unsure else progress.settle_at_ns
            return replace(after, ports_free=False, settle_at_ns=settle_at_ns)
        case CreateContainer() if outcome is Outcome.GONE:
            # Sandbox or image: the runtimes don't tell them apart.
            return replace(after, image_ready=False)
        case EnsureImage():
            return replace(after, pulling=False)
        case StopContainer() | RemoveContainer() | StopSandbox() | RemoveSandbox() if progress.climb is not None:
            return replace(after, climb=_climbed(progress.climb, outcome, message, now_ns))
        case _:
            return after


def _climbed(climb: Climb, outcome: Outcome, message: str, now_ns: int) -> Climb:
    match outcome:
        case Outcome.GONE:
            return climb  # the next look says what that means
        case Outcome.CUT_OFF:
            return replace(climb, error=message)
        case Outcome.UNREACHABLE:
            # Nobody was asked to stop: of its grace, nothing is used up.
            return replace(climb, error=message, began_ns=0 if climb.rung is Rung.GRACE else climb.began_ns)
        case Outcome.REFUSED | Outcome.TIMED_OUT | Outcome.TAKEN:
            return ladder.failed(climb, message, now_ns)


def _is_final(action: Action, outcome: Outcome, count: int) -> bool:
    match action:
        case CreateContainer():
            return outcome is Outcome.REFUSED
        case StartContainer():
            # A container that can't start has ended, and is seen so. One that is still only created may be starting:
            # runtimes refuse a second start until the first is done.
            return outcome is Outcome.REFUSED and count >= START_TRIES
        case _:
            return False


def _sentence(action: Action, outcome: Outcome, count: int, lasts_s: float) -> tuple[float, bool, str]:
    """(delay in s, whether it counts, the reason that people see)."""
    doubled = 2 ** min(count, 10)
    if outcome in {Outcome.UNREACHABLE, Outcome.CUT_OFF}:
        # The runtime restarts, for which the allocation is not to blame. It is back within a second or two.
        return min(0.5 * doubled, 5), not isinstance(action, RunSandbox), Reason.RUNTIME_UNREACHABLE
    match action:
        case EnsureImage():
            return min(10 * doubled, 300), True, Reason.IMAGE_PULL_BACK_OFF
        case ProbePorts():
            return PORT_DELAYS_S[min(count, len(PORT_DELAYS_S) - 1)], True, Reason.HOST_PORT_IN_USE
        case RunSandbox() if outcome is Outcome.TAKEN:
            return 2, False, Reason.SANDBOX_FAILED
        case RunSandbox():
            return min(5 * doubled, 300), True, Reason.SANDBOX_FAILED
        case StartContainer() if outcome is Outcome.TAKEN:
            return min(max(lasts_s, 0.2), 2), False, Reason.STARTING
        case StartContainer() if outcome is Outcome.REFUSED:
            return 0.2 * 3 ** min(count, START_TRIES), True, Reason.START_ERROR
        case CreateContainer() | StartContainer():
            return 0 if outcome is Outcome.REFUSED else min(doubled, 300), True, Reason.START_ERROR
        case _:
            return min(doubled, 60), True, Reason.NONE
