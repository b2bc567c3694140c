"""Every error of the API, as RFC 9457 says: application/problem+json.

One rule: errors become HTTP here and nowhere else. Handlers raise Problem or let a StoreError pass.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from controller.api.ports import AgentError, AgentRefused, AgentUnreachable, LogsNotFound
from controller.store import contract
from controller.store.contract import StoreError

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""Said with a 503. Too low and a full disk is hammered; too high and clients miss that it is writable again."""
MAX_ERRORS = 100
"""Errors told in one answer. Nobody reads more, and 5,000 bad objects would make megabytes."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """pointer: RFC 6901, into the body."""

    pointer: str
    detail: str


@dataclass
class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """An answer that is an error. reason is for programs, detail for people."""

    status: int
    reason: str
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.detail


def bad_request(detail: str, *, reason: str = "BadRequest") -> Problem:
    return Problem(400, reason, detail)


def invalid(errors: Sequence[FieldError]) -> Problem:
    """422 with all that is wrong, at once."""
    shown = list(errors[:MAX_ERRORS])
    count = f"{len(errors)} fields are" if len(errors) != 1 else "1 field is"
    more = f"; the first {MAX_ERRORS} are told" if len(errors) > MAX_ERRORS else ""
    first = shown[0]
    return Problem(422, "Invalid", f"{count} invalid{more}: {first.pointer or 'the body'} {first.detail}", shown)


def answer(problem: Problem) -> web.Response:
    body: dict[str, Any] = {
        "type": f"urn:kakuri:problem:{problem.reason}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "reason": problem.reason,
    }
    if problem.errors:
        body["errors"] = [{"pointer": e.pointer, "detail": e.detail} for e in problem.errors]
    # Written as ASCII: what a client sent may be echoed here, lone surrogates included.
    text = json.dumps(body, separators=(",", ":"))
    return web.Response(
        status=problem.status, body=text.encode("ascii"), content_type=CONTENT_TYPE, headers=dict(problem.headers)
    )


_STATUS: Mapping[type[StoreError], int] = {
    contract.NotFound: 404,
    contract.AlreadyExists: 409,
    contract.Terminating: 409,
    contract.Stale: 409,
    contract.InUse: 409,
    contract.Held: 409,
    contract.Invalid: 422,
    contract.Expired: 410,
    contract.Unavailable: 503,
}

Place = Callable[[StoreError], str]
"""Where in the body an error of the store is about: a JSON pointer."""


def of_store(error: StoreError, place: Place = lambda error: error.pointer) -> Problem:
    """The store's error as an answer. An error that no request can cause is a 500 without its words."""
    status = _STATUS.get(type(error), 503 if error.temporary else 500)
    if status == 500:
        return internal()
    pointer = place(error)
    about_body = status == 422 or (error.index is not None and bool(pointer))
    errors = [FieldError(pointer, error.message)] if about_body else []
    return Problem(status, error.reason, error.message, errors, _retry(status))


def of_agent(error: AgentError) -> Problem:
    match error:
        case LogsNotFound():
            return Problem(404, "LogsNotFound", error.message)
        case AgentUnreachable():
            return Problem(503, "AgentUnreachable", error.message, headers=_retry(503))
        case AgentRefused():
            return Problem(409, "AgentRefused", error.message)
        case _:
            return internal()


def of_aiohttp(error: web.HTTPException, request: web.Request) -> Problem:
    """The router's own refusals, in our shape."""
    match error:
        case web.HTTPNotFound():
            return Problem(404, "NotFound", f"there is no {request.path[:200]}; /openapi.json lists what there is")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            detail = f"{request.method} is not for {request.path[:200]}; use {allowed}"
            return Problem(405, "MethodNotAllowed", detail, headers={"Allow": allowed})
        case _:
            return Problem(error.status, error.reason.replace(" ", ""), error.text or error.reason)


def internal() -> Problem:
    return Problem(500, "InternalError", "an error of the server's own; its log says more")


def _retry(status: int) -> Mapping[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
