"""kakuri describe: one object with all that explains it: conditions, slots, why-nots, events."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kakuri.cli import output
from kakuri.cli.columns import ago, at, columns, node_labels, node_state, row, state, text
from kakuri.cli.failure import Usage
from kakuri.cli.kinds import Target, read_targets
from kakuri.cli.output import plain, put
from kakuri.cli.session import ServerOption, run

if TYPE_CHECKING:
    from kakuri.client import Client

Object = Mapping[str, Any]
_HIDDEN = frozenset({"kind", "id", "uid", "status", "generation", "resource_version", "created_at", "deleted_at"})


def describe(
    names: Annotated[list[str], typer.Argument(help="web, workload/web, node n1, runtime-class gvisor …")],
    server: ServerOption = None,
) -> None:
    """Show all that is known of an object, and why it is as it is."""
    targets = read_targets(names, ("Workload", "Allocation", "Node", "RuntimeClass"))

    async def command(client: "Client") -> None:
        for index, target in enumerate(targets):
            object_ = await client.get(target.kind, target.id)
            put([*([""] if index else []), *await _lines(client, target, object_)])

    run(server, command)


async def _lines(client: "Client", target: Target, object_: Object) -> list[str]:
    now = datetime.now(UTC)
    match target.kind:
        case "Workload":
            return await _workload(client, target, object_, now)
        case "Allocation":
            own = await _events(client, "Workload", str(object_.get("workload", "")), now, allocation=target.id)
            return [*_fields("Allocation", _allocation_pairs(object_, now)), *own]
        case "Node":
            return [*_node(object_, now), *await _events(client, "Node", target.id, now)]
        case "RuntimeClass":
            pairs = {"handler": text(object_, "handler"), "minimum memory": f"{text(object_, 'min_memory_mb')} MiB"}
            head = _fields("RuntimeClass", {"id": target.id, **pairs, "age": ago(object_.get("created_at"), now)})
            return [*head, *await _events(client, "RuntimeClass", target.id, now)]
        case _:
            raise Usage(f"{target} can't be described")


async def _workload(client: "Client", target: Target, workload: Object, now: datetime) -> list[str]:
    allocations = (await client.list("Allocation", workload=target.id)).items
    status = workload.get("status", {})
    pairs = {
        "id": target.id,
        "state": state(workload),
        "reason": text(status, "reason"),
        "message": text(status, "message"),
        "replicas": ", ".join(
            f"{at(status, name) or 0} {name}" for name in ("desired", "updated", "ready", "succeeded", "failed")
        ),
        "restarts": text(status, "restarts"),
        "exit code": text(status, "exit_code"),
        "generation": f"{text(workload, 'generation')} (seen {text(status, 'observed_generation')})",
        "age": ago(workload.get("created_at"), now),
    }
    if workload.get("deleted_at"):
        pairs["being deleted"] = f"for {ago(workload['deleted_at'], now)}"
    spec = {name: _value(value) for name, value in workload.items() if name not in _HIDDEN}
    lines = [*_fields("Workload", pairs), *_fields("Spec", spec), *_conditions(status, now), *_slots(allocations, now)]
    if _may_place(workload):
        lines += _why(await client.explanation(target.id))
    return [*lines, *await _events(client, "Workload", target.id, now)]


def _may_place(workload: Object) -> bool:
    """Whether it matters where the next allocation could go."""
    waiting = (at(workload, "status", "ready") or 0) < int(workload.get("replicas", 1))
    return waiting and not workload.get("deleted_at") and at(workload, "status", "state") in {"Pending", "Running"}


def _conditions(status: Object, now: datetime) -> list[str]:
    conditions = at(status, "conditions") or []
    rows = [
        [
            text(c, "type"),
            "True" if c.get("status") else "False",
            text(c, "reason"),
            ago(c.get("since"), now),
            text(c, "message"),
        ]
        for c in conditions
    ]
    return _section("Conditions", ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows)


def _slots(allocations: Sequence[Object], now: datetime) -> list[str]:
    ordered = sorted(allocations, key=lambda a: (int(a.get("slot", 0)), str(a.get("created_at", ""))))
    rows = [
        [
            text(a, "slot"),
            text(a, "id"),
            text(a, "node"),
            state(a),
            text(a, "reason"),
            text(a, "restarts"),
            text(a, "exit_code"),
            ago(a.get("created_at"), now),
            text(a, "message"),
        ]
        for a in ordered
    ]
    head = ["SLOT", "ALLOCATION", "NODE", "STATE", "REASON", "RESTARTS", "EXIT", "AGE", "MESSAGE"]
    return _section("Slots", head, rows)


def _why(nodes: Sequence[Object]) -> list[str]:
    rows = [
        [text(n, "node"), "yes" if n.get("fits") else "no", "; ".join(map(str, n.get("why", []))) or "-"] for n in nodes
    ]
    if not rows:
        return ["", "Where the next allocation could go: there is no node"]
    return _section("Where the next allocation could go", ["NODE", "FITS", "WHY"], rows)


def _node(node: Object, now: datetime) -> list[str]:
    status = node.get("status", {})
    pairs = {
        "id": text(node, "id"),
        "state": node_state(node),
        "reason": text(status, "reason"),
        "message": text(status, "message"),
        "schedulable": "yes" if node.get("schedulable", True) else "no",
        "draining": _drain(at(status, "drain"), now),
        "address": text(status, "address"),
        "runtime": text(status, "runtime"),
        "agent version": text(status, "version"),
        "memory": f"{at(status, 'allocated_memory_mb') or 0} of {text(status, 'capacity', 'memory_mb')} MiB taken",
        "cpu": f"{at(status, 'allocated_cpu_millicores') or 0} of {text(status, 'capacity', 'cpu_millicores')} "
        "millicores taken",
        "allocations": text(status, "allocations"),
        "labels": node_labels(node),
        "age": ago(node.get("created_at"), now),
    }
    classes = [[text(c, "id"), text(c, "handler")] for c in at(status, "runtime_classes") or []]
    unproved = [[text(c, "handler"), text(c, "message")] for c in at(status, "unproved") or []]
    by_hand = [
        [text(r, "id"), text(r, "state"), text(r, "memory_mb"), text(r, "cpu_millicores")]
        for r in at(status, "by_hand") or []
    ]
    given_up = [
        [text(t, "id"), text(t, "reason"), ago(t.get("created_at"), now), text(t, "message")]
        for t in at(status, "tombstones") or []
    ]
    return [
        *_fields("Node", pairs),
        *_section("Runtime classes", ["CLASS", "HANDLER"], classes),
        *_section("Handlers that offer no class", ["HANDLER", "WHY"], unproved),
        *_section("Started by hand", ["ID", "STATE", "MEMORY MB", "CPU MILLICORES"], by_hand),
        *_section("Given up, to be ended here", ["ALLOCATION", "REASON", "AGE", "MESSAGE"], given_up),
    ]


def _drain(drain: Object | None, now: datetime) -> str:
    if not drain:
        return ""
    done = f"; drained {ago(drain['drained_at'], now)} ago" if drain.get("drained_at") else ""
    deadline = f", deadline {drain['deadline_at']}" if drain.get("deadline_at") else ", no deadline"
    return f"since {ago(drain.get('asked_at'), now)}{deadline}{done}"


def _allocation_pairs(allocation: Object, now: datetime) -> dict[str, str]:
    names = (
        ("workload", "workload"),
        ("slot", "slot"),
        ("node", "node"),
        ("reason", "reason"),
        ("message", "message"),
        ("runtime class", "runtime_class"),
        ("handler", "handler"),
        ("restarts", "restarts"),
        ("exit code", "exit_code"),
        ("wanted", "desired"),
        ("wanted because", "desired_reason"),
        ("ip", "ip"),
        ("sandbox", "sandbox_id"),
        ("container", "container_id"),
    )
    times = {
        name: ago(allocation.get(f"{name}_at"), now) + (" ago" if allocation.get(f"{name}_at") else "")
        for name in ("created", "started", "finished", "observed")
    }
    pairs = {"id": text(allocation, "id"), "state": state(allocation)}
    return pairs | {title: text(allocation, name) for title, name in names} | times


async def _events(client: "Client", kind: str, id_: str, now: datetime, *, allocation: str = "") -> list[str]:
    found = (await client.list("Event", object_kind=kind, object_id=id_)).items
    events = sorted(
        (e for e in found if not allocation or e.get("allocation") == allocation), key=lambda e: str(e.get("last_seen"))
    )
    heads = [c.head for c in columns("Event", wide=False)]
    return _section("Events", heads, [row("Event", e, now, wide=False) for e in events]) or ["", "Events: none"]


def _fields(title: str, pairs: Mapping[str, str]) -> list[str]:
    """A block of `name: value`; what says nothing is left out."""
    shown = {name: value for name, value in pairs.items() if value not in {"-", ""}}
    width = max((len(name) for name in shown), default=0) + 1
    return [title] + [f"  {f'{name}:'.ljust(width)} {plain(value)}" for name, value in shown.items()]


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", title, *(f"  {line}" for line in output.table(head, rows))] if rows else []


def _value(value: object) -> str:
    match value:
        case dict() if all(isinstance(v, str) for v in value.values()):
            return ", ".join(f"{k}={v}" for k, v in sorted(value.items()))
        case dict():
            return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
        case list():
            return "; ".join(_value(v) for v in value) if any(isinstance(v, dict) for v in value) else _words(value)
        case _:
            return str(value)


def _words(values: Sequence[object]) -> str:
    return " ".join(v if isinstance(v, str) and v and " " not in v else repr(v) for v in values)
