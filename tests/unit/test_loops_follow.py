"""What another controller's API wrote: the leader looks at it without having been kicked."""

from dataclasses import dataclass, field

from controller.loops.follow import FollowPass
from controller.store.contract import Change, Expired


@dataclass
class Log:
    """The log of changes as another's commits make it."""

    newest: int = 5
    changes: list[Change] = field(default_factory=list)
    held: bool = True

    async def resource_version(self) -> int:
        return self.newest

    async def changes_by_others(self, resource_version: int, *, limit: int = 1000) -> tuple[list[Change], int]:
        if not self.held:
            raise Expired("no longer held")
        return [c for c in self.changes if c.resource_version > resource_version], self.newest


async def test_the_first_look_takes_all_for_changed_and_the_next_only_what_is() -> None:
    log = Log()
    follow = FollowPass(log)
    assert (await follow()).missed
    assert await follow() == type(await follow())()
    log.newest = 8
    log.changes = [
        Change(6, "Workload", "web", deleted=False),
        Change(7, "Allocation", "db.0.00000000", deleted=False),
        Change(8, "Event", "e", deleted=False),
    ]
    followed = await follow()
    assert followed.workloads == {"web", "db"}
    assert not followed.nodes
    log.newest = 9
    log.changes.append(Change(9, "Node", "n1", deleted=False))
    assert (await follow()).nodes


async def test_a_log_that_is_no_longer_held_means_that_anything_may_have_changed() -> None:
    log = Log()
    follow = FollowPass(log)
    await follow()
    log.held = False
    followed = await follow()
    assert followed.missed
    assert followed.nodes
