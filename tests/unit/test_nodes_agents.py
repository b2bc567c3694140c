"""An agent over a real gRPC server: what comes of a log that stops, and of a release."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.exchange import Released
from controller.nodes import Agents, NodeRefused, NodeUnreachable, agents
from kakuri.agentapi.v1 import agent_pb2 as pb
from kakuri.agentapi.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server

BOUND_S = 10.0


class Halting(AgentServicer):
    """Writes one chunk, and the other when told."""

    def __init__(self) -> None:
        self.address = ""
        self.go_on = asyncio.Event()

    async def Logs(self, request: pb.LogsRequest, context: Any) -> AsyncIterator[pb.LogsChunk]:  # noqa: N802 - gRPC's
        yield pb.LogsChunk(content=b"one\n")
        await self.go_on.wait()
        yield pb.LogsChunk(content=b"two\n")


@pytest.fixture
async def agent() -> AsyncIterator[Halting]:
    servicer, server = Halting(), grpc.aio.server()
    add_AgentServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield servicer
    finally:
        servicer.go_on.set()
        await server.stop(None)


@pytest.fixture
async def controller() -> AsyncIterator[Agents]:
    calls = Agents("cluster")
    try:
        yield calls
    finally:
        await calls.close()


async def test_a_log_that_stops_in_its_middle_is_given_up(
    agent: Halting, controller: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "LOG_SILENCE_S", 0.5)
    log = controller.logs(agent.address, "web.0.0000000a", follow=False, tail=-1, previous=False)
    async with asyncio.timeout(BOUND_S):
        assert await anext(log) == b"one\n"
        with pytest.raises(NodeUnreachable, match=r"said nothing for 0\.5 s"):
            await anext(log)


async def test_a_followed_log_may_be_silent(
    agent: Halting, controller: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "LOG_SILENCE_S", 0.01)
    log = controller.logs(agent.address, "web.0.0000000a", follow=True, tail=-1, previous=False)
    async with asyncio.timeout(BOUND_S):
        assert await anext(log) == b"one\n"
        await asyncio.sleep(0.05)
        agent.go_on.set()
        assert [chunk async for chunk in log] == [b"two\n"]


class Releasing(AgentServicer):
    """Answers a release as it is told to; with words it refuses."""

    def __init__(self) -> None:
        self.asked: list[pb.ReleaseRequest] = []
        self.answer = pb.ReleaseResponse(released=True)
        self.refusal = ""

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802 - gRPC's
        self.asked.append(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refusal)
        return self.answer


async def test_a_release_tells_whose_hold_is_to_end_and_brings_what_is_left(controller: Agents) -> None:
    servicer, server = Releasing(), grpc.aio.server()
    add_AgentServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        servicer.answer = pb.ReleaseResponse(left=["web.0.0000000a"])
        answer = await controller.release(address, epoch=7, held_by="theirs", stop=True)
        assert answer == Released(released=False, left=("web.0.0000000a",))
        (asked,) = servicer.asked
        assert (asked.fence.cluster_id, asked.fence.epoch, asked.held_by, asked.stop) == ("cluster", 7, "theirs", True)
        servicer.refusal = "it belongs to another"
        with pytest.raises(NodeRefused, match="it belongs to another"):
            await controller.release(address, epoch=7, held_by="theirs", stop=False)
    finally:
        await server.stop(None)


async def test_an_agent_that_knows_no_release_says_so_in_words(agent: Halting, controller: Agents) -> None:
    with pytest.raises(NodeRefused, match="of a version that can't be released"):
        await controller.release(agent.address, epoch=1, held_by="theirs", stop=False)
    with pytest.raises(NodeUnreachable):
        await controller.release("127.0.0.1:1", epoch=1, held_by="theirs", stop=False)
