"""PURE: which finished or ownerless allocations an agent may let go of.

The ends that SQL knows are reaped by the planner's Remove; here are those of this cluster whose rows are gone: what
lives is stopped first, what has ended and left nothing behind is removed.
"""

from dataclasses import dataclass

from controller.exchange import Report
from controller.store.contract import Recorded


@dataclass(frozen=True, slots=True)
class Orphans:
    stops: tuple[str, ...] = ()
    removals: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stops or self.removals)

    def __or__(self, other: "Orphans") -> "Orphans":
        """Both; a removal is the later word about an id."""
        removals = dict.fromkeys((*self.removals, *other.removals))
        stops = dict.fromkeys(i for i in (*self.stops, *other.stops) if i not in removals)
        return Orphans(tuple(stops), tuple(removals))


def orphans(report: Report, recorded: Recorded) -> Orphans:
    released = {a.id for a in report.allocations if a.released}
    return Orphans(
        stops=tuple(i for i in recorded.orphans if i not in released),
        removals=tuple(i for i in recorded.orphans if i in released),
    )
