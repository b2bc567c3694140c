"""One server over HTTP: requests that are sent again where that is safe, and errors in words.

One rule: whatever goes wrong is one of these, and nothing of aiohttp's.

    ClientError
    ├── ServerUnreachable   no answer: where it looked, and why
    └── ApiError            an answer that is an error: status, reason, detail, errors by field
"""

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

Object = dict[str, Any]

CONNECT_S = 2.0
"""On loopback a refusal comes at once; this is for a machine that answers nothing."""
ANSWER_S = 30.0
"""For a whole answer. A page takes milliseconds; a store that waits for a lock may take seconds."""
_MAX_LINE = 16 * 1024 * 1024


class ClientError(Exception):
    """Why there is no result, in words."""


class ServerUnreachable(ClientError):  # noqa: N818 - what the server is
    """No answer came, or it broke off."""

    def __init__(self, server: str, why: str, *, connected: bool = False) -> None:
        super().__init__(f"no kakuri server answers at {server}: {why}")
        self.server = server
        self.why = why
        self.connected = connected
        """The request may have reached the server."""


@dataclass(frozen=True, slots=True)
class FieldError:
    pointer: str
    """RFC 6901, into what was sent."""
    message: str


class ApiError(ClientError):
    """The server's own words (RFC 9457). reason is for programs, detail for people."""

    def __init__(self, status: int, reason: str, detail: str, errors: Iterable[FieldError] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.errors = tuple(errors)


class Connection:
    """To one server, between open() and close()."""

    def __init__(self, server: str, *, retry_s: float) -> None:
        self.server = (server if "://" in server else f"http://{server}").rstrip("/")
        self._retry_s = retry_s
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            headers={"Accept": "application/json"},
            timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S),
            read_bufsize=_MAX_LINE,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
    ) -> Object:
        """The whole answer, within answer_s."""
        async with self.response(
            method, path, query=query or {}, body=body, headers=headers, answer_s=answer_s
        ) as response:
            with self.reading():
                text = await response.read()
            if not text:
                return {}
            value = _object(text)
            if value is None:
                raise self._not_kakuri(response)
            return value

    @asynccontextmanager
    async def response(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
        silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good response. Raises ServerUnreachable or ApiError. answer_s: for all of it; silence_s: between two parts
        of it. None: however long it takes."""
        timeout = aiohttp.ClientTimeout(total=answer_s, sock_connect=CONNECT_S, sock_read=silence_s)
        response = await self._request(method, path, params=query, json=body, headers=headers, timeout=timeout)
        try:
            if response.status >= 400:
                raise await self._error(response)
            yield response
        finally:
            response.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """An answer that breaks off is a server that is lost."""
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnreachable(self.server, _why(error), connected=True) from error

    async def lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        with self.reading():
            async for line in response.content:
                yield line

    async def _request(self, method: str, path: str, **how: Any) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("use the client as an async context")
        try:
            return await self._once(method, path, how)
        except ServerUnreachable as error:
            # Where nothing was connected nothing can have been done, so even a POST may be sent again.
            if error.connected or self._retry_s <= 0:
                raise
        return await self._again(method, path, how)

    async def _again(self, method: str, path: str, how: Mapping[str, Any]) -> aiohttp.ClientResponse:
        import stamina  # noqa: PLC0415 - rarely needed, and the command line starts often

        def refused(error: Exception) -> bool:
            return isinstance(error, ServerUnreachable) and not error.connected

        stamina.instrumentation.set_on_retry_hooks([])  # by default they write to stdout, which is for data
        async for attempt in stamina.retry_context(
            on=refused, attempts=None, timeout=self._retry_s, wait_initial=0.1, wait_max=0.3, wait_jitter=0
        ):
            with attempt:
                return await self._once(method, path, how)
        raise AssertionError("a retry ends by returning or raising")

    async def _once(self, method: str, path: str, how: Mapping[str, Any]) -> aiohttp.ClientResponse:
        assert self._session is not None
        try:
            return await self._session.request(method, self.server + path, allow_redirects=False, **how)
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise ServerUnreachable(self.server, _why(error), connected=not connecting) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            raise ServerUnreachable(self.server, "that is no address; write http://host:port") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnreachable(self.server, _why(error), connected=True) from error

    async def _error(self, response: aiohttp.ClientResponse) -> ApiError:
        try:
            problem = _object(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError):
            problem = None
        return self._not_kakuri(response) if problem is None else _problem(response.status, problem)

    def _not_kakuri(self, response: aiohttp.ClientResponse) -> ApiError:
        detail = f"{self.server} answered {response.status} with {response.content_type}; is that a kakuri server?"
        return ApiError(response.status, "NotKakuri", detail)


def _object(text: bytes) -> Object | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _problem(status: int, problem: Object) -> ApiError:
    detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
    errors = [FieldError(str(e.get("pointer", "")), str(e.get("detail", ""))) for e in problem.get("errors", [])]
    return ApiError(status, str(problem.get("reason", "")), detail, errors)


def _why(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "there is no host of that name"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno  # its own text is only the address
            return os.strerror(number).lower() if number else str(error.os_error).lower()
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "it closed the connection"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return str(error) or type(error).__name__
