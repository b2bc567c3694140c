"""PURE: the node's lease, until when what says on_disconnect replace may run here, and the file that tells the fencer.

One rule: a deadline is counted from when this node sent what a controller has surely heard, by a clock that nobody sets
and that goes on while the machine sleeps. What is later than that is never taken for held.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SECOND = 1_000_000_000
FENCE_FILE = "fence.json"
FENCE_LOCK = "fencer.lock"
KILL_MARGIN_S = 3.0
"""How long before its bound the fencer kills what a stop has not ended. Shorter, and a busy machine may be late, so
that a replacement runs beside it; longer, and less is left of a workload's grace. Of a short bound it is a third."""
STEP = 0.1
"""A renewal is written down when it adds this share of the lease. Smaller, and a chatty controller costs an fsync for
each answer; larger, and the lease is that much shorter than what was granted."""
MAX_LEASE_S = 3600.0
MIN_ID_LENGTH = 12
"""A shorter id might be part of the name of a cgroup that is not ours."""


@dataclass(frozen=True, slots=True)
class Lease:
    """All times in ns of CLOCK_BOOTTIME. The default was never granted."""

    heard_ns: int = 0
    """When this node sent the newest answer that a controller says it has."""
    lease_ns: int = 0
    stop_bound_ns: int = 0

    @property
    def granted(self) -> bool:
        return self.lease_ns > 0

    @property
    def deadline_ns(self) -> int:
        return self.heard_ns + self.lease_ns if self.granted else 0

    @property
    def kill_at_ns(self) -> int:
        """From then on the fencer kills."""
        if not self.granted:
            return 0
        margin_ns = min(int(KILL_MARGIN_S * SECOND), self.stop_bound_ns // 3)
        return self.deadline_ns + self.stop_bound_ns - margin_ns

    def is_held(self, now_ns: int) -> bool:
        return now_ns < self.deadline_ns

    def is_over(self, now_ns: int) -> bool:
        """It was granted once, and is not held any more."""
        return self.granted and now_ns >= self.deadline_ns

    def grace_s(self, own_s: int, now_ns: int) -> int:
        """What a stop may take of a workload's own grace, in whole seconds, to be done well before the fencer kills."""
        left_ns = self.kill_at_ns - now_ns - min(SECOND, self.stop_bound_ns // 6)
        return max(min(own_s, left_ns // SECOND), 0)


def granted(lease: Lease, *, heard_ns: int, lease_s: float, stop_bound_s: float, now_ns: int) -> Lease:
    """The lease after a controller's word. The newest that was heard counts; what was delayed adds nothing."""
    if not (math.isfinite(lease_s) and math.isfinite(stop_bound_s)) or lease_s <= 0 or stop_bound_s <= 0:
        return lease
    if not lease.heard_ns < heard_ns <= now_ns:
        return lease
    lease_ns, bound_ns = (int(min(s, MAX_LEASE_S) * SECOND) for s in (lease_s, stop_bound_s))
    return Lease(heard_ns, lease_ns, bound_ns)


def is_worth_writing(present: Lease, fresh: Lease) -> bool:
    """Whether the fresh one says enough that is new."""
    same_terms = (present.lease_ns, present.stop_bound_ns) == (fresh.lease_ns, fresh.stop_bound_ns)
    return not same_terms or fresh.heard_ns - present.heard_ns >= STEP * fresh.lease_ns


@dataclass(frozen=True, slots=True)
class Fence:
    """What the fencer goes by."""

    boot_id: str
    """The boot that the times are of. Of another one, all that is listed has ended anyway."""
    lease: Lease = Lease()
    bound: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Allocation → its sandboxes and containers; none of them before its first start."""
    starts: str = ""
    """The folder where a wrapper before the runtime looks whether a container may not be started any more
    (agent/notes.py); empty: there is none."""

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(id_ for ids in self.bound.values() for id_ in telling(ids))


def telling(ids: Iterable[str]) -> frozenset[str]:
    """Those by which a cgroup can be told."""
    return frozenset(id_ for id_ in ids if len(id_) >= MIN_ID_LENGTH)


def encode(fence: Fence) -> bytes:
    lease = fence.lease
    told = {
        "boot_id": fence.boot_id,
        "deadline_ns": lease.deadline_ns,
        "kill_at_ns": lease.kill_at_ns,
        "heard_ns": lease.heard_ns,
        "lease_ns": lease.lease_ns,
        "stop_bound_ns": lease.stop_bound_ns,
        "bound": {id_: sorted(ids) for id_, ids in sorted(fence.bound.items())},
        "starts": fence.starts,
    }
    return json.dumps(told, indent=1).encode() + b"\n"


def decode(content: bytes) -> Fence:
    """Raises ValueError when it is no such file."""
    match json.loads(content):
        case {
            "boot_id": str(boot_id),
            "heard_ns": int(heard_ns),
            "lease_ns": int(lease_ns),
            "stop_bound_ns": int(stop_bound_ns),
            "bound": dict(bound),
            **more,
        }:
            if not all(isinstance(listed, list) for listed in bound.values()):
                raise ValueError("it lists what is no list")
            ids = {str(id_): frozenset(str(i) for i in listed) for id_, listed in bound.items()}
            return Fence(boot_id, Lease(heard_ns, lease_ns, stop_bound_ns), ids, str(more.get("starts", "")))
        case _:
            raise ValueError("it is not what this version writes")
