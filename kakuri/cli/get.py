"""kakuri get: objects as they are, once or as they change."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kakuri.cli import output
from kakuri.cli.columns import columns, row
from kakuri.cli.failure import Usage
from kakuri.cli.kinds import read_kind, singular
from kakuri.cli.output import Output, put
from kakuri.cli.session import ServerOption, run, steady_mirror, tell

if TYPE_CHECKING:
    from kakuri.client import Client, View

Object = dict[str, Any]

OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="How to print it.", show_default=True, case_sensitive=False)
]
SelectorOption = Annotated[
    str, typer.Option("--selector", "-l", metavar="LABELS", help="Only those with these labels: app=web,tier!=db.")
]


def get(
    kind: Annotated[str, typer.Argument(help="workloads, allocations, nodes, runtime-classes or events.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these.", show_default=False)] = None,
    form: OutputOption = Output.TABLE,
    selector: SelectorOption = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with each change.")] = False,
    server: ServerOption = None,
) -> None:
    """Show objects: a table, or all of them as JSON or YAML that can be applied again."""
    prefix, slash, name = kind.partition("/")
    wanted = [*([name] if slash else []), *(names or [])]
    what = read_kind(prefix)
    if selector and what in {"RuntimeClass", "Event"}:
        raise Usage(f"{singular(what)}s have no labels; leave -l out")
    if selector and wanted:
        raise Usage("give names or -l, not both")
    filters = {"selector": selector} if selector else {}

    async def command(client: "Client") -> None:
        if watch:
            await show_changes(steady_mirror(client, what, **filters), what, form, wanted)
        elif wanted:
            found = [await client.get(what, name) for name in wanted]
            put(_lines(what, found, form, single=len(wanted) == 1))
        else:
            show(what, (await client.list(what, **filters)).items, form)

    run(server, command)


def _ordered(kind: str, items: list[Object]) -> list[Object]:
    return sorted(items, key=lambda o: str(o.get("last_seen", ""))) if kind == "Event" else items


def show(kind: str, items: list[Object], form: Output) -> None:
    """Prints what a list gave."""
    put(_lines(kind, _ordered(kind, items), form))
    if not items and form in {Output.TABLE, Output.WIDE}:
        tell(f"no {singular(kind)} found")


def _lines(kind: str, items: Sequence[Object], form: Output, *, single: bool = False) -> list[str]:
    """The objects as text. single: JSON of one object, not a list of one."""
    match form:
        case Output.TABLE | Output.WIDE:
            return _table(kind, items, wide=form is Output.WIDE) if items else []
        case Output.JSON:
            objects = [_as_manifest(kind, o) for o in items]
            return [output.to_json(objects[0] if single and objects else objects)]
        case Output.YAML:
            return "\n---\n".join(output.to_yaml(_as_manifest(kind, o)) for o in items).split("\n")
        case Output.NAME:
            return [f"{singular(kind)}/{o.get('id', '?')}" for o in items]


def _as_manifest(kind: str, object_: Object) -> Object:
    """With its kind and id first, as people write it."""
    first: Object = {name: object_[name] for name in ("kind", "id") if name in object_}
    return {"kind": kind, **first, **object_}


def _table(kind: str, items: Sequence[Object], *, wide: bool) -> list[str]:
    return output.table(*_cells(kind, items, wide=wide), color=output.colorful(sys.stdout))


def _cells(kind: str, items: Sequence[Object], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    now = datetime.now(UTC)
    return [c.head for c in columns(kind, wide=wide)], [row(kind, o, now, wide=wide) for o in items]


async def show_changes(views: AsyncIterator["View"], kind: str, form: Output, names: Sequence[str] = ()) -> None:
    """Prints what is there, then each change, until interrupted. JSON: one {type, object} a line."""
    printer = _Printer(kind, form)
    known: dict[str, Object] = {}
    async for view in views:
        chosen = {i: o for i, o in view.objects.items() if not names or i in names}
        touched = view.changed | (set(known) - set(chosen) if view.complete else set())
        fresh = [chosen[i] for i in chosen if i in touched and known.get(i) != chosen[i]]
        gone = [known[i] for i in sorted(touched) if i in known and i not in chosen]
        printer.show(_ordered(kind, fresh), gone, known)
        known = chosen


class _Printer:
    def __init__(self, kind: str, form: Output) -> None:
        self._kind = kind
        self._form = form
        self._widths: list[int] = []
        self._begun = False

    def show(self, fresh: Sequence[Object], gone: Sequence[Object], known: dict[str, Object]) -> None:
        match self._form:
            case Output.TABLE | Output.WIDE:
                self._rows(fresh, gone)
            case Output.JSON:
                changes = [{"type": "MODIFIED" if o.get("id") in known else "ADDED", "object": o} for o in fresh]
                changes += [{"type": "DELETED", "object": o} for o in gone]
                put(json.dumps(c, ensure_ascii=False) for c in changes)
            case Output.YAML:
                for object_ in fresh:
                    put([*(["---"] if self._begun else []), *_lines(self._kind, [object_], self._form)])
                    self._begun = True
            case Output.NAME:
                put(_lines(self._kind, fresh, self._form))

    def _rows(self, fresh: Sequence[Object], gone: Sequence[Object]) -> None:
        items = [*fresh, *(_as_gone(self._kind, o) for o in gone)]
        if not items:
            return
        head, rows = _cells(self._kind, items, wide=self._form is Output.WIDE)
        made = output.table(head, rows, color=output.colorful(sys.stdout), widths=self._widths)
        if not self._begun:
            self._widths = output.widths(head, rows)  # later rows keep to the first table's columns
        put(made[1:] if self._begun else made)
        self._begun = True


def _as_gone(kind: str, object_: Object) -> Object:
    if kind == "Workload":
        return {**object_, "status": {**object_.get("status", {}), "state": "Gone", "ready": 0, "reason": ""}}
    return {**object_, "state": "Gone", "reason": "Gone"}
