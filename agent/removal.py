"""PURE: the next try to be rid of a container that must not run, of one that has ended, and of a sandbox.

One rule: what was refused often is tried by a harder means, and none is given up for good: the runtime may recover.
"""

from agent.action import RemoveContainer, RemoveSandbox, Step, StopContainer, StopSandbox
from agent.entry import Entry
from agent.ladder import TRIES_A_RUNG, Rung, begun, grace_left_s
from agent.progress import Progress
from agent.seen import Seen
from cri.convert import ObservedContainer, ObservedSandbox
from kakuri.model import Reason


def remove_container(entry: Entry, seen: Seen, progress: Progress, container: ObservedContainer, now_ns: int) -> Step:
    """The next try to be rid of it. With its sandbox, where that is refused and nothing else runs in there."""
    if container.may_run:
        return end_container(entry, seen, progress, container, now_ns)
    sandbox = seen.sandbox(container.sandbox_id)
    shared = any(c.may_run and c.sandbox_id == container.sandbox_id for c in seen.containers)
    harder = () if sandbox is None or shared else _removal(seen, sandbox)
    return _in_turn(progress, RemoveContainer(container.id), *harder)


def remove_sandbox(seen: Seen, progress: Progress, sandbox: ObservedSandbox) -> Step:
    """The next try to be rid of it. Nothing runs in it."""
    return _in_turn(progress, *_removal(seen, sandbox))


def _removal(seen: Seen, sandbox: ObservedSandbox) -> tuple[Step, ...]:
    # A sandbox that died still holds its network until it is stopped.
    remove = RemoveSandbox(sandbox.id)
    return (remove,) if sandbox.id in seen.stopped else (StopSandbox(sandbox.id), remove)


def _in_turn(progress: Progress, *ways: Step) -> Step:
    """The first of these that has not failed often; when all have, each in its turn."""
    tried = [(_tries(progress, way), way) for way in ways]
    fresh = next((way for tries, way in tried if tries < TRIES_A_RUNG), None)
    return fresh or min(tried, key=lambda one: one[0])[1]


def _tries(progress: Progress, way: Step) -> int:
    # A runtime that is away has refused nothing.
    trouble = progress.troubles.get(type(way))
    return trouble.count if trouble is not None and trouble.reason != Reason.RUNTIME_UNREACHABLE else 0


def end_container(entry: Entry, seen: Seen, progress: Progress, container: ObservedContainer, now_ns: int) -> Step:
    """It may run, and must not: the next try of its stop."""
    grace_s = 0 if container.state == "unknown" else grace_of(entry)
    climb = progress.climb
    if climb is None or climb.container_id != container.id:
        climb = begun(container.id, grace_s, now_ns)
    match climb.next_rung:
        case Rung.GRACE:
            return StopContainer(container.id, grace_left_s(climb, grace_s, now_ns))
        case Rung.KILL:
            return StopContainer(container.id, 0)
        case Rung.SANDBOX | Rung.REMOVE if seen.sandbox(container.sandbox_id) is None:
            return RemoveContainer(container.id)  # by force, where it runs
        case Rung.SANDBOX:
            return StopSandbox(container.sandbox_id)
        case Rung.REMOVE:
            return RemoveSandbox(container.sandbox_id)


def grace_of(entry: Entry) -> int:
    """Seconds that a container of it has to end by itself, whatever it is stopped for."""
    if entry.stop is not None:
        return entry.stop.grace_s
    return entry.in_place.grace_s if entry.wish is not None else 0
