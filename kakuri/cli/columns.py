"""Which columns a kind's table has, and what stands in them.

One rule: a field that a server does not send is shown as '-', never as an error: servers may be older or newer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kakuri.cli.output import labels_text

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    head: str
    cell: Callable[[Object, datetime], str]
    wide: bool = False


def columns(kind: str, *, wide: bool) -> list[Column]:
    return [c for c in _COLUMNS[kind] if wide or not c.wide]


def row(kind: str, object_: Object, now: datetime, *, wide: bool) -> list[str]:
    return [c.cell(object_, now) for c in columns(kind, wide=wide)]


def ago(stamp: object, now: datetime) -> str:
    """How long since this RFC 3339 time: 5s, 3m, 2h, 4d."""
    if not isinstance(stamp, str):
        return "-"
    try:
        then = datetime.fromisoformat(stamp)
    except ValueError:
        return stamp
    seconds = max(0, int((now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (unit == "d" and seconds >= size):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def at(object_: Object, *path: str) -> Any:
    """What is at this path; None when it, or something on the way, is missing."""
    value: Any = object_
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text(object_: Object, *path: str) -> str:
    value = at(object_, *path)
    return "-" if value is None or value == "" else str(value)


def state(object_: Object) -> str:
    """With a mark when nothing really runs there."""
    status = object_.get("status", object_)
    mark = " (simulated)" if at(status, "simulated") else ""
    return f"{text(status, 'state')}{mark}"


def where(object_: Object) -> str:
    nodes = at(object_, "status", "nodes")
    return f"{nodes} nodes" if isinstance(nodes, int) and nodes > 1 else text(object_, "status", "node")


def node_state(object_: Object) -> str:
    ready = "Ready" if at(object_, "status", "ready") else "NotReady"
    mark = " (simulated)" if at(object_, "status", "simulated") else ""
    cordon = "" if object_.get("schedulable", True) else ",cordoned"
    drain = at(object_, "status", "drain")
    if drain:
        cordon = ",drained" if at(drain, "drained_at") else ",draining"
    return f"{ready}{cordon}{mark}"


def node_labels(object_: Object) -> str:
    """The agent's own and the user's, who has the last word."""
    return labels_text({**(at(object_, "status", "labels") or {}), **object_.get("labels", {})})


def _field(head: str, *path: str, wide: bool = False) -> Column:
    return Column(head, lambda o, _now: text(o, *path), wide)


def _age(head: str = "AGE", path: str = "created_at") -> Column:
    return Column(head, lambda o, now: ago(o.get(path), now))


def _classes(object_: Object) -> str:
    found = at(object_, "status", "runtime_classes") or []
    return ",".join(str(c.get("id", "?")) for c in found) or "-"


def _used(object_: Object, resource: str) -> str:
    used = at(object_, "status", f"allocated_{resource}") or 0
    return f"{used}/{text(object_, 'status', 'capacity', resource)}"


_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "Workload": (
        _field("ID", "id"),
        _field("IMAGE", "image"),
        _field("CLASS", "runtime_class"),
        Column("READY", lambda o, _now: f"{at(o, 'status', 'ready') or 0}/{o.get('replicas', 1)}"),
        Column("STATE", lambda o, _now: state(o)),
        _field("REASON", "status", "reason"),
        _field("RESTARTS", "status", "restarts"),
        Column("NODE", lambda o, _now: where(o)),
        _age(),
        _field("UPDATED", "status", "updated", wide=True),
        _field("EXIT", "status", "exit_code", wide=True),
        Column("LABELS", lambda o, _now: labels_text(o.get("labels", {})), wide=True),
        _field("MESSAGE", "status", "message", wide=True),
    ),
    "Allocation": (
        _field("ID", "id"),
        _field("NODE", "node"),
        _field("CLASS", "runtime_class"),
        Column("STATE", lambda o, _now: state(o)),
        _field("REASON", "reason"),
        _field("RESTARTS", "restarts"),
        _field("EXIT", "exit_code"),
        _age(),
        _field("IP", "ip", wide=True),
        _field("HANDLER", "handler", wide=True),
        _field("DESIRED", "desired", wide=True),
        _field("SANDBOX", "sandbox_id", wide=True),
        _field("MESSAGE", "message", wide=True),
    ),
    "Node": (
        _field("ID", "id"),
        Column("STATE", lambda o, _now: node_state(o)),
        Column("CLASSES", lambda o, _now: _classes(o)),
        Column("MEMORY MB", lambda o, _now: _used(o, "memory_mb")),
        Column("CPU MILLICORES", lambda o, _now: _used(o, "cpu_millicores")),
        _field("ALLOCATIONS", "status", "allocations"),
        _age(),
        _field("ADDRESS", "status", "address", wide=True),
        _field("RUNTIME", "status", "runtime", wide=True),
        Column("LABELS", lambda o, _now: node_labels(o), wide=True),
        _field("MESSAGE", "status", "message", wide=True),
    ),
    "RuntimeClass": (
        _field("ID", "id"),
        _field("HANDLER", "handler"),
        _field("MIN MEMORY MB", "min_memory_mb"),
        _age(),
    ),
    "Event": (
        _age("LAST SEEN", "last_seen"),
        _field("TYPE", "type"),
        _field("REASON", "reason"),
        Column("OBJECT", lambda o, _now: f"{text(o, 'object_kind').lower()}/{text(o, 'object_id')}"),
        _field("COUNT", "count"),
        _field("ALLOCATION", "allocation", wide=True),
        _field("NODE", "node", wide=True),
        _field("MESSAGE", "message"),
    ),
}
