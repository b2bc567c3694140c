"""What tests look at behind kakuri's back: the runtime's own lists, and what stands on the machine."""

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cri.client import CriClient
from cri.convert import LABEL_WORKLOAD
from cri.v1 import runtime_pb2 as pb
from support.dev import Dev


@dataclass
class Machine:
    """The runtime of a dev, and the machine it is on."""

    dev: Dev
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.endpoint = str(self.dev.info["cri"])

    def sandboxes(self, workload: str | None = None) -> list[pb.PodSandbox]:
        async def listed() -> list[pb.PodSandbox]:
            client = CriClient(self.endpoint)
            try:
                return await client.list_pod_sandboxes({LABEL_WORKLOAD: workload} if workload else {})
            finally:
                await client.close()

        return asyncio.run(listed())

    def containers(self) -> list[pb.Container]:
        async def listed() -> list[pb.Container]:
            client = CriClient(self.endpoint)
            try:
                return await client.list_containers()
            finally:
                await client.close()

        return asyncio.run(listed())

    def kill_container(self, container_id: str) -> None:
        """The container's process is killed with -9, without a word to anyone."""
        self.ctr("tasks", "kill", "-s", "SIGKILL", container_id)

    def ctr(self, *arguments: str) -> str:
        address = self.endpoint.removeprefix("unix://")
        return subprocess.run(
            ["ctr", "--address", address, "--namespace", "k8s.io", *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    def belongings(self) -> dict[str, frozenset[str]]:
        """What a pod leaves traces in, by kind: mounts, network namespaces, veths, cgroups, processes, NAT rules."""
        folder = str(self.dev.folder)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout
        ids = re.compile(r"\b[0-9a-f]{64}\b")
        return {
            "mounts": frozenset(m.split()[4] for m in mounts if folder in m or "/run/kakuri" in m),
            "netns": frozenset(n.name for n in Path("/run/netns").glob("*")),
            "veths": frozenset(re.findall(r"(veth[^@:]*)", links)),
            "cgroups": _cgroups(ids),
            "shims": frozenset(p for p in _shims(self.endpoint.removeprefix("unix://"))),
            "rules": frozenset(r for r in rules.splitlines() if "--to-destination" in r),
        }


def _cgroups(ids: "re.Pattern[str]") -> frozenset[str]:
    found = set()
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        for folder, names, _ in os.walk(root):
            found.update(f"{folder}/{n}" for n in names if ids.search(n))
            if folder.count("/") > 7:
                names.clear()
    return frozenset(found)


def _shims(address: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "containerd-shim" in line and address in line:
            yield line


@pytest.fixture
def machine(dev: Dev) -> Machine:
    return Machine(dev)


@pytest.fixture
def own_machine(own_dev: Dev) -> Machine:
    return Machine(own_dev)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])
