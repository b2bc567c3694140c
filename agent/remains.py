"""What a private containerd leaves on the machine when it and its workloads end hard, and the way to be rid of it.

One rule: a thing is ours only by a name that no other containerd gives: our key in its path, its network, its cgroup,
or our socket on its command line. Processes go first, for they hold namespaces and mounts; then what they held.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from agent.places import Places
from agent.prerequisites import find_program
from kakuri.log import get_logger

_CGROUPS = Path("/sys/fs/cgroup")
_CNI_RESULTS = Path("/var/lib/cni/results")
_GONE_DEADLINE_S = 10.0
_RETRY_S = 0.02
_COMMAND_DEADLINE_S = 30.0
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_SHARED_CHAINS = "CNI-HOSTPORT"  # portmap's entry points, which all networks of the machine use

_log = get_logger("remains")


@dataclass(frozen=True)
class Remains:
    """What is there of one private containerd, containerd itself aside. All empty: nothing is left."""

    processes: tuple[int, ...]
    mounts: tuple[Path, ...]
    interfaces: tuple[str, ...]
    cgroups: tuple[Path, ...]
    rules: tuple[str, ...]
    """Of iptables' nat table, as iptables-save prints them."""
    files: tuple[Path, ...]

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def find_remains(places: Places) -> Remains:
    """What is there now, whether in use or not."""
    processes = tuple(_processes(places))
    return Remains(
        processes=processes,
        mounts=tuple(_mounts(places)),
        interfaces=tuple(_interfaces(places)),
        cgroups=tuple(_cgroups(places, processes)),
        rules=tuple(_rules(places)),
        files=tuple(_files(places)),
    )


def clear_remains(places: Places) -> None:
    """Nothing of it is left, and its folder under /run is gone. What could not be removed is in the log. Blocks."""
    sockets = list(_shim_sockets(places))
    cgroups = list(_cgroups(places, tuple(_processes(places))))
    # All are known before the first is killed: without its shim, a process's origin can't be told any more.
    _until_done(lambda: _kill(tuple(_processes(places))))
    _until_done(lambda: unmount(tuple(_mounts(places))))
    for interface in tuple(_interfaces(places)):
        _run("ip", "link", "delete", interface)
    _delete_rules(tuple(_rules(places)))
    _until_done(lambda: _remove_folders([*cgroups, *_cgroups(places, ())]))
    for path in (*_files(places), *sockets):
        path.unlink(missing_ok=True)
    shutil.rmtree(places.volatile, ignore_errors=True)
    left = find_remains(places)
    if left:
        _log.warning("runtime remains", **{f.name: [str(one) for one in getattr(left, f.name)] for f in fields(left)})


def _until_done(attempt: Callable[[], bool]) -> None:
    """Tries again, within a bound: what was killed holds its namespaces, mounts and cgroups for a moment longer."""
    deadline = time.monotonic() + _GONE_DEADLINE_S
    while not attempt() and time.monotonic() < deadline:
        time.sleep(_RETRY_S)


def _kill(pids: Sequence[int]) -> bool:
    """Whether there was none."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not pids


def unmount(paths: Sequence[Path]) -> bool:
    """Whether there was none. What could not be unmounted is in the log."""
    if paths:
        _run("umount", "--lazy", "--", *map(str, paths))
    return not paths


def _remove_folders(paths: Sequence[Path]) -> bool:
    """Whether all are gone. Of cgroups: their files go with them, and one with processes is refused."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()
    return not any(path.exists() for path in paths)


def _delete_rules(rules: Sequence[str]) -> None:
    if not rules:
        return
    chains = {word for rule in rules for word in rule.split()[-1:] if word.startswith("CNI-")}
    own = sorted(chain for chain in chains if not chain.startswith(_SHARED_CHAINS))
    lines = [rule.replace("-A ", "-D ", 1) for rule in rules]
    # One transaction: a rule is never gone while its chain is still jumped to.
    lines += [f"-F {chain}" for chain in own] + [f"-X {chain}" for chain in own]
    _run("iptables-restore", "--noflush", given="\n".join(["*nat", *lines, "COMMIT", ""]))


def _processes(places: Places) -> Iterator[int]:
    """Shims of our socket, all that descends from them, and all that is in our cgroup or was started on our folder."""
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if _is_shim(line, places):
                yield process.pid
                yield from (child.pid for child in process.children(recursive=True))
            elif _is_runtime(line, places) or f"{places.cgroup}/" in Path(f"/proc/{process.pid}/cgroup").read_text():
                yield process.pid
        except (psutil.Error, OSError):
            continue


def _is_shim(line: Sequence[str], places: Places) -> bool:
    return bool(line) and "containerd-shim" in line[0] and str(places.socket) in line


def _is_runtime(line: Sequence[str], places: Places) -> bool:
    """Whether it is runc or one of runsc's processes; each is told the root folder of its state."""
    root = str(places.runc_root)
    return any(part.removeprefix("--root=").startswith(root) for part in line)


def _mounts(places: Places) -> Iterator[Path]:
    """Deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = Path(_unescape(line.split(" ")[4]))
        if places.volatile in path.parents or places.folder in path.parents:
            found.append(path)
    yield from reversed(found)


def _interfaces(places: Places) -> Iterator[str]:
    bridge = Path("/sys/class/net") / places.network
    if bridge.exists():
        yield from (port.name for port in (bridge / "brif").iterdir())
        yield places.network


def _cgroups(places: Places, processes: Sequence[int]) -> Iterator[Path]:
    """Ours, and those of these processes, deepest first; a sandbox that named no parent has one elsewhere."""
    roots = [root for root in (_CGROUPS, *_CGROUPS.glob("*")) if root.is_dir()]
    found = {path for root in roots for path in [root / places.cgroup.lstrip("/")] if path.is_dir()}
    for pid in processes:
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            inner = line.split(":", 2)[2]
            if _CONTAINER_ID.fullmatch(Path(inner).name):
                found |= {path for root in roots for path in [root / inner.lstrip("/")] if path.is_dir()}
    for path in sorted(found, key=lambda path: len(path.parts), reverse=True):
        yield from (Path(inner) for inner, _, _ in os.walk(path, topdown=False))


def _rules(places: Places) -> Iterator[str]:
    for rule in _run("iptables-save", "-t", "nat").splitlines():
        if rule.startswith("-A ") and f'\\"{places.network}\\"' in rule:
            yield rule


def _files(places: Places) -> Iterator[Path]:
    yield from _CNI_RESULTS.glob(f"{places.network}-*")
    yield from _shim_sockets(places)


def _shim_sockets(places: Places) -> Iterator[Path]:
    """All containerds put them in one folder, named by a hash; the bundle tells which is whose."""
    for address in places.bundles.glob("*/address"):
        path = Path(address.read_text().strip().removeprefix("unix://"))
        if path.exists():
            yield path


def _run(program: str, *arguments: str, given: str = "") -> str:
    """What it printed. A failure is in the log; whether it mattered shows in what is left."""
    path = find_program(program)
    if path is None:
        return ""
    # A system program by its absolute path, with arguments that we made.
    done = subprocess.run(  # noqa: S603
        [path, *arguments], input=given, capture_output=True, text=True, timeout=_COMMAND_DEADLINE_S, check=False
    )
    if done.returncode:
        _log.warning("command failed", command=" ".join([program, *arguments]), said=done.stderr.strip())
    return done.stdout


def _unescape(path: str) -> str:
    """The kernel writes blanks and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
