"""The agent's gRPC: agent.proto in, the one set of calls behind it.

One rule: nothing is decided here; errors get their gRPC code in one place.
"""

# ruff: noqa: N802 - gRPC's own method names

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from agent.calls import BadRequest, CallError, Calls, Fenced, NotHere, NotNow
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.agentapi.v1 import agent_pb2_grpc
from kakuri.log import get_logger

GRACE_S = 1.0
"""For calls under way when the agent ends. Long polls are simply cut off."""
_MAX_MESSAGE_BYTES = 16 * 2**20
_CODES: dict[type[CallError], grpc.StatusCode] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Fenced: grpc.StatusCode.FAILED_PRECONDITION,
    NotHere: grpc.StatusCode.NOT_FOUND,
    NotNow: grpc.StatusCode.UNAVAILABLE,
}
_Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
_log = get_logger("agent.server")


class BindError(Exception):
    """The address can't be listened on."""


@asynccontextmanager
async def serving_grpc(calls: Calls, host: str, port: int) -> AsyncIterator[int]:
    """Serves while the context lasts; gives the port, which was any free one for 0. Raises BindError."""
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # Two agents on one port would each get some of the calls.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    agent_pb2_grpc.add_AgentServicer_to_server(_Agent(calls), server)
    address = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError as error:
        raise BindError(f"--grpc {host}:{port}: can't listen there; is another agent running? ({error})") from error
    if bound == 0:
        raise BindError(f"--grpc {host}:{port}: can't listen there; is another agent running?")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(GRACE_S)


class _Agent(agent_pb2_grpc.AgentServicer):
    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def Apply(self, request: wire.ApplyRequest, context: _Context) -> wire.ApplyResponse:
        return await _answer(self._calls.apply(request), context)

    async def Observe(self, request: wire.ObserveRequest, context: _Context) -> wire.ObserveResponse:
        return await _answer(self._calls.observe(request), context)

    async def GetStatus(self, request: wire.GetStatusRequest, context: _Context) -> wire.GetStatusResponse:
        try:
            return wire.GetStatusResponse(status=self._calls.get_status(request.id))
        except CallError as error:
            await _abort(context, error)

    async def Release(self, request: wire.ReleaseRequest, context: _Context) -> wire.ReleaseResponse:
        return await _answer(self._calls.release(request), context)

    async def Logs(self, request: wire.LogsRequest, context: _Context) -> AsyncIterator[wire.LogsChunk]:
        try:
            async for content in self._calls.log(request):
                yield wire.LogsChunk(content=content)
        except CallError as error:
            await _abort(context, error)


async def _answer(call: Awaitable[_T], context: _Context) -> _T:
    try:
        return await call
    except CallError as error:
        await _abort(context, error)


async def _abort(context: _Context, error: CallError) -> NoReturn:
    await context.abort(_CODES[type(error)], error.message)
    raise asyncio.CancelledError  # abort has raised; this tells the type checker
