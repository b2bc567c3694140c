"""Which containers have a process at this moment, told by the kernel: by their cgroups.

One rule: nothing is asked of agent or runtime, which may be stopped or dead. Who a container is stands in its bundle.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.places import Places

_ROOT = Path("/sys/fs/cgroup")
_HIERARCHIES = ("pids", "memory", "")
"""Each knows all processes; the last is that of cgroups v2."""
_NAME = "io.kubernetes.cri.container-name"
_ALLOCATION = "io.kubernetes.cri.sandbox-name"


@dataclass(frozen=True)
class Identity:
    """Of a container, as its bundle has it."""

    allocation: str
    kind: str
    """What the workload is to do; see chaos/workloads.py."""
    nonce: str
    """Of the write that its spec came with."""


def container_pids(places: Places) -> Iterator[tuple[str, list[int]]]:
    """Id of a container or sandbox → its processes, for all that have a cgroup. Read one by one, as it is iterated."""
    folder = _folder(places)
    try:
        names = [entry.name for entry in folder.iterdir() if len(entry.name) == 64]
    except OSError:
        return
    for name in names:
        yield name, read_pids(places, name)


def read_pids(places: Places, container: str) -> list[int]:
    try:
        return [int(pid) for pid in (_folder(places) / container / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def is_started(pids: list[int]) -> bool:
    """Whether one of them is the workload's, and not runc's, which waits there for the start of what is created."""
    lines = (_command_line(pid).split(b"\0") for pid in pids)
    return any(not (line[0].endswith(b"runc") and line[1:2] == [b"init"]) for line in lines if line != [b""])


def describe(pids: list[int]) -> list[str]:
    return [f"{pid}: {_command_line(pid).replace(bytes(1), b' ').decode(errors='replace')[:80]}" for pid in pids]


def identify(places: Places, container: str) -> Identity | None:
    """None for a sandbox. Raises FileNotFoundError when its bundle is not there, or no longer."""
    config = json.loads((places.bundles / container / "config.json").read_text())
    annotations = config.get("annotations", {})
    if _NAME not in annotations:
        return None
    kind, nonce = [*config["process"]["args"], "", ""][4:6]
    return Identity(annotations[_ALLOCATION], kind, nonce)


def _folder(places: Places) -> Path:
    name = places.cgroup.lstrip("/")
    found = (_ROOT / hierarchy / name for hierarchy in _HIERARCHIES)
    return next((folder for folder in found if folder.is_dir()), _ROOT / name)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
