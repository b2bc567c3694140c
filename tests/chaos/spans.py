"""PURE: when containers surely lived → which of one slot lived at the same time.

One rule: a span is what is certain, so it is cut at the last and first moments at which something was seen alive. An
overlap of two spans is then a proof, whatever the sampling missed; what it missed is not claimed.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Span:
    """One container: seconds of CLOCK_BOOTTIME between which a process of it surely ran.

    Of one that was seen at one moment alone, the end may lie before the begin, by the step of the clock.
    """

    host: str
    allocation: str
    container: str
    alive_from: float
    alive_to: float

    @property
    def slot(self) -> str:
        """<workload>.<slot>: a deleted and made-anew workload is the same one here."""
        return self.allocation.rpartition(".")[0]

    def joined(self, other: "Span") -> "Span":
        """Both are of this container, and so is the time in between: what has ended does not begin again."""
        first, last = min(self.alive_from, other.alive_from), max(self.alive_to, other.alive_to)
        return replace(self, alive_from=first, alive_to=last)


@dataclass(frozen=True)
class Overlap:
    """Two containers of one slot that lived at the same time."""

    first: Span
    second: Span

    @property
    def seconds(self) -> float:
        return min(self.first.alive_to, self.second.alive_to) - max(self.first.alive_from, self.second.alive_from)

    def __str__(self) -> str:
        both = " and ".join(
            f"{s.container[:12]} of {s.allocation} on {s.host} [{s.alive_from:.2f}…{s.alive_to:.2f}]"
            for s in (self.first, self.second)
        )
        return f"slot {self.first.slot}: {both} lived together for {self.seconds:.2f} s at least"


def find_overlaps(spans: Iterable[Span]) -> list[Overlap]:
    return [
        Overlap(first, second)
        for ordered in _by_slot(spans)
        for number, first in enumerate(ordered)
        for second in ordered[number + 1 :]
        if second.alive_from < first.alive_to and first.container != second.container
    ]


@dataclass(frozen=True)
class Handovers:
    """How a slot's containers followed each other, as far as was seen."""

    number: int
    to_another_host: int
    closest_s: float
    """From the last moment that one surely lived to the first that the next one did. Infinite when there is none."""


def count_handovers(spans: Iterable[Span]) -> Handovers:
    pairs = [
        (max(ordered[:number], key=lambda s: s.alive_to), later)
        for ordered in _by_slot(spans)
        for number, later in enumerate(ordered)
        if number
    ]
    moved = sum(earlier.host != later.host for earlier, later in pairs)
    gaps = [later.alive_from - earlier.alive_to for earlier, later in pairs]
    return Handovers(len(pairs), moved, min(gaps, default=float("inf")))


def _by_slot(spans: Iterable[Span]) -> list[list[Span]]:
    slots: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        slots[span.slot].append(span)
    return [sorted(ones, key=lambda s: s.alive_from) for ones in slots.values()]
