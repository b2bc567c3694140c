"""A request's body, from bytes on the wire to a JSON value that holds nothing surprising.

One rule: a body is understood whole or refused; what is cut off, ambiguous (a key given twice) or not writable again
(NaN, half of a surrogate pair) reaches no model.
"""

import asyncio
import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from controller.api.problem import Problem, bad_request

MIB = 1024 * 1024
MAX_OBJECT_BYTES = MIB
MAX_APPLY_BYTES = 16 * MIB
READ_S = 30.0
"""For the whole body. Too low cuts off a slow line's big apply; too high lets idle senders hold connections."""
MAX_DEPTH = 32
"""Objects of ours nest four deep; a thousand would exhaust the stack of whoever walks the value."""
_IN_THREAD_BYTES = 128 * 1024
"""From here on parsing takes milliseconds, which other requests should not wait for."""
_SUSPECT = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")


async def read_json(request: web.Request, *, limit: int) -> object:
    """The JSON value of the body. Raises Problem 400, 408, 413 or 415."""
    _check_type(request)
    text = await _read(request, limit)
    if len(text) >= _IN_THREAD_BYTES:
        return await asyncio.to_thread(parse_json, text)
    return parse_json(text)


def parse_json(raw: bytes) -> object:
    """The value, when it is JSON by the letter of RFC 8259, each key once. Raises Problem 400."""
    if not raw.strip():
        raise _unreadable("the body is empty; send a JSON object")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(f"the body is not UTF-8: byte {error.start} does not fit") from None
    try:
        value: object = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise _unreadable(f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses more digits than sys.get_int_max_str_digits()
        raise _unreadable("the body has a number of thousands of digits; write a smaller one") from None
    _check_depth(value)
    if _SUSPECT.search(raw):
        _check_strings(value)
    return value


def _check_type(request: web.Request) -> None:
    if request.content_type != "application/json" or "Content-Type" not in request.headers:
        given = request.headers.get("Content-Type", "none")[:80]
        raise Problem(415, "UnsupportedMediaType", f"the content type is {given}; send application/json")
    charset = (request.charset or "utf-8").lower()
    if charset not in {"utf-8", "utf8"}:
        raise Problem(415, "UnsupportedMediaType", f"the charset is {charset[:80]}; send utf-8")
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise Problem(415, "UnsupportedMediaType", f"the content encoding is {encoding[:80]}; send it as it is")


async def _read(request: web.Request, limit: int) -> bytes:
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(408, "RequestTimeout", f"the body did not arrive within {READ_S:g} s; send it again") from None
    except (ClientPayloadError, HttpProcessingError, ConnectionError, web.RequestPayloadError):
        raise _unreadable("the body was cut off; send it again") from None
    return b"".join(chunks)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise _unreadable(f"the key {twice[:80]!r} is given twice in one object; keep one of them")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _unreadable(f"{name} is not JSON; write a number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _unreadable(f"the number {text[:40]} is too large to hold; write a smaller one")
    return number


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent if type(parent) is list else ())
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise _too_deep()


def _check_strings(value: object) -> None:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                if "\x00" in text:
                    raise _unreadable("the body has a NUL character (\\u0000) in a text; remove it")
                if any("\ud800" <= c <= "\udfff" for c in text):
                    raise _unreadable("the body has half of a surrogate pair in a text; write the whole character")
            case dict() as members:
                waiting += members.keys()
                waiting += members.values()
            case list() as items:
                waiting += items
            case _:
                pass


def _too_large(limit: int) -> Problem:
    return Problem(413, "TooLarge", f"the body is over {limit // MIB} MiB; split it")


def _too_deep() -> Problem:
    return _unreadable(f"the body nests deeper than {MAX_DEPTH} levels; no object of kakuri does")


def _unreadable(detail: str) -> Problem:
    return bad_request(detail, reason="Unreadable")
