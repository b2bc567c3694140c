"""The node's lease at work: it is renewed, kept on the disk while anything is bound to it, and when it is over, what is
bound to it is stopped.

One rule: what is bound to the lease starts only while the lease is held, by a deadline that the fencer knows, with its
container on the fencer's list, and with a fencer that runs. The deadline that is used is never later than that on the
disk.

Bound are the allocations that say on_disconnect replace, from their acceptance until nothing of them is left. What this
ledger has of them without a fence file of this boot beside it was bound to a lease that is over.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol

from agent import fencer, lease
from agent.boot import boot_id
from agent.clock import Clock
from agent.entry import Entry, StopAsked
from agent.files import put_file
from agent.lease import FENCE_FILE, SECOND, Fence, Lease
from agent.ledger import Ledger, LedgerUnwritable
from kakuri.log import OncePer, get_logger
from kakuri.model import Reason

LOOK_S = 1.0
"""Between looks while anything is bound, for what no kick tells: a fencer that ended, an end, a machine that slept."""
_log = get_logger("agent.lease")


class Unleased(Exception):  # noqa: N818 - says a state
    """It may not start now; why, in words."""


class Workers(Protocol):
    def kick(self, id_: str) -> None:
        """Its entry has changed, or whether it may start."""

    def ids_of(self, id_: str) -> frozenset[str] | None:
        """Its sandboxes and containers in the runtime; None while that is not known."""


class FencerProgram(Protocol):
    async def keep_up(self) -> str:
        """It runs and watches; else why not."""

    def is_left(self) -> bool:
        """Whether it runs, needed or not."""


class NodeLease:
    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        state_dir: Path,
        *,
        fencer_program: FencerProgram | None,
        starts: Path | None = None,
        boot: str | None = None,
        put: Callable[[Path, bytes], None] = put_file,
    ) -> None:
        """fencer_program: None where nothing really runs. starts: where a note bars the start of a container."""
        self._ledger = ledger
        self._clock = clock
        self._file = state_dir / FENCE_FILE
        self._program = fencer_program
        self._put = put
        self._starts = "" if starts is None else str(starts)
        self._boot = boot_id() if boot is None else boot
        read = _read(self._file, self._boot)
        self._fence = read or Fence(self._boot)
        """As the fencer has it; what is not bound does without."""
        self._on_disk = read is not None
        self._fencer_left = self._on_disk
        """A fencer may still run, needed or not."""
        self._unknown = read is None
        """What was heard before this life of the agent is not known."""
        self._fresh = self._fence.lease
        self._asked: dict[str, frozenset[str]] = {}
        self._lapsed_ns = 0
        self._unsaved: frozenset[str] = frozenset()
        """Allocations that are stopped for lack of the lease while the ledger's disk does not take that."""
        self._trouble = "waits for the node's lease, which was not looked at yet"
        self._could_start = False
        self._waiting: list[asyncio.Future[str]] = []
        self._kick = asyncio.Event()
        self._once = OncePer(60, lambda: clock.boot_ns() / 1e9)
        # As the ledger's: a slow disk must not wait behind other work.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fence")

    def renew(self, heard_ns: int, lease_s: float, stop_bound_s: float) -> None:
        """A controller has heard what this node sent then, and grants this much from then on."""
        now_ns = self._clock.boot_ns()
        self._fresh = lease.granted(
            self._fresh, heard_ns=heard_ns, lease_s=lease_s, stop_bound_s=stop_bound_s, now_ns=now_ns
        )
        if lease.is_worth_writing(self._fence.lease, self._fresh):
            self._kick.set()

    def why_not(self, entry: Entry) -> str:
        """Why a container of it may not be started now; empty when it may."""
        if not entry.leased:
            return ""
        if self._trouble:
            return self._trouble
        present = self._fence.lease
        if present.is_held(self._clock.boot_ns()):
            return ""
        if not present.granted:
            return "waits for the node's lease, which on_disconnect replace needs: no controller has granted one yet"
        return f"waits for the node's lease, which is over: no controller was heard of since {self._since()}"

    def is_stopping(self, entry: Entry) -> bool:
        """Whether the lease is over, and a stop for that is about to be asked for it."""
        if not entry.leased or entry.stop is not None:
            return False
        return self._unknown or self._fence.lease.is_over(self._clock.boot_ns())

    async def bind(self, id_: str, ids: frozenset[str] = frozenset()) -> None:
        """The allocation, with these sandboxes and containers, is on the fencer's list. Raises Unleased."""
        known = self._fence.bound.get(id_)
        if known is not None and ids <= known and self._on_disk:
            return
        self._asked[id_] = ids | self._asked.get(id_, frozenset())
        await self._looked()

    async def unbind(self, id_: str) -> None:
        """The allocation, whose entry is not bound any more, is not on the fencer's list. Raises Unleased."""
        if id_ in self._fence.bound:
            await self._looked()

    async def _looked(self) -> None:
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._kick.set()
        if why := await done:
            raise Unleased(why)

    async def run(self, workers: Workers) -> NoReturn:
        """Call it once the workers have looked."""
        while True:
            self._kick.clear()
            await self._go_on(workers)
            await self._clock.wait(self._kick, self._next_ns())

    def close(self) -> None:
        """What is being written is written to its end."""
        self._disk.shutdown(wait=True)

    def _next_ns(self) -> int | None:
        """When to look again, kick or none."""
        if not (self._fence.bound or self._on_disk or self._fencer_left):
            return None
        left_ns = self._fence.lease.deadline_ns - self._clock.boot_ns()
        look_ns = int(LOOK_S * SECOND)
        return self._clock.now_ns() + (min(left_ns, look_ns) if left_ns > 0 else look_ns)

    async def _go_on(self, workers: Workers) -> None:
        waiting, self._waiting = self._waiting, []
        asked, self._asked = self._asked, {}
        # First of all: what a lease that is over has ended is not saved by one that comes after it.
        await self._lapse(workers)
        bound = self._bound(workers, asked, await self._left())
        # A lease that is over stays over until its stops are on the disk: else a restart would know of neither.
        why = await self._write(bound, self._fence.lease if self._unsaved else self._fresh)
        self._trouble = why or await self._keep_fencer(bound)
        for done in waiting:
            if not done.done():
                done.set_result(why)
        await asyncio.sleep(0)  # what waited is in the ledger before the next look would take it for gone
        self._let_start(workers)

    async def _lapse(self, workers: Workers) -> None:
        """If the lease is over, what was bound to it is being stopped."""
        present = self._fence.lease
        now_ns = self._clock.boot_ns()
        if not (self._unknown or self._unsaved or present.is_over(now_ns)):
            return
        first = self._unknown or self._lapsed_ns != present.deadline_ns
        self._unknown, self._lapsed_ns = False, present.deadline_ns
        stops: dict[str, StopAsked] = {}
        for entry in self._ledger.entries.values():
            # What came after the end of the lease waits for the next one.
            if not entry.leased or entry.end is not None or not (first or _may_run(entry)):
                continue
            asked = self._stop(entry, now_ns)
            if entry.stop is None or entry.id in self._unsaved or _cuts_short(asked, entry.stop, first=first):
                stops[entry.id] = asked
        if stops and not self._unsaved:
            _log.warning("node lease over", stops=len(stops), heard=self._since() or "unknown")
        self._unsaved = await self._ask(stops, workers)

    async def _ask(self, stops: dict[str, StopAsked], workers: Workers) -> frozenset[str]:
        """Those of these stops that are not on the disk; all are being carried out."""
        async with asyncio.TaskGroup() as tasks:
            saved = {id_: tasks.create_task(self._is_saved(id_, asked)) for id_, asked in stops.items()}
            await asyncio.sleep(0)  # the ledger has them all, though not yet on its disk
            for id_ in stops:
                workers.kick(id_)
        return frozenset(id_ for id_, task in saved.items() if not task.result())

    def _stop(self, entry: Entry, now_ns: int) -> StopAsked:
        present = self._fence.lease
        grace_s = present.grace_s(entry.in_place.grace_s, now_ns)
        why = f"no controller was heard of since {self._since()}"
        if not present.granted:
            why = "there is no record of it, as after a restart of the machine"
        return StopAsked(0, Reason.NODE_LOST, grace_s, f"the node's lease is over: {why}")

    async def _is_saved(self, id_: str, asked: StopAsked) -> bool:
        if id_ not in self._ledger.entries:
            return True  # the disk refused it a moment ago, so it was never accepted
        try:
            await self._ledger.record(id_, asked)
        except LedgerUnwritable as error:
            # It is being stopped all the same.
            if self._once(f"stop {id_}"):
                _log.warning("stop not on the disk", allocation=id_, error=str(error))
            return False
        return True

    async def _left(self) -> dict[str, frozenset[str]]:
        """Of what is listed and this ledger has lost, what has cgroups; a stop for it may be all that it knows."""
        entries = self._ledger.entries
        lost = {i: ids for i, ids in self._fence.bound.items() if i not in entries or _is_tombstone(entries[i])}
        told = lease.telling(id_ for ids in lost.values() for id_ in ids)
        if not told:
            return {}
        names = await asyncio.to_thread(lambda: [c.name for c in fencer.find_cgroups(fencer.CGROUPS, told)])
        return {i: ids for i, ids in lost.items() if any(id_ in name for id_ in lease.telling(ids) for name in names)}

    def _bound(
        self, workers: Workers, asked: dict[str, frozenset[str]], left: dict[str, frozenset[str]]
    ) -> dict[str, frozenset[str]]:
        """Allocation → what it has in the runtime."""
        entries = self._ledger.entries
        listed = self._fence.bound
        bound: dict[str, frozenset[str]] = {}
        for id_, entry in entries.items():
            if entry.leased and not entry.released:
                ids = workers.ids_of(id_)
                bound[id_] = listed.get(id_, frozenset()) if ids is None else ids
        bound |= left
        for id_, ids in asked.items():
            bound[id_] = bound.get(id_, frozenset()) | ids
        return bound

    async def _write(self, bound: dict[str, frozenset[str]], present: Lease) -> str:
        """The fencer has what counts; else why not, and then nothing counts that it does not have."""
        wanted = Fence(self._boot, present, bound, self._starts)
        self._on_disk = self._on_disk and self._file.exists()
        # The fencer takes a file that is gone for lost, so it is told first that nothing is bound.
        to_be_told = self._on_disk and self._fencer_left and bool(self._fence.bound)
        if not bound and not to_be_told:
            self._fence = wanted
            if self._on_disk and not self._fencer_left:
                # Another life of the agent must not take it for a lease that is over.
                try:
                    await self._on_its_thread(lambda: self._file.unlink(missing_ok=True))
                except OSError as error:
                    if self._once("unlink"):
                        _log.warning("fence file not removed", path=str(self._file), error=str(error))
                else:
                    self._on_disk = False
            return ""
        if self._on_disk and not _says_more(self._fence, wanted):
            return ""
        content = lease.encode(wanted)
        try:
            await self._on_its_thread(lambda: self._put(self._file, content))
        except OSError as error:
            why = f"{self._file} can't be written ({error.strerror or error}): free some space or make it writable"
            if self._once(why):
                _log.warning("lease not on the disk", error=why)
            return why
        self._fence, self._on_disk = wanted, True
        return ""

    async def _on_its_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def _keep_fencer(self, bound: dict[str, frozenset[str]]) -> str:
        """It runs as long as anything is bound; it ends by itself."""
        if self._program is None:
            self._fencer_left = False
            return ""
        if not bound:
            self._fencer_left = self._fencer_left and self._program.is_left()
            return ""
        self._fencer_left = True
        why = await self._program.keep_up()
        if why and self._once(why):
            _log.warning("no fencer", error=why)
        return why

    def _let_start(self, workers: Workers) -> None:
        """Whatever waits for the lease is told once it is held."""
        can_start = not self._trouble and self._fence.lease.is_held(self._clock.boot_ns())
        if can_start and not self._could_start:
            for id_ in self._fence.bound:
                workers.kick(id_)
        self._could_start = can_start

    def _since(self) -> str:
        """When the newest answer was sent that a controller has, for people."""
        present = self._fence.lease
        if not present.granted:
            return ""
        at_s = (self._clock.now_ns() - self._clock.boot_ns() + present.heard_ns) // SECOND
        return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _cuts_short(asked: StopAsked, present: StopAsked, *, first: bool) -> bool:
    """Whether a stop that is under way is asked for anew. One that was asked for as the lease ended is over in time by
    itself, if it could begin; at the end of its time nothing is left of a grace."""
    return asked.grace_s < present.grace_s and (first or asked.grace_s == 0)


def _is_tombstone(entry: Entry) -> bool:
    return entry.wish is None and not entry.released


def _may_run(entry: Entry) -> bool:
    return entry.cleared or entry.attempt > 0 or entry.started_once


def _says_more(present: Fence, wanted: Fence) -> bool:
    """Whether the fencer should know. What is no longer there can wait for the next renewal."""
    if lease.is_worth_writing(present.lease, wanted.lease) or present.bound.keys() != wanted.bound.keys():
        return True
    return any(not ids <= present.bound[id_] for id_, ids in wanted.bound.items())


def _read(file: Path, boot: str) -> Fence | None:
    """None: there is none of this boot."""
    try:
        fence = lease.decode(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("fence file not read", path=str(file), error=str(error))
        return None
    return fence if fence.boot_id == boot else None
