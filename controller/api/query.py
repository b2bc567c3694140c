"""Query parameters and headers: what each is called, how it is read, and how /openapi.json describes it.

One rule: what is not understood is refused with what would be right; a parameter is never ignored.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from controller.api.problem import bad_request
from kakuri.model.fields import MAX_NAME
from kakuri.selector import Selector, SelectorError, parse_selector

DEFAULT_LIMIT = 500
MAX_LIMIT = 1000
"""Objects a page. More makes one answer, and one read of the store, long for everybody else."""
MAX_SELECTOR = 4096
MAX_TAIL = 10_000_000
_MAX_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter as the route table names it."""

    name: str
    schema: Mapping[str, Any]
    description: str
    where: Literal["query", "path", "header"] = "query"


NAME = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
_FLAG = {"type": "string", "enum": ["0", "1", "false", "true"]}

ID = Param("id", {"type": "string", "minLength": 1, "maxLength": 253}, "The object's id.", "path")
SELECTOR = Param("selector", {"type": "string", "maxLength": MAX_SELECTOR}, "Labels: `app=web,tier!=db,canary,!old`.")
LIMIT = Param(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "At most so many objects in this page.",
)
CONTINUE = Param("continue", {"type": "string"}, "The `continue` of the page before, with its other parameters.")
WATCH = Param("watch", _FLAG, "1: changes as newline JSON instead of a page.")
RESOURCE_VERSION = Param(
    "resource_version",
    {"type": "string", "pattern": "^[0-9]{1,19}$"},
    "With watch: changes after this one. Without it: first all present objects, then a BOOKMARK, then changes.",
)
DRY_RUN = Param("dry_run", _FLAG, "1: judge everything and say what would be done, but write nothing.")
FORCE = Param("force", _FLAG, "1: at once, whatever still runs; nodes end that when they can be told.")
FOLLOW = Param("follow", _FLAG, "1: go on with what is written from now on.")
PREVIOUS = Param("previous", _FLAG, "1: of the attempt before the present one.")
TAIL = Param("tail", {"type": "integer", "minimum": -1, "maximum": MAX_TAIL}, "The last so many lines; -1: all.")
IF_MATCH = Param("If-Match", {"type": "string"}, 'The ETag that the object must have, or "*" for any.', "header")
IF_NONE_MATCH = Param("If-None-Match", {"const": "*"}, '"*": create only, 409 when the id exists.', "header")
LISTING = (LIMIT, CONTINUE, WATCH, RESOURCE_VERSION)


@dataclass(frozen=True, slots=True)
class Where:
    """Which objects of a kind are asked for."""

    selector: Selector = field(default_factory=Selector)
    terms: Mapping[str, str] = field(default_factory=dict)
    """Other filters by the parameter's name."""

    def __bool__(self) -> bool:
        return bool(self.selector) or bool(self.terms)


def check_known(request: web.Request, known: Collection[str]) -> None:
    """Raises Problem 400 for a query parameter that the route does not have, or that is given twice."""
    for name in request.query:
        if name not in known:
            use = f"use {', '.join(sorted(known))}" if known else "there are none here"
            raise bad_request(f"the query parameter {name[:80]!r} is not known here; {use}")
        if len(request.query.getall(name)) > 1:
            raise bad_request(f"the query parameter {name!r} is given twice; keep one of them")


def read_where(request: web.Request, filters: Collection[Param]) -> Where:
    """What of the filters the request gives."""
    terms = {
        param.name: _plain(param, request.query[param.name])
        for param in filters
        if param is not SELECTOR and param.name in request.query
    }
    text = request.query.get("selector", "")
    if len(text) > MAX_SELECTOR:
        raise bad_request(f"selector is over {MAX_SELECTOR} characters; select by fewer labels")
    try:
        selector = parse_selector(text)
    except SelectorError as error:
        raise bad_request(f"selector: {str(error)[:400]}") from None
    return Where(selector, terms)


def read_flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in {"0", "1", "false", "true"}:
        raise bad_request(f"{name} is {value[:80]!r}; use 1 or 0")
    return value in {"1", "true"}


def read_int(request: web.Request, name: str, *, default: int, least: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII) or not least <= int(text) <= most:
        raise bad_request(f"{name} is {text[:80]!r}; use a whole number from {least} to {most}")
    return int(text)


def read_resource_version(request: web.Request) -> int | None:
    if "resource_version" not in request.query:
        return None
    return read_int(request, "resource_version", default=0, least=0, most=_MAX_INT64)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins. resource_version: of the first page, so that a watch from it misses nothing of any page."""

    after: str
    resource_version: int


def write_cursor(cursor: Cursor, scope: str) -> str:
    """An opaque token. scope: what the pages are of; the token is good for nothing else."""
    payload = json.dumps([cursor.after, cursor.resource_version, _seal(cursor, scope)], separators=(",", ":"))
    return base64.urlsafe_b64encode(payload.encode()).decode().rstrip("=")


def read_cursor(request: web.Request, scope: str) -> Cursor | None:
    token = request.query.get("continue")
    if token is None:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        match json.loads(raw):
            case [str() as after, int() as version, str() as seal]:
                cursor = Cursor(after, version)
                if seal == _seal(cursor, scope):
                    return cursor
            case _:
                pass
    except (binascii.Error, ValueError, RecursionError):
        pass
    raise bad_request("continue is no token of this list; pass the one of the page before, with the same filters")


def scope_of(request: web.Request, cluster_id: str) -> str:
    """What a list is of: the cluster, the path and the filters."""
    chosen = sorted((k, v) for k, v in request.query.items() if k not in {"continue", "limit"})
    return json.dumps([cluster_id, request.path, chosen])


def _seal(cursor: Cursor, scope: str) -> str:
    # No secret: it keeps a token from being used with other filters, not from being forged.
    return hashlib.sha256(f"{cursor.after}\0{cursor.resource_version}\0{scope}".encode()).hexdigest()[:12]


def read_if_match(request: web.Request) -> str | None:
    """The ETag asked for, without its quotes; "*" for any; None when there is no If-Match."""
    text = request.headers.get("If-Match")
    if text is None:
        return None
    if text.strip() == "*":
        return "*"
    match = re.fullmatch(r'\s*"([\x21\x23-\x7e]{1,200})"\s*', text)
    if match is None:
        raise bad_request(f'If-Match is {text[:80]!r}; use one ETag in quotes, as GET sent it, or "*" without quotes')
    return match[1]


def read_create_only(request: web.Request) -> bool:
    text = request.headers.get("If-None-Match")
    if text is None:
        return False
    if text.strip() != "*":
        raise bad_request(f"If-None-Match is {text[:80]!r}; only * is of use here: create, never replace")
    return True


def _plain(param: Param, value: str) -> str:
    allowed = param.schema.get("enum")
    if allowed and value not in allowed:
        raise bad_request(f"{param.name} is {value[:80]!r}; use {' or '.join(allowed)}")
    # Ids are ASCII; what else comes here would select nothing, and NUL upsets databases.
    if not value or len(value) > MAX_NAME or not value.isascii() or not value.isprintable():
        raise bad_request(f"{param.name} is {value[:80]!r}; use an id, of at most {MAX_NAME} characters")
    return value
