"""The seed's protocol: one JSON object a line over TCP, for people with `nc`. A fixed envelope over the agent's own calls.

    → {"type":"StartWorkload","workload":{"id":"wl-123","image":"…","runtime_class":"…","memory_mb":512,"cpu_millicores":500}}
    ← {"type":"Status","id":"wl-123","state":"Pending"}
    → nonsense
    ← {"type":"Error","code":"InvalidArgument","message":"not a JSON object"}

One rule: every line gets exactly one answer, in order, whatever is in it; and no line and no client costs more than a
bounded amount of memory and time.
"""  # noqa: E501 - the transcript's lines are the protocol's own

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from pydantic import ValidationError

from kakuri.log import get_logger
from kakuri.model import WorkloadManifest
from kakuri.validation import explain

MAX_LINE_BYTES = 2**20
"""A workload has at most about this. Longer lines are skipped as they come, so that memory stays bounded."""
MAX_CONNECTIONS = 64
"""Each costs up to a line's memory. People with nc need a few."""
CALL_DEADLINE_S = 30.0
"""A call returns when it is durable. A shorter one makes a slow disk look broken."""
WRITE_DEADLINE_S = 10.0
"""For a client to take an answer; one that never reads is cut off."""
IDLE_DEADLINE_S = 3600.0
"""Without a line from the client. Shorter annoys a person who thinks; longer and forgotten clients fill the room."""
_CLOSE_DEADLINE_S = 2.0
_READ_BYTES = 64 * 1024

_log = get_logger("jsonlines")

Code = Literal["InvalidArgument", "NotFound", "AlreadyExists", "Unavailable", "ResourceExhausted"]


@dataclass(frozen=True)
class Answer:
    id: str
    state: str


class Refused(Exception):  # noqa: N818 - an answer
    """A call's answer is no; the client reads code and message."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message


class Calls(Protocol):
    """What is asked of the agent. Each raises Refused when the answer is no, and is safe to cut off at any await."""

    async def start_by_hand(self, workload: WorkloadManifest) -> Answer:
        """Accepted, durably. Running by hand already with this spec: its state; with another: AlreadyExists."""

    async def stop(self, id_: str) -> Answer:
        """Its end is wanted, durably. id_: an allocation's, or a workload's (its newest here); else NotFound."""

    async def get_status(self, id_: str) -> Answer: ...


@asynccontextmanager
async def serving(
    calls: Calls,
    host: str,
    port: int,
    *,
    max_connections: int = MAX_CONNECTIONS,
    write_deadline_s: float = WRITE_DEADLINE_S,
    idle_deadline_s: float = IDLE_DEADLINE_S,
) -> AsyncIterator[tuple[str, int]]:
    """Serves while the context lasts; gives the address that it listens on. port 0: any free one."""
    limits = _Limits(max_connections, write_deadline_s, idle_deadline_s)
    clients = _Clients(calls, limits)
    server = await asyncio.start_server(clients.serve, host, port, limit=_READ_BYTES)
    bound_host, bound_port = server.sockets[0].getsockname()[:2]
    try:
        yield bound_host, bound_port
    finally:
        server.close()
        await clients.close()
        await server.wait_closed()


@dataclass(frozen=True)
class _Limits:
    max_connections: int
    write_deadline_s: float
    idle_deadline_s: float


class _Clients:
    """The connections there are."""

    def __init__(self, calls: Calls, limits: _Limits) -> None:
        self._calls = calls
        self._limits = limits
        self._open: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All lines of one client are answered, and its connection closed."""
        room = len(self._open) < self._limits.max_connections
        self._open[writer] = over = asyncio.Event()
        try:
            if room:
                await self._converse(reader, writer)
            else:
                await self._send(writer, _error("ResourceExhausted", "too many connections; close one and try again"))
            await self._hang_up(writer)
        except (OSError, TimeoutError) as error:
            _log.debug("json client lost", error=str(error) or type(error).__name__)
        finally:
            writer.transport.abort()
            del self._open[writer]
            over.set()

    async def close(self) -> None:
        """All connections are cut off. What their calls were doing is done or not, as with any lost connection."""
        waiting = list(self._open.values())
        for writer in self._open:
            writer.transport.abort()
        try:
            async with asyncio.timeout(_CLOSE_DEADLINE_S):
                for over in waiting:
                    await over.wait()
        except TimeoutError:
            _log.warning("json clients still busy at the end", clients=len(self._open))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = _Lines()
        while True:
            async with asyncio.timeout(self._limits.idle_deadline_s):
                chunk = await reader.read(_READ_BYTES)
            for line in lines.feed(chunk) if chunk else lines.end():
                await self._send(writer, await _answer(self._calls, line))
            if not chunk:
                return

    async def _send(self, writer: asyncio.StreamWriter, answer: dict[str, str]) -> None:
        writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        async with asyncio.timeout(self._limits.write_deadline_s):
            await writer.drain()
        # A client that sends without end must not keep the others waiting.
        await asyncio.sleep(0)

    async def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.write_deadline_s):
            writer.close()
            await writer.wait_closed()


class _TooLong:
    pass


class _Lines:
    """Bytes as they come → whole lines; one that is too long becomes _TooLong at once and is skipped to its end."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> Iterator[bytes | _TooLong]:
        *whole, begun = chunk.split(b"\n")
        for piece in whole:
            yield from self._add(piece)
            if not self._skipping:
                yield bytes(self._begun)
            self._begun.clear()
            self._skipping = False
        yield from self._add(begun)

    def end(self) -> Iterator[bytes]:
        """The half line that the end of the stream left."""
        if self._begun:
            yield bytes(self._begun)

    def _add(self, piece: bytes) -> Iterator[_TooLong]:
        if self._skipping:
            return
        self._begun += piece
        if len(self._begun) > MAX_LINE_BYTES:
            self._begun.clear()
            self._skipping = True
            yield _TooLong()


async def _answer(calls: Calls, line: bytes | _TooLong) -> dict[str, str]:
    """The one answer to this line. Whatever goes wrong becomes one too."""
    try:
        call = _parse(calls, line)
        async with asyncio.timeout(CALL_DEADLINE_S):
            answer = await call()
    except Refused as refused:
        return _error(refused.code, refused.message)
    except TimeoutError:
        return _error("Unavailable", f"no answer within {CALL_DEADLINE_S:g} s; ask GetStatus whether it was done")
    except Exception:  # noqa: BLE001 - see below; it is logged whole
        # A bug in one call must end neither the connection nor the agent.
        _log.exception("json call failed")
        return _error("Unavailable", "the agent failed inside; its log says why")
    return {"type": "Status", "id": answer.id, "state": answer.state}


def _error(code: Code, message: str) -> dict[str, str]:
    return {"type": "Error", "code": code, "message": message}


_Call = Callable[[], Awaitable[Answer]]
_TYPES = "StartWorkload, GetStatus or StopWorkload"


def _parse(calls: Calls, line: bytes | _TooLong) -> _Call:
    """The call that the line asks for. Refused when it asks for none."""
    if isinstance(line, _TooLong):
        raise _invalid(f"the line is longer than {MAX_LINE_BYTES} bytes")
    message = _object(line)
    match message.get("type"):
        case "StartWorkload":
            workload = _workload(_only(message, "workload"))
            return lambda: calls.start_by_hand(workload)
        case "StopWorkload":
            id_ = _id(_only(message, "id"))
            return lambda: calls.stop(id_)
        case "GetStatus":
            id_ = _id(_only(message, "id"))
            return lambda: calls.get_status(id_)
        case None:
            raise _invalid(f"type: is missing; use {_TYPES}")
        case other:
            raise _invalid(f"type: {_shown(other)} is unknown; use {_TYPES}")


def _object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        message = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _invalid(f"not a JSON object: byte {error.start + 1} is not UTF-8") from error
    except RecursionError as error:
        raise _invalid("not a JSON object that anybody means: it nests too deeply") from error
    except ValueError as error:
        raise _invalid("not a JSON object") from error
    if not isinstance(message, dict):
        raise _invalid("not a JSON object")
    return message


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _invalid(f"{_shown(name)} is given twice; remove one")
        fields[name] = value
    return fields


def _no_constant(name: str) -> NoReturn:
    # Python's parser takes NaN and Infinity, JSON doesn't.
    raise ValueError(name)


def _only(message: dict[str, Any], field: str) -> Any:
    unknown = message.keys() - {"type", field}
    if unknown:
        raise _invalid(f"{_shown(min(unknown))} is no field here; use type and {field}")
    if field not in message:
        raise _invalid(f"{field}: is missing")
    return message[field]


_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}")


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _invalid(f"id: {_shown(value)} is neither a workload's id nor an allocation's")
    return value


def _workload(value: Any) -> WorkloadManifest:
    if not isinstance(value, dict):
        raise _invalid(f"workload: {_shown(value)} is not an object")
    try:
        workload = WorkloadManifest.model_validate(value)
    except ValidationError as error:
        problems = explain(error, WorkloadManifest, limit=_PROBLEMS_TOLD)
        told = [f"workload.{problem.path}: {problem.message}" for problem in problems]
        raise _invalid("; ".join(told)) from error
    for field in sorted(_NEEDS_CONTROLLER & workload.model_fields_set):
        if getattr(workload, field) != WorkloadManifest.model_fields[field].get_default(call_default_factory=True):
            raise _invalid(f"workload.{field}: needs a controller, and this starts one run by hand; remove it")
    return workload


_PROBLEMS_TOLD = 10
"""Nobody reads more; and a line can hold a hundred thousand."""

_NEEDS_CONTROLLER = {"replicas", "node_selector", "max_unavailable", "on_disconnect"}
"""What only a controller can do; taken here, it would be dropped in silence."""


def _shown(value: Any) -> str:
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case str():
            return json.dumps(value if len(value) <= 80 else f"{value[:77]}...")
        case _:
            return json.dumps(value)[:80]


def _invalid(message: str) -> Refused:
    return Refused("InvalidArgument", message)
