"""Leadership: one controller's loops act at a time. The lease is a row, judged by the database's clock.

One rule: we lead no longer than the lease surely lasts, counted from when we asked for it, whatever hangs meanwhile.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from controller.loops.ports import Clock, LeaseStore
from controller.store.contract import Lease, StoreError, Unavailable
from kakuri.log import OncePer, get_logger

TTL_S = 7.0
"""With the time between two asks the bound of a takeover (10 s). Longer and another controller waits longer for a dead
leader; shorter and a slow disk costs the lead."""
RENEW_S = 2.0
"""Three tries a lease."""
ASK_S = 1.0
"""How often one that waits asks for it."""
RELEASE_S = 2.0
"""For giving it back. Longer and a leader whose database hangs is back in the race later."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Term:
    """A lease that is ours, until it is over by our own clock."""

    epoch: int
    sure_until: float
    """By the clock's monotonic()."""


class Leadership:
    def __init__(self, store: LeaseStore, clock: Clock, holder: str) -> None:
        self._store = store
        self._clock = clock
        self._holder = holder
        self._log = get_logger("lease").bind(holder=holder)
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)

    async def win(self) -> Term:
        """Returns when the lease is ours. A lone controller has it at once."""
        while True:
            asked = self._clock.monotonic()
            try:
                lease = await self._within(TTL_S, self._store.acquire_lease(self._holder, ttl_s=TTL_S))
            except StoreError as error:
                if self._say(error.message):
                    self._log.warning("lease could not be asked for", error=error.message)
            else:
                if lease.mine:
                    self._log.info("leading", epoch=lease.epoch)
                    return Term(lease.epoch, asked + TTL_S)
                self._tell_whose(lease)
            await self._clock.sleep(ASK_S)

    async def keep(self, term: Term) -> None:
        """Returns when the lease is lost: taken by another, or not renewed in time."""
        sure_until = term.sure_until
        while True:
            await self._clock.sleep(min(RENEW_S, max(sure_until - self._clock.monotonic(), 0)))
            asked = self._clock.monotonic()
            if asked >= sure_until:
                self._log.warning("lease ran out", epoch=term.epoch)
                return
            try:
                renewal = self._store.renew_lease(self._holder, epoch=term.epoch, ttl_s=TTL_S)
                if not await self._within(sure_until - asked, renewal):
                    self._log.warning("lease was taken", epoch=term.epoch)
                    return
                sure_until = asked + TTL_S
            except StoreError as error:
                if self._say(error.message):
                    self._log.warning("lease could not be renewed", error=error.message)

    async def give_up(self, term: Term) -> None:
        """Another controller need not wait for the lease to run out."""
        try:
            await self._within(RELEASE_S, self._store.release_lease(self._holder, epoch=term.epoch))
        except StoreError as error:
            self._log.warning("lease could not be released", error=error.message)

    async def _within(self, seconds: float, call: Coroutine[None, None, T]) -> T:
        """The call's answer. Raises Unavailable when there is none in time: it may be done all the same."""
        calling = asyncio.ensure_future(call)
        timer = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({calling, timer}, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                return calling.result()
            raise Unavailable(f"the store did not answer within {seconds:.1f} s")
        finally:
            calling.cancel()
            timer.cancel()
            await asyncio.gather(calling, timer, return_exceptions=True)

    def _tell_whose(self, lease: Lease) -> None:
        if self._say(lease.holder):
            self._log.info("waiting for the lease", held_by=lease.holder)
