"""gRPC without sockets: a call goes as bytes through a network that delays, loses, doubles and cuts.

One rule: what can go wrong here can go wrong with gRPC. A lost request or answer ends in the caller's deadline; a dead
server refuses at once; a caller that hangs up is told to the server, which may or may not stop for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio

from sim.loop import Process, VirtualLoop, here


@dataclass
class Weather:
    """How the world treats calls from now on, each a probability a call."""

    lost: float = 0.0
    """Of a request or of its answer."""
    doubled: float = 0.0
    """The request comes a second time, a little or much later."""
    late: float = 0.0
    """A request or an answer takes up to late_s."""
    late_s: float = 8.0
    broken: float = 0.0
    """The connection breaks while the server is at it."""
    store_down: float = 0.0
    """A transaction fails: before it is committed or, which the caller can't tell, after."""
    store_slow: float = 0.0
    """A transaction's answer takes up to store_slow_s: what was read is stale by then."""
    store_slow_s: float = 3.0
    runtime_slow: float = 0.0
    """A CRI call takes up to runtime_slow_s."""
    runtime_slow_s: float = 20.0
    runtime_silent: float = 0.0
    """A CRI call is carried out, and its answer never comes."""
    runtime_silent_to: str = ""
    """Only calls of this method are treated so."""
    events_lost: float = 0.0


@dataclass(frozen=True)
class Server:
    """What listens at an address. answer: carries out one call, in the server's process."""

    process: Process
    answer: Callable[[str, Any, "Context"], Awaitable[Any]]


class Context:
    """What a servicer gets of gRPC."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise failure(code, details)


def failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Wire:
    """One direction between two sides: callers here, a server there, which may be another one after a restart."""

    def __init__(
        self,
        world: Any,
        find: Callable[[], Server | None],
        is_cut: Callable[[], bool],
        *,
        slow: Callable[[], float] | None = None,
        lossless: bool = False,
    ) -> None:
        """slow: how much longer the server takes for a call. lossless: a socket of the same machine."""
        self._world = world
        self._loop: VirtualLoop = world.loop
        self._find = find
        self._is_cut = is_cut
        self._slow = slow
        self._lossless = lossless

    async def ask(self, method: str, request: Any, timeout: float) -> Any:
        """The answer. Raises AioRpcError."""
        client = here()
        await self._world.point(client, method)
        weather, chance = self._world.weather, self._world.chance
        answer: asyncio.Future[Any] = self._loop.create_future()
        call = _Call(self, method, request, answer, client)
        if not self._lossless and chance(weather.lost):
            self._world.note("request lost", method)
        else:
            call.send(self._latency())
            if not self._lossless and chance(weather.doubled):
                self._world.note("request doubled", method)
                double = _Call(self, method, request, self._loop.create_future(), client)
                double.send(self._world.rng.uniform(0.01, 20.0))
        try:
            async with asyncio.timeout(timeout):
                response = await answer
        except TimeoutError as error:
            call.hang_up()
            await self._world.point(client, method)
            raise failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from error
        except asyncio.CancelledError:
            call.hang_up()
            raise
        await self._world.point(client, method)
        return response

    def _latency(self) -> float:
        world = self._world
        if not self._lossless and world.chance(world.weather.late):
            return float(world.rng.uniform(0.01, world.weather.late_s))
        return float(world.rng.uniform(0.0005, 0.003)) if world.rng_loop else 0.001


class Stub:
    """What a generated stub is to its caller: a method a call."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda request, timeout: self._wire.ask(method, request, timeout)


class _Call:
    def __init__(self, wire: Wire, method: str, request: Any, answer: "asyncio.Future[Any]", client: Process) -> None:
        self._wire = wire
        self._world = wire._world
        self._loop = wire._loop
        self._method = method
        self._sent = request.SerializeToString()
        self._kind = type(request)
        self._answer = answer
        self._client = client
        self._task: asyncio.Task[Any] | None = None
        self._over = False

    def send(self, after_s: float) -> None:
        self._later(after_s, self._arrive)

    def hang_up(self) -> None:
        """The caller is gone. Some servers stop for that, others finish."""
        self._over = True
        task = self._task
        if task is not None and not task.done() and not self._wire._is_cut() and self._world.chance(0.5):
            self._later(0.001, task.cancel)

    def _later(self, after_s: float, call: Callable[[], Any]) -> None:
        self._loop.call_later(after_s, call, context=self._loop.world_context)

    def _arrive(self) -> None:
        if self._wire._is_cut():
            return
        server = self._wire._find()
        if server is None or not server.process.alive:
            refused = "failed to connect to all addresses; last error: connection refused"
            self._later(0.001, lambda: self._fail(grpc.StatusCode.UNAVAILABLE, refused))
            return
        server.process.on_death.append(self._broken)
        self._task = server.process.spawn(self._serve(server))
        if not self._client.alive:
            self.hang_up()

    def _broken(self) -> None:
        if not self._wire._is_cut():
            self._later(0.001, lambda: self._fail(grpc.StatusCode.UNAVAILABLE, "Socket closed"))

    async def _serve(self, server: Server) -> None:
        world, weather = self._world, self._world.weather
        try:
            if self._wire._slow is not None:
                await asyncio.sleep(self._wire._slow())
            if not self._wire._lossless and world.chance(weather.broken):
                world.note("connection broke", self._method)
                self._broken()
            try:
                response = await server.answer(self._method, self._kind.FromString(self._sent), Context())
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details() or ""
                self._reply(lambda: self._fail(code, details))
                return
            content = response.SerializeToString()
            self._reply(lambda: self._succeed(type(response).FromString(content)))
        except asyncio.CancelledError:
            pass  # the caller has hung up
        finally:
            if self._broken in server.process.on_death:
                server.process.on_death.remove(self._broken)

    def _reply(self, arrive: Callable[[], None]) -> None:
        world = self._world
        if not self._wire._lossless and world.chance(world.weather.lost):
            world.note("answer lost", self._method)
            return
        heard = world.weather.runtime_silent_to not in {"", self._method}
        if self._wire._lossless and not heard and world.chance(world.weather.runtime_silent):
            world.note("no answer of the runtime", self._method)
            return
        self._later(self._wire._latency(), lambda: None if self._wire._is_cut() else arrive())

    def _succeed(self, response: Any) -> None:
        if not self._answer.done():
            self._answer.set_result(response)

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        if not self._answer.done():
            self._answer.set_exception(failure(code, details))
            self._answer.exception()  # a caller that is gone does not ask
