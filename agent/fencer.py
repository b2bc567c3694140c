"""The fencer: `python -m agent.fencer STATE_DIR`, a process of its own that outlives a killed agent. When the node's
lease is over and the agent has not ended what is bound to it in time, the fencer kills it by its cgroups.

One rule: only cgroups whose name bears an id that the agent listed are touched, and only while the lease is over. It
needs nothing but Python's own library and the fence file, so that whatever ends the agent does not end it too.

It ends itself when an agent says that nothing is listed any more. A file that was lost says nothing: what it listed is
held to the lease that it had. One fencer runs for a state dir: it holds a lock there as long as it is of use.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.boot import boot_id, boot_ns
from agent.lease import FENCE_FILE, FENCE_LOCK, SECOND, Fence, decode

CGROUPS = Path("/sys/fs/cgroup")
IDLE_S = 1.0
"""Between looks at the file. Longer, and a listing that comes late in a lease is seen late."""
KILL_S = 0.2
"""Between kills while the lease is over: a start that was under way may still come up."""
REST = 20
"""After each round of kills it rests at least this many times as long as that took: a machine with ten thousand cgroups
should not spend a core on it."""
LOST_S = 300.0
"""For so long after the end of its lease, and while any of it is there, what a lost file listed is killed. Shorter, and
a start that was under way may come up after it; longer, and a process is left over where a state dir was removed."""
_LOCK_TRIES = 20
_OOM_SCORE = "-999"


def main(state_dir: Path) -> int:
    """Returns when it is of no use any more, or another one runs."""
    with contextlib.suppress(OSError):
        # Of all that runs here it should be the last to go.
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    try:
        lock = _Lock(state_dir / FENCE_LOCK)
    except OSError as error:
        _say(f"{state_dir / FENCE_LOCK}: {error.strerror}")
        return 1
    if not lock.take():
        return 0
    fencer = Fencer(state_dir / FENCE_FILE)
    _say(f"pid {os.getpid()} watches {state_dir}")
    while True:
        fencer.watch(lock.keep)
        # An agent that lists something now either finds the lock free and starts another, or is seen here.
        lock.give_back()
        if not fencer.is_needed() or not lock.take():
            _say("nothing is bound to the lease any more")
            return 0


class Fencer:
    def __init__(
        self,
        file: Path,
        *,
        cgroups: Path = CGROUPS,
        boot: str | None = None,
        now_ns: Callable[[], int] = boot_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file = file
        self._cgroups = cgroups
        self._boot = boot_id() if boot is None else boot
        self._now_ns = now_ns
        self._sleep = sleep
        self._stamp: tuple[int, int, int] | None = None
        self._fence: Fence | None = None
        self._lost: list[Fence] = []
        """What was listed by files that are no longer there."""
        self._told: set[Path] = set()
        self._trouble = ""

    def watch(self, keep_lock: Callable[[], object] = lambda: None) -> None:
        """Returns when nothing is listed any more."""
        while self.is_needed():
            keep_lock()
            self._sleep(self.look())

    def is_needed(self) -> bool:
        """Whether anything of this boot is listed, or was in a file that got lost. What can't be read is taken for what
        it was."""
        self._read()
        return any(f.boot_id == self._boot and f.bound for f in self._fences)

    def look(self) -> float:
        """What is listed has been killed, if the lease is over. Returns the seconds until the next look."""
        now_ns = self._now_ns()
        granted = [f for f in self._fences if f.lease.granted and f.boot_id == self._boot]
        over = [f for f in granted if f.lease.kill_at_ns <= now_ns]
        if not over:
            self._told.clear()
            return min([IDLE_S, *((f.lease.kill_at_ns - now_ns) / SECOND for f in granted)])
        # What is listed now is held to the lease of now.
        listed = self._fence.ids if self._fence is not None else frozenset()
        for fence in over:
            _bar(fence)
        lost = frozenset[str]().union(*(f.ids for f in over if f is not self._fence)) - listed
        found = self._kill(lost | listed if self._fence in over else lost)
        if not found:
            self._lost = [f for f in self._lost if now_ns < f.lease.kill_at_ns + int(LOST_S * SECOND)]
        took_s = (self._now_ns() - now_ns) / SECOND
        return min(max(KILL_S, REST * took_s), IDLE_S)

    @property
    def _fences(self) -> list[Fence]:
        return [*self._lost] if self._fence is None else [self._fence, *self._lost]

    def _kill(self, ids: Collection[str]) -> bool:
        """Whether there was any of them."""
        found = False
        for cgroup in find_cgroups(self._cgroups, ids):
            found = True
            pids = kill_cgroup(cgroup)
            if pids and cgroup not in self._told:
                self._told.add(cgroup)
                _say(f"the lease is over: killed {len(pids)} processes of {cgroup}")
        return found

    def _read(self) -> None:
        try:
            status = self._file.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            self._fence = decode(self._file.read_bytes())
            self._stamp, self._trouble = stamp, ""
        except FileNotFoundError:
            if self._fence is not None and self._fence.bound and self._fence.lease.granted:
                _say(f"{self._file} is gone, and did not say before that nothing is bound any more")
                self._lost.append(self._fence)
            self._fence, self._stamp = None, None
        except (OSError, ValueError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _say(f"{self._file} can't be read: {error}")


def _bar(fence: Fence) -> None:
    """None of its containers is started any more, however late a runtime that hung gets to it."""
    if not fence.starts:
        return
    for id_ in fence.ids:
        with contextlib.suppress(OSError):
            Path(fence.starts, id_).touch()


def read_fence(file: Path) -> Fence | None:
    """What the file says for this boot; None when it says nothing."""
    try:
        fence = decode(file.read_bytes())
    except (OSError, ValueError):
        return None
    return fence if fence.boot_id == boot_id() else None


def can_fence() -> bool:
    """Whether this process, and so a fencer that it starts, may end others by their cgroups."""
    return os.geteuid() == 0 and CGROUPS.is_dir()


def find_cgroups(root: Path, ids: Collection[str]) -> Iterator[Path]:
    """The highest cgroups whose names have one of these ids in them, in each hierarchy that is mounted below root."""
    for folder, names, _ in os.walk(root):
        found = [name for name in names if any(id_ in name for id_ in ids)]
        for name in found:
            yield Path(folder, name)
        names[:] = [name for name in names if name not in found]


def kill_cgroup(cgroup: Path) -> list[int]:
    """All processes in it and below it have been killed; which they were."""
    folders = [Path(folder) for folder, _, _ in os.walk(cgroup)]
    pids = sorted({pid for folder in folders for pid in _processes(folder)})
    if not pids:
        return []
    if (kill := cgroup / "cgroup.kill").exists():
        with contextlib.suppress(OSError):
            kill.write_text("1")
    for pid in pids:
        # All that a v1 hierarchy offers, or a kernel older than 5.14.
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for folder in folders:
        # What a v1 freezer holds dies only when it is let go.
        if (state := folder / "freezer.state").exists():
            with contextlib.suppress(OSError):
                state.write_text("THAWED")
    return pids


def _processes(folder: Path) -> list[int]:
    """Without those of other pid namespaces, which the kernel tells as 0."""
    try:
        return [pid for word in (folder / "cgroup.procs").read_text().split() if (pid := int(word)) > 1]
    except OSError:
        return []  # it has just gone


class _Lock:
    """A file that a fencer holds while it watches."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._file = path.open("a")

    def take(self) -> bool:
        """Whether it is ours. An agent that looks whether it is held has it for a moment."""
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
            else:
                return True
        return False

    def give_back(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def keep(self) -> None:
        """It is held where agents look for it, also when the file was removed or made anew."""
        with contextlib.suppress(OSError):
            if self._path.exists() and os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                return
            fresh = _Lock(self._path)
            if fresh.take():
                self._file.close()
                self._file = fresh._file
            else:
                fresh._file.close()


def _say(what: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} fencer: {what}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(Path(sys.argv[1])))
