"""The end of all that runs on this node: `python -m agent --shutdown`.

One rule: each end is in the ledger, as Failed/NodeLost, so that a controller that comes back knows what to replace; a
second shutdown finds nothing to do. On a runtime that others use too, only what this ledger knows is ended: what else
bears our labels there may be another agent's. A private runtime ends with all that is in it.
"""

import asyncio
from pathlib import Path

from agent.clock import Clock, SystemClock
from agent.entry import End, Ended, Released, StopAsked
from agent.fencer_program import DetachedFencer
from agent.lease import FENCE_FILE
from agent.ledger import Ledger, open_ledger
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.private_runtime import RuntimeUnavailable
from agent.runtimes import find_runtimes, private_runtime
from agent.settings import Settings
from agent.sync import Sync
from kakuri.log import get_logger
from kakuri.model import Reason, State

GRACE_S = 5
"""At most, whatever a workload was promised: somebody waits for the machine."""
BOUND_S = 60.0
"""For all of them together. What a private runtime still runs then ends with it."""
MESSAGE = "the node was shut down"
_log = get_logger("agent.shutdown")


async def shut_down(settings: Settings, state_dir: Path) -> None:
    """Nothing of ours runs here any more. Raises RuntimeUnavailable when that can't be said."""
    clock = SystemClock()
    ledger = open_ledger(state_dir / "ledger")
    try:
        private = None if settings.endpoints else private_runtime(settings, state_dir)
        live = [e for e in ledger.entries.values() if not e.released]
        if live:
            try:
                await _end_all(settings, state_dir, ledger, clock)
            except RuntimeUnavailable as error:
                if private is None:
                    raise
                _log.warning("runtime not started for the ends", error=str(error))
        if private is not None:
            await private.stop()
            await _note_ends(ledger, clock)  # it took down what was left
        (state_dir / "agent.json").unlink(missing_ok=True)
        if all(e.released for e in ledger.entries.values()):
            (state_dir / FENCE_FILE).unlink(missing_ok=True)
            await DetachedFencer(state_dir).end()
        left = [e.id for e in ledger.entries.values() if not e.released]
        if left:
            raise RuntimeUnavailable(f"these did not end within {BOUND_S:g} s: {', '.join(left[:20])}")
        _log.info("shut down", ended=len(live))
    finally:
        ledger.close()


async def _end_all(settings: Settings, state_dir: Path, ledger: Ledger, clock: Clock) -> None:
    observations = Observations(ledger.uid)
    async with find_runtimes(settings, state_dir) as found:
        # Nothing starts any more, so the lease need not be kept.
        lease = NodeLease(ledger, clock, state_dir, fencer_program=None)
        sync = Sync(ledger, observations, found.endpoints, lease, clock, logs_folder=state_dir / "logs")
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(sync.run())
            await sync.looked.wait()
            for entry in list(ledger.entries.values()):
                if entry.end is None:
                    await ledger.record(entry.id, _asked(entry.in_place.grace_s))
                    sync.kick(entry.id)
            try:
                async with asyncio.timeout(BOUND_S):
                    await _all_released(ledger, observations)
            except TimeoutError:
                _log.warning("not all ended in time", bound_s=BOUND_S)
            working.cancel()


async def _all_released(ledger: Ledger, observations: Observations) -> None:
    revision = 0
    while any(not e.released for e in ledger.entries.values()):
        response = await observations.since(observations.instance, revision, wait_s=1.0)
        revision = response.revision


async def _note_ends(ledger: Ledger, clock: Clock) -> None:
    for entry in list(ledger.entries.values()):
        if entry.end is None:
            end = End(State.FAILED, Reason.NODE_LOST, MESSAGE, None, clock.now_ns())
            await ledger.record(entry.id, Ended(end))
        if not entry.released:
            await ledger.record(entry.id, Released())


def _asked(grace_s: int) -> StopAsked:
    return StopAsked(0, Reason.NODE_LOST, min(grace_s, GRACE_S), MESSAGE)
