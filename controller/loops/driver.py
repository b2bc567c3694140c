"""What runs the passes: kicked by the API and by each other, and by a slow sweep that forgets nothing.

One rule: a loop never retries; a pass that failed is logged once a minute, and the loop comes round again.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from controller.loops.agenda import Agenda, Kick
from controller.loops.bounds import NodeBounds
from controller.loops.dispatch import DispatchPass
from controller.loops.drains import Drained, DrainPass
from controller.loops.follow import FOLLOW_S, FollowPass
from controller.loops.lease import Leadership
from controller.loops.observe import ObservePass
from controller.loops.ports import Clock, LoopStore, Nodes
from controller.loops.reap import Orphans
from controller.loops.reconcile import MAX_WORKLOADS, ReconcilePass
from controller.loops.told import Told
from controller.nodes import NodeError
from controller.store.contract import AgentAddress, AllocationFilter, Fenced, StoreError
from kakuri.log import OncePer, get_logger

SWEEP_S = 30.0
"""Between two walks over everything. The kicks do the work; this finds what a lost kick left."""
REDISPATCH_S = 10.0
"""What an agent has not accepted is told again after this, kick or no kick."""
PAUSE_S = 1.0
"""After a pass that failed."""
DRAINS_S = 2.0
"""Between two looks at drains of which something has changed. Longer and room that comes free elsewhere is taken later;
shorter and a large node's workloads are planned more often for nothing."""
IDLE_DRAINS_S = 30.0
"""Between two looks at drains at which nothing changes, after as many doublings as it takes. Longer and a change that
kicked nobody is seen later; shorter and a drain that can't end costs its plan for ever."""
UNANSWERED_S = 0.3
"""Before the next poll of a node that did not answer: an agent that is being restarted is soon back."""


@dataclass
class _NodeState:
    """What the loops of one node share. Lost with the process, which is no loss."""

    address: AgentAddress
    observe: ObservePass
    dispatch: DispatchPass
    kick: Kick = field(default_factory=Kick)
    orphans: Orphans = field(default_factory=Orphans)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Driver:
    """The loops of one controller. workloads() and nodes() are the kicks that the API gives."""

    def __init__(self, store: LoopStore, nodes: Nodes, clock: Clock, holder: str, bounds: NodeBounds) -> None:
        self._bounds = bounds
        self._store = store
        self._agents = nodes
        self._clock = clock
        self._leadership = Leadership(store, clock, holder)
        self._reconcile = ReconcilePass(store, clock, lambda: secrets.token_hex(16))
        self._drains = DrainPass(store, clock)
        self._drained = Drained()
        self._drains_pause_s = DRAINS_S
        self._agenda = Agenda()
        self._nodes_kick = Kick()
        self._drains_kick = Kick()
        self._commit_kick = Kick()
        self._free = asyncio.Event()
        """No restore waits for a person's word: what was planned may be done."""
        self._nodes: dict[str, _NodeState] = {}
        self._log = get_logger("driver")
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)
        store.on_commit(self._commit_kick)

    def workloads(self, ids: Iterable[str]) -> None:
        """These are to be looked at soon."""
        self._agenda.add(ids)

    def nodes(self) -> None:
        """Some node is new, has moved, takes work otherwise than before, or has something to be told or to be emptied
        of."""
        self._nodes_kick()
        self._drains_kick()

    async def run(self) -> None:
        """Leads whenever the lease is ours, until cancelled."""
        while True:
            term = await self._leadership.win()
            try:
                async with asyncio.TaskGroup() as group:
                    loops = group.create_task(self._lead(term.epoch))
                    await self._leadership.keep(term)
                    loops.cancel()
            except* Fenced:
                self._log.warning("another controller leads", epoch=term.epoch)
            finally:
                await self._leadership.give_up(term)

    async def _lead(self, epoch: int) -> None:
        self._nodes.clear()
        self._drained = Drained()
        self._free.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever("hold", self._look_whether_held))
            group.create_task(self._forever("reconcile", lambda: self._reconcile_next(epoch)))
            group.create_task(self._forever("sweep", self._sweep))
            group.create_task(self._forever("nodes", lambda: self._follow_nodes(group, epoch)))
            group.create_task(self._forever("drains", lambda: self._follow_drains(epoch)))
            if self._store.shared:
                group.create_task(self._forever("follow", partial(self._follow_others, FollowPass(self._store))))

    async def _forever(self, name: str, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await turn()
            except Fenced:
                raise
            except (StoreError, NodeError) as error:
                if self._say(f"{name}: {error.message}"):
                    self._log.warning("pass failed", loop=name, error=error.message)
                await self._clock.sleep(PAUSE_S)
            except Exception:  # noqa: BLE001 - see below
                # A fault of ours. It must not end the other loops: one bad object harms itself only.
                self._log.exception("pass failed", loop=name)
                await self._clock.sleep(PAUSE_S)

    async def _look_whether_held(self) -> None:
        """A restored database may be wrong about what happened since: nothing is done by it before it is confirmed."""
        if await self._store.hold() is None:
            self._free.set()
            await self._clock.sleep(SWEEP_S)
            return
        if self._say("held"):
            self._log.warning("restored database: nothing is started or ended", next="kakuri db confirm")
        await self._clock.sleep(PAUSE_S)

    async def _reconcile_next(self, epoch: int) -> None:
        await self._free.wait()
        await self._agenda.wait(self._clock.now())
        ids = self._agenda.take(MAX_WORKLOADS, self._clock.now())
        if not ids:
            return
        try:
            passed = await self._reconcile(ids, epoch=epoch)
        except BaseException:
            self._agenda.add(ids)
            raise
        self._agenda.add(passed.applied.stale | passed.applied.again)
        for when, id_ in passed.look_again:
            self._agenda.add_at(when, id_)
        for node in passed.applied.nodes:
            if state := self._nodes.get(node):
                state.kick()

    async def _sweep(self) -> None:
        await self._look_at_all()
        await self._clock.sleep(SWEEP_S)

    async def _look_at_all(self) -> None:
        after = ""
        while page := await self._store.page_workload_ids(after=after, limit=MAX_WORKLOADS):
            self._agenda.add(page)
            after = page[-1]
            await self._clock.sleep(PAUSE_S)

    async def _follow_others(self, follow: FollowPass) -> None:
        followed = await follow()
        self._agenda.add(followed.workloads)
        if followed.nodes:
            self.nodes()
        if followed.missed:
            await self._look_at_all()
        if not followed.more:
            await self._commit_kick.wait(FOLLOW_S)

    async def _follow_nodes(self, group: asyncio.TaskGroup, epoch: int) -> None:
        """Each node that has an address has its loops, and no other."""
        present = {a.node: a for a in await self._store.agent_addresses()}
        for name, state in list(self._nodes.items()):
            now = present.get(name)
            if now is None or replace(now, ready=True) != replace(state.address, ready=True):
                for task in state.tasks:
                    task.cancel()
                del self._nodes[name]
        for name, address in present.items():
            if name not in self._nodes:
                told = Told()
                state = self._nodes[name] = _NodeState(
                    address,
                    ObservePass(self._agents, self._store, self._clock, address, self._bounds, told),
                    DispatchPass(self._agents, self._store, self._clock, address, told),
                )
                state.tasks = [
                    group.create_task(self._forever("observe", partial(self._observe_next, state, epoch))),
                    group.create_task(self._forever("dispatch", partial(self._dispatch_next, state, epoch))),
                ]
        for name in await self._store.nodes_to_tell() & self._nodes.keys():
            self._nodes[name].kick()
        await self._look_at_the_unplaced()
        await self._nodes_kick.wait(SWEEP_S)

    async def _follow_drains(self, epoch: int) -> None:
        await self._free.wait()
        before, self._drained = self._drained, await self._drains(epoch=epoch)
        self._agenda.add(self._drained.dirty)
        if not self._drained.progress:
            await self._drains_kick.wait(SWEEP_S)
            return
        if self._drained != before:
            self._drains_pause_s = DRAINS_S
        # Many kicks in a row are one look; the rest of the pause is for who is not kicked.
        await self._clock.sleep(DRAINS_S)
        kicked = await self._drains_kick.wait(self._drains_pause_s - DRAINS_S)
        self._drains_pause_s = DRAINS_S if kicked else min(2 * self._drains_pause_s, IDLE_DRAINS_S)

    async def _observe_next(self, state: _NodeState, epoch: int) -> None:
        observed = await state.observe(epoch=epoch)
        self._agenda.add(observed.fenced)
        if observed.turned:
            await self._look_at_those_on(state.address.node)
        recorded = observed.recorded
        if recorded is None:
            await self._clock.sleep(UNANSWERED_S)
            return
        self._agenda.add(recorded.dirty)
        if observed.orphans:
            state.orphans |= observed.orphans
        if observed.orphans or recorded.unsent or observed.turned:
            state.kick()
        if recorded.released or observed.turned:
            await self._look_at_the_unplaced()
        if self._drained.progress and (recorded.released or observed.turned or recorded.dirty & self._drained.dirty):
            self._drains_kick()

    async def _dispatch_next(self, state: _NodeState, epoch: int) -> None:
        await state.kick.wait(REDISPATCH_S)
        await self._free.wait()
        if not state.observe.ready:
            return  # nothing is told to a node before all that it has is known; it kicks when it is ready
        orphans, state.orphans = state.orphans, Orphans()
        try:
            dispatched = await state.dispatch(orphans, epoch=epoch)
        except BaseException:
            state.orphans |= orphans
            state.kick()
            raise
        self._agenda.add(dispatched.dirty)
        if dispatched.busy:
            await self._clock.sleep(PAUSE_S)
        if dispatched.again or dispatched.busy:
            state.kick()

    async def _look_at_the_unplaced(self) -> None:
        """Room came free, or a node changed: what waits for a place may have one now."""
        self._agenda.add(await self._store.unschedulable_ids(limit=MAX_WORKLOADS))

    async def _look_at_those_on(self, node: str) -> None:
        """The node fell silent, or is back: what is said of the workloads there changes with it."""
        after: str | None = None
        while True:
            page = await self._store.list_allocations(AllocationFilter(node=node), after=after)
            self._agenda.add(a.workload for a in page.items if a.live)
            after = page.next
            if after is None:
                return
