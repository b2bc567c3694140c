"""What containers leave on the machine that containerd has forgotten: a start that was cut off leaves its cgroups, and
now and then processes in them.

One rule: it is ours by its place, under the cgroup that bears our state dir's hash, and forgotten only when containerd
has not listed it for longer than it may take to make it.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from agent.notes import Notes
from agent.places import Places
from agent.remains import unmount
from cri.client import RUN_DEADLINE_S
from kakuri.log import get_logger

EMPTY_S = 10.0
"""How long an empty cgroup stays: its first process comes a moment after it. Shorter, and a start may lose its cgroup
while it makes it; longer, and what is deleted seems to leave something."""
IN_USE_S = 30.0
"""How long a container's with processes stays: it is listed from its creation on, before anything of it runs."""
IN_USE_BY_SANDBOX_S = RUN_DEADLINE_S
"""And a sandbox's, which is not listed before it has started."""
_ID = re.compile(r"[0-9a-f]{64}")
_ROOT = Path("/sys/fs/cgroup")
_log = get_logger("orphans")


class Orphans:
    def __init__(self, places: Places, notes: Notes, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds."""
        self._cgroup = places.cgroup.lstrip("/")
        self._bundles = places.bundles
        self._notes = notes
        self._clock = clock
        self._since: dict[str, float] = {}

    def find(self) -> frozenset[str]:
        """Ids of all sandboxes and containers that have cgroups or notes here, listed by containerd or not."""
        return frozenset(path.name for path in self._cgroups("*") if _ID.fullmatch(path.name)) | self._notes.ids

    def clear(self, unlisted: Collection[str]) -> None:
        """Of those that containerd does not list, what has been so for long enough is removed."""
        now = self._clock()
        self._since = {id_: self._since.get(id_, now) for id_ in unlisted}
        for id_, since in self._since.items():
            folders = [Path(inner) for top in self._cgroups(id_) for inner, _, _ in os.walk(top, topdown=False)]
            pids = {pid for folder in folders for pid in _processes(folder)}
            bundle = self._bundles / id_
            if pids and now - since >= (IN_USE_S if _is_container(bundle) else IN_USE_BY_SANDBOX_S):
                _log.warning("orphans killed", container=id_, pids=sorted(pids), why="containerd does not know them")
                for pid in pids:
                    _kill(pid)  # the next round removes the cgroups
            elif not pids and now - since >= EMPTY_S:
                for folder in folders:
                    _remove(folder)
                unmount([path for path in (bundle / "rootfs",) if path.is_mount()])
                self._notes.forget(id_)

    def _cgroups(self, name: str) -> Iterator[Path]:
        """Of one hierarchy, or of each."""
        yield from _ROOT.glob(f"{self._cgroup}/{name}")
        yield from _ROOT.glob(f"*/{self._cgroup}/{name}")


def _processes(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []  # it has just gone


def _is_container(bundle: Path) -> bool:
    """False also when that can't be told."""
    try:
        return 'cri.container-type":"container"' in (bundle / "config.json").read_text()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _remove(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        _log.info("cgroup not removed", cgroup=str(folder), error=error.strerror)
