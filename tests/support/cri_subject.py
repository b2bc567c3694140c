"""The CRI runtimes that one conformance suite runs against: the fake, and containerd with each of its handlers."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cri.client import CriClient
from cri.convert import ContainerWish, SandboxOwner, container_config, sandbox_config
from cri.fake import FakeRuntime
from cri.v1 import runtime_pb2 as pb
from support.containerd import RunningContainerd
from support.needs import need

_numbers = itertools.count(1)


def owner(allocation_id: str = "web.0.0123abcd", **changes: object) -> SandboxOwner:
    fields: dict[str, object] = {
        "cluster_id": "c1",
        "workload_id": allocation_id.partition(".")[0],
        "workload_uid": "u1",
        "allocation_id": allocation_id,
        "slot": 0,
        "generation": 3,
        "spec_hash": "0123456789abcdef",
        "epoch": 7,
        "origin": "c1",
    }
    return SandboxOwner(**{**fields, **changes})  # type: ignore[arg-type]


def wish(image: str = "kakuri.test/demo:1", *argv: str, **changes: object) -> ContainerWish:
    fields: dict[str, object] = {
        "image": image,
        "command": argv,
        "args": (),
        "env": {},
        "working_dir": "",
        "memory_mb": 64,
        "cpu_millicores": 500,
        "ports": (),
        "runtime_class": "native",
        "handler": "runc",
    }
    return ContainerWish(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class Subject:
    """A runtime under test, and what this test made in it."""

    client: CriClient
    handler: str
    image: str
    real: bool
    folder: Path
    cgroup_parent: str = ""
    _sandboxes: list[str] = field(default_factory=list)

    def allocation(self) -> str:
        return f"conformance-{next(_numbers)}.0.0123abcd"

    def wish(self, *argv: str, **changes: object) -> ContainerWish:
        return wish(self.image, *argv, handler=self.handler, **changes)

    def config(self, allocation_id: str, wished: ContainerWish, **changes: object) -> pb.PodSandboxConfig:
        logs = self.logs(allocation_id)
        logs.mkdir(parents=True, exist_ok=True)
        return sandbox_config(
            owner(allocation_id, **changes), wished, log_directory=str(logs), cgroup_parent=self.cgroup_parent
        )

    def logs(self, allocation_id: str) -> Path:
        return self.folder / allocation_id

    async def run(self, config: pb.PodSandboxConfig) -> str:
        sandbox_id = await self.client.run_pod_sandbox(config, self.handler)
        self._sandboxes.append(sandbox_id)
        return sandbox_id

    async def create(self, wished: ContainerWish, *, allocation_id: str = "", attempt: int = 0) -> tuple[str, str]:
        """A sandbox with a created container in it: their ids."""
        allocation_id = allocation_id or self.allocation()
        config = self.config(allocation_id, wished)
        sandbox_id = await self.run(config)
        made = container_config(owner(allocation_id), wished, attempt=attempt)
        return sandbox_id, await self.client.create_container(sandbox_id, made, config)

    async def clean(self) -> None:
        for sandbox_id in self._sandboxes:
            await self.client.stop_pod_sandbox(sandbox_id)
            await self.client.remove_pod_sandbox(sandbox_id)


@pytest.fixture(
    params=[
        "fake",
        pytest.param("runc", marks=pytest.mark.real),
        pytest.param("runsc", marks=pytest.mark.real),
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[str, RunningContainerd | None]:
    """Name of the subject, and the containerd it is on."""
    name: str = request.param
    return name, None if name == "fake" else _with_handler(request, name)


@pytest.fixture(params=[pytest.param("runc", marks=pytest.mark.real), pytest.param("runsc", marks=pytest.mark.real)])
def real_place(request: pytest.FixtureRequest) -> tuple[str, RunningContainerd | None]:
    return request.param, _with_handler(request, request.param)


@pytest.fixture
async def subject(place: tuple[str, RunningContainerd | None], tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield await _enter(stack, place, tmp_path)


@pytest.fixture
async def real_subject(real_place: tuple[str, RunningContainerd | None], tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield await _enter(stack, real_place, tmp_path)


def _with_handler(request: pytest.FixtureRequest, name: str) -> RunningContainerd:
    running: RunningContainerd = request.getfixturevalue("containerd")
    need(name in running.handlers, f"this machine's containerd has no {name}; install it with: apt-get install {name}")
    return running


async def _enter(stack: AsyncExitStack, place: tuple[str, RunningContainerd | None], folder: Path) -> Subject:
    name, running = place
    if running is None:
        image = "kakuri.test/demo:1"
        fake = await stack.enter_async_context(FakeRuntime(folder / "cri.sock", images=[image]))
        subject = Subject(CriClient(fake.endpoint), "runc", image, real=False, folder=folder)
    else:
        client = CriClient(running.endpoint)
        subject = Subject(
            client, name, running.demo_image, real=True, folder=folder, cgroup_parent=running.cgroup_parent
        )
    stack.push_async_callback(subject.client.close)
    stack.push_async_callback(subject.clean)
    return subject
