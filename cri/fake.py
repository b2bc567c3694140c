"""A CRI v1 runtime in memory behind a real unix socket: for tests, and for machines where containerd can't run.

Nothing really runs: fake_script.py says what a container pretends to do, fake_world.py what the runtime has. In a test:

    async with FakeRuntime(tmp_path / "cri.sock") as runtime:
        client = CriClient(runtime.endpoint)
        runtime.faults.add(Fault("RunPodSandbox", delay_s=5, done_anyway=True, times=1))

As a process, until SIGTERM: `python -m cri.fake --socket PATH`. Its state lives and dies with it.
"""

# ruff: noqa: N802, ARG002 - CRI's own method names, and requests without fields

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import grpc
import grpc.aio

from cri.fake_faults import Fault, Faults
from cri.fake_world import Refusal, World
from cri.v1 import fake_pb2, fake_pb2_grpc, runtime_pb2_grpc
from cri.v1 import runtime_pb2 as pb

HANDLERS = ("edera", "kata", "runsc", "runc")
NAME = "kakuri-fake"
_EVENTS_KEPT = 1024
"""For a listener that is slow; what comes after is lost, as with any runtime."""
_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class FakeRuntime:
    """The runtime's server. An async context manager: it serves inside, and the socket is gone after."""

    def __init__(self, socket: Path | str, *, handlers: Iterable[str] = HANDLERS, images: Iterable[str] = ()) -> None:
        """socket: at most about 100 characters, as for any unix socket. images: already pulled."""
        self.faults = Faults()
        self.endpoint = f"unix://{Path(socket).absolute()}"
        self._socket = Path(socket).absolute()
        self._listeners: set[asyncio.Queue[pb.ContainerEventResponse]] = set()
        self._server: grpc.aio.Server | None = None
        self.world = World(
            handlers=handlers,
            images=images,
            later=lambda after_s, call: asyncio.get_running_loop().call_later(after_s, call),
            now_ns=time.time_ns,
            hint=self._hint,
        )

    async def __aenter__(self) -> Self:
        await self._serve()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()
        self.world.forget_all()

    async def restart(self, *, keep_state: bool = True) -> None:
        """Calls under way are cut off; it serves again. keep_state: as containerd does, else all is forgotten."""
        await self._stop()
        if not keep_state:
            self.world.forget_all()
        await self._serve()

    async def _serve(self) -> None:
        self._socket.unlink(missing_ok=True)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 * 2**20)])
        runtime_pb2_grpc.add_RuntimeServiceServicer_to_server(_Sandboxes(self), server)
        runtime_pb2_grpc.add_ImageServiceServicer_to_server(_Images(self), server)
        fake_pb2_grpc.add_ControlServicer_to_server(_Control(self), server)
        server.add_insecure_port(self.endpoint)
        await server.start()
        self._server = server

    async def _stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    def _hint(self, event: Callable[[], pb.ContainerEventResponse]) -> None:
        if self.faults.lose_events or not self._listeners:
            return
        made = event()
        for queue in self._listeners:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(made)

    async def events(self) -> AsyncGenerator[pb.ContainerEventResponse, None]:
        queue: asyncio.Queue[pb.ContainerEventResponse] = asyncio.Queue(_EVENTS_KEPT)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def answer(self, method: str, context: _Context, work: Callable[[], _T]) -> _T:
        """What work returns, after the faults of this method; the call fails as they say, or as the world does."""
        fault = self.faults.next(method)
        if fault is None:
            return await _or_abort(context, work)
        if fault.unfounded:
            work = cast("Callable[[], _T]", lambda: None)
        if not fault.done_anyway:
            await asyncio.sleep(fault.delay_s)
            if fault.code is not None:
                await context.abort(fault.code, fault.message)
            return await _or_abort(context, work)
        outcome = await self._later(fault, work)
        await asyncio.sleep(fault.answer_s)
        if fault.code is not None:
            await context.abort(fault.code, fault.message)
        return await _or_abort(context, outcome)

    async def _later(self, fault: Fault, work: Callable[[], _T]) -> Callable[[], _T]:
        # A timer of the loop, not a wait of this call: it fires also when the call was given up.
        done: asyncio.Future[Callable[[], _T]] = asyncio.get_running_loop().create_future()

        def do() -> None:
            outcome = _outcome(work)
            if not done.done():
                done.set_result(outcome)

        asyncio.get_running_loop().call_later(fault.delay_s, do)
        return await done


def _outcome(work: Callable[[], _T]) -> Callable[[], _T]:
    """Does the work now; gives its result, or raises its refusal, when called."""
    try:
        result = work()
    except Refusal as refusal:
        return _raiser(refusal)
    return lambda: result


def _raiser(refusal: Refusal) -> Callable[[], Any]:
    def refuse() -> Any:
        raise refusal

    return refuse


async def _or_abort(context: _Context, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except Refusal as refusal:
        await context.abort(refusal.code, refusal.message)
        raise


class _Sandboxes(runtime_pb2_grpc.RuntimeServiceServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._answer = runtime.answer
        self._runtime = runtime
        self._world = runtime.world

    async def Version(self, request: pb.VersionRequest, context: _Context) -> pb.VersionResponse:
        response = pb.VersionResponse(version="0.1.0", runtime_name=NAME, runtime_version="1", runtime_api_version="v1")
        return await self._answer("Version", context, lambda: response)

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusResponse:
        conditions = [pb.RuntimeCondition(type=kind, status=True) for kind in ("RuntimeReady", "NetworkReady")]
        handlers = [pb.RuntimeHandler(name=name) for name in self._world.handlers]
        response = pb.StatusResponse(status=pb.RuntimeStatus(conditions=conditions), runtime_handlers=handlers)
        return await self._answer("Status", context, lambda: response)

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, context: _Context) -> pb.RunPodSandboxResponse:
        def run() -> str:
            reported = self._runtime.faults.report_handler
            return self._world.run_sandbox(request.config, request.runtime_handler, reported_handler=reported)

        return pb.RunPodSandboxResponse(pod_sandbox_id=await self._answer("RunPodSandbox", context, run))

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, context: _Context) -> pb.StopPodSandboxResponse:
        await self._answer("StopPodSandbox", context, lambda: self._world.stop_sandbox(request.pod_sandbox_id))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: _Context
    ) -> pb.RemovePodSandboxResponse:
        await self._answer("RemovePodSandbox", context, lambda: self._world.remove_sandbox(request.pod_sandbox_id))
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: pb.PodSandboxStatusRequest, context: _Context
    ) -> pb.PodSandboxStatusResponse:
        def look() -> pb.PodSandboxStatus:
            return self._world.sandbox_status(request.pod_sandbox_id)

        return pb.PodSandboxStatusResponse(status=await self._answer("PodSandboxStatus", context, look))

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, context: _Context) -> pb.ListPodSandboxResponse:
        def look() -> pb.ListPodSandboxResponse:
            return pb.ListPodSandboxResponse(items=self._world.list_sandboxes(request.filter))

        return await self._answer("ListPodSandbox", context, look)

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: _Context
    ) -> pb.CreateContainerResponse:
        def create() -> str:
            return self._world.create_container(request.pod_sandbox_id, request.config)

        return pb.CreateContainerResponse(container_id=await self._answer("CreateContainer", context, create))

    async def StartContainer(self, request: pb.StartContainerRequest, context: _Context) -> pb.StartContainerResponse:
        await self._answer("StartContainer", context, lambda: self._world.start_container(request.container_id))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, context: _Context) -> pb.StopContainerResponse:
        ended = asyncio.Event()
        ended.set()

        def stop() -> None:
            ended.clear()
            self._world.stop_container(request.container_id, request.timeout, ended.set)

        await self._answer("StopContainer", context, stop)
        await ended.wait()
        return pb.StopContainerResponse()

    async def RemoveContainer(
        self, request: pb.RemoveContainerRequest, context: _Context
    ) -> pb.RemoveContainerResponse:
        await self._answer("RemoveContainer", context, lambda: self._world.remove_container(request.container_id))
        return pb.RemoveContainerResponse()

    async def ContainerStatus(
        self, request: pb.ContainerStatusRequest, context: _Context
    ) -> pb.ContainerStatusResponse:
        def look() -> pb.ContainerStatus:
            return self._world.container_status(request.container_id)

        return pb.ContainerStatusResponse(status=await self._answer("ContainerStatus", context, look))

    async def ListContainers(self, request: pb.ListContainersRequest, context: _Context) -> pb.ListContainersResponse:
        def look() -> pb.ListContainersResponse:
            return pb.ListContainersResponse(containers=self._world.list_containers(request.filter))

        return await self._answer("ListContainers", context, look)

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: _Context
    ) -> pb.ReopenContainerLogResponse:
        await self._answer("ReopenContainerLog", context, lambda: self._world.reopen_log(request.container_id))
        return pb.ReopenContainerLogResponse()

    async def GetContainerEvents(
        self, request: pb.GetEventsRequest, context: _Context
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        if self._runtime.faults.no_events:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method GetContainerEvents")
        await self._answer("GetContainerEvents", context, lambda: None)
        async with contextlib.aclosing(self._runtime.events()) as events:
            async for event in events:
                yield event


class _Images(runtime_pb2_grpc.ImageServiceServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._answer = runtime.answer
        self._world = runtime.world

    async def ImageStatus(self, request: pb.ImageStatusRequest, context: _Context) -> pb.ImageStatusResponse:
        image = await self._answer("ImageStatus", context, lambda: self._world.image(request.image.image))
        return pb.ImageStatusResponse(image=image if image.id else None)

    async def PullImage(self, request: pb.PullImageRequest, context: _Context) -> pb.PullImageResponse:
        image_ref = await self._answer("PullImage", context, lambda: self._world.pull(request.image.image))
        return pb.PullImageResponse(image_ref=image_ref)


class _Control(fake_pb2_grpc.ControlServicer):
    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    async def SetFaults(self, request: fake_pb2.SetFaultsRequest, context: _Context) -> fake_pb2.SetFaultsResponse:
        unknown = [f.code for f in request.faults if f.code and f.code not in grpc.StatusCode.__members__]
        if unknown:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not gRPC codes: {', '.join(unknown)}")
        faults = self._runtime.faults
        faults.clear()
        faults.lose_events = request.lose_events
        faults.no_events = request.no_events
        faults.report_handler = request.report_handler or None
        for fault in request.faults:
            faults.add(
                Fault(
                    fault.method,
                    delay_s=fault.delay_s,
                    code=grpc.StatusCode[fault.code] if fault.code else None,
                    message=fault.message,
                    times=fault.times or None,
                    done_anyway=fault.done_anyway,
                )
            )
        return fake_pb2.SetFaultsResponse()

    async def EndContainer(
        self, request: fake_pb2.EndContainerRequest, context: _Context
    ) -> fake_pb2.EndContainerResponse:
        def end() -> None:
            self._runtime.world.end_container(request.container_id, request.exit_code, request.reason)

        await _or_abort(context, end)
        return fake_pb2.EndContainerResponse()


async def _run(socket: Path, handlers: Sequence[str]) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with FakeRuntime(socket, handlers=handlers):
        await stop.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cri.fake", description="An in-memory CRI v1 runtime.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--handlers", default=",".join(HANDLERS), help="runtime handlers, with commas between")
    options = parser.parse_args(argv)
    asyncio.run(_run(options.socket, options.handlers.split(",")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
