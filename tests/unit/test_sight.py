"""What a runtime forgot of a start that it gave up in the middle."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.endpoints import Endpoint, Endpoints
from agent.seen import Seen
from agent.sight import Sight
from cri.errors import RuntimeFailed
from support.agents import SkippingClock
from support.steps import ENTRY

LEFT = 'failed to delete containerd container "c0": cannot delete running task c0: failed precondition'


@dataclass
class Runtime:
    """One that refuses to remove a container until what is left of it has ended."""

    says: str = LEFT
    left: bool = True
    ended: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    async def remove_container(self, id_: str) -> None:
        if self.left:
            raise RuntimeFailed(self.says)
        self.removed.append(id_)

    async def end_task(self, id_: str) -> None:
        self.ended.append(id_)
        self.left = False


def sight(runtime: Any, *, ours: bool = True) -> Sight:
    endpoint = Endpoint(runtime, ("runc",), end_task=runtime.end_task if ours else None)
    return Sight("web.0.0000000a", Endpoints([endpoint]), SkippingClock(), Seen())


async def test_a_task_that_a_start_left_is_ended_and_then_the_container_goes() -> None:
    runtime = Runtime()
    await sight(runtime).remove_container(ENTRY, "c0")
    assert (runtime.ended, runtime.removed) == (["c0"], ["c0"])


@pytest.mark.parametrize(("says", "ours"), [("the disk is full", True), (LEFT, False)], ids=["other words", "others'"])
async def test_nothing_is_ended_for_other_words_or_in_a_runtime_that_is_not_ours_alone(says: str, ours: bool) -> None:
    runtime = Runtime(says)
    with pytest.raises(RuntimeFailed):
        await sight(runtime, ours=ours).remove_container(ENTRY, "c0")
    assert not runtime.ended
