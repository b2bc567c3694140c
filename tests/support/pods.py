"""Pods by bare CRI calls, for tests of a runtime itself."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cri.client import CriClient
from cri.convert import ContainerWish, PortWish, SandboxOwner, container_config, log_name, sandbox_config
from cri.v1 import runtime_pb2 as pb

_numbers = itertools.count()


@dataclass(frozen=True)
class Pod:
    client: CriClient
    sandbox_id: str
    container_id: str
    log: Path

    async def status(self) -> pb.ContainerStatus:
        return await self.client.container_status(self.container_id)

    async def ended(self, bound_s: float = 30) -> pb.ContainerStatus:
        """Its container's status once it has ended."""
        deadline = time.monotonic() + bound_s
        while time.monotonic() < deadline:
            status = await self.status()
            if status.finished_at:
                return status
            await asyncio.sleep(0.02)
        raise AssertionError(f"the container has not ended after {bound_s} s: {status}")

    def output(self) -> str:
        """What it wrote, without the log format's time and stream."""
        return "".join(line.split(" ", 3)[3] for line in self.log.read_text().splitlines(keepends=True))

    async def remove(self) -> None:
        await self.client.stop_pod_sandbox(self.sandbox_id)
        await self.client.remove_pod_sandbox(self.sandbox_id)


async def run_pod(
    client: CriClient,
    handler: str,
    image: str,
    *,
    logs: Path,
    command: Sequence[str] = (),
    args: Sequence[str] = (),
    memory_mb: int = 64,
    ports: Sequence[PortWish] = (),
    cgroup_parent: str = "",
) -> Pod:
    """A pod runs, its one container started."""
    slot = next(_numbers)
    name = f"pod.{slot}.{time.time_ns() & 0xFFFFFFFF:08x}"
    owner = SandboxOwner("test", "pod", "uid", name, slot, 1, "hash", 1, "test")
    wish = ContainerWish(image, tuple(command), tuple(args), {}, "", memory_mb, 500, tuple(ports), "any", handler)
    folder = logs / name
    folder.mkdir(parents=True)
    sandbox = sandbox_config(owner, wish, log_directory=str(folder), cgroup_parent=cgroup_parent)
    sandbox_id = await client.run_pod_sandbox(sandbox, handler)
    try:
        container_id = await client.create_container(sandbox_id, container_config(owner, wish, attempt=0), sandbox)
        await client.start_container(container_id)
    except BaseException:
        await client.stop_pod_sandbox(sandbox_id)
        await client.remove_pod_sandbox(sandbox_id)
        raise
    return Pod(client, sandbox_id, container_id, folder / log_name(0))


@contextlib.asynccontextmanager
async def clearing_client(endpoint: str) -> AsyncIterator[CriClient]:
    """A client; in the end nothing of what it listed is left in the runtime."""
    client = CriClient(endpoint)
    try:
        yield client
    finally:
        for sandbox in await client.list_pod_sandboxes():
            await client.stop_pod_sandbox(sandbox.id)
            await client.remove_pod_sandbox(sandbox.id)
        await client.close()
