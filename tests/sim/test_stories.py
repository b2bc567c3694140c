"""The classic stories, told as they went when somebody last looked: a change of behaviour is a diff to review.

`make golden` writes them anew.
"""

import os
from collections.abc import Callable

import pytest

from sim.story import FOLDER, Story
from sim.world import World


def node_dies() -> str:
    with Story("A node loses its power and comes back two minutes later.", nodes=2) as story:
        story.put("web", replicas=2, on_disconnect="replace")
        story.put("db", node_selector={"zone": "a"})
        story.until("all three run", lambda w: len(w.witness.live) == 3)
        story.reboot("n1", down_s=120.0)
        story.until("the lost one runs elsewhere", lambda w: _count(w, "web", "n2") == 2)
        story.until("n1 is back, and db runs again", lambda w: _on(w, "db") == {"n1"})
        story.wait(15.0)
        return story.text()


def partition_heals() -> str:
    with Story("A node is cut off from its controller, and both go on by themselves.", nodes=2) as story:
        story.put("web", replicas=2, on_disconnect="replace")
        story.put("db", node_selector={"zone": "a"})
        story.until("all three run", lambda w: len(w.witness.live) == 3)
        story.cut("n1", "*", for_s=90.0)
        story.until("the lease is over, and n1 has ended what is bound to it", lambda w: _on(w, "web") == {"n2"})
        story.until("it runs elsewhere", lambda w: len(w.witness.live) == 3)
        story.wait(60.0)
        return story.text()


def retry_collides() -> str:
    with Story(
        "A runtime does what it is told, and its answer is lost; the retry must not meet the first try."
    ) as story:
        story.weather_is(runtime_silent=1.0, runtime_silent_to="RunPodSandbox")
        story.put("web", node_selector={"zone": "a"})
        story.wait(0.5)
        story.weather_is()
        story.until("it runs", lambda w: _on(w, "web") == {"n1"}, within_s=600.0)
        story.wait(2.0)
        return story.text()


def drain() -> str:
    with Story("A node is drained, one slot after the other, and takes work again.", nodes=2) as story:
        story.put("web", replicas=3)
        story.until("all three run", lambda w: len(w.witness.live) == 3)
        story.wait(2.0)
        story.drain("n1")
        story.until("n1 is empty", lambda w: _on(w, "web") == {"n2"} and len(w.witness.live) == 3)
        story.wait(5.0)
        story.uncordon("n1")
        story.put("web", replicas=5)
        story.wait(5.0)
        return story.text()


def leader_dies() -> str:
    with Story("The controller that leads is killed, and another takes over.", nodes=1, controllers=2) as story:
        story.put("web")
        story.until("it runs", lambda w: len(w.witness.live) == 1)
        story.crash("c1", down_s=30.0)
        story.put("job", restart_policy="Never", env={"KAKURI_FAKE": "exit 0 after 3"})
        story.wait(40.0)
        return story.text()


STORIES: list[Callable[[], str]] = [node_dies, partition_heals, retry_collides, drain, leader_dies]


@pytest.mark.parametrize("story", STORIES, ids=[s.__name__ for s in STORIES])
def test_the_story_goes_as_it_is_written(story: Callable[[], str]) -> None:
    written = FOLDER / f"{story.__name__}.txt"
    told = story()
    if os.environ.get("KAKURI_GOLDEN"):
        written.write_text(told)
    assert told == written.read_text(), "if it is meant to be so: make golden, and review the diff"


def _count(world: World, workload: str, node: str) -> int:
    return sum(id_ == workload and run.node == node for (id_, _), run in world.witness.live.items())


def _on(world: World, workload: str) -> set[str]:
    """The nodes on which it runs."""
    return {run.node for (id_, _), run in world.witness.live.items() if id_ == workload}
