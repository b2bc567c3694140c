"""Objects as text: table, JSON, YAML, names.

One rule: what is printed as JSON or YAML can be applied again, and reads the same to every reader of YAML; what is
printed as a table can't move the terminal's cursor.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TextIO

from kakuri.cli.failure import ReaderLeft

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*(?::[A-Za-z0-9_./@-]+)*", re.ASCII)
_WORDS_OF_OTHER_TYPES = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNSAFE_IN_QUOTES = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_COLORS = {
    "Running": "32",
    "Succeeded": "32",
    "Ready": "32",
    "Pending": "33",
    "Terminating": "33",
    "Unknown": "35",
    "Failed": "31",
    "NotReady": "31",
    "Warning": "33",
}


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def colorful(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, color: bool = False, widths: Sequence[int] = ()
) -> list[str]:
    """Lines with aligned columns. widths: at least so wide, for tables that go on."""
    cells = [[plain(cell) for cell in row] for row in [head, *rows]]
    wide = [max(w, widths[i]) if i < len(widths) else w for i, w in enumerate(_widths(cells))]
    return [_line(row, wide, color=color and index > 0) for index, row in enumerate(cells)]


def widths(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide the columns of this table are."""
    return _widths([head, *rows])


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]


def _line(row: Sequence[str], widths: Sequence[int], *, color: bool) -> str:
    last = len(row) - 1
    return "   ".join(
        _colored(cell, cell if i == last else cell.ljust(widths[i]), color=color) for i, cell in enumerate(row)
    ).rstrip()


def _colored(cell: str, padded: str, *, color: bool) -> str:
    code = _COLORS.get(cell.partition(" ")[0]) if color else None
    return f"\x1b[{code}m{padded}\x1b[0m" if code else padded


def to_json(value: Any) -> str:
    return _quotable(json.dumps(value, indent=2, ensure_ascii=False))


def to_yaml(value: Any) -> str:
    """Block YAML; every text that some reader could take for another type is quoted."""
    return "\n".join(_block(value, ""))


def _block(value: Any, indent: str) -> Iterable[str]:
    match value:
        case dict() if value:
            for key, inner in value.items():
                yield from _entry(f"{indent}{_scalar(key)}:", inner, indent)
        case list() if value:
            for inner in value:
                lines = list(_block(inner, f"{indent}  "))
                yield f"{indent}- {lines[0].lstrip(' ')}"
                yield from lines[1:]
        case _:
            yield f"{indent}{_scalar(value)}"


def _entry(start: str, value: Any, indent: str) -> Iterable[str]:
    if isinstance(value, dict | list) and value:
        yield start
        yield from _block(value, indent if isinstance(value, list) else f"{indent}  ")
    else:
        yield f"{start} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_OTHER_TYPES:
            return value
        return _quotable(json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def _quotable(text: str) -> str:
    """JSON whose texts mean the same to a reader of YAML, and print safely."""
    return _UNSAFE_IN_QUOTES.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def put(lines: Iterable[str]) -> None:
    """To stdout, now."""
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def put_bytes(content: bytes) -> None:
    """To stdout as they are, now."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def plain(text: str) -> str:
    """One line that can't control a terminal."""
    return _CONTROL.sub(" ", text)


def labels_text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "-"
