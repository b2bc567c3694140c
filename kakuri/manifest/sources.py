"""Which files are meant by what was given, and their text.

One rule: nothing is read without a bound, and a file that can't be read is told by name.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

MAX_FILE_BYTES = 4 * 1024 * 1024
"""5,000 objects take about 1 MiB. YAML is read at about 0.4 MiB a second, so more would look like a hang."""
SUFFIXES = (".yaml", ".yml", ".json")
STDIN = "-"

_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Unreadable(Exception):  # noqa: N818 - what the file is
    """The file can't be read as text. line and column count from 1."""

    def __init__(self, file: str, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.file = file
        self.message = message
        self.line = line
        self.column = column


def files(sources: Iterable[str]) -> Iterator[str | Unreadable]:
    """Each file once, in the order given; a folder's are sorted, those of its subfolders are not among them."""
    seen: set[str] = set()
    for source in sources:
        for file in _files_of(source):
            if isinstance(file, Unreadable):
                yield file
                continue
            key = file if file == STDIN or "\0" in file else os.path.realpath(file)
            if key not in seen:
                seen.add(key)
                yield file


def _files_of(source: str) -> Iterator[str | Unreadable]:
    path = Path(source)
    try:
        if source == STDIN or not path.is_dir():
            yield source
            return
        found = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.suffix in SUFFIXES and not entry.name.startswith(".") and not entry.is_dir()
        )
    except (OSError, ValueError) as error:
        yield Unreadable(source, _os_words(error))
        return
    if not found:
        yield Unreadable(source, f"the folder has no manifest ({', '.join('*' + s for s in SUFFIXES)}) of its own")
    yield from (str(path / name) for name in found)


def read_text(file: str, stdin: BinaryIO | None = None) -> str:
    """The file's text. Raises Unreadable."""
    try:
        if file == STDIN:
            content = _read(stdin or sys.stdin.buffer)
        else:
            with Path(file).open("rb") as stream:
                content = _read(stream)
    except (OSError, ValueError) as error:
        raise Unreadable(file, _os_words(error)) from None
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable(file, f"is over {MAX_FILE_BYTES // 1024**2} MiB, too large for a manifest; split it")
    if b"\0" in content[:8192]:
        raise Unreadable(file, "is binary, not YAML")
    return _decode(file, content)


def _read(stream: BinaryIO) -> bytes:
    parts: list[bytes] = []
    left = MAX_FILE_BYTES + 1
    while left > 0 and (part := stream.read(left)):  # a pipe gives less than asked
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _decode(file: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(content[: error.start].decode("utf-8", "replace"))
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise Unreadable(file, message, line, column) from None
    bad = _UNPRINTABLE.search(text)
    if bad:
        line, column = _position(text[: bad.start()])
        raise Unreadable(file, f"the character U+{ord(bad[0]):04X} can't stand in YAML; remove it", line, column)
    return text


def _position(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _os_words(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "there is no such file"
        case PermissionError():
            return "may not be read by this user"
        case OSError():
            return f"can't be read: {error.strerror or error}"
        case _:
            return f"is no path: {error}"
