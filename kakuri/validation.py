"""From an object as a person wrote it to a model, or to what is wrong with it in words.

One rule: manifest files and HTTP bodies are judged here, by the same models and in the same words; each caller adds
only where it was written (file:line:column there, a JSON pointer here).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kakuri.model import Model, NodeManifest, RuntimeClassManifest, WorkloadManifest

Location = tuple[str | int, ...]
Manifest = WorkloadManifest | NodeManifest | RuntimeClassManifest
Source = Callable[[Location], str | None]
"""The text that a scalar was written as, where that is known: 0o17 is better shown so than as 15."""

KINDS: Mapping[str, type[WorkloadManifest] | type[NodeManifest] | type[RuntimeClassManifest]] = {
    "Workload": WorkloadManifest,
    "Node": NodeManifest,
    "RuntimeClass": RuntimeClassManifest,
}

SERVER_OWNED = frozenset({"uid", "generation", "resource_version", "created_at", "deleted_at", "status"})
"""Dropped unread, so that what the server shows can be edited and applied again."""

_EXAMPLES = {
    "id": "id: web",
    "image": "image: ghcr.io/example/app:1.0",
    "runtime_class": "runtime_class: gvisor",
    "memory_mb": "memory_mb: 128",
    "cpu_millicores": "cpu_millicores: 250",
    "handler": "handler: runsc",
    "port": "port: 8080",
}


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field, and what would be right."""

    location: Location
    message: str

    @property
    def pointer(self) -> str:
        """As a JSON pointer (RFC 6901) into the object; empty for the object itself."""
        return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in self.location)

    @property
    def path(self) -> str:
        """As people write it: ports[0].host_port."""
        text = ""
        for part in self.location:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text


class InvalidObject(Exception):  # noqa: N818 - what it is, as the API's 422 says it
    """The object is none of ours; problems has at least one entry."""

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.path}: {p.message}" if p.path else p.message for p in self.problems))


def validate_object(value: object, *, source: Source | None = None) -> Manifest:
    """The manifest that this JSON-like value says. Raises InvalidObject with everything that is wrong with it."""
    if not isinstance(value, dict):
        raise InvalidObject([FieldProblem((), f"is {_kind_of(value)}; write a map with kind, id and fields")])
    model = KINDS[_known_kind(value)]
    try:
        return model.model_validate({k: v for k, v in value.items() if k not in SERVER_OWNED})
    except ValidationError as error:
        raise InvalidObject(explain(error, model, source=source)) from None


def _known_kind(value: Mapping[str, Any]) -> str:
    kinds = ", ".join(KINDS)
    if "kind" not in value:
        near = _near("kind", value)
        hint = f"; is {near!r} meant to be it?" if near else f"; add one of {kinds}, such as kind: Workload"
        raise InvalidObject([FieldProblem(("kind",), f"is missing{hint}")])
    kind = value["kind"]
    if isinstance(kind, str) and kind in KINDS:
        return kind
    near = _near(kind, KINDS) if isinstance(kind, str) else None
    raise InvalidObject(
        [FieldProblem(("kind",), f"{_shown(kind)} is no kind; {f'did you mean {near}?' if near else f'use {kinds}'}")]
    )


def explain(
    error: ValidationError,
    model: type[Model] | None = None,
    *,
    source: Source | None = None,
    limit: int | None = None,
) -> list[FieldProblem]:
    """What pydantic found, in our words. model: what was validated, for did-you-mean. limit: the first so many."""
    return [_problem(details, model, source) for details in error.errors(include_url=False)[:limit]]


def _problem(details: ErrorDetails, model: type[Model] | None, source: Source | None) -> FieldProblem:
    location = details["loc"]
    if location and location[-1] == "[key]":
        key = location[-2]
        return FieldProblem(location[:-2], f"the key {_shown(key)} is not text; write it in quotes")
    if details["type"] == "host_port_twice":  # found by the whole workload's check, which has no location
        return FieldProblem((*location, "ports"), details["msg"].removeprefix("ports: "))
    return FieldProblem(location, _words(details, model, source))


def _words(details: ErrorDetails, model: type[Model] | None, source: Source | None) -> str:
    location, value, context = details["loc"], details.get("input"), details.get("ctx", {})
    shown = (source(location) if source else None) or _shown(value)
    match details["type"]:
        case "missing":
            example = _EXAMPLES.get(str(location[-1]) if location else "")
            return f"is missing; add it, such as {example}" if example else "is missing; add it"
        case "extra_forbidden":
            return _unknown_field(str(location[-1]), _fields_at(model, location[:-1]))
        case "int_type" | "int_from_float" | "int_parsing" | "finite_number":
            return _no_number(value)
        case "int_parsing_size":
            return "is absurdly large; write a smaller number"
        case "string_type":
            return _no_text(value, shown, _EXAMPLES.get(str(location[-1]) if location else ""))
        case "bool_type" | "bool_parsing":
            return f"is {shown}; write true or false, without quotes"
        case "dict_type" | "model_type" | "model_attributes_type" | "mapping_type":
            return f"is {_kind_of(value)}; write a map, such as {{key: value}}"
        case "tuple_type" | "list_type":
            return f"is {_kind_of(value)}; write a list, such as [a, b]"
        case "enum" | "literal_error":
            allowed = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
            near = _near(value, allowed.split(", ")) if isinstance(value, str) else None
            return f"{shown} is not allowed; {f'did you mean {near}?' if near else f'use {allowed}'}"
        case "greater_than_equal":
            return f"is {shown}, too small; the least is {context['ge']}"
        case "less_than_equal":
            return f"is {shown}, too large; the most is {context['le']}"
        case "too_long":
            # How many a map has is not in the context: counting stops at the first one too many.
            count = len(value) if isinstance(value, Sized) else context["actual_length"]
            return f"has {count} entries, too many; the most is {context['max_length']}"
        case "string_too_long":
            return f"is too long; the most is {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"{shown} does not look right; it has to match {context['pattern']}"
        case "string_unicode":
            return "is no valid Unicode text; remove the lone surrogates"
        case _:
            return details["msg"]


def _no_number(value: object) -> str:
    match value:
        case None:
            return "has no value; write a whole number"
        case str() if value.strip().lstrip("-").isascii() and value.strip().lstrip("-").isdigit():
            return f"is text; write {value.strip()} without quotes"
        case str():
            return f"is the text {_shown(value)}; write a whole number, without a unit"
        case float():
            return f"is {value}; write a whole number"
        case _:
            return f"is {_kind_of(value)}; write a whole number"


def _no_text(value: object, shown: str, example: str | None) -> str:
    match value:
        case None if example:
            return f"has no value; write one, such as {example}"
        case None:
            return 'has no value; write text, or "" for an empty one'
        case bool() | int() | float():
            return f'is {_kind_of(value)}, not text; write it in quotes: "{shown}"'
        case _:
            return f"is {_kind_of(value)}; write text"


def _unknown_field(name: str, fields: Iterable[str]) -> str:
    known = sorted(fields)
    near = _near(name, known)
    if near:
        return f"is no field here; did you mean {near}?"
    return f"is no field here; remove it, or use one of {', '.join(known)}" if known else "is no field here; remove it"


def _fields_at(model: type[Model] | None, location: Location) -> Iterable[str]:
    """The names that an object at this place may have. Only maps of models nest here, so a search by name is enough."""
    if model is None:
        return ()
    here: type[Model] = model
    for part in location:
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return ()
        here = inner
    return here.model_fields


def _model_in(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None


def _near(word: str, known: Iterable[object]) -> str | None:
    by_folded = {k.casefold().replace("-", "_"): k for k in known if isinstance(k, str)}
    found = difflib.get_close_matches(word[:80].casefold().replace("-", "_"), by_folded, n=1, cutoff=0.7)
    return by_folded[found[0]] if found else None


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"a truth value ({'true' if value else 'false'})"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case dict():
            return "a map"
        case _:
            return f"a {type(value).__name__}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value if len(value) <= 80 else value[:77] + "...")
        case list() | dict() | tuple():
            return _kind_of(value)
        case int() if abs(value) >= 10**40:  # longer ones can't even be printed (sys.set_int_max_str_digits)
            return "an absurdly large number"
        case _:
            return str(value)
