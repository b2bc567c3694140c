"""Which changes of the log this process committed itself, so that it need not be told of them again.

One rule: to have forgotten one costs a second look; to take another's for its own would lose a change.
"""

from bisect import bisect_right

KEPT = 1000
"""Ranges remembered, oldest forgotten first. Neighbours are one range: as many as others' commits came between."""


class OwnVersions:
    """Ranges of resource_versions, first and last included, in order and never touching."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> None:
        """The range is ours. Commits are told in about the order of the log, not in that very order."""
        at = bisect_right(self._firsts, first)
        if at and self._lasts[at - 1] >= first - 1:
            at -= 1
            self._lasts[at] = max(self._lasts[at], last)
        else:
            self._firsts.insert(at, first)
            self._lasts.insert(at, last)
        while at + 1 < len(self._firsts) and self._firsts[at + 1] <= self._lasts[at] + 1:
            self._lasts[at] = max(self._lasts[at], self._lasts.pop(at + 1))
            del self._firsts[at + 1]
        if len(self._firsts) > KEPT:
            del self._firsts[0], self._lasts[0]

    def end_of(self, version: int) -> int | None:
        """The last version of the range of ours that it is in; None when it is not ours."""
        at = bisect_right(self._firsts, version) - 1
        return self._lasts[at] if at >= 0 and version <= self._lasts[at] else None
