"""What tests look at behind kakuri's back: the runtime's own lists, and what stands on the machine."""

import asyncio
import subprocess
from dataclasses import dataclass

import pytest

from cri.client import CriClient
from cri.convert import LABEL_WORKLOAD
from cri.v1 import runtime_pb2 as pb
from support.containerd import sandbox_leftovers
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

    def leftovers(self) -> list[str]:
        """What sandboxes have on the machine: processes, mounts, namespaces, veths, cgroups, rules, addresses."""
        return sandbox_leftovers(self.dev.folder / "agent")


@pytest.fixture
def machine(dev: Dev) -> Machine:
    return Machine(dev)
