"""A real private containerd for tests: one a test process. It is ended with all that it ran, and must leave nothing."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.containerd import PrivateContainerd
from agent.oci import DEMO_IMAGE
from agent.places import Places
from agent.prerequisites import can_run
from agent.private_runtime import Runtime
from agent.remains import Remains, find_remains
from support.needs import need


@dataclass(frozen=True)
class RunningContainerd:
    """What a test needs to know of it."""

    endpoint: str
    handlers: tuple[str, ...]
    demo_image: str
    state_dir: Path
    cgroup_parent: str
    pid: int


@pytest.fixture(scope="session")
def containerd() -> Iterator[RunningContainerd]:
    """One for all tests of this process. A test removes the sandboxes it made; it does not kill or stop this one."""
    why = can_run()
    need(why is None, f"a private containerd can't run here: {why}")
    # Not below pytest's own folder, of which pytest keeps the last three, images and all.
    state_dir = Path(tempfile.mkdtemp(prefix="kakuri-containerd-"))
    private = PrivateContainerd(state_dir)
    try:
        yield _describe(state_dir, asyncio.run(private.start()))
    finally:
        try:
            asyncio.run(private.stop())
            left = leftovers(state_dir)
        finally:
            shutil.rmtree(state_dir, ignore_errors=True)
    assert not left, f"the private containerd left behind: {left}"


@contextlib.asynccontextmanager
async def own_containerd(state_dir: Path) -> AsyncIterator[PrivateContainerd]:
    """One that a test may kill, not started yet; ended and checked in the end."""
    why = can_run()
    need(why is None, f"a private containerd can't run here: {why}")
    private = PrivateContainerd(state_dir)
    try:
        yield private
    finally:
        await private.stop()
        left = leftovers(state_dir)
        shutil.rmtree(private.places.folder, ignore_errors=True)
    assert not left, f"the private containerd left behind: {left}"


def leftovers(state_dir: Path) -> Remains:
    """What is there of this state dir's containerd beside its own process: shims, containers, network namespaces and
    other mounts, veths and the bridge, cgroups, iptables rules, CNI state. After stop there must be nothing.
    """
    return find_remains(Places.of(state_dir))


def sandbox_leftovers(state_dir: Path) -> list[str]:
    """What is left of sandboxes while containerd itself runs on; empty when nothing is."""
    places = Places.of(state_dir)
    left = find_remains(places)
    return [
        *(f"process {pid}" for pid in left.processes),
        *(f"mount {path}" for path in left.mounts),
        *(f"interface {name}" for name in left.interfaces if name != places.network),
        *(f"cgroup {path}" for path in left.cgroups if path.name != places.cgroup.lstrip("/")),
        *(f"rule {rule}" for rule in left.rules),
        *(f"file {path}" for path in left.files),
        *(f"address {path.name}" for path in (places.addresses / places.network).glob("*.*.*.*")),
    ]


def _describe(state_dir: Path, runtime: Runtime) -> RunningContainerd:
    return RunningContainerd(
        endpoint=runtime.endpoint,
        handlers=runtime.handlers,
        demo_image=DEMO_IMAGE,
        state_dir=state_dir,
        cgroup_parent=runtime.cgroup_parent,
        pid=runtime.pid,
    )
