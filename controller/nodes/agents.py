"""The agents, by address: one channel each, a deadline on every call, errors mapped in one place.

One rule: only a followed log may be silent for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NoReturn

import grpc
import grpc.aio

from controller.exchange import Errand, LeaseTerms, Released, Report, Sent
from controller.nodes import wire
from controller.nodes.errors import LogNotFound, NodeError, NodeRefused, NodeUnreachable
from kakuri.agentapi.v1 import agent_pb2 as pb
from kakuri.agentapi.v1.agent_pb2_grpc import AgentStub

if TYPE_CHECKING:  # the async twin is there for type checkers alone
    from kakuri.agentapi.v1.agent_pb2_grpc import AgentAsyncStub

APPLY_DEADLINE_S = 30.0
"""An Apply returns when it is durable. Shorter and a slow disk makes us ask again; longer and a dead node keeps its
errands waiting."""
RELEASE_DEADLINE_S = 30.0
"""A release returns when it is durable, as an Apply does; what it ends is asked for again."""
POLL_SLACK_S = 5.0
LOG_SILENCE_S = 15.0
"""Between two chunks of a log that is not followed. Shorter and a busy disk cuts it off; longer and people wait for an
agent that hangs."""

_OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    # An agent that was restarted is there again within a second; grpc would otherwise wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # An attempt to connect, too, may take up to so long: a lost packet on a cut network must not be waited for.
    ("grpc.min_reconnect_backoff_ms", 2000),
    # Nothing heard for so long, though a poll is always under way: the connection is dead, and a healed network would
    # take minutes to tell.
    ("grpc.keepalive_time_ms", 8000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.enable_http_proxy", 0),
]


class Agents:
    """Calls to agents under the fence of this cluster and the leader's epoch."""

    def __init__(self, cluster_id: str) -> None:
        self._cluster_id = cluster_id
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def observe(
        self, node: str, address: str, *, epoch: int, instance: str, since: int, wait_s: float, lease: LeaseTerms
    ) -> Report:
        """What changed at the node since a revision of that instance; returns after wait_s at the latest."""
        request = pb.ObserveRequest(
            fence=self._fence(epoch),
            instance=instance,
            since=since,
            wait_s=wait_s,
            lease_s=lease.lease_s,
            stop_bound_s=lease.stop_bound_s,
            heard=lease.heard,
        )
        try:
            response = await self._stub(address).Observe(request, timeout=wait_s + POLL_SLACK_S)
        except grpc.aio.AioRpcError as error:
            _raise(address, error)
        return wire.report(node, response)

    async def apply(
        self,
        address: str,
        *,
        epoch: int,
        ledger_uid: str,
        errands: Sequence[Errand],
        stops: Sequence[str] = (),
        removals: Sequence[str] = (),
    ) -> list[Sent]:
        """The agent's answer for each; durable there when this returns. stops, removals: ids that SQL no longer has."""
        request = wire.apply_request(self._fence(epoch), ledger_uid, errands, stops, removals)
        try:
            response = await self._stub(address).Apply(request, timeout=APPLY_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            _raise(address, error)
        return wire.sent(response.outcomes)

    async def release(self, address: str, *, epoch: int, held_by: str, stop: bool) -> Released:
        """The agent is no cluster's any more, or says what keeps it. held_by: whose it is, as a person was told."""
        request = pb.ReleaseRequest(fence=self._fence(epoch), held_by=held_by, stop=stop)
        try:
            response = await self._stub(address).Release(request, timeout=RELEASE_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise NodeRefused(f"the agent at {address} is of a version that can't be released") from error
            _raise(address, error)
        return Released(response.released, tuple(response.left))

    async def logs(
        self, address: str, allocation_id: str, *, follow: bool, tail: int, previous: bool
    ) -> AsyncIterator[bytes]:
        """The log in chunks of at most 64 KiB. Raises LogNotFound."""
        request = pb.LogsRequest(allocation_id=allocation_id, follow=follow, tail=tail, previous=previous)
        call = self._stub(address).Logs(request)
        try:
            while True:
                async with asyncio.timeout(None if follow else LOG_SILENCE_S):
                    chunk = await call.read()
                if not isinstance(chunk, pb.LogsChunk):
                    return
                yield chunk.content
        except TimeoutError as error:
            raise NodeUnreachable(f"the agent at {address} said nothing for {LOG_SILENCE_S:g} s") from error
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise LogNotFound(error.details() or f"there is no log of {allocation_id}") from error
            _raise(address, error)
        finally:
            call.cancel()

    async def close(self) -> None:
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close(None)

    def _fence(self, epoch: int) -> pb.Fence:
        return pb.Fence(cluster_id=self._cluster_id, epoch=epoch)

    def _stub(self, address: str) -> "AgentAsyncStub":
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return AgentStub(channel)


def _raise(address: str, error: grpc.aio.AioRpcError) -> NoReturn:
    words = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            raise NodeUnreachable(f"the agent at {address} does not answer: {words}") from error
        case grpc.StatusCode.FAILED_PRECONDITION:
            raise NodeRefused(f"the agent at {address} refuses this controller: {words}") from error
        case code:
            raise NodeError(f"the agent at {address} failed ({code.name}): {words}") from error
