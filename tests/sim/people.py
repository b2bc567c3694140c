"""People: they ask a controller for things over its API, keep in mind what was accepted, and look again when no answer
came.

One rule: what was accepted is in the database from then on, whatever happens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller.store.contract import StoreError, Unavailable, Write
from kakuri.client import ServerUnreachable
from kakuri.model import RestartPolicy, Workload, WorkloadSpec
from sim.controllers import ANSWER_S, Controller, request


@dataclass(frozen=True)
class Want:
    """What people were told is accepted. spec None: deleted."""

    uid: str
    spec: WorkloadSpec | None


class People:
    def __init__(self, world: Any) -> None:
        self.wants: dict[str, Want] = {}
        self.jobs: set[str] = set()
        """Workloads, by uid, that had another restart policy than Always at some time."""
        self.answer: Any = None
        """What the last request that was accepted was answered."""
        self._world = world

    def write(self, id_: str, writes: list[Write]) -> str:
        """What came of it: accepted, refused, or unknown."""
        outcome = self.ask(lambda c: c.store.apply(writes, now=c.clock.now()), kick=lambda c: c.driver.workloads([id_]))
        if outcome == "accepted":
            self._believe(id_)
        elif outcome == "unknown":
            self._look_again(id_)
        return outcome

    def ask(self, work: Callable[[Controller], Any], kick: Callable[[Controller], None]) -> str:
        """Any controller that answers; kick: what its API does afterwards."""
        world = self._world
        answering = [c for c in world.controllers.values() if c.answers]
        if not answering:
            world.go(0.5)
            return "refused"
        controller = world.one_of(answering)

        async def serve() -> None:
            self.answer = await work(controller)
            kick(controller)

        loop = world.loop
        asking = loop.world.run(lambda: loop.create_task(request(world, controller, serve)))
        loop.run_until(loop.time() + ANSWER_S + 10.0, asking.done)
        match asking.exception():
            case None:
                return "accepted"
            case Unavailable() | ServerUnreachable():
                return "unknown"
            case StoreError():
                return "refused"
            case other:
                world.witness.broken(f"the API failed: {other!r}")
                return "unknown"

    def insist(self, act: Callable[[], str]) -> None:
        """It is accepted in the end."""
        for _ in range(20):
            if act() == "accepted":
                return
            self._world.go(5.0)
        self._world.witness.broken("no controller takes a request any more")

    def check(self) -> None:
        """What they were told is accepted is in the database."""
        broken = self._world.witness.broken
        for id_, want in self.wants.items():
            found = self._world.stores.workloads.get(id_)
            if want.spec is None:
                if found is not None and found.uid == want.uid and found.deleted_at is None:
                    broken(f"the deletion of {id_} was accepted, and is not in the database")
            elif found is None or found.uid != want.uid or found.deleted_at is not None:
                broken(f"{id_} was accepted, and is not in the database")
            elif found.spec != want.spec:
                broken(f"a change of {id_} was accepted, and is not in the database")

    def _believe(self, id_: str) -> None:
        outcome = self.answer[0]
        before = self.wants.get(id_)
        if isinstance(outcome.object, Workload) and outcome.result != "deleting":
            fields = {name: getattr(outcome.object, name) for name in WorkloadSpec.model_fields}
            self._want(id_, Want(outcome.object.uid, WorkloadSpec(**fields)))
        elif before is not None:
            self._want(id_, Want(before.uid, None))

    def _look_again(self, id_: str) -> None:
        """It was done, or it was not."""
        self._world.loop.run(self._world.stores.look())
        found = self._world.stores.workloads.get(id_)
        before = self.wants.get(id_)
        if found is not None:
            self._want(id_, Want(found.uid, None if found.deleted_at is not None else found.spec))
        elif before is not None:
            self._want(id_, Want(before.uid, None))

    def _want(self, id_: str, want: Want) -> None:
        before = self.wants.get(id_)
        if before is not None and before.uid == want.uid and before.spec is not None and want.spec is not None:
            self._world.witness.forgive(id_, range(want.spec.replicas, before.spec.replicas))
        if want.spec is not None and want.spec.restart_policy is not RestartPolicy.ALWAYS:
            self.jobs.add(want.uid)
        self.wants[id_] = want
