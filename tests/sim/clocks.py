"""The clocks of a machine: one that people and NTP set, and two that nobody does."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

from agent.clock import SystemClock
from builders import NOW

BASE_NS = int(NOW.timestamp()) * 1_000_000_000


class Clock(SystemClock):
    """A machine's clocks. skew_s: how far people or NTP have set its wall clock wrong."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.skew_s = 0.0
        self.booted_at = -1000.0

    def now_ns(self) -> int:
        return BASE_NS + int((self._world.loop.time() + self.skew_s) * 1e9)

    def boot_ns(self) -> int:
        return int((self._world.loop.time() - self.booted_at) * 1e9)

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self._world.loop.time() + self.skew_s)

    def monotonic(self) -> float:
        return float(self._world.loop.time())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
