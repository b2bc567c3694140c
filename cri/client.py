"""A typed client of one CRI v1 endpoint: one method a call, each with a deadline.

One rule: nothing is retried here. Run and Create are not idempotent, so after a deadline the caller looks first.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import grpc
import grpc.aio

from cri.errors import NotFound
from cri.instrument import Instrument
from cri.v1 import runtime_pb2 as pb
from cri.v1.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub

CALL_DEADLINE_S = 120.0
"""Of most calls. Shorter and a busy machine looks broken; longer and a hung runtime is noticed late."""
RUN_DEADLINE_S = 240.0
"""Of RunPodSandbox: a VM boots in it and the network is set up."""
STOP_SLACK_S = 60.0
"""What StopContainer may take beyond its grace: the kill, and the runtime noticing the end."""
PULL_DEADLINE_S = 1800.0
"""Of PullImage: gigabytes over a slow line. Cancelling the call ends the pull earlier."""

_OPTIONS = (
    # gRPC sends the socket's escaped path as authority, which servers in Rust refuse with PROTOCOL_ERROR.
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    # A runtime that was restarted is there again within a second; gRPC would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels to one path share their backoff otherwise, also with a client of a runtime that is gone.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_ALL: Mapping[str, str] = MappingProxyType({})
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class CriClient:
    """Calls to one runtime. Every failure is a CriError; stopping or removing what isn't there is success."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: unix:///path/of/socket. Connects with the first call, and again after the runtime was restarted."""
        self.endpoint = endpoint
        self._call = Instrument(endpoint)
        self._channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        self._runtime = RuntimeServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)

    async def close(self) -> None:
        """The connection is closed; calls under way fail."""
        await self._channel.close(grace=None)

    async def version(self) -> pb.VersionResponse:
        request = pb.VersionRequest(version="v1")
        return await self._call("Version", self._runtime.Version(request, timeout=CALL_DEADLINE_S))

    async def status(self) -> pb.StatusResponse:
        return await self._call("Status", self._runtime.Status(pb.StatusRequest(), timeout=CALL_DEADLINE_S))

    async def run_pod_sandbox(self, config: pb.PodSandboxConfig, handler: str) -> str:
        """The id of a sandbox that runs. AlreadyExists when the name is taken: look, then adopt or clean."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        call = self._runtime.RunPodSandbox(request, timeout=RUN_DEADLINE_S)
        return (await self._call("RunPodSandbox", call)).pod_sandbox_id

    async def stop_pod_sandbox(self, id_: str) -> None:
        """The sandbox and its containers have ended, its network is gone."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=id_)
        await self._already_gone_is_done("StopPodSandbox", self._runtime.StopPodSandbox, request, CALL_DEADLINE_S)

    async def remove_pod_sandbox(self, id_: str) -> None:
        """The sandbox and its containers are forgotten, their names free again."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=id_)
        await self._already_gone_is_done("RemovePodSandbox", self._runtime.RemovePodSandbox, request, CALL_DEADLINE_S)

    async def pod_sandbox_status(self, id_: str) -> pb.PodSandboxStatus:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=id_)
        call = self._runtime.PodSandboxStatus(request, timeout=CALL_DEADLINE_S)
        return (await self._call("PodSandboxStatus", call)).status

    async def list_pod_sandboxes(self, labels: Mapping[str, str] = _ALL) -> list[pb.PodSandbox]:
        """The sandboxes with all these labels, ended ones too."""
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        call = self._runtime.ListPodSandbox(request, timeout=CALL_DEADLINE_S)
        return list((await self._call("ListPodSandbox", call)).items)

    async def create_container(
        self, sandbox_id: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig
    ) -> str:
        """The id of a container that is created. AlreadyExists as for run_pod_sandbox; NotFound: sandbox or image."""
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config)
        call = self._runtime.CreateContainer(request, timeout=CALL_DEADLINE_S)
        return (await self._call("CreateContainer", call)).container_id

    async def start_container(self, id_: str) -> None:
        """The container runs. RuntimeFailed when its command can't be run; it can't be started again then."""
        request = pb.StartContainerRequest(container_id=id_)
        await self._call("StartContainer", self._runtime.StartContainer(request, timeout=CALL_DEADLINE_S))

    async def stop_container(self, id_: str, grace_s: int) -> None:
        """The container has ended. grace_s: seconds between the stop signal and the kill; 0 kills at once."""
        request = pb.StopContainerRequest(container_id=id_, timeout=grace_s)
        deadline_s = grace_s + STOP_SLACK_S
        await self._already_gone_is_done("StopContainer", self._runtime.StopContainer, request, deadline_s)

    async def remove_container(self, id_: str) -> None:
        """The container is forgotten; killed first, should it run. Its log stays."""
        request = pb.RemoveContainerRequest(container_id=id_)
        await self._already_gone_is_done("RemoveContainer", self._runtime.RemoveContainer, request, CALL_DEADLINE_S)

    async def container_status(self, id_: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=id_)
        call = self._runtime.ContainerStatus(request, timeout=CALL_DEADLINE_S)
        return (await self._call("ContainerStatus", call)).status

    async def list_containers(self, labels: Mapping[str, str] = _ALL) -> list[pb.Container]:
        """The containers with all these labels, ended ones too."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=labels))
        call = self._runtime.ListContainers(request, timeout=CALL_DEADLINE_S)
        return list((await self._call("ListContainers", call)).containers)

    async def reopen_container_log(self, id_: str) -> None:
        """What the container writes from now on goes to a new file at its log path."""
        request = pb.ReopenContainerLogRequest(container_id=id_)
        await self._call("ReopenContainerLog", self._runtime.ReopenContainerLog(request, timeout=CALL_DEADLINE_S))

    async def image_status(self, image: str) -> pb.Image | None:
        """The image by this reference; None when the runtime doesn't have it."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        response = await self._call("ImageStatus", self._images.ImageStatus(request, timeout=CALL_DEADLINE_S))
        return response.image if response.image.id else None

    async def pull_image(self, image: str) -> str:
        """The runtime's own reference of the image, which it has now. ImagePullFailed with the registry's words."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        call = self._images.PullImage(request, timeout=PULL_DEADLINE_S)
        return (await self._call("PullImage", call)).image_ref

    async def events(self) -> AsyncIterator[pb.ContainerEventResponse]:
        """Hints that a container changed, until the runtime goes away (Unavailable). Unimplemented when it has none.

        There is no deadline: a silent stream and a lost hint look the same, and relisting is the truth.
        """
        stream = self._runtime.GetContainerEvents(pb.GetEventsRequest())
        hints = aiter(stream)
        try:
            while True:
                yield await self._call("GetContainerEvents", anext(hints))
        except StopAsyncIteration:
            return
        finally:
            stream.cancel()

    async def _already_gone_is_done(
        self,
        method: str,
        rpc: "Callable[..., grpc.aio.UnaryUnaryCall[_Request, _Response]]",
        request: _Request,
        deadline_s: float,
    ) -> None:
        try:
            await self._call(method, rpc(request, timeout=deadline_s))
        except NotFound:
            return
