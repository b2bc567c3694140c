"""YAML text → values that know where they were written.

One rule: what YAML versions, or a reader's eye, could take differently is refused, never guessed. The tree is built
from the parser's events, so that bounds (depth, aliases, size) hold before anything is expanded.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from kakuri.validation import FieldProblem, Location

MAX_DEPTH = 32
"""Our objects nest four deep. More could run the validator, which recurses, out of stack."""
MAX_ALIASES = 64
"""A file may repeat a few things by name. A bomb of ten aliases to ten aliases … needs about 90."""
MAX_NODES = 1_000_000
"""A file's values after expansion. 5,000 objects have about 100,000; a million take some seconds."""

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"-?(?:0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_ODD_INT = re.compile(r"[-+]?0b[01]+|[-+]?0o?[0-7]+|[-+]?0x[0-9a-fA-F]+|\+[0-9]+|-?0[0-9]+", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t]+[0-9:.]+[ \t]*(?:Z|[-+][0-9:]+)?)?", re.ASCII)
_JSON_ONLY = re.compile("[\t\x85\u2028\u2029]")
_LONGEST_INT = 400
_STR_TAG = "tag:yaml.org,2002:str"
_COLLECTION_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


class Unparsable(Exception):  # noqa: N818 - what the text is
    """The text is no YAML, or more than we read. line and column count from 1."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.message = message


@dataclass(slots=True)
class Node:
    """A value with where it stands. line and column count from 1."""

    value: Any
    line: int
    column: int
    text: str | None = None
    """A scalar as it was written, when it is not text."""
    children: dict[str | int, "Node"] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 1
    """Nodes in it, aliases expanded."""

    def at(self, location: Location) -> "Node":
        """The node there, or the innermost one that leads there."""
        node = self
        for part in location:
            child = node.children.get(part)
            if child is None:
                break
            node = child
        return node

    def place(self, location: Location) -> tuple[int, int]:
        """(line, column) of the key or list entry there, or of the innermost one that leads there."""
        node = self
        where = (self.line, self.column)
        for part in location:
            child = node.children.get(part)
            if child is None:
                break
            where = node.keys[part] if isinstance(part, str) else (child.line, child.column)
            node = child
        return where

    def source(self, location: Location) -> str | None:
        """The scalar there as it was written, when it is not text."""
        return self.at(location).text


@dataclass(frozen=True, slots=True)
class Document:
    root: Node
    problems: tuple[FieldProblem, ...]
    """What is wrong with it as YAML: keys given twice, tags, values that could be read in two ways."""


def documents(text: str) -> Iterator[Document]:
    """The documents of the text, one by one, without empty ones. Raises Unparsable where the text stops being YAML."""
    yaml = YAML(typ="safe", pure=True)
    builder = _Builder()
    try:
        for event in yaml.parse(_as_yaml(text)):
            document = builder.feed(event)
            if document is not None and document.root.value is not None:
                yield document
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unparsable(mark.line + 1, mark.column + 1, _yaml_words(error)) from None
    except (YAMLError, ValueError) as error:  # ValueError: an escape like \UFFFFFFFF
        raise Unparsable(1, 1, f"is not YAML: {' '.join(str(error).split())}") from None


def _as_yaml(text: str) -> str:
    """JSON may be indented with tabs, and may hold characters that break lines in YAML; both get YAML's spelling."""
    if text.lstrip()[:1] not in {"{", "["} or not _JSON_ONLY.search(text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    # In valid JSON a raw tab is between values, and the others are inside texts.
    return _JSON_ONLY.sub(lambda m: " " if m[0] == "\t" else f"\\u{ord(m[0]):04x}", text)


def _yaml_words(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        return "a tab stands where YAML allows none; use spaces"
    if "mapping values are not allowed" in problem:
        return "a second 'key:' in one value; check the indentation, or write the text in quotes"
    if "could not find expected ':'" in problem:
        return "a key without ':'; write key: value"
    context = f" {error.context}" if error.context and error.context != problem else ""
    return f"is not YAML: {' '.join(problem.split())}{context}"


class _Builder:
    """Takes events, gives documents. Iterative, so that depth costs no stack."""

    def __init__(self) -> None:
        self._aliases = 0
        self._nodes = 0
        self._start()

    def _start(self) -> None:
        self._open: list[Node] = []
        self._pending_keys: list[tuple[str, int, int] | None] = []
        self._path: list[str | int] = []
        self._anchors: dict[str, Node | None] = {}
        self._open_anchors: list[str | None] = []
        self._problems: list[FieldProblem] = []
        self._root: Node | None = None

    def feed(self, event: Event) -> Document | None:
        match event:
            case DocumentStartEvent():
                self._start()
            case DocumentEndEvent():
                if self._root is not None:
                    return Document(self._root, tuple(self._problems))
            case AliasEvent():
                self._alias(event)
            case ScalarEvent():
                self._scalar(event)
            case MappingStartEvent():
                self._begin(event, {})
            case SequenceStartEvent():
                self._begin(event, [])
            case MappingEndEvent() | SequenceEndEvent():
                self._end()
            case _:
                pass  # stream start and end
        return None

    def _alias(self, event: Any) -> None:
        line, column = _at(event)
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise Unparsable(line, column, f"has more than {MAX_ALIASES} aliases; write the values out")
        node = self._anchors.get(event.anchor)
        if node is None:
            why = "stands inside what it refers to" if event.anchor in self._anchors else "refers to no anchor above it"
            raise Unparsable(line, column, f"the alias *{event.anchor} {why}; write the value out")
        if self._awaits_key():
            raise Unparsable(line, column, f"the alias *{event.anchor} is used as a key; write the key out")
        self._count(node.size, line, column)
        self._attach(node)

    def _scalar(self, event: Any) -> None:
        line, column = _at(event)
        self._count(1, line, column)
        plain = event.style is None and event.ctag is None
        if self._awaits_key():
            self._key(event, line, column, plain=plain)
            return
        location = self._location()
        self._check_tag(event, {_STR_TAG}, location)
        value, problem = _resolve(event.value) if plain else (_joined(event.value), "")
        if problem:
            self._problems.append(FieldProblem(location, problem))
        node = Node(value, line, column, None if isinstance(value, str) else event.value)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._attach(node)

    def _key(self, event: Any, line: int, column: int, *, plain: bool) -> None:
        name = _joined(event.value)
        here = (*self._path, name)
        self._check_tag(event, {_STR_TAG}, here)
        value, _ = _resolve(event.value) if plain and event.value != "<<" else (name, "")
        if plain and event.value == "<<":
            self._problems.append(FieldProblem(here, "merge keys are not understood; write the fields out"))
        elif not isinstance(value, str):
            self._problems.append(FieldProblem(here, f'the key {event.value} is not text; write "{event.value}"'))
        self._pending_keys[-1] = (name, line, column)

    def _begin(self, event: Any, empty: dict[str, Any] | list[Any]) -> None:
        line, column = _at(event)
        self._count(1, line, column)
        if self._awaits_key():
            raise Unparsable(line, column, "a map or list is used as a key; keys are text")
        if len(self._open) >= MAX_DEPTH:
            raise Unparsable(line, column, f"nests deeper than {MAX_DEPTH} levels")
        location = self._location()
        self._check_tag(event, _COLLECTION_TAGS, location)
        self._path = list(location)
        self._open.append(Node(empty, line, column))
        self._pending_keys.append(None)
        self._open_anchors.append(event.anchor)
        if event.anchor:
            self._anchors[event.anchor] = None

    def _end(self) -> None:
        node = self._open.pop()
        self._pending_keys.pop()
        anchor = self._open_anchors.pop()
        if anchor:
            self._anchors[anchor] = node
        if self._open:
            self._path.pop()
        self._attach(node)

    def _attach(self, node: Node) -> None:
        """The node becomes the root, the next entry of the open list, or the value of the open map's key."""
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.size += node.size
        if isinstance(parent.value, list):
            parent.children[len(parent.value)] = node
            parent.value.append(node.value)
            return
        key = self._pending_keys[-1]
        assert key is not None
        self._pending_keys[-1] = None
        name, line, column = key
        if name in parent.keys:
            first = parent.keys[name]
            problem = FieldProblem((*self._path, name), f"is given twice, first in line {first[0]}; remove one")
            self._problems.append(problem)
        parent.keys[name] = (line, column)
        parent.children[name] = node
        parent.value[name] = node.value

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].value, dict) and self._pending_keys[-1] is None

    def _location(self) -> Location:
        """Where the next value goes."""
        if not self._open:
            return ()
        parent = self._open[-1]
        key = self._pending_keys[-1]
        return (*self._path, len(parent.value) if isinstance(parent.value, list) else key[0] if key else "")

    def _count(self, size: int, line: int, column: int) -> None:
        self._nodes += size
        if self._nodes > MAX_NODES:
            raise Unparsable(line, column, f"has more than {MAX_NODES:,} values, aliases expanded; split it")

    def _check_tag(self, event: Any, allowed: frozenset[str] | set[str], location: Location) -> None:
        tag = None if event.ctag is None else str(event.ctag)
        if tag is not None and tag != "!" and tag not in allowed:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            self._problems.append(FieldProblem(location, f"the tag {shown[:80]} is not understood; remove it"))


def _at(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _resolve(text: str) -> tuple[Any, str]:
    """What a plain scalar means, and what is wrong with that."""
    if text in _NULL:
        return None, ""
    if text in _BOOL:
        return _BOOL[text], ""
    if _INT.fullmatch(text):
        if len(text) > _LONGEST_INT:  # int() is quadratic, and refuses over 4,300 digits
            return text, "is absurdly large; write a smaller number"
        return int(text), ""
    if _ODD_INT.fullmatch(text):
        return text, f'{text[:80]} is not the same number to every reader of YAML; write it in decimal, or "in quotes"'
    if _FLOAT.fullmatch(text):
        return float(text), ""
    if _DATE.fullmatch(text):
        return text, f'is a date to some readers of YAML; write it in quotes: "{text}"'
    return text, ""


def _joined(text: str) -> str:
    """JSON writes characters over U+FFFF as two escapes; YAML's reader leaves them as two halves."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            return text  # a half alone: the model refuses it
    return text
