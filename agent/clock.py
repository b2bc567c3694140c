"""What time it is, and waiting for it. A value that is passed in, so that a test moves the hands.

One rule: nothing else in the agent's core asks what time it is.
"""

import asyncio
import time
from typing import Protocol

from agent import boot

_SLACK_NS = 1_000_000


class Clock(Protocol):
    def now_ns(self) -> int:
        """Unix time."""

    def boot_ns(self) -> int:
        """Since the machine's boot, its sleep included (CLOCK_BOOTTIME): nobody sets it."""

    async def wait(self, kick: asyncio.Event, until_ns: int | None) -> None:
        """Returns when kicked or when it is that time, whichever comes first. None: only when kicked."""


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()

    def boot_ns(self) -> int:
        return boot.boot_ns()

    async def wait(self, kick: asyncio.Event, until_ns: int | None) -> None:
        if until_ns is None:
            await kick.wait()
            return
        # A millisecond more: woken early by a rounding, the caller would only have to wait again.
        left_s = max(until_ns - self.now_ns() + _SLACK_NS, 0) / 1e9
        try:
            async with asyncio.timeout(left_s):
                await kick.wait()
        except TimeoutError:
            return
