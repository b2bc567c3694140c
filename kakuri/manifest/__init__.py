"""YAML text → models, with all that is wrong told at once, each by file:line:column.

One rule: what is given together is checked together. Either every document is good, or nothing is returned.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from kakuri.manifest.sources import STDIN, Unreadable, files, read_text
from kakuri.manifest.tree import Document, Node, Unparsable, documents
from kakuri.validation import SERVER_OWNED, FieldProblem, InvalidObject, Location, Manifest, validate_object

__all__ = ["MAX_ERRORS", "MAX_OBJECTS", "Entry", "ManifestError", "ManifestErrors", "parse", "read"]

MAX_OBJECTS = 5000
"""What one apply takes (one transaction)."""
MAX_ERRORS = 50
"""More would only scroll the first ones away."""


@dataclass(frozen=True, slots=True)
class ManifestError:
    """One thing that is wrong, and where. line and column count from 1; path is empty for a whole document."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {f'{self.path}: ' if self.path else ''}{self.message}"


class ManifestErrors(Exception):  # noqa: N818 - several
    """All that is wrong (the first MAX_ERRORS), in the order of reading. omitted: how many more there are."""

    def __init__(self, errors: Iterable[ManifestError]) -> None:
        found = list(errors)
        self.errors = tuple(found[:MAX_ERRORS])
        self.omitted = len(found) - len(self.errors)
        super().__init__(str(self))

    def __str__(self) -> str:
        more = [f"and {self.omitted} more"] if self.omitted else []
        return "\n".join([*map(str, self.errors), *more])


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest with where it was written."""

    manifest: Manifest
    file: str
    node: Node = field(repr=False)

    def error(self, location: Location, message: str) -> ManifestError:
        """An error about this place in it, such as the server may find one (see location)."""
        line, column = self.node.place(location)
        return ManifestError(self.file, line, column, FieldProblem(location, "").path, message)

    def location(self, pointer: str) -> Location:
        """What a JSON pointer into it points to."""
        location: list[str | int] = []
        node: Node | None = self.node
        for raw in pointer.split("/")[1:]:
            part = raw.replace("~1", "/").replace("~0", "~")
            is_index = node is not None and isinstance(node.value, list) and part.isascii() and part.isdigit()
            location.append(int(part) if is_index else part)
            node = node.children.get(location[-1]) if node is not None else None
        return tuple(location)


def parse(sources: Iterable[str], *, stdin: BinaryIO | None = None) -> list[Manifest]:
    """The manifests in these files, folders and '-' (stdin), in their order. Raises ManifestErrors."""
    return [entry.manifest for entry in read(sources, stdin=stdin)]


def read(sources: Iterable[str], *, stdin: BinaryIO | None = None) -> list[Entry]:
    """As parse, with where each was written."""
    reading = _Reading()
    for file in files(sources):
        if isinstance(file, Unreadable):
            reading.add(file)
        elif not reading.full:
            reading.file(file, stdin)
    if reading.errors:
        raise ManifestErrors(reading.errors)
    return reading.entries


class _Reading:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.errors: list[ManifestError] = []
        self.full = False
        self._count = 0
        self._places: dict[tuple[str, str], tuple[str, int, int]] = {}

    def file(self, file: str, stdin: BinaryIO | None) -> None:
        shown = "<stdin>" if file == STDIN else file
        before = self._count
        try:
            for document in documents(read_text(file, stdin)):
                for root, problems in _objects(document):
                    self._object(shown, root, problems)
                    if self.full:
                        return
        except Unreadable as error:
            self.add(error)
            return
        except Unparsable as error:
            self.errors.append(ManifestError(shown, error.line, error.column, "", error.message))
            return
        if self._count == before:
            self.errors.append(ManifestError(shown, 1, 1, "", "has nothing in it; write an object, or leave it out"))

    def add(self, error: Unreadable) -> None:
        file = "<stdin>" if error.file == STDIN else error.file
        self.errors.append(ManifestError(file, error.line, error.column, "", error.message))

    def _object(self, file: str, root: Node, problems: list[FieldProblem]) -> None:
        self._count += 1
        if self._count > MAX_OBJECTS:
            message = f"is object number {self._count:,}; one apply takes {MAX_OBJECTS:,}; split it"
            self.errors.append(ManifestError(file, root.line, root.column, "", message))
            self.full = True
            return
        self._check_unique(file, root)
        try:
            manifest = validate_object(root.value, source=root.source)
        except InvalidObject as error:
            told = {p.location for p in problems}
            problems = [*problems, *(p for p in error.problems if p.location not in told)]
        else:
            if not problems:
                self.entries.append(Entry(manifest, file, root))
                return
        for problem in sorted(problems, key=lambda p: root.place(p.location)):
            line, column = root.place(problem.location)
            self.errors.append(ManifestError(file, line, column, problem.path, problem.message))

    def _check_unique(self, file: str, root: Node) -> None:
        """Also among documents with other faults, so that all is told at once."""
        value: Any = root.value
        kind, id_ = (value.get("kind"), value.get("id")) if isinstance(value, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(id_, str):
            return
        line, column = root.place(("id",))
        first = self._places.setdefault((kind, id_), (file, line, column))
        if first != (file, line, column):
            place = ":".join(map(str, first))
            message = f"{kind} {id_} is already at {place}; give it another id, or remove one"
            self.errors.append(ManifestError(file, line, column, "id", message))


def _objects(document: Document) -> Iterator[tuple[Node, list[FieldProblem]]]:
    """The document, or its entries when it is a list of objects, as `get -o json` writes several."""
    problems = [p for p in document.problems if not _server_owned(p.location)]
    root = document.root
    if not isinstance(root.value, list) or not root.value:
        yield root, problems
        return
    for index, node in root.children.items():
        own = [FieldProblem(p.location[1:], p.message) for p in problems if p.location[:1] == (index,)]
        yield node, own


def _server_owned(location: Location) -> bool:
    names = [part for part in location if isinstance(part, str)]
    return bool(names) and names[0] in SERVER_OWNED
