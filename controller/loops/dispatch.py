"""The dispatch pass of one node: everything it has to be told, in one Apply, until it has accepted it.

One rule: rows and tombstones say what is to be told; a pass that fails has changed nothing, and the next tells it
again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.exchange import Errand, Sent
from controller.loops.ports import Clock, ErrandStore, Nodes
from controller.loops.reap import Orphans
from controller.loops.told import Told
from controller.store.contract import AgentAddress
from kakuri.log import OncePer, get_logger
from kakuri.model import EventDraft, EventType, workload_of

MAX_ERRANDS = 500


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What came of it. dirty: workloads to plan again. again: there is more, now; busy: there is more, in a while."""

    dirty: frozenset[str] = frozenset()
    again: bool = False
    busy: bool = False


class DispatchPass:
    def __init__(self, nodes: Nodes, store: ErrandStore, clock: Clock, node: AgentAddress, told: Told) -> None:
        self._nodes = nodes
        self._store = store
        self._clock = clock
        self._node = node
        self._told = told
        self._log = get_logger("dispatch").bind(node=node.node)
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)

    async def __call__(self, orphans: Orphans, *, epoch: int) -> Dispatched:
        """The node has been told what it had not accepted. Raises NodeError, Fenced, Unavailable."""
        owed = await self._store.owed(self._node.node, limit=MAX_ERRANDS)
        errands, buried = owed.errands, [t.id for t in owed.tombstones]
        if not errands and not orphans and not buried:
            return Dispatched()
        with self._told.telling([e.allocation.id for e in errands]):
            return await self._tell(errands, orphans, buried, epoch)

    async def _tell(self, errands: Sequence[Errand], orphans: Orphans, buried: Sequence[str], epoch: int) -> Dispatched:
        sent = await self._nodes.apply(
            self._node.address,
            epoch=epoch,
            ledger_uid=self._node.ledger_uid,
            errands=errands,
            # What a tombstone stands for is stopped whether or not the agent has it, so that a delayed start of it is
            # refused; an accepted removal says that nothing is left.
            stops=tuple(dict.fromkeys((*orphans.stops, *buried))),
            removals=tuple(dict.fromkeys((*orphans.removals, *buried))),
        )
        ours = {(e.allocation.id, e.allocation.revision) for e in errands}
        about_rows = [s for s in sent if (s.allocation_id, s.revision) in ours]
        dirty: frozenset[str] = frozenset()
        if about_rows:
            dirty = await self._store.record_sent(
                self._node.node, self._node.ledger_uid, about_rows, epoch=epoch, now=self._clock.now()
            )
        answers = _answers(buried, [s for s in sent if (s.allocation_id, s.revision) not in ours])
        self._told.stopped = {i for i, (stop, *_) in answers.items() if stop.result == "accepted"}
        # Those of which the agent has nothing any more: it took both the stop and the removal.
        gone = {i for i, about in answers.items() if all(a.result == "accepted" for a in about)}
        if gone:
            now = self._clock.now()
            dirty |= await self._store.record_buried(self._node.node, gone, epoch=epoch, now=now)
        busy = [s for s in about_rows if s.result == "busy"]
        new = [s for s in busy if self._say(f"{s.allocation_id}: {s.message}")]
        if new:
            await self._store.add_events([self._put_off(s) for s in new], now=self._clock.now())
        kept = set(buried) - gone  # told again and again until they are gone, and that is no news
        if new or len(busy) < sum(s.allocation_id not in kept for s in sent):
            self._log.info(
                "dispatched",
                told=[f"{e.allocation.desired} {e.allocation.id}" for e in errands][:20],
                orphans=len(orphans.stops) + len(orphans.removals),
                buried=len(gone),
                **_those(sent, "refused"),
                **_those(sent, "busy"),
            )
        return Dispatched(dirty=dirty, again=len(errands) == MAX_ERRANDS, busy=any(s.result == "busy" for s in sent))

    def _put_off(self, sent: Sent) -> EventDraft:
        """Why nothing happens is to be read in `describe`, not only in a log."""
        return EventDraft(
            object_kind="Workload",
            object_id=workload_of(sent.allocation_id),
            type=EventType.WARNING,
            reason=sent.reason,
            message=f"the agent puts it off: {sent.message}",
            allocation=sent.allocation_id,
            node=self._node.node,
        )


def _answers(buried: Sequence[str], sent: Sequence[Sent]) -> dict[str, list[Sent]]:
    """By tombstone: first the answer to the stop, then that to the removal."""
    answers: dict[str, list[Sent]] = {}
    for answer in sent:
        if answer.allocation_id in buried:
            answers.setdefault(answer.allocation_id, []).append(answer)
    return answers


def _those(sent: Sequence[Sent], result: str) -> dict[str, list[str]]:
    told = [f"{s.allocation_id}: {s.reason}: {s.message}" for s in sent if s.result == result]
    return {result: told[:20]} if told else {}
