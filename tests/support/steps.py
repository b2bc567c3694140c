"""Situations of an allocation, for the tables of step()."""

from dataclasses import replace
from typing import Any

from agent.action import Action
from agent.entry import Entry, Exit, InPlace, StopAsked
from agent.progress import SECOND, Outcome, Progress, after_failure
from agent.seen import Seen
from cri.convert import ContainerWish, ObservedContainer, ObservedSandbox, PortWish
from kakuri.model import RestartPolicy

NOW = 1_800_000_000 * SECOND
WISH = ContainerWish(
    image="demo:1",
    command=(),
    args=(),
    env={},
    working_dir="",
    memory_mb=64,
    cpu_millicores=100,
    ports=(),
    runtime_class="native",
    handler="runc",
)
ENTRY = Entry("web.0.0000000a", "web", "cluster-a", 1, NOW, wish=WISH, in_place=InPlace(grace_s=7))
CLEARED = replace(ENTRY, cleared=True)
NEW = Seen(looked_at_ns=NOW)
READY = Progress(image_ready=True)
STOP = StopAsked(2, "Deleted", 3)


ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER


def under(policy: RestartPolicy, limit: int = -1, **changes: Any) -> Entry:
    """Its container may have run, under this restart policy."""
    return replace(CLEARED, in_place=InPlace(policy, limit, 7), **changes)


def sandbox(*, ready: bool = True, handler: str = "runc", id_: str = "s1") -> ObservedSandbox:
    return ObservedSandbox(id_, ENTRY.id, ENTRY.owner, ready=ready, handler=handler, ip="", created_at_ns=1)


def container(state: Any, *, attempt: int = 0, **changes: Any) -> ObservedContainer:
    made = ObservedContainer(
        id=f"c{attempt}",
        sandbox_id="s1",
        allocation_id=ENTRY.id,
        attempt=attempt,
        state=state,
        exit_code=None,
        reason="",
        message="",
        created_at_ns=1,
        started_at_ns=0,
        finished_at_ns=0,
    )
    return replace(made, **changes)


def exited(code: int | None, *, ran_s: float = 5, reason: str = "", **changes: Any) -> ObservedContainer:
    return container(
        "exited",
        exit_code=code,
        reason=reason,
        started_at_ns=int(NOW - ran_s * SECOND) if ran_s else 0,
        finished_at_ns=NOW,
        **changes,
    )


def has(*things: ObservedSandbox | ObservedContainer, inspected: bool = True, stopped: tuple[str, ...] = ()) -> Seen:
    return Seen(
        looked_at_ns=NOW,
        sandboxes=tuple(t for t in things if isinstance(t, ObservedSandbox)),
        containers=tuple(t for t in things if isinstance(t, ObservedContainer)),
        inspected=frozenset(t.id for t in things) if inspected else frozenset(),
        stopped=frozenset(stopped),
    )


def failed(action: Action, outcome: Outcome = Outcome.REFUSED, *, times: int = 1, ago_s: float = 3600) -> Progress:
    progress = READY
    for _ in range(times):
        progress = after_failure(progress, action, outcome, "no luck", int(NOW - ago_s * SECOND))
    return replace(progress, image_ready=True)


WITH_PORTS = replace(ENTRY, wish=replace(WISH, ports=(PortWish(80, 8080),)))
RAN = replace(ENTRY, attempt=1, started_once=True, last=Exit(1, "Error", "", 1, NOW), not_before_ns=NOW + 10 * SECOND)
