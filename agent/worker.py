"""One allocation's worker: look, decide by step(), carry out one action, again.

One rule: it acts on what it has seen itself. Events and relists only make it look, and a failed call makes it look
before the next one; nothing that happens to one allocation can end another's worker.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from agent.action import (
    Action,
    CreateContainer,
    Done,
    EnsureImage,
    InspectContainer,
    InspectSandbox,
    Look,
    ProbePorts,
    Record,
    RemoveContainer,
    RemoveSandbox,
    RunSandbox,
    StartContainer,
    Step,
    StopContainer,
    StopSandbox,
    Wait,
)
from agent.endpoints import Listing
from agent.entry import Ended, Entry
from agent.gate import Turn
from agent.ledger import LedgerUnwritable
from agent.making import make_container, make_sandbox
from agent.means import Means
from agent.node_lease import Unleased
from agent.ports import find_conflict
from agent.progress import SECOND, Outcome, Progress, after_failure, after_success, beginning, settled
from agent.removal import grace_of
from agent.seen import Seen
from agent.sight import Sight
from agent.status import status_of
from agent.step import step
from cri.client import CriClient
from cri.convert import ObservedContainer
from cri.errors import AlreadyExists, CriError, DeadlineExceeded, InProgress, NotFound, Unavailable
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.log import get_logger

BUG_PAUSE_S = 30
_log = get_logger("agent.worker")


class PortsTaken(Exception):  # noqa: N818 - what was found, not a fault
    pass


class Worker:
    def __init__(self, id_: str, means: Means, seen: Seen, *, settle_at_ns: int = 0) -> None:
        """seen: a new allocation has nothing, so it need not look first. settle_at_ns: until then its sandbox, started
        by an agent before us, may still come up."""
        self.id = id_
        self._sight = Sight(id_, means.endpoints, means.clock, seen)
        self._means = means
        self._progress = Progress(settle_at_ns=settle_at_ns)
        self._kick = asyncio.Event()
        self._suspects: set[str] = set()
        self._doubt = False
        self._ran = False
        self._turn: Turn | None = None
        self._busy = False
        self._actions = 0
        self._grace: tuple[int, asyncio.Timeout] | None = None
        """The grace in s that a container is being given right now, and the way to cut that short."""

    @property
    def seen(self) -> Seen:
        """What the runtimes have of it, as far as we have looked."""
        return self._sight.seen

    def kick(self) -> None:
        """Its entry may have changed: look at it again."""
        self._kick.set()
        entry = self._means.ledger.entries.get(self.id)
        if self._grace is not None and entry is not None and grace_of(entry) < self._grace[0]:
            self._grace[1].reschedule(asyncio.get_running_loop().time())
            self._grace = None
        if self._busy and entry is not None and entry.stop is not None and entry.end is None:
            self._tell(entry, whole=False)  # what it is at may hang for minutes

    def hint(self, id_: str) -> None:
        """Something may have happened to this container or sandbox of it."""
        entry = self._means.ledger.entries.get(self.id)
        known = self.seen.sandbox(id_) is not None or any(c.id == id_ for c in self.seen.containers)
        if entry is None or entry.end is not None or not known:
            return  # it took that down itself, or is about to; relists see what it leaves
        self._suspects.add(id_)
        self._kick.set()

    @property
    def actions(self) -> int:
        """How many it has begun: whether something was done since."""
        return self._actions

    def compare(self, listing: Listing, actions: int) -> None:
        """A relist, asked for after so many actions, saw this of it. It looks for itself when it knows otherwise."""
        if self._busy or self._actions != actions or not self.seen.looked:
            return
        if not self.seen.same_as(self.seen.listed(listing.sandboxes, listing.containers, self.seen.looked_at_ns)):
            self._doubt = True
            self._kick.set()

    @property
    def running(self) -> tuple[CriClient, ObservedContainer] | None:
        """The container that runs, for its log to be rotated."""
        entry = self._means.ledger.entries.get(self.id)
        current = self.seen.container(entry.attempt) if entry is not None else None
        if current is None or current.state != "running" or entry is None or entry.end is not None:
            return None
        return self._sight.home(entry, current.id), current

    def tell(self) -> None:
        """What is known of it is published, before anybody can ask: what a full report lacks counts as lost."""
        self._tell(self._means.ledger.entries[self.id], whole=True)

    async def run(self) -> None:
        """Returns when the ledger has forgotten the allocation, or the agent ends."""
        try:
            while (entry := self._means.ledger.entries.get(self.id)) is not None:
                if self._means.closing.is_set():
                    return
                try:
                    await self._go_on(entry)
                except Exception:  # noqa: BLE001 - a fault of ours with this one must not end the others
                    _log.exception("worker failed", allocation=self.id)
                    self._give_turn_back()
                    self._sight.seen = self.seen.doubted()
                    await self._pause(self._means.clock.now_ns() + BUG_PAUSE_S * SECOND)
        finally:
            self._give_turn_back()
        self._means.observations.withdraw(self.id)

    async def _go_on(self, entry: Entry) -> None:
        self._kick.clear()
        if self._doubt:
            self._doubt = False
            self._sight.seen = self.seen.doubted()
        while self._suspects:
            self._sight.seen = self.seen.suspected(self._suspects.pop())
        self._progress = settled(self._progress, self.seen)
        may_start = not self._means.lease.why_not(entry)
        lapsed = self._means.lease.is_stopping(entry)
        now_ns = self._means.clock.now_ns()
        wanted = step(entry, self.seen, self._progress, now_ns, may_start=may_start, lapsed=lapsed)
        if not isinstance(wanted, Wait | Done):
            self._progress = beginning(self._progress, wanted, now_ns)
        if not _is_midway(wanted):
            self._tell(entry, whole=isinstance(wanted, Wait | Done))
        match wanted:
            case Wait():
                self._give_turn_back()
                await self._pause(wanted.until_ns)
            case Done():
                self._give_turn_back()
                await self._pause(None)
            case RunSandbox() | CreateContainer() | StartContainer() if self._turn is None:
                # While it waited for its turn, all may have changed: decide again.
                self._turn = await self._means.gate.take()
            case _:
                await self._carry_out(entry, wanted)

    async def _carry_out(self, entry: Entry, action: Action) -> None:
        self._busy = True
        self._actions += 1
        try:
            await self._do(entry, action)
        except CriError as error:
            self._failed(action, _outcome_of(error), error.message)
        except Unleased as error:
            _log.info("start put off", allocation=self.id, why=str(error))
        except (PortsTaken, LedgerUnwritable) as error:
            self._failed(action, Outcome.REFUSED, str(error))
        except OSError as error:
            self._failed(action, Outcome.REFUSED, f"{error.filename or self._means.logs}: {error.strerror or error}")
        else:
            if not (isinstance(action, EnsureImage) and self._progress.pulling):
                self._progress = after_success(self._progress, action)
        finally:
            self._busy = False

    async def _do(self, entry: Entry, action: Action) -> None:
        match action:
            case Look():
                await self._look(entry)
            case EnsureImage():
                await self._ensure_image(entry, action.image)
            case ProbePorts():
                if conflict := find_conflict(entry, self._means.ledger.entries):
                    raise PortsTaken(conflict)
            case RunSandbox():
                self._check_lease(entry)
                self._sight.seen = self.seen.with_sandbox(await make_sandbox(self._means, entry), inspected=False)
            case InspectSandbox():
                await self._sight.inspect_sandbox(entry, action.id)
            case CreateContainer():
                made = await make_container(self._means, entry, action, last_look=lambda: self._check_lease(entry))
                self._progress = replace(self._progress, created=made.id)
                self._sight.seen = self.seen.with_container(made, inspected=False)
            case StartContainer():
                if self._present(entry).leased:
                    await self._means.lease.bind(self.id, self.seen.ids | {action.id})
                self._check_lease(entry)
                await self._sight.home(entry, action.id).start_container(action.id)
                self._sight.seen = self.seen.with_started(action.id)
            case InspectContainer():
                await self._sight.inspect_container(entry, action.id)
            case StopContainer():
                await self._stop_container(entry, action)
            case RemoveContainer():
                ran = self._sight.may_run(action.id)
                await self._sight.remove_container(entry, action.id)
                await self._see_removed(entry, action.id, ran)
            case StopSandbox():
                ran = self._sight.may_run(action.id)
                await self._sight.home(entry, action.id).stop_pod_sandbox(action.id)
                self._sight.seen = self.seen.with_stopped(action.id)
                for id_ in ran:
                    await self._sight.inspect_container(entry, id_)
                self._sight.check_ended(ran)
            case RemoveSandbox():
                ran = self._sight.may_run(action.id)
                await self._sight.home(entry, action.id).remove_pod_sandbox(action.id)
                await self._see_removed(entry, action.id, ran)
            case Record():
                after = await self._means.ledger.record(self.id, action.change)
                if isinstance(action.change, Ended) and after.end is not None:
                    _log.info("allocation ended", allocation=self.id, state=after.end.state, reason=after.end.reason)

    async def _stop_container(self, entry: Entry, action: StopContainer) -> None:
        client = self._sight.home(entry, action.id)
        try:
            async with asyncio.timeout(None) as bound:
                self._grace = (grace_of(entry), bound) if action.grace_s else None
                await client.stop_container(action.id, action.grace_s)
        except TimeoutError:
            self._sight.seen = self.seen.doubted()  # a later stop gives it less
            return
        finally:
            self._grace = None
        await self._sight.inspect_container(entry, action.id)
        self._sight.check_ended((action.id,))

    async def _see_removed(self, entry: Entry, id_: str, ran: Sequence[str]) -> None:
        """After a removal. What may have run before it is looked for: a word of the runtime is no end."""
        self._sight.seen = self.seen.without(id_)
        if ran:
            await self._look(entry)
            self._sight.check_ended(ran)

    def _check_lease(self, entry: Entry) -> None:
        """The last look before something starts: this process may have been held up since it decided."""
        present = self._present(entry)
        if present.leased and present.stop is not None:
            raise Unleased("it is being stopped")
        if why := self._means.lease.why_not(present):
            raise Unleased(why)

    def _present(self, entry: Entry) -> Entry:
        return self._means.ledger.entries.get(self.id, entry)

    async def _look(self, entry: Entry) -> None:
        await self._sight.look(entry)
        if self.seen.sandboxes:
            self._progress = replace(self._progress, settle_at_ns=0)  # it has come up

    async def _ensure_image(self, entry: Entry, image: str) -> None:
        assert entry.wish is not None
        client = self._means.endpoints.of(entry.wish.handler).client
        if await client.image_status(image) is not None:
            return
        self._progress = replace(self._progress, pulling=True)
        self._means.pulls.begin(client, image, self._pulled(image))

    def _pulled(self, image: str) -> Callable[[CriError | None], None]:
        def done(error: CriError | None) -> None:
            if error is None:
                self._progress = after_success(self._progress, EnsureImage(image))
            else:
                self._failed(EnsureImage(image), _outcome_of(error), error.message)
            self._kick.set()

        return done

    def _failed(self, action: Action, outcome: Outcome, message: str) -> None:
        self._progress = after_failure(self._progress, action, outcome, message, self._means.clock.now_ns())
        if not isinstance(action, Look | EnsureImage | ProbePorts | Record):
            self._sight.seen = self.seen.doubted()
        kind = type(action).__name__
        if outcome is not Outcome.GONE and self._means.once(f"{self.id} {kind} {outcome} {message}"):
            _log.warning("step failed", allocation=self.id, step=kind, outcome=outcome.value, error=message)

    def _tell(self, entry: Entry, *, whole: bool) -> None:
        """whole: ids and addresses are news too. In the middle of a start each would only cost its readers a write."""
        endpoint = self._means.endpoints.find_for(entry.wish)
        simulated = endpoint.simulated if endpoint is not None else self._means.endpoints.simulated
        waits = self._means.lease.why_not(entry)
        status = status_of(entry, self.seen, self._progress, ran=self._ran, simulated=simulated, waits=waits)
        status.revision = self._means.ledger.durable_revision(self.id)
        self._ran = status.started_once
        before = self._means.observations.get(self.id)
        if before is not None and not whole and _gist(before) == _gist(status):
            return
        news = before is None or (before.state, before.reason) != (status.state, status.reason)
        if self._means.observations.publish(status) and news:
            _log.info("allocation", allocation=self.id, state=status.state, reason=status.reason, why=status.message)

    async def _pause(self, until_ns: int | None) -> None:
        await self._means.clock.wait(self._kick, until_ns)

    def _give_turn_back(self) -> None:
        if self._turn is not None:
            self._turn.give_back()
            self._turn = None


def _is_midway(wanted: Step) -> bool:
    """More is known in a moment: what the runtime says, or how it ended."""
    ends = isinstance(wanted, Record) and isinstance(wanted.change, Ended)
    return ends or isinstance(wanted, Look | InspectContainer | InspectSandbox)


def _gist(status: wire.AllocationStatus) -> tuple[object, ...]:
    return status.state, status.reason, status.message, status.revision, status.restarts, status.released


def _outcome_of(error: CriError) -> Outcome:
    match error:
        case NotFound():
            return Outcome.GONE
        case AlreadyExists() | InProgress():
            return Outcome.TAKEN
        case DeadlineExceeded():
            return Outcome.TIMED_OUT
        case Unavailable():
            return Outcome.UNREACHABLE if error.surely_not_done else Outcome.CUT_OFF
        case _:
            return Outcome.REFUSED
