"""How many starts are under way at once: a runtime that is given more only makes each of them later.

One rule: a turn is lent for a while. A start that hangs loses it, so that one bad workload does not hold up the node.
"""

import asyncio

STARTS_AT_ONCE = 6
"""Measured with containerd: 4 to 8 give the most starts a second. More only adds to each one's latency."""
TURN_S = 10.0
"""Longer than any healthy start takes. Too short, and a slow node starts everything at once; too long, and six hung
starts stop the node for as long."""


class Turn:
    """The right to start something now."""

    def __init__(self, free: asyncio.Semaphore, lent_s: float) -> None:
        """Made by Gate.take."""
        self._free: asyncio.Semaphore | None = free
        self._timer = asyncio.get_running_loop().call_later(lent_s, self.give_back)

    def give_back(self) -> None:
        """Somebody else may start. Again is nothing."""
        if self._free is None:
            return
        self._timer.cancel()
        free, self._free = self._free, None
        free.release()


class Gate:
    def __init__(self, at_once: int = STARTS_AT_ONCE, lent_s: float = TURN_S) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._lent_s = lent_s

    async def take(self) -> Turn:
        """First come, first served."""
        await self._free.acquire()
        return Turn(self._free, self._lent_s)
