"""The API's description as OpenAPI 3.1, made from the route table and the models.

One rule: nothing is described here that the table or a model says already.
"""

import copy
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from controller.api.apply import MAX_WRITES
from controller.api.node_acts import DrainBody, ReleaseBody
from controller.api.problem import CONTENT_TYPE as PROBLEM_JSON
from controller.api.query import NAME, Param
from controller.api.resource import Resource
from controller.api.restore import ConfirmBody
from controller.api.route import JSON, Answer, Ref, Route
from kakuri.model import NodeManifest, NodeRegistration, RuntimeClassManifest, WorkloadManifest
from kakuri.validation import SERVER_OWNED

_REF = "#/components/schemas/{model}"
_ALWAYS = (400, 500, 503)
"""Any route: an unknown query parameter, a fault of ours, a store that is away."""
_HEADERS = {
    "ETag": "uid and generation: changes with the spec alone, for If-Match.",
    "Location": "The path of the object.",
}
_MANIFESTS = {"Workload": WorkloadManifest, "Node": NodeManifest, "RuntimeClass": RuntimeClassManifest}


def describe(routes: Sequence[Route], resources: Sequence[Resource[Any]], version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kakuri",
            "version": version,
            "description": "Containers in strongly isolated sandboxes. Errors are RFC 9457 problems.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(resources)},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "responses": {
            **{str(status): _answer(answer) for status, answer in route.answers.items()},
            **{str(status): _problem(status) for status in sorted({*_ALWAYS, *route.problems})},
        },
    }
    if route.params:
        operation["parameters"] = [_param(p) for p in route.params]
    if route.body:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _schema(route.body)}}}
    return operation


def _param(param: Param) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": param.where,
        "required": param.where == "path",
        "description": param.description,
        "schema": dict(param.schema),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.content:
        described["content"] = {media: {"schema": _schema(schema)} for media, schema in answer.content.items()}
    if answer.headers:
        described["headers"] = {
            name: {"description": _HEADERS[name], "required": True, "schema": {"type": "string"}}
            for name in answer.headers
        }
    return described


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM_JSON: {"schema": _schema(Ref("Problem"))}},
    }


def _schema(schema: Ref | Any) -> dict[str, Any]:
    return {"$ref": _REF.format(model=schema.name)} if isinstance(schema, Ref) else dict(schema)


def _schemas(resources: Sequence[Resource[Any]]) -> dict[str, Any]:
    models: list[Any] = [(r.shown, "serialization") for r in resources]
    models += [(m, "validation") for m in (*_MANIFESTS.values(), NodeRegistration, DrainBody, ReleaseBody, ConfirmBody)]
    _, definitions = models_json_schema(models, ref_template=_REF)
    schemas: dict[str, Any] = definitions["$defs"]
    for resource in resources:
        schemas |= _listings(resource)
        if resource.kind in _MANIFESTS:
            schemas[f"{resource.kind}Body"] = _body(schemas[_MANIFESTS[resource.kind].__name__])
    return dict(sorted({**schemas, **_OWN}.items()))


def _listings(resource: Resource[Any]) -> dict[str, Any]:
    kind = resource.kind
    this = _schema(Ref(kind))
    named = {
        "type": "object",
        "properties": {"kind": {"const": kind}, "id": {"type": "string"}},
        "required": ["kind"],
    }
    version = {"type": "string", "pattern": "^[0-9]+$"}
    return {
        f"{kind}Page": {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": this},
                "resource_version": {**version, "description": "For ?watch=1&resource_version=: nothing is missed."},
                "continue": {"type": "string", "description": "For the next page; absent on the last."},
            },
            "required": ["items", "resource_version"],
            "additionalProperties": False,
        },
        f"{kind}Change": {
            "type": "object",
            "description": "One line of a watch. DELETED: gone, or not selected any more. BOOKMARK: all up to here.",
            "properties": {
                "type": {"enum": ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]},
                "object": {"anyOf": [this, named]},
                "resource_version": version,
            },
            "required": ["type", "object", "resource_version"],
            "additionalProperties": False,
        },
    }


def _body(manifest: dict[str, Any]) -> dict[str, Any]:
    """What may be sent: kind and id may be left out, what the server owns may be sent back, and is dropped."""
    body = copy.deepcopy(manifest)
    body["required"] = [name for name in body.get("required", []) if name not in {"id", "kind"}]
    if not body["required"]:
        del body["required"]
    for name in sorted(SERVER_OWNED):
        body["properties"][name] = {"readOnly": True, "description": "The server's own; dropped when sent."}
    body["title"] = body["title"].replace("Manifest", "Body")
    return body


def _applied(kind: str) -> dict[str, Any]:
    return {"allOf": [_schema(Ref(f"{kind}Body")), {"required": ["kind", "id"]}]}


_NAMED = {
    "type": "object",
    "properties": {"kind": {"enum": list(_MANIFESTS)}, "id": NAME},
    "required": ["kind", "id"],
    "additionalProperties": False,
}
_TEXT = {"type": "string"}


def _texts(*names: str, **others: Any) -> dict[str, Any]:
    """A list of objects with these texts, and with others that are none."""
    item = {"type": "object", "properties": {**dict.fromkeys(names, _TEXT), **others}, "required": [*names, *others]}
    return {"type": "array", "items": item}


_OWN: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "For people."},
            "reason": {"type": "string", "description": "For programs: NotFound, Stale, Invalid, …"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "pointer": {"type": "string", "description": "RFC 6901, into the body."},
                        "detail": _TEXT,
                    },
                    "required": ["pointer", "detail"],
                },
            },
        },
        "required": ["type", "title", "status", "detail", "reason"],
    },
    "Gone": _NAMED,
    "Explanation": {
        "type": "object",
        "properties": {
            "nodes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "node": _TEXT,
                        "fits": {"type": "boolean"},
                        "why": {"type": "array", "items": _TEXT},
                    },
                    "required": ["node", "fits", "why"],
                },
            }
        },
        "required": ["nodes"],
    },
    "DrainProgress": {
        "type": "object",
        "properties": {
            "node": _TEXT,
            "state": {"enum": ["Draining", "Drained"]},
            "ready": {"type": "boolean", "description": "false: what is there can't be ended."},
            "asked_at": {"type": "string", "format": "date-time"},
            "deadline_at": {"type": "string", "format": "date-time"},
            "left": _texts("allocation", "workload", "state", "why"),
            "waiting": _texts("workload", "why", slot={"type": "integer"}),
            "moved": {"type": "integer", "description": "Slots that had to leave and need nothing more."},
            "by_hand": {"type": "array", "items": _TEXT, "description": "Started at the agent; left alone."},
        },
        "required": ["node", "state", "ready", "asked_at", "left", "waiting", "moved", "by_hand"],
    },
    "ReleaseAnswer": {
        "type": "object",
        "properties": {
            "node": _TEXT,
            "released": {"type": "boolean"},
            "left": {"type": "array", "items": _TEXT, "description": "Allocations that have not ended."},
        },
        "required": ["node", "released", "left"],
    },
    "Hold": {
        "type": "object",
        "properties": {
            "restored_at": {"type": "string", "format": "date-time"},
            "wait_s": {"type": "integer", "description": "How long agents that joined since may take to register."},
            "unread": {"type": "array", "items": _TEXT, "description": "Nodes that have not said what they have."},
            "unknown": _texts("id", "workload", "node", slot={"type": "integer"}),
            "missing": _texts("id", "workload", "node", slot={"type": "integer"}),
        },
        "required": ["restored_at", "wait_s", "unread", "unknown", "missing"],
    },
    "Version": {
        "type": "object",
        "properties": {"version": _TEXT, "cluster_id": _TEXT},
        "required": ["version", "cluster_id"],
    },
    "ApplyBody": {
        "type": "object",
        "properties": {
            "objects": {
                "type": "array",
                "maxItems": MAX_WRITES,
                "items": {"oneOf": [_applied(kind) for kind in _MANIFESTS]},
            },
            "deletes": {"type": "array", "maxItems": MAX_WRITES, "items": _NAMED},
        },
        "additionalProperties": False,
        "minProperties": 1,
    },
    "ApplyAnswer": {
        "type": "object",
        "properties": {
            "outcomes": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "kind": {"enum": list(_MANIFESTS)},
                        "id": _TEXT,
                        "result": {"enum": ["created", "configured", "unchanged", "deleting", "deleted"]},
                        "object": {"anyOf": [*(_schema(Ref(k)) for k in _MANIFESTS), {"type": "null"}]},
                    },
                    "required": ["kind", "id", "result", "object"],
                },
            }
        },
        "required": ["outcomes"],
    },
}
