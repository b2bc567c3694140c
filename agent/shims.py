"""How containers ended while containerd was down, asked of their shims before the next containerd starts.

A starting containerd takes the shim of a container that has ended for one that leaked, ends it without asking, and
then tells exit code 255 of the container. The shim alone knows better until then.

One rule: nothing but questions is sent, and no answer in time means that nothing is known.
"""

import socket
import struct
import time
from collections.abc import Iterator

from agent.notes import NotedEnd, Notes
from agent.places import Places
from kakuri.log import get_logger

_ANSWER_DEADLINE_S = 1.0
_BOUND_S = 5.0
"""For all shims together: longer, and the node has no runtime for as long."""
_REQUEST, _RESPONSE = 1, 2  # ttrpc's message types
_HEADER = struct.Struct(">IIBB")  # length, stream, type, flags
_MAX_ANSWER_BYTES = 1 << 20
_STOPPED = 3  # containerd.v1.types.Status
_log = get_logger("shims")


def note_ends(places: Places, notes: Notes) -> None:
    """The ends that containerd is about to forget are on record. Call it while no containerd runs. Blocks."""
    deadline = time.monotonic() + _BOUND_S
    for bundle in places.bundles.glob("*"):
        if time.monotonic() > deadline:
            _log.warning("shims not asked", why=f"the others took {_BOUND_S:g} s")
            return
        try:
            address = (bundle / "address").read_text().strip().removeprefix("unix://")
            end = _ask_end(address, bundle.name)
            if end is not None:
                notes.keep_end(bundle.name, end)
                _log.info("end noted", container=bundle.name, exit_code=end.exit_code)
        except (OSError, ValueError, IndexError) as error:
            _log.info("shim not asked", container=bundle.name, error=str(error))


def _ask_end(address: str, container_id: str) -> NotedEnd | None:
    """None: it has not ended."""
    query = _field(1, container_id.encode())
    request = _field(1, b"containerd.task.v2.Task") + _field(2, b"State") + _field(3, query)
    with socket.socket(socket.AF_UNIX) as shim:
        shim.settimeout(_ANSWER_DEADLINE_S)
        shim.connect(address)
        shim.sendall(_HEADER.pack(len(request), 1, _REQUEST, 0) + request)
        length, _, kind, _ = _HEADER.unpack(_read(shim, _HEADER.size))
        if kind != _RESPONSE or length > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of type {kind} and {length} bytes")
        response = dict(_fields(_read(shim, length)))
    return _end_of(dict(_fields(_bytes(response.get(2)))))


def _end_of(state: dict[int, int | bytes]) -> NotedEnd | None:
    if state.get(4) != _STOPPED:
        return None
    exited_at = dict(_fields(_bytes(state.get(10))))
    return NotedEnd(
        exit_code=_number(state.get(9)),
        finished_at_ns=_number(exited_at.get(1)) * 1_000_000_000 + _number(exited_at.get(2)),
    )


def _read(shim: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        part = shim.recv(length - len(got))
        if not part:
            raise ValueError("the shim hung up")
        got += part
    return got


# The few lines of protobuf that these messages need, for containerd's own are no part of CRI.


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Raises ValueError or IndexError when it is none."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        match key & 7:
            case 0:
                yield key >> 3, value
            case 2 if at + value <= len(message):
                yield key >> 3, message[at : at + value]
                at += value
            case kind:
                raise ValueError(f"a field of wire type {kind} and {value} bytes")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _bytes(value: int | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else b""


def _number(value: int | bytes | None) -> int:
    return value if isinstance(value, int) else 0
