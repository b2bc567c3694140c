"""What a node was told while it was being asked what it has: an answer without it does not mean that it is lost.

One rule: no clock is compared. What was under way when the question was put, or has begun since, is spared.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Told:
    """Shared by the passes of one node."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self._since: set[str] = set()
        self.stopped: set[str] = set()
        """Tombstones whose stop the node has accepted: what they stand for starts there no more."""

    @contextmanager
    def telling(self, ids: Collection[str]) -> Iterator[None]:
        """The node is told of these allocations, and what it answers is recorded, within."""
        self._now.update(ids)
        self._since.update(ids)
        try:
            yield
        finally:
            self._now -= Counter(ids)

    def ask(self) -> None:
        """A question is put from now on."""
        self._since = set(self._now)

    def spared(self) -> frozenset[str]:
        """Whatever the node may have accepted since the question without its answer knowing."""
        return frozenset(self._since)
