"""The observe pass of one node: a long poll, and what it brought into SQL.

One rule: the revision that we ask from moves only after what came with it is committed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.exchange import Report
from controller.loops.ports import Clock, Nodes, ReportStore
from controller.loops.reap import Orphans, orphans
from controller.nodes import NodeError, NodeRefused
from controller.store.contract import AgentAddress, Recorded
from kakuri.log import OncePer, get_logger
from kakuri.model import Reason

POLL_S = 10.0
"""How long an agent may sit on an unchanged answer; its heartbeat. Longer and a hung node is noticed later."""
SILENT_AFTER_S = 10.0
"""Without an answer for this long a node takes no new work and its allocations show as Unknown. Shorter and an agent's
restart makes a stir; longer and work is sent to a dead node."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a pass brought. None recorded: the node did not answer. turned: it is ready and was not, or the reverse."""

    recorded: Recorded | None = None
    orphans: Orphans = field(default_factory=Orphans)
    turned: bool = False


class ObservePass:
    def __init__(self, nodes: Nodes, store: ReportStore, clock: Clock, node: AgentAddress) -> None:
        self._nodes = nodes
        self._store = store
        self._clock = clock
        self._node = node
        self._instance = ""
        self._since = 0
        self._ready: bool | None = None
        self._heard = clock.monotonic()
        self._log = get_logger("observe").bind(node=node.node)
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)

    async def __call__(self, *, epoch: int) -> Observed:
        """What changed at the node, recorded. Raises Fenced, Unavailable."""
        asked_at = self._clock.now()
        try:
            report = await self._nodes.observe(
                self._node.node,
                self._node.address,
                epoch=epoch,
                instance=self._instance,
                since=self._since,
                wait_s=POLL_S if self._ready else 0,  # one that was silent is ready at its first answer
            )
        except NodeRefused as error:
            # It is there, and waiting changes nothing: a person has to.
            turned = await self._set_ready(epoch, ready=False, reason=Reason.REFUSED, message=error.message)
            return Observed(turned=turned)
        except NodeError as error:
            return Observed(turned=await self._unheard(error, epoch))
        if report.ledger_uid != self._node.ledger_uid:
            # It has a new ledger and will register with it; what it says belongs to that registration.
            self._log.info("waiting for the registration of a new ledger", ledger_uid=report.ledger_uid)
            return Observed()
        self._heard = self._clock.monotonic()
        recorded = Recorded()
        if report.full or report.allocations or report.gone:
            recorded = await self._store.record_report(
                replace(report, asked_at=asked_at), epoch=epoch, now=self._clock.now()
            )
            if recorded.dirty or recorded.orphans:
                self._log.info("observed", **_told(report, recorded))
        self._instance, self._since = report.instance, report.revision
        turned = await self._set_ready(epoch, ready=True, reason=Reason.READY, message="")
        return Observed(recorded, orphans(report, recorded), turned)

    async def _unheard(self, error: NodeError, epoch: int) -> bool:
        """Whether the node counts as silent from now on."""
        silent_s = self._clock.monotonic() - self._heard
        if self._say(error.message):
            self._log.warning("node did not answer", error=error.message, silent_s=round(silent_s, 1))
        if silent_s < SILENT_AFTER_S:
            return False
        return await self._set_ready(epoch, ready=False, reason=Reason.NODE_SILENT, message=error.message)

    async def _set_ready(self, epoch: int, *, ready: bool, reason: str, message: str) -> bool:
        """Whether it was otherwise before. The store is asked only when our view changes: a poll writes nothing."""
        if self._ready is ready:
            return False
        changed = await self._store.set_node_ready(
            self._node.node, epoch=epoch, ready=ready, reason=reason, message=message, now=self._clock.now()
        )
        self._ready = ready
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
