"""What a waiting command makes of a workload: is it there yet, can it still get there.

One rule: PURE, and only of what the server says; a status that is older than the spec is never believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kakuri.cli.columns import at
from kakuri.cli.failure import Usage

STATES = ("Pending", "Running", "Terminating", "Succeeded", "Failed", "Unknown")
FOR = "state=Running, state=Succeeded, state=Failed, updated or deleted"


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class Waiting:
    why: str


@dataclass(frozen=True, slots=True)
class Never:
    """It can't get there any more unless someone changes it."""

    why: str


Verdict = Done | Waiting | Never


@dataclass(frozen=True, slots=True)
class Goal:
    """state: this one; else "updated", "settled" (updated, and jobs have ended) or "deleted"."""

    text: str

    @property
    def state(self) -> str | None:
        return self.text.removeprefix("state=") if self.text.startswith("state=") else None


SETTLED = Goal("settled")
DELETED = Goal("deleted")


def read_goal(text: str) -> Goal:
    """What --for says."""
    by_name = {name.lower(): name for name in STATES}
    prefix, equal, name = text.partition("=")
    if equal and prefix == "state" and name.lower() in by_name:
        return Goal(f"state={by_name[name.lower()]}")
    if text in {"updated", "deleted"}:
        return Goal(text)
    raise Usage(f"--for {text!r} is nothing to wait for; use {FOR}")


def judge(workload: Mapping[str, Any] | None, goal: Goal) -> Verdict:
    """workload: as the server has it; None when it does not exist."""
    if workload is None:
        return Done() if goal == DELETED else Never("it does not exist")
    if goal == DELETED:
        return Waiting(summary(workload))
    if workload.get("deleted_at") and goal.state != "Terminating":
        return Never("it is being deleted")
    if int(at(workload, "status", "observed_generation") or 0) < int(workload.get("generation", 0)):
        return Waiting("the controller has not looked at it yet")
    if goal.state is not None:
        return _judge_state(workload, goal.state)
    return _judge_updated(workload, jobs_end=goal == SETTLED)


def _judge_state(workload: Mapping[str, Any], wanted: str) -> Verdict:
    state = at(workload, "status", "state")
    if state == wanted and (wanted != "Running" or _count(workload, "ready") == _desired(workload)):
        return Done()
    if _final(workload):
        return Never(summary(workload))
    return Waiting(summary(workload))


def _judge_updated(workload: Mapping[str, Any], *, jobs_end: bool) -> Verdict:
    if _final(workload):
        return Done() if at(workload, "status", "state") == "Succeeded" else Never(summary(workload))
    if _has_surplus(workload):
        return Waiting("replicas that are too many are ending")
    if _desired(workload) == 0:
        return Done()
    up = _count(workload, "ready") + _count(workload, "succeeded") == _desired(workload)
    if _count(workload, "updated") != _desired(workload) or not up:
        return Waiting(summary(workload))
    if jobs_end and workload.get("restart_policy", "Always") != "Always":
        return Waiting(summary(workload))
    return Done()


def _has_surplus(workload: Mapping[str, Any]) -> bool:
    """Replicas that are wanted no more are still there."""
    conditions = at(workload, "status", "conditions") or []
    return any((c.get("type"), c.get("reason")) == ("Progressing", "ScalingDown") for c in conditions)


def _final(workload: Mapping[str, Any]) -> bool:
    """All slots have ended by themselves at the present spec: they never run again."""
    state = at(workload, "status", "state")
    return state in {"Succeeded", "Failed"} and _count(workload, "updated") == _desired(workload)


def summary(workload: Mapping[str, Any]) -> str:
    """Its status in a line: Running, 1 of 3 ready, CrashLoopBackOff: exit code 1."""
    state = str(at(workload, "status", "state") or "Unknown")
    reason, message = at(workload, "status", "reason"), at(workload, "status", "message")
    ended = state in {"Succeeded", "Failed"}
    ready = "" if ended or _desired(workload) == 0 else f", {_count(workload, 'ready')} of {_desired(workload)} ready"
    why = ": ".join(str(part) for part in (reason, message) if part)
    paused = next(
        (
            str(c.get("message") or c.get("reason"))
            for c in at(workload, "status", "conditions") or []
            if c.get("type") == "Progressing" and c.get("status") is False
        ),
        "",
    )
    parts = [why] if paused in {message, reason} else [why, paused]
    return state + ready + "".join(f", {part}" for part in parts if part and part != state)


def _count(workload: Mapping[str, Any], name: str) -> int:
    return int(at(workload, "status", name) or 0)


def _desired(workload: Mapping[str, Any]) -> int:
    return int(workload.get("replicas", 1))
