"""Leadership: one controller's loops act at a time. The lease is a row, judged by the database's clock.

One rule: we lead no longer than the lease surely lasts, counted from when we asked for it.
"""

from collections.abc import Callable

from controller.loops.ports import Clock, LeaseStore
from controller.store.contract import Lease, StoreError
from kakuri.log import OncePer, get_logger

TTL_S = 15.0
"""Longer and another controller waits longer for a dead leader; shorter and a slow disk costs the lead."""
RENEW_S = 5.0
"""Three tries a lease."""
ASK_S = 2.0
"""How often one that waits asks for it."""


class Leadership:
    def __init__(self, store: LeaseStore, clock: Clock, holder: str) -> None:
        self._store = store
        self._clock = clock
        self._holder = holder
        self._log = get_logger("lease").bind(holder=holder)
        self._say: Callable[[str], bool] = OncePer(60, clock.monotonic)

    async def win(self) -> Lease:
        """Returns when the lease is ours, with its epoch. A lone controller has it at once."""
        while True:
            try:
                lease = await self._store.acquire_lease(self._holder, ttl_s=TTL_S)
            except StoreError as error:
                if self._say(error.message):
                    self._log.warning("lease could not be asked for", error=error.message)
            else:
                if lease.mine:
                    self._log.info("leading", epoch=lease.epoch)
                    return lease
                if self._say(lease.holder):
                    self._log.info("waiting for the lease", held_by=lease.holder)
            await self._clock.sleep(ASK_S)

    async def keep(self, lease: Lease) -> None:
        """Returns when the lease is lost: taken by another, or not renewed in time."""
        sure_until = self._clock.monotonic() + lease.ttl_s
        while True:
            await self._clock.sleep(RENEW_S)
            asked = self._clock.monotonic()
            try:
                if not await self._store.renew_lease(self._holder, epoch=lease.epoch, ttl_s=TTL_S):
                    self._log.warning("lease was taken", epoch=lease.epoch)
                    return
                sure_until = asked + TTL_S
            except StoreError as error:
                if self._say(error.message):
                    self._log.warning("lease could not be renewed", error=error.message)
            if self._clock.monotonic() >= sure_until:
                self._log.warning("lease ran out", epoch=lease.epoch)
                return

    async def give_up(self, lease: Lease) -> None:
        """Another controller need not wait for the lease to run out."""
        try:
            await self._store.release_lease(self._holder, epoch=lease.epoch)
        except StoreError as error:
            self._log.warning("lease could not be released", error=error.message)
