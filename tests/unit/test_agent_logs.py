"""agent/logs.py on real files, without a runtime: the test plays the writer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from agent import logs

STAMP = "2026-01-02T03:04:05.678901234Z"


class Writer:
    """Writes as a runtime does: keeps its file open until it is told to reopen."""

    def __init__(self, directory: Path, attempt: int = 0) -> None:
        self._path = directory / f"{attempt}.log"
        self._file = self._path.open("ab", buffering=0)

    def write(self, *texts: str, tag: str = "F", stream: str = "stdout") -> None:
        self._file.write("".join(f"{STAMP} {stream} {tag} {text}\n" for text in texts).encode())

    async def reopen(self) -> None:
        self._file.close()
        self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path)
    yield writer
    writer.close()


async def read_all(directory: Path, attempt: int = 0, **options: object) -> str:
    chunks = [chunk async for chunk in logs.read(directory, attempt, **options)]
    assert all(0 < len(chunk) <= logs.CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param(f"{STAMP} stdout F hello there", "hello there\n", id="a full line has its newline"),
        pytest.param(f"{STAMP} stderr F ", "\n", id="an empty line is a newline"),
        pytest.param(f"{STAMP} stdout P hel", "hel", id="a piece has none"),
        pytest.param(f"{STAMP} stdout F:more:tags x", "x\n", id="more tags are skipped"),
        pytest.param(f"{STAMP} stdout F  two  spaces ", " two  spaces \n", id="spaces are the container's own"),
        pytest.param("panic: disk", "panic: disk\n", id="what is no log line is passed on"),
        pytest.param(f"{STAMP} stdin F x", f"{STAMP} stdin F x\n", id="a stream that isn't is passed on"),
    ],
)
def test_a_log_line_becomes_what_the_container_wrote(line: str, text: str) -> None:
    assert logs.plain(line.encode()) == text.encode()


async def test_no_log_reads_as_nothing(tmp_path: Path) -> None:
    assert await read_all(tmp_path) == ""
    assert await read_all(tmp_path / "nowhere") == ""


async def test_pieces_are_joined_and_both_streams_are_read(tmp_path: Path, writer: Writer) -> None:
    writer.write("one, ", tag="P")
    writer.write("two")
    writer.write("three", stream="stderr")
    assert await read_all(tmp_path) == "one, two\nthree\n"


async def test_a_last_line_that_is_cut_off_is_read_without_a_newline(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text(f"{STAMP} stdout F whole\n{STAMP} stdout F ha")
    assert await read_all(tmp_path) == "whole\nha"


async def test_all_rotated_files_are_read_oldest_first(tmp_path: Path) -> None:
    for name, text in {"0.log.9": "a", "0.log.10": "b", "0.log": "c", "1.log": "another attempt's"}.items():
        (tmp_path / name).write_text(f"{STAMP} stdout F {text}\n")
    assert await read_all(tmp_path) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (0, ""),
        (1, "6\n"),
        (2, "5\n6\n"),
        (3, "4\n5\n6\n"),
        (5, "2\n3\n4\n5\n6\n"),
        (6, "1\n2\n3\n4\n5\n6\n"),
        (99, None),
    ],
)
async def test_a_tail_goes_back_over_files(tmp_path: Path, tail: int, text: str | None) -> None:
    for name, first in {"0.log.1": 1, "0.log.2": 3, "0.log": 5}.items():
        (tmp_path / name).write_text("".join(f"{STAMP} stdout F {n}\n" for n in (first, first + 1)))
    assert await read_all(tmp_path, tail=tail) == ("1\n2\n3\n4\n5\n6\n" if text is None else text)


async def test_a_tail_counts_the_containers_lines_not_the_runtimes(tmp_path: Path, writer: Writer) -> None:
    writer.write("zero")
    writer.write("a", "b", "c", tag="P")
    writer.write("d")
    writer.write("e", "f", tag="P")
    assert await read_all(tmp_path, tail=1) == "ef"
    assert await read_all(tmp_path, tail=2) == "abcd\nef"
    assert await read_all(tmp_path, tail=3) == "zero\nabcd\nef"


async def test_a_tail_reads_only_the_end_of_a_long_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "0.log").open("w") as file:
        file.writelines(f"{STAMP} stdout F line {n} {'x' * 900}\n" for n in range(10_000))
    blocks = 0
    real = logs._lines_backwards

    def counted(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        nonlocal blocks
        for found in real(file):
            blocks += 1
            yield found

    monkeypatch.setattr(logs, "_lines_backwards", counted)
    text = await read_all(tmp_path, tail=200)
    assert [line.split()[1] for line in text.splitlines()] == [str(n) for n in range(9_800, 10_000)]
    assert blocks < 300


async def test_long_lines_come_in_chunks_and_binary_as_it_is(tmp_path: Path) -> None:
    noise = bytes(range(256)).replace(b"\n", b"") * 2000
    (tmp_path / "0.log").write_bytes(f"{STAMP} stdout F ".encode() + noise + b"\n")
    chunks = [chunk async for chunk in logs.read(tmp_path, 0)]
    assert b"".join(chunks) == noise + b"\n"
    assert max(map(len, chunks)) <= logs.CHUNK_BYTES


async def test_a_file_without_newlines_is_read_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_bytes(b"x" * (3 * 2**20))
    assert len(await read_all(tmp_path)) == 3 * 2**20


class Follower:
    """A follower whose sleep is the test's turn."""

    def __init__(
        self, directory: Path, turns: list[Callable[[], Awaitable[object] | object]], **options: object
    ) -> None:
        self._turns = turns
        self._directory = directory
        self._options = options
        self.ended = False

    async def text(self) -> str:
        return await read_all(self._directory, follow=True, ended=lambda: self.ended, sleep=self._turn, **self._options)

    async def _turn(self, _: float) -> None:
        if not self._turns:
            self.ended = True
            return
        done = self._turns.pop(0)()
        if isinstance(done, Awaitable):
            await done


async def test_following_waits_for_a_log_and_ends_with_the_container(tmp_path: Path) -> None:
    def begin() -> None:
        (tmp_path / "0.log").write_text(f"{STAMP} stdout F first\n")

    assert await Follower(tmp_path, [lambda: None, begin, lambda: None]).text() == "first\n"


async def test_following_reads_what_came_between_the_last_look_and_the_end(tmp_path: Path, writer: Writer) -> None:
    writer.write("early")
    follower = Follower(tmp_path, [])

    def end() -> None:
        writer.write("last words")
        follower.ended = True

    follower._turns.append(end)
    assert await follower.text() == "early\nlast words\n"


async def test_following_goes_on_over_a_rotation_without_losing_or_doubling_a_line(
    tmp_path: Path, writer: Writer
) -> None:
    def rename() -> None:
        (tmp_path / "0.log").rename(tmp_path / "0.log.1")
        writer.write("after the rename, before the reopen")

    old = writer._file

    async def reopen() -> None:
        writer._file = (tmp_path / "0.log").open("ab", buffering=0)
        writer.write("in the new file")

    def late_line_to_the_old_file() -> None:
        old.write(f"{STAMP} stdout F flushed late\n".encode())
        old.close()

    writer.write("one")
    turns = [rename, reopen, late_line_to_the_old_file, lambda: writer.write("two"), lambda: None]
    text = await Follower(tmp_path, turns).text()
    assert text.splitlines() == [
        "one",
        "after the rename, before the reopen",
        "flushed late",
        "in the new file",
        "two",
    ]


async def test_following_catches_up_over_several_rotations_at_once(tmp_path: Path, writer: Writer) -> None:
    async def rotate_thrice() -> None:
        for n in range(3):
            writer.write(f"line {n}")
            assert await logs.rotate(tmp_path, 0, writer.reopen, max_bytes=1)
        writer.write("line 3")

    text = await Follower(tmp_path, [rotate_thrice, lambda: None, lambda: None, lambda: None]).text()
    assert text.splitlines() == ["line 0", "line 1", "line 2", "line 3"]


async def test_following_with_a_tail_starts_there(tmp_path: Path, writer: Writer) -> None:
    writer.write("one", "two", "three")
    assert await Follower(tmp_path, [lambda: writer.write("four")], tail=1).text() == "three\nfour\n"
    assert await Follower(tmp_path, [lambda: writer.write("five")], tail=0).text() == "five\n"


async def test_a_follower_that_is_given_up_closes_its_file(tmp_path: Path, writer: Writer) -> None:
    writer.write("one")
    reading = logs.read(tmp_path, 0, follow=True, ended=lambda: False)
    assert await anext(reading) == b"one\n"
    await reading.aclose()


async def test_a_short_log_is_left_alone(tmp_path: Path, writer: Writer) -> None:
    writer.write("one")
    assert not await logs.rotate(tmp_path, 0, writer.reopen)
    assert [path.name for path in tmp_path.iterdir()] == ["0.log"]


async def test_rotation_keeps_five_files_and_the_newest_lines(tmp_path: Path, writer: Writer) -> None:
    for n in range(9):
        writer.write(f"line {n}")
        assert await logs.rotate(tmp_path, 0, writer.reopen, max_bytes=10)
    writer.write("line 9")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "0.log.6", "0.log.7", "0.log.8", "0.log.9"]
    assert (await read_all(tmp_path)).split("\n")[:-1] == [f"line {n}" for n in range(5, 10)]


async def test_a_failed_reopen_gives_the_log_its_name_back(tmp_path: Path, writer: Writer) -> None:
    async def fail() -> None:
        raise TimeoutError

    writer.write("one")
    with pytest.raises(TimeoutError):
        await logs.rotate(tmp_path, 0, fail, max_bytes=1)
    writer.write("two")
    assert [path.name for path in tmp_path.iterdir()] == ["0.log"]
    assert await read_all(tmp_path) == "one\ntwo\n"


async def test_a_reopen_that_was_done_though_it_failed_keeps_both_files(tmp_path: Path, writer: Writer) -> None:
    async def done_but_late() -> None:
        await writer.reopen()
        raise TimeoutError

    writer.write("one")
    with pytest.raises(TimeoutError):
        await logs.rotate(tmp_path, 0, done_but_late, max_bytes=1)
    writer.write("two")
    assert await read_all(tmp_path) == "one\ntwo\n"


async def test_a_rotation_that_was_cut_off_is_finished_by_the_next(tmp_path: Path, writer: Writer) -> None:
    writer.write("one")
    (tmp_path / "0.log").rename(tmp_path / "0.log.1")
    await logs.rotate(tmp_path, 0, writer.reopen)
    writer.write("two")
    assert await read_all(tmp_path) == "one\ntwo\n"


def test_attempts_are_found_by_their_files(tmp_path: Path) -> None:
    for name in ("0.log", "2.log", "2.log.1", "3.log.1", "10.log", "notes.txt"):
        (tmp_path / name).touch()
    assert logs.newest_attempt(tmp_path) == 10
    assert logs.previous_attempt(tmp_path, 10) == 3
    assert logs.previous_attempt(tmp_path, 2) == 0
    assert logs.previous_attempt(tmp_path, 0) is None
    assert logs.newest_attempt(tmp_path / "nowhere") is None
    logs.forget_before(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.log", "3.log.1", "notes.txt"]


async def test_a_follower_and_a_fast_writer_agree(tmp_path: Path, writer: Writer) -> None:
    follower = Follower(tmp_path, [])

    async def write_and_rotate() -> None:
        for n in range(3000):
            writer.write(f"{n}")
            if n % 100 == 0:
                await logs.rotate(tmp_path, 0, writer.reopen, max_bytes=4000)
                await asyncio.sleep(0)
        follower.ended = True

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        follower._turn = lambda _: asyncio.sleep(0)  # type: ignore[method-assign]
        reading = group.create_task(follower.text())
        group.create_task(write_and_rotate())
    lines = [int(line) for line in reading.result().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 2999
