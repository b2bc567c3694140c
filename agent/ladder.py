"""PURE: how the stop of a container climbs, when it is not over where it should be.

    grace ──► kill ──► sandbox ──► remove ──► kill ──► sandbox ──► remove ──► … with backoff, for ever

- grace: StopContainer with what is left of the grace, a few times. Asked for none, a stop begins at the kill.
- kill: StopContainer with no grace.
- sandbox: StopPodSandbox, which ends by force all that is in it.
- remove: RemovePodSandbox, which does that too and then forgets them. After this the others are tried in turn, once
  each, so that a runtime that has recovered is noticed by whatever it can do again.

One rule: a rung is left only for a try that was made and failed. No rung is an end: that is seen, never concluded.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

TRIES_A_RUNG = 3
"""Of kill, sandbox and remove. Each may take its call's whole deadline (one to two minutes), so a runtime that hangs is
at the last rung after about ten. Fewer, and a hiccup of the runtime takes a sandbox down hard; more, and what a
stronger means would end holds its place for longer."""
_EXACT_TRIES = 10
_SECOND = 1_000_000_000


class Rung(StrEnum):
    GRACE = "grace"
    KILL = "kill"
    SANDBOX = "sandbox"
    REMOVE = "remove"


_HARD = (Rung.KILL, Rung.SANDBOX, Rung.REMOVE)


@dataclass(frozen=True, slots=True)
class Climb:
    """How far the stop of one container has come."""

    container_id: str
    began_ns: int
    """When it was first asked to stop: its grace counts from here. 0: the runtime was away, so it was not asked yet."""
    rung: Rung
    """The highest so far."""
    since_ns: int
    """When it came there."""
    tries: int = 0
    """That failed on this rung; on the last one, the rounds after it too."""
    error: str = ""
    """What the runtime said of the last of them."""

    @property
    def next_rung(self) -> Rung:
        """Which is tried next."""
        if self.rung is not Rung.REMOVE or self.tries < TRIES_A_RUNG:
            return self.rung
        return _HARD[(self.tries - TRIES_A_RUNG) % len(_HARD)]


def begun(container_id: str, grace_s: int, now_ns: int) -> Climb:
    """The stop of a container begins."""
    return Climb(container_id, now_ns, Rung.GRACE if grace_s > 0 else Rung.KILL, now_ns)


def grace_left_s(climb: Climb, grace_s: int, now_ns: int) -> int:
    """Seconds, rounded up. What a clock that has jumped would give is bounded by the grace itself."""
    if climb.began_ns == 0:
        return grace_s
    left_s = -(-(climb.began_ns + grace_s * _SECOND - now_ns) // _SECOND)
    return min(max(left_s, 0), grace_s)


def tried(climb: Climb, grace_s: int, now_ns: int) -> Climb:
    """A container is asked to stop again, with what is left of its grace."""
    if climb.rung is Rung.GRACE and grace_s == 0:
        return replace(climb, rung=Rung.KILL, since_ns=now_ns, tries=0)  # it is used up, or a later stop gives none
    return replace(climb, began_ns=climb.began_ns or now_ns)


def failed(climb: Climb, error: str, now_ns: int) -> Climb:
    """A try on the next rung failed, or was said to be done and the container still runs."""
    if climb.rung is Rung.GRACE and climb.tries + 1 >= TRIES_A_RUNG:
        return replace(climb, rung=Rung.KILL, since_ns=now_ns, tries=0, error=error)
    if climb.rung is Rung.GRACE:
        return replace(climb, tries=climb.tries + 1, error=error)  # it may not even have been signalled
    # On the rounds after the last rung only its own error is told: three that take turns would be news each time.
    told = climb.error if climb.next_rung is not climb.rung else error
    tries = climb.tries + 1
    if climb.rung is Rung.REMOVE or tries < TRIES_A_RUNG:
        return replace(climb, tries=tries, error=told)
    return replace(climb, rung=_HARD[_HARD.index(climb.rung) + 1], since_ns=now_ns, tries=0, error=told)


def told(climb: Climb, grace_s: int) -> str:
    """Where it is, in words that change less and less often: each change is a write in somebody's database."""
    step = f"{climb.rung} ({grace_s} s)" if climb.rung is Rung.GRACE else str(climb.rung)
    since = datetime.fromtimestamp(climb.since_ns // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    tries = f" ({_tries(climb)})" if climb.tries else ""
    error = f"; last error: {climb.error}" if climb.error else ""
    return f"stop is at {step} since {since}{tries}{error}"


def _tries(climb: Climb) -> str:
    if climb.tries == 1:
        return "1 try"
    if climb.tries <= _EXACT_TRIES:
        return f"{climb.tries} tries"
    return f"more than {_EXACT_TRIES * 2 ** ((climb.tries - 1) // _EXACT_TRIES).bit_length() // 2} tries"
