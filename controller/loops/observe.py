"""The observe pass of one node: a long poll, and what it brought into SQL.

One rule: the revision that we ask from moves only after what came with it is committed; and a node that was silent is
asked for all it has before it counts as ready.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.exchange import LeaseTerms, Report
from controller.loops.bounds import NodeBounds
from controller.loops.ports import Clock, Nodes, ReportStore
from controller.loops.reap import Orphans, orphans
from controller.loops.told import Told
from controller.nodes import NodeError, NodeRefused
from controller.store.contract import AgentAddress, Recorded
from kakuri.log import OncePer, get_logger
from kakuri.model import Reason

POLL_S = 5.0
"""How long an agent may sit on an unchanged answer; its heartbeat. Longer and a hung node is noticed later."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a pass brought. None recorded: the node did not answer. turned: it is ready and was not, or the reverse.
    fenced: workloads to plan again, for what they had there has certainly ended."""

    recorded: Recorded | None = None
    orphans: Orphans = field(default_factory=Orphans)
    turned: bool = False
    fenced: frozenset[str] = frozenset()


class ObservePass:
    def __init__(
        self, nodes: Nodes, store: ReportStore, clock: Clock, node: AgentAddress, bounds: NodeBounds, told: Told
    ) -> None:
        self._nodes = nodes
        self._store = store
        self._clock = clock
        self._node = node
        self._bounds = bounds
        self._told = told
        self._instance = ""
        self._since = 0
        self._sent_at_ns = 0
        self._ready: bool | None = None
        self._owes = True
        self._lost = False
        self._heard: float | None = None
        """When the newest answer came; before any, when we first tried."""
        self._log = get_logger("observe").bind(node=node.node)
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)

    @property
    def ready(self) -> bool:
        """All that the node has is known, and it answers: it may be told things."""
        return self._ready is True

    async def __call__(self, *, epoch: int) -> Observed:
        """What changed at the node, recorded. Raises Fenced, Unavailable."""
        self._told.ask()
        if self._heard is None:
            self._heard = self._clock.monotonic()
        known = self._ready is True
        try:
            report = await self._nodes.observe(
                self._node.node,
                self._node.address,
                epoch=epoch,
                instance=self._instance if known else "",
                since=self._since if known else 0,
                wait_s=POLL_S if known else 0,
                lease=self._terms(granted=known and not self._owes),
            )
        except NodeRefused as error:
            # It is there, and waiting changes nothing: a person has to. Its lease runs out all the same.
            turned = await self._set_ready(epoch, ready=False, reason=Reason.REFUSED, message=error.message)
            return Observed(turned=turned, fenced=await self._give_up(epoch))
        except NodeError as error:
            turned = await self._unheard(error, epoch)
            return Observed(turned=turned, fenced=await self._give_up(epoch))
        if report.ledger_uid != self._node.ledger_uid:
            # It has a new ledger and will register with it; what it says belongs to that registration.
            self._log.info("waiting for the registration of a new ledger", ledger_uid=report.ledger_uid)
            return Observed(fenced=await self._give_up(epoch))
        self._heard = self._clock.monotonic()
        recorded = Recorded()
        if report.full or report.allocations or report.gone:
            recorded = await self._store.record_report(
                replace(report, spared=self._told.spared()), epoch=epoch, now=self._clock.now()
            )
            if recorded.dirty or recorded.orphans:
                self._log.info("observed", **_told(report, recorded))
        self._instance, self._since, self._sent_at_ns = report.instance, report.revision, report.sent_at_ns
        if self._owes or not known:
            self._owes = await self._store.owes_stops(self._node.node, told=self._told.stopped)
        turned = False
        if known or report.full:
            turned = await self._set_ready(epoch, ready=True, reason=Reason.READY, message="")
        return Observed(recorded, orphans(report, recorded), turned)

    def _terms(self, *, granted: bool) -> LeaseTerms:
        """No lease for a node that still has to be told what was given up there: it may have accepted the start of such
        a thing, and wait for nothing but a lease to begin with it."""
        return LeaseTerms(self._bounds.lease_s, self._bounds.stop_bound_s, self._sent_at_ns if granted else 0)

    async def _unheard(self, error: NodeError, epoch: int) -> bool:
        """Whether the node counts as silent from now on."""
        if self._say(error.message):
            self._log.warning("node did not answer", error=error.message, silent_s=round(self._silent_s, 1))
        if self._silent_s < self._bounds.silent_after_s:
            return False
        return await self._set_ready(epoch, ready=False, reason=Reason.NODE_SILENT, message=error.message)

    async def _give_up(self, epoch: int) -> frozenset[str]:
        """The workloads that lost something there, once the node's lease is certainly over."""
        if self._lost or self._silent_s < self._bounds.certain_after_s:
            return frozenset()
        message = f"not heard of for {self._bounds.certain_after_s:g} s"
        fenced = await self._store.set_node_lost(self._node.node, epoch=epoch, message=message, now=self._clock.now())
        self._lost, self._ready = True, False
        self._log.warning("node is lost", silent_s=round(self._silent_s, 1), workloads=sorted(fenced)[:20])
        return fenced

    @property
    def _silent_s(self) -> float:
        return self._clock.monotonic() - self._heard if self._heard is not None else 0.0

    async def _set_ready(self, epoch: int, *, ready: bool, reason: str, message: str) -> bool:
        """Whether it was otherwise before. The store is asked only when our view changes: a poll writes nothing."""
        if self._ready is ready:
            return False
        self._ready = None  # should the answer be lost, the database may say either
        changed = await self._store.set_node_ready(
            self._node.node, epoch=epoch, ready=ready, reason=reason, message=message, now=self._clock.now()
        )
        self._ready = ready
        self._lost = self._lost and not ready
        if changed:
            self._log.info("node is ready" if ready else "node is not ready", reason=reason, error=message)
        return changed


def _told(report: Report, recorded: Recorded) -> dict[str, object]:
    """The canonical line: what the agent said of the workloads for which it was news."""
    news = [a for a in report.allocations if a.workload in recorded.dirty]
    return {
        "said": [f"{a.id}: {a.state}" + (f"/{a.reason}" if a.reason else "") for a in news][:20],
        **({"gone": list(report.gone[:20])} if report.gone else {}),
        **({"orphans": list(recorded.orphans[:20])} if recorded.orphans else {}),
    }
