"""The route table: all that the API answers, in one place. The router and /openapi.json are both made from it."""

from functools import partial
from typing import Any, Protocol

from aiohttp import web

from controller.api import health, node_acts, objects, restore
from controller.api.allocations import ALLOCATIONS, read_logs
from controller.api.apply import apply
from controller.api.context import Api
from controller.api.events import EVENTS
from controller.api.nodes import NODES, register
from controller.api.query import (
    DRY_RUN,
    FOLLOW,
    FORCE,
    ID,
    IF_MATCH,
    IF_NONE_MATCH,
    LISTING,
    PREVIOUS,
    TAIL,
)
from controller.api.resource import Resource
from controller.api.route import JSON, Answer, Handler, Ref, Route
from controller.api.runtime_classes import RUNTIME_CLASSES
from controller.api.watching import CONTENT_TYPE as NDJSON
from controller.api.workloads import WORKLOADS, explain
from kakuri import metrics

RESOURCES: tuple[Resource[Any], ...] = (WORKLOADS, ALLOCATIONS, NODES, RUNTIME_CLASSES, EVENTS)


class Shared(Protocol):
    """A verb that kinds share, before it is told which."""

    async def __call__(self, api: Api, request: web.Request, resource: Resource[Any]) -> web.StreamResponse: ...


_BODY = (400, 408, 413, 415, 422)
_OK = Answer("It is so.", {JSON: {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}})


def _of(verb: Shared, resource: Resource[Any]) -> Handler:
    return partial(verb, resource=resource)


def _reads(resource: Resource[Any], plural: str) -> list[Route]:
    kind = resource.kind
    page = Answer("A page, in the order of ids.", {JSON: Ref(f"{kind}Page"), NDJSON: Ref(f"{kind}Change")})
    headers = ("ETag",) if resource in (WORKLOADS, NODES, RUNTIME_CLASSES) else ()
    return [
        Route(
            "GET",
            resource.path,
            f"list{plural}",
            _of(objects.read_many, resource),
            f"A page of {plural}, or their changes as newline JSON.",
            {200: page},
            (400, 410),
            (*resource.filters, *LISTING),
        ),
        Route(
            "GET",
            f"{resource.path}/{{id}}",
            f"get{kind}",
            _of(objects.read_one, resource),
            f"One {kind}.",
            {200: Answer("The object.", {JSON: Ref(kind)}, headers)},
            (404,),
            (ID,),
        ),
    ]


def _writes(resource: Resource[Any]) -> list[Route]:
    kind = resource.kind
    created = Answer("Created.", {JSON: Ref(kind)}, ("ETag", "Location"))
    replaced = Answer("Replaced, or found to be the same.", {JSON: Ref(kind)}, ("ETag",))
    return [
        Route(
            "POST",
            resource.path,
            f"create{kind}",
            _of(objects.create, resource),
            f"Creates a {kind}{'; an id is made when the body has none' if resource is WORKLOADS else ''}.",
            {201: created},
            (*_BODY, 409),
            (),
            Ref(f"{kind}Body"),
        ),
        Route(
            "PUT",
            f"{resource.path}/{{id}}",
            f"put{kind}",
            _of(objects.put, resource),
            f"Creates or replaces a {kind}.",
            {200: replaced, 201: created},
            (*_BODY, 404, 409),
            (ID, IF_MATCH, IF_NONE_MATCH),
            Ref(f"{kind}Body"),
        ),
        Route(
            "DELETE",
            f"{resource.path}/{{id}}",
            f"delete{kind}",
            _of(objects.delete, resource),
            f"Deletes a {kind}.",
            {
                200: Answer("It is gone.", {JSON: Ref("Gone")}),
                202: Answer("It goes when what runs for it has ended.", {JSON: Ref(kind)}, ("ETag",)),
            },
            (400, 404, 409),
            (ID, IF_MATCH, FORCE) if resource is WORKLOADS else (ID, IF_MATCH),
        ),
    ]


ROUTES: tuple[Route, ...] = (
    *_reads(WORKLOADS, "Workloads"),
    *_writes(WORKLOADS),
    Route(
        "GET",
        "/workloads/{id}/explanation",
        "explainWorkload",
        explain,
        "Which nodes would take one more allocation of it now, and why the others would not.",
        {200: Answer("Each node.", {JSON: Ref("Explanation")})},
        (404,),
        (ID,),
    ),
    *_reads(NODES, "Nodes"),
    *_writes(NODES),
    Route(
        "PUT",
        "/nodes/{id}/registration",
        "registerNode",
        register,
        "For agents: what this node is and offers. Never changes what users own.",
        {200: Answer("The node.", {JSON: Ref("Node")}, ("ETag",))},
        (*_BODY, 404, 409),
        (ID,),
        Ref("NodeRegistration"),
    ),
    Route(
        "POST",
        "/nodes/{id}/drain",
        "drainNode",
        node_acts.drain,
        "Cordons the node and has what runs there moved elsewhere, within each workload's max_unavailable.",
        {202: Answer("How far it has come.", {JSON: Ref("DrainProgress")})},
        (*_BODY, 404, 409),
        (ID,),
        Ref("DrainBody"),
    ),
    Route(
        "GET",
        "/nodes/{id}/drain",
        "readDrain",
        node_acts.read_drain,
        "What is left on the node and why, and what was moved and does not run yet.",
        {200: Answer("How far it has come.", {JSON: Ref("DrainProgress")})},
        (404,),
        (ID,),
    ),
    Route(
        "DELETE",
        "/nodes/{id}/drain",
        "endDrain",
        node_acts.end_drain,
        "Ends a drain; the node stays cordoned.",
        {200: Answer("The node.", {JSON: Ref("Node")}, ("ETag",))},
        (404,),
        (ID,),
    ),
    Route(
        "POST",
        "/nodes/{id}/forget",
        "forgetNode",
        node_acts.forget,
        "Gives up a node that is gone, and what it had: that is replaced elsewhere, and ended there if it is back.",
        {200: Answer("It is forgotten.", {JSON: Ref("Gone")})},
        (404, 409),
        (ID,),
    ),
    Route(
        "POST",
        "/nodes/{id}/release",
        "releaseNode",
        node_acts.release,
        "Has the node's agent let go of the cluster that holds it, so that another one's controller may have it.",
        {
            200: Answer("It is released.", {JSON: Ref("ReleaseAnswer")}),
            202: Answer("What is left there is being ended; ask again.", {JSON: Ref("ReleaseAnswer")}),
        },
        (*_BODY, 404, 409),
        (ID,),
        Ref("ReleaseBody"),
    ),
    *_reads(RUNTIME_CLASSES, "RuntimeClasses"),
    *_writes(RUNTIME_CLASSES),
    *_reads(ALLOCATIONS, "Allocations"),
    Route(
        "GET",
        "/allocations/{id}/logs",
        "readLogs",
        read_logs,
        "What the container wrote, from its agent.",
        {200: Answer("The log.", {"text/plain": {"type": "string"}})},
        (400, 404),
        (ID, FOLLOW, TAIL, PREVIOUS),
    ),
    *_reads(EVENTS, "Events"),
    Route(
        "POST",
        "/apply",
        "apply",
        apply,
        "Puts and deletes many objects in one transaction: all or none.",
        {200: Answer("What each came to, objects first.", {JSON: Ref("ApplyAnswer")})},
        (*_BODY, 404, 409),
        (DRY_RUN,),
        Ref("ApplyBody"),
    ),
    Route(
        "GET",
        "/restore",
        "readHold",
        restore.read_hold,
        "Whether the database was restored and waits to be confirmed, and how it differs from the nodes.",
        {200: Answer("It waits.", {JSON: Ref("Hold")})},
        (404,),
    ),
    Route(
        "POST",
        "/restore/confirm",
        "confirmRestore",
        restore.confirm,
        "Has the restored database count: what it does not know is ended, what is missing is replaced.",
        {200: _OK},
        (*_BODY, 404, 409),
        (),
        Ref("ConfirmBody"),
    ),
    Route("GET", "/healthz", "healthz", health.alive, "The process is alive.", {200: _OK}),
    Route("GET", "/readyz", "readyz", health.ready, "Requests can be served now.", {200: _OK}),
    Route(
        "GET",
        "/metrics",
        "metrics",
        health.show_metrics,
        "For Prometheus.",
        {200: Answer("The metrics.", {metrics.CONTENT_TYPE.partition(";")[0]: {"type": "string"}})},
    ),
    Route(
        "GET",
        "/version",
        "version",
        health.show_version,
        "The server's version, and which cluster it is.",
        {200: Answer("Both.", {JSON: Ref("Version")})},
    ),
    Route(
        "GET",
        "/openapi.json",
        "openapi",
        health.show_description,
        "This description.",
        {200: Answer("OpenAPI 3.1.", {JSON: {"type": "object"}})},
    ),
)
