"""A CRI runtime: the shipped fake's own state and servicers, without its socket, and the product's client of it.

One rule: every change of a container is told to the witness as it happens, whoever made it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import grpc

from cri.client import CriClient
from cri.convert import LABEL_ALLOCATION, LABEL_CLUSTER, LABEL_MANAGED_BY, LABEL_ORIGIN, MANAGED_BY
from cri.fake import FakeRuntime, _Images, _Sandboxes
from cri.fake_world import World as RuntimeWorld
from cri.instrument import Instrument
from cri.v1 import runtime_pb2 as pb
from sim.clocks import Clock
from sim.loop import Process
from sim.wire import Server, Stub, Wire, failure

IMAGES = ("demo:1", "demo:2", "demo:3")
HANDLERS = ("runc", "runsc")
REFUSED = "failed to connect to all addresses; last error: connection refused"


class Runtime:
    """It can be killed, stopped and started again while its containers live on."""

    def __init__(self, world: Any, node: Any) -> None:
        self._world = world
        self._node = node
        self._fake = FakeRuntime(node.folder / "cri.sock", handlers=HANDLERS)
        self.state = RuntimeWorld(
            handlers=HANDLERS, images=IMAGES, later=self._later, now_ns=node.clock.now_ns, hint=self._hint
        )
        self._fake.world = self.state
        self.process: Process | None = None
        self.server: Server | None = None
        self._listeners: dict[Stream, None] = {}
        self.foreign: dict[str, str] = {}
        """Containers that are none of ours, and what they are."""
        self.start()
        self._start_foreign()

    def start(self) -> None:
        """It serves, with all that it had."""
        if self.process is not None and self.process.alive:
            return
        self.process = Process(self._world.loop, f"runtime {self._node.name}")
        sandboxes, images = _Sandboxes(self._fake), _Images(self._fake)

        async def answer(method: str, request: Any, context: Any) -> Any:
            servicer: Any = images if method in {"ImageStatus", "PullImage"} else sandboxes
            return await getattr(servicer, method)(request, context)

        self.server = Server(self.process, answer)

    def kill(self) -> None:
        """Calls under way are cut off, and event streams end. Containers live on."""
        if self.process is not None:
            self.process.kill()
        for stream in list(self._listeners):
            stream.end()

    def power_off(self) -> None:
        self.kill()
        self._world.witness.power_off(self._node.name)
        for sandbox in self.state.list_sandboxes(pb.PodSandboxFilter()):
            for container in self.state.list_containers(pb.ContainerFilter(pod_sandbox_id=sandbox.id)):
                self.state.end_container(container.id, 255, "Unknown")
            self.state.stop_sandbox(sandbox.id)
        for sandbox_id in [c.pod_sandbox_id for c in self.containers() if c.id in self.foreign]:
            self.state.remove_sandbox(sandbox_id)
        self._start_foreign()

    def containers(self) -> list[pb.Container]:
        return self.state.list_containers(pb.ContainerFilter())

    def running(self) -> list[pb.Container]:
        return [c for c in self.containers() if c.state == pb.CONTAINER_RUNNING and c.id not in self.foreign]

    def cgroups(self, ids: Collection[str]) -> list[Path]:
        """Of what runs and bears one of these ids."""
        return [Path(c.id) for c in self.running() if c.id in ids or c.pod_sandbox_id in ids]

    def kill_cgroup(self, cgroup: Path) -> list[int]:
        self.state.end_container(cgroup.name, 137)
        return [4711]

    def takes_s(self) -> float:
        world = self._world
        if world.chance(world.weather.runtime_slow):
            return float(world.rng.uniform(0.01, world.weather.runtime_slow_s))
        return float(world.rng.uniform(0.001, 0.01)) if world.rng_loop else 0.002

    def listen(self, stream: "Stream") -> None:
        if self.process is None or not self.process.alive:
            raise failure(grpc.StatusCode.UNAVAILABLE, REFUSED)
        self._listeners[stream] = None

    def leave(self, stream: "Stream") -> None:
        self._listeners.pop(stream, None)

    def _later(self, after_s: float, call: Callable[[], None]) -> Any:
        loop = self._world.loop
        return loop.call_later(after_s, call, context=loop.world_context)

    def _hint(self, make: Callable[[], pb.ContainerEventResponse]) -> None:
        event = make()
        self._world.witness.happened(self._node.name, self.foreign, event)
        for stream in list(self._listeners):
            if not self._world.chance(self._world.weather.events_lost):
                stream.put(event)

    def _start_foreign(self) -> None:
        self.foreign.clear()
        for name, labels in FOREIGN.items():
            config = pb.PodSandboxConfig(
                metadata=pb.PodSandboxMetadata(name=name, uid=name, namespace="elsewhere"), labels=labels
            )
            sandbox_id = self.state.run_sandbox(config, "runc")
            container = pb.ContainerConfig(
                metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="demo:1"), labels=labels
            )
            id_ = self.state.create_container(sandbox_id, container)
            self.foreign[id_] = self.foreign[sandbox_id] = name
            self.state.start_container(id_)


FOREIGN: Mapping[str, Mapping[str, str]] = {
    "not-ours": {"app": "database"},
    "by-hand": {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_ALLOCATION: "mine.0.0000000a",
        LABEL_CLUSTER: "",
        LABEL_ORIGIN: "hand",
    },
    "of-another-cluster": {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_ALLOCATION: "theirs.0.0000000b",
        LABEL_CLUSTER: "another",
        LABEL_ORIGIN: "another",
    },
}


class Stream:
    """A runtime's events, as one listener gets them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: asyncio.Queue[pb.ContainerEventResponse | None] = asyncio.Queue()

    def put(self, event: pb.ContainerEventResponse) -> None:
        self._queue.put_nowait(event)

    def end(self) -> None:
        self._runtime.leave(self)
        self._queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[pb.ContainerEventResponse]:
        return self

    async def __anext__(self) -> pb.ContainerEventResponse:
        event = await self._queue.get()
        if event is None:
            raise failure(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return event

    def cancel(self) -> None:
        self._runtime.leave(self)


class SimCri(CriClient):
    """The product's client of CRI, on a wire of the world's."""

    def __init__(self, endpoint: str, wire: Wire, runtime: Runtime, clock: Clock) -> None:
        self.endpoint = endpoint
        self._call = Instrument(endpoint, clock.monotonic)
        self._images: Any = Stub(wire)
        self._runtime: Any = _RuntimeStub(wire, runtime)


class _RuntimeStub(Stub):
    def __init__(self, wire: Wire, runtime: Runtime) -> None:
        super().__init__(wire)
        self._cri = runtime

    def GetContainerEvents(self, _: pb.GetEventsRequest) -> Stream:  # noqa: N802 - CRI's own name
        stream = Stream(self._cri)
        try:
            self._cri.listen(stream)
        except grpc.aio.AioRpcError:
            stream.put(None)  # type: ignore[arg-type]
        return stream
