"""Container logs on the node: reading what a runtime wrote, and keeping it bounded.

A runtime writes lines `<RFC3339Nano> stdout|stderr P|F <text>` to `<attempt>.log`; P is a piece of a line that goes on.
At 10 MiB the file is renamed to `<attempt>.log.<k>`, k counting up, and the runtime told to open a new one.

One rule: a reader follows the file that it has open, never a name; so a rename neither loses nor doubles a line.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 10 * 2**20
MAX_FILES = 5
"""Of one attempt, the one being written included."""
CHUNK_BYTES = 64 * 1024
POLL_S = 0.2
"""How often a follower looks. Longer and a tail feels dead; shorter and each follower costs CPU for nothing."""
_MAX_LINE_BYTES = 2**20
"""Runtimes cut at 16 KiB; what is longer is no log line, and is passed on as it is."""


async def read(
    directory: Path,
    attempt: int,
    *,
    tail: int = -1,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: True,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncIterator[bytes]:
    """What the container of this attempt wrote, in chunks of at most 64 KiB; nothing when there is no log.

    tail: the last n lines; -1: all that is kept. follow: goes on until ended() and all is read.
    """
    log = _Log(directory, attempt)
    try:
        await asyncio.to_thread(log.open, tail)
        while True:
            last_look = not follow or ended()
            while chunk := await asyncio.to_thread(log.next_chunk):
                yield chunk
            if log.has_successor():
                if not last_look:
                    # The runtime makes the new file before it writes the last lines to the old one.
                    await sleep(POLL_S)
                while chunk := await asyncio.to_thread(log.next_chunk):
                    yield chunk
                await asyncio.to_thread(log.open_successor)
            elif last_look:
                break
            else:
                await sleep(POLL_S)
        while rest := log.rest():
            yield rest
    finally:
        log.close()


def previous_attempt(directory: Path, attempt: int) -> int | None:
    """The newest attempt before this one that has a log; None when there is none."""
    return max((found for found in _attempts(directory) if found < attempt), default=None)


def newest_attempt(directory: Path) -> int | None:
    return max(_attempts(directory), default=None)


def forget_before(directory: Path, attempt: int) -> None:
    """Logs of attempts before this one are gone, so that a container that crashes for ever fills no disk."""
    for found, _, path in _files(directory):
        if found < attempt:
            path.unlink(missing_ok=True)


async def rotate(
    directory: Path,
    attempt: int,
    reopen: Callable[[], Awaitable[None]],
    *,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> bool:
    """Whether the log was rotated: it was too long, is renamed, and the runtime writes a new one. While it runs only.

    reopen: makes the runtime open the log's path again. When it fails, the log gets its name back.
    """
    current = directory / f"{attempt}.log"
    size = _size(current)
    if size is None:
        # Renamed by an agent that was killed then, or removed by somebody: the runtime must make it anew.
        await reopen()
        return False
    if size < max_bytes:
        return False
    kept = _rotated(directory, attempt)
    aside = current.with_name(f"{current.name}.{kept[-1][0] + 1 if kept else 1}")
    current.rename(aside)
    try:
        await reopen()
    except BaseException:
        if _size(current) is None:
            aside.rename(current)
        raise
    for _, path in kept[: max(len(kept) + 2 - max_files, 0)]:
        path.unlink(missing_ok=True)
    return True


class _Log:
    """One attempt's files, read from one to the next."""

    def __init__(self, directory: Path, attempt: int) -> None:
        self._directory = directory
        self._attempt = attempt
        self._file: BinaryIO | None = None
        self._lines = _Lines()

    def open(self, tail: int) -> None:
        """Open at the first line to be read."""
        files = _open_all(self._directory, self._attempt)
        if not files:
            return
        self._file = files[0]
        if tail == 0:
            self._file = files[-1]
            self._file.seek(0, os.SEEK_END)
        elif tail > 0:
            self._file = _seek_to_tail(files, tail)
        for file in files:
            if file is not self._file:
                file.close()

    def next_chunk(self) -> bytes:
        """Some of what was written since; empty when all is read."""
        while self._file is not None:
            if ready := self._lines.take():
                return ready
            raw = self._file.read(CHUNK_BYTES)
            if not raw:
                break
            self._lines.feed(raw)
        return b""

    def rest(self) -> bytes:
        """What the last line has, though it was cut off."""
        return self._lines.rest()

    def has_successor(self) -> bool:
        return self._successor() is not None

    def open_successor(self) -> None:
        successor = self._successor()
        if successor is None:
            return
        file = _open(successor)
        if file is not None:
            self.close()
            self._lines.end_file()
            self._file = file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _successor(self) -> Path | None:
        files = self._existing()
        if self._file is None:
            return files[0] if files else None
        mine = os.fstat(self._file.fileno())
        for index, path in enumerate(files):
            if _same(path, mine):
                return files[index + 1] if index + 1 < len(files) else None
        # Ours was rotated away altogether while we read it: the oldest that is kept comes next.
        return files[0] if files else None

    def _existing(self) -> list[Path]:
        """Oldest first."""
        current = self._directory / f"{self._attempt}.log"
        rotated = [path for _, path in _rotated(self._directory, self._attempt)]
        return [*rotated, current] if _size(current) is not None else rotated


class _Lines:
    """The runtime's lines in, the container's own bytes out."""

    def __init__(self) -> None:
        self._raw = b""
        self._plain = bytearray()

    def feed(self, raw: bytes) -> None:
        *lines, self._raw = (self._raw + raw).split(b"\n")
        for line in lines:
            self._plain += plain(line)
        if len(self._raw) > _MAX_LINE_BYTES:
            self._plain += self._raw
            self._raw = b""

    def end_file(self) -> None:
        """A line that the file's end cut off has no more to come."""
        if self._raw:
            self.feed(b"\n")

    def take(self) -> bytes:
        taken = bytes(self._plain[:CHUNK_BYTES])
        del self._plain[:CHUNK_BYTES]
        return taken

    def rest(self) -> bytes:
        self._plain += plain(self._raw).removesuffix(b"\n") if self._raw else b""
        self._raw = b""
        return self.take()


_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\S+ (?:stdout|stderr) (?P<tag>[PF])(?::\S*)? (?P<text>.*)", re.DOTALL)


def plain(line: bytes) -> bytes:
    """What the container wrote, with its newline if it wrote one. What is no log line comes back as it is.

    Format: cri-api's logging, `time stream tags text`, the first tag being P or F.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        return line + b"\n"
    return match["text"] if match["tag"] == b"P" else match["text"] + b"\n"


def _seek_to_tail(files: list[BinaryIO], wanted: int) -> BinaryIO:
    """The file, of these (oldest first), that holds the start of the last `wanted` lines, and stands there.

    Reads backwards, so that the last lines of a long log cost no more than they are.
    """
    found = 0
    for file in reversed(files):
        start = file.seek(0, os.SEEK_END)
        for offset, line in _lines_backwards(file):
            match = _LINE.fullmatch(line)
            if match is not None and match["tag"] == b"P":
                # A piece belongs to the line that ends after it; at the very end, to one that has no end yet.
                found = max(found, 1)
            elif line:
                if found == wanted:
                    file.seek(start)
                    return file
                found += 1
            start = offset
        file.seek(start)
    return files[0]


def _lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Offset and text of each line, the last one first; what follows the last newline is one too, empty or not."""
    position = file.seek(0, os.SEEK_END)
    beginning = b""
    while position > 0:
        step = min(CHUNK_BYTES, position)
        position -= step
        file.seek(position)
        block = file.read(step) + beginning
        beginning, *lines = block.split(b"\n")
        offset = position + len(block)
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
            offset -= 1
    yield 0, beginning


def _open_all(directory: Path, attempt: int) -> list[BinaryIO]:
    """One attempt's files, oldest first."""
    # The current one is opened before the others are listed: renamed meanwhile, it is among them and is skipped.
    current = _open(directory / f"{attempt}.log")
    mine = os.fstat(current.fileno()) if current is not None else None
    opened = [
        file for _, path in _rotated(directory, attempt) if not _same(path, mine) and (file := _open(path)) is not None
    ]
    return opened if current is None else [*opened, current]


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _same(path: Path, mine: os.stat_result | None) -> bool:
    try:
        return mine is not None and os.path.samestat(path.stat(), mine)
    except FileNotFoundError:
        return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _rotated(directory: Path, attempt: int) -> list[tuple[int, Path]]:
    """By k, oldest first."""
    return sorted((k, path) for found, k, path in _files(directory) if found == attempt and k > 0)


def _files(directory: Path) -> Iterator[tuple[int, int, Path]]:
    """Attempt, k (0 for the one being written) and path of each log."""
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        if match := _NAME.fullmatch(path.name):
            yield int(match[1]), int(match[2] or 0), path


_NAME = re.compile(r"(\d+)\.log(?:\.(\d+))?")


def _attempts(directory: Path) -> set[int]:
    return {attempt for attempt, _, _ in _files(directory)}
