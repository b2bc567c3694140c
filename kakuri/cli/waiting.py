"""Waiting for workloads to get somewhere: shared by wait, apply --wait and delete --wait.

One rule: the end of a wait says of each workload that is not there why it isn't.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kakuri.cli.failure import NotReady
from kakuri.cli.judge import DELETED, Done, Goal, Never, Verdict, Waiting, judge
from kakuri.cli.kinds import Target
from kakuri.cli.session import steady_mirror, tell

if TYPE_CHECKING:
    from kakuri.client import Client, Object


async def wait_for(client: "Client", targets: Iterable[Target], goal: Goal, timeout_s: float) -> None:
    """Returns when all are there. Raises NotReady when one never can be, or at the timeout (0: looks once)."""
    named = {t.id: t for t in targets}
    verdicts: dict[str, Verdict] = {id_: Waiting("not seen yet") for id_ in named}
    if not named:
        return
    try:
        async with asyncio.timeout(timeout_s or None):
            async for view in steady_mirror(client, "Workload"):
                _look(view.objects, goal, verdicts)
                if all(isinstance(v, Done) for v in verdicts.values()):
                    return
                if timeout_s == 0 or not any(isinstance(v, Waiting) for v in verdicts.values()):
                    break
    except TimeoutError:
        raise NotReady(_words(named, verdicts, goal, f"not within {timeout_s:g} s")) from None
    raise NotReady(_words(named, verdicts, goal, "not"))


def _look(objects: Mapping[str, "Object"], goal: Goal, verdicts: dict[str, Verdict]) -> None:
    for id_, before in verdicts.items():
        if isinstance(before, Done) and goal != DELETED:
            continue  # was there; waits are not for all to be there at one moment
        now = judge(objects.get(id_), goal)
        if now != before and isinstance(now, Waiting):
            tell(f"workload/{id_}: {now.why}")
        verdicts[id_] = now


def _words(targets: Mapping[str, Target], verdicts: Mapping[str, Verdict], goal: Goal, start: str) -> str:
    lines = [f"{start} {_goal_words(goal)}:"]
    for id_, verdict in verdicts.items():
        match verdict:
            case Done():
                pass
            case Waiting(why):
                lines.append(f"  {targets[id_]}: {why}")
            case Never(why):
                lines.append(f"  {targets[id_]}: {why} (waiting longer won't help)")
    return "\n".join(lines)


def _goal_words(goal: Goal) -> str:
    return goal.state or ("up to date and up" if goal.text == "settled" else goal.text)
