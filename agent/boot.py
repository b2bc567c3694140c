"""Which boot of the machine this is, and how long ago it was: the clock that leases go by.

One rule: nothing but Python's own library, because the fencer uses it.
"""

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_ns() -> int:
    """CLOCK_BOOTTIME. Where there is none only the fake runs, and the monotonic clock does."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """Empty where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
