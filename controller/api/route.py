"""One line of the route table: what is called, and what /openapi.json says of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from controller.api.context import Api
from controller.api.query import Param

Handler = Callable[[Api, web.Request], Awaitable[web.StreamResponse]]
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Ref:
    """A schema by its name under components."""

    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """content: a schema by media type; empty for an answer without a body."""

    description: str
    content: Mapping[str, Ref | Mapping[str, Any]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    name: str
    """operationId."""
    handle: Handler
    summary: str
    answers: Mapping[int, Answer]
    problems: tuple[int, ...] = ()
    """Statuses of errors beyond those that every route may answer."""
    params: tuple[Param, ...] = ()
    body: Ref | None = None

    @property
    def query_names(self) -> frozenset[str]:
        return frozenset(p.name for p in self.params if p.where == "query")
