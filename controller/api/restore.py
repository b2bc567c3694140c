"""A restored database: what is known of its difference to the nodes, and a person's word that it counts."""

import math
from dataclasses import asdict
from typing import Any

from aiohttp import web
from pydantic import Field, ValidationError

from controller.api.body import MAX_OBJECT_BYTES, read_json
from controller.api.context import Api
from controller.api.problem import FieldError, Problem, invalid
from controller.store.contract import Hold
from controller.store.rules.restore import wait_s
from kakuri.model import Model
from kakuri.validation import explain


class ConfirmBody(Model):
    """What is confirmed."""

    without: tuple[str, ...] = Field((), max_length=10_000)
    """Nodes that are not waited for, though nobody knows what they have."""
    now: bool = False
    """Nodes that joined after the backup are not waited for either: there are none, or all have registered."""


async def read_hold(api: Api, _request: web.Request) -> web.StreamResponse:
    """What is held, and what a confirmation would do as far as is known now."""
    hold = await api.store.hold()
    if hold is None:
        raise Problem(404, "NotFound", "no restored database waits to be confirmed")
    return web.json_response(_shown(hold, wait_s(api.served_s())))


async def confirm(api: Api, request: web.Request) -> web.StreamResponse:
    """It counts from now on: its controllers start, stop and delete again."""
    body = await read_json(request, limit=MAX_OBJECT_BYTES)
    try:
        wanted = ConfirmBody.model_validate(body)
    except ValidationError as error:
        raise invalid([FieldError(p.pointer, p.message) for p in explain(error, ConfirmBody)]) from None
    served_s = math.inf if wanted.now else api.served_s()
    await api.store.confirm_restore(without=wanted.without, served_s=served_s, now=api.clock())
    api.kick.nodes()
    return web.json_response({"status": "ok"})


def _shown(hold: Hold, left_s: int) -> dict[str, Any]:
    return {
        "restored_at": hold.restored_at.isoformat(),
        "wait_s": left_s,
        "unread": list(hold.unread),
        "unknown": [{"id": t.id, "workload": t.workload, "slot": t.slot, "node": t.node} for t in hold.unknown],
        "missing": [asdict(m) for m in hold.missing],
    }
