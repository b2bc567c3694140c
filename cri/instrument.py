"""One wrapper for every call to a runtime: a debug line, its error mapped.

One rule: a fault that lasts is a warning once a minute, however many calls meet it.
"""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from cri.errors import AlreadyExists, CriError, NotFound, Unimplemented, from_grpc
from kakuri.log import OncePer, get_logger

_log = get_logger("cri")
_Response = TypeVar("_Response")

_EXPECTED = (NotFound, AlreadyExists, Unimplemented)
"""Answers that callers reckon with; no fault of the runtime, so no warning."""


class Instrument:
    """Carries out calls to one endpoint."""

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, monotonic."""
        self._log = _log.bind(endpoint=endpoint)
        self._clock = clock
        self._once = OncePer(60, clock)

    async def __call__(self, method: str, call: Awaitable[_Response]) -> _Response:
        """What the call answers; CriError when it fails."""
        began = self._clock()
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            raise self._failed(method, began, error) from error
        self._log.debug("cri call", method=method, duration_s=round(self._clock() - began, 4), outcome="ok")
        return response

    def _failed(self, method: str, began: float, error: grpc.aio.AioRpcError) -> CriError:
        mapped = from_grpc(method, error.code(), error.details() or "")
        fields = {
            "method": method,
            "duration_s": round(self._clock() - began, 4),
            "outcome": mapped.reason,
            "error": mapped.message,
        }
        if not isinstance(mapped, _EXPECTED) and self._once(f"{method} {mapped.reason}"):
            self._log.warning("cri call failed", **fields)
        else:
            self._log.debug("cri call", **fields)
        return mapped
