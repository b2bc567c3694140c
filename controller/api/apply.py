"""POST /apply: many objects, judged together and written together, or not at all.

One rule: nothing is written before everything was found to be good, and all that is wrong is told at once.
"""

import asyncio
import json
from typing import Any

from aiohttp import web

from controller.api.body import MAX_APPLY_BYTES, read_json
from controller.api.context import Api
from controller.api.objects import kick
from controller.api.problem import FieldError, invalid, of_store
from controller.api.query import read_flag
from controller.api.resource import to_text
from controller.store.contract import Delete, Outcome, Put, StoreError, Write
from kakuri.model.fields import MAX_NAME
from kakuri.validation import KINDS, InvalidObject, validate_object

MAX_WRITES = 5000
"""One transaction holds the store's writers off for as long as it takes; about a second at this size."""
_IN_THREAD = 200
"""From so many objects on their validation takes milliseconds, which other requests should not wait for."""


async def apply(api: Api, request: web.Request) -> web.StreamResponse:
    dry_run = read_flag(request, "dry_run")
    body = await read_json(request, limit=MAX_APPLY_BYTES)
    objects, deletes = _lists(body)
    if len(objects) < _IN_THREAD:
        writes = judge(objects, deletes)
    else:
        writes = await asyncio.to_thread(judge, objects, deletes)
    try:
        outcomes = await api.store.apply(writes, now=api.clock(), dry_run=dry_run)
    except StoreError as error:
        raise of_store(error, lambda e: _pointer(e, len(objects))) from error
    if not dry_run:
        kick(api, outcomes)
    told = ",".join(map(_told, outcomes))
    return web.Response(text=f'{{"outcomes":[{told}]}}', content_type="application/json")


def judge(objects: list[Any], deletes: list[Any]) -> list[Write]:
    """The writes that the body says, objects first. Raises Problem 422 with everything that is wrong."""
    errors: list[FieldError] = []
    writes: list[Write] = []
    first: dict[tuple[str, str], str] = {}
    for index, value in enumerate(objects):
        place = f"/objects/{index}"
        try:
            manifest = validate_object(value)
        except InvalidObject as error:
            errors += [FieldError(place + p.pointer, p.message) for p in error.problems]
            continue
        errors += _twice(first, manifest.kind, manifest.id, place)
        writes.append(Put(manifest))
    for index, value in enumerate(deletes):
        place = f"/deletes/{index}"
        wrong = _wrong_delete(value, place)
        errors += wrong
        if not wrong:
            errors += _twice(first, value["kind"], value["id"], place)
            writes.append(Delete(value["kind"], value["id"]))
    if errors:
        raise invalid(errors)
    return writes


def _lists(body: object) -> tuple[list[Any], list[Any]]:
    if not isinstance(body, dict):
        raise invalid([FieldError("", 'is no map; write {"objects": [...], "deletes": [...]}')])
    errors = [
        FieldError(f"/{str(name)[:80]}", "is no field here; use objects and deletes")
        for name in body
        if name not in {"objects", "deletes"}
    ]
    objects, deletes = body.get("objects", []), body.get("deletes", [])
    if not isinstance(objects, list):
        errors.append(FieldError("/objects", "is no list; write a list of objects"))
    if not isinstance(deletes, list):
        errors.append(FieldError("/deletes", 'is no list; write a list of {"kind": ..., "id": ...}'))
    if not body:
        errors.append(FieldError("", "is empty; write objects, deletes, or both"))
    if errors:
        raise invalid(errors)
    if len(objects) + len(deletes) > MAX_WRITES:
        count = len(objects) + len(deletes)
        raise invalid([FieldError("", f"has {count} objects and deletes; the most at once is {MAX_WRITES}")])
    return objects, deletes


def _wrong_delete(value: object, place: str) -> list[FieldError]:
    if not isinstance(value, dict):
        return [FieldError(place, 'is no map; write {"kind": ..., "id": ...}')]
    errors = [
        FieldError(f"{place}/{name[:80]}", "is no field here; use kind and id")
        for name in value
        if name not in {"kind", "id"}
    ]
    if value.get("kind") not in tuple(KINDS):
        errors.append(
            FieldError(f"{place}/kind", f"is missing, or no kind that can be deleted; use {', '.join(KINDS)}")
        )
    id_ = value.get("id")
    if not isinstance(id_, str) or not id_ or len(id_) > MAX_NAME:
        errors.append(FieldError(f"{place}/id", "is missing, or no id; add it, such as web"))
    return errors


def _twice(first: dict[tuple[str, str], str], kind: str, id_: str, place: str) -> list[FieldError]:
    earlier = first.setdefault((kind, id_), place)
    return [] if earlier == place else [FieldError(f"{place}/id", f"{kind} {id_} is already at {earlier}; keep one")]


def _pointer(error: StoreError, objects: int) -> str:
    if error.index is None:
        return error.pointer
    if error.index < objects:
        return f"/objects/{error.index}{error.pointer}"
    return f"/deletes/{error.index - objects}{error.pointer}"


def _told(outcome: Outcome) -> str:
    named = json.dumps({"kind": outcome.kind, "id": outcome.id, "result": outcome.result})
    object_ = "null" if outcome.object is None else to_text(outcome.object)
    return f'{named[:-1]}, "object": {object_}}}'
