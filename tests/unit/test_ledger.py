"""The ledger forgets nothing that it said it knows, whatever happens to process and disk."""

import asyncio
import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.entry import AttemptOver, Cleared, End, Ended, Exit, InPlace, Released, StopAsked, Updated
from agent.ledger import Ledger, LedgerDamaged, LedgerUnwritable, open_ledger
from agent.ledger_file import LedgerFile
from kakuri.model import RestartPolicy, State
from support.steps import ENTRY

EXIT = Exit(3, "Error", "boom", 1, 2)
END = End(State.FAILED, "Error", "boom", 3, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = open_ledger(path)
    yield opened
    opened.close()


def again(path: Path) -> Ledger:
    """As a restarted agent finds it."""
    opened = open_ledger(path)
    opened.close()
    return opened


class Disk(LedgerFile):
    """A disk that can be full, slow, and counts its writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.full = False
        self.half = False
        self.writes = 0

    def append(self, line: bytes) -> None:
        self.writes += 1
        if self.half:
            with self._path.open("ab") as file:
                file.write(line[: len(line) // 2])
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(line)

    def rewrite(self, lines: bytes) -> None:
        self.writes += 1
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().rewrite(lines)


@pytest.fixture
def disk(ledger: Ledger, path: Path) -> Disk:
    made = Disk(path)
    ledger._file = made
    return made


async def test_what_was_recorded_is_there_after_a_restart(ledger: Ledger, path: Path) -> None:
    await ledger.bind("cluster-a", 7)
    await ledger.accept(ENTRY)
    await ledger.record(ENTRY.id, Updated(2, InPlace(RestartPolicy.NEVER, 0, 3, {"a": "b"}, 9)))
    await ledger.record(ENTRY.id, Cleared(0))
    await ledger.record(ENTRY.id, AttemptOver(0, EXIT, 1, 99))
    await ledger.record(ENTRY.id, StopAsked(3, "Deleted", 1, "why"))
    await ledger.record(ENTRY.id, Ended(END, EXIT))
    await ledger.record(ENTRY.id, Released())
    found = again(path)
    assert found.entries == ledger.entries
    assert found.entries[ENTRY.id].end == END
    assert (found.uid, found.cluster_id, found.epoch) == (ledger.uid, "cluster-a", 7)


async def test_a_new_ledger_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = {again(tmp_path / name).uid for name in ("a", "b")}
    assert len(names) == 2


async def test_what_was_forgotten_is_gone_and_its_id_remembered(ledger: Ledger, path: Path) -> None:
    await ledger.accept(ENTRY)
    await ledger.forget(ENTRY.id)
    found = again(path)
    assert not found.entries
    assert found.was_forgotten(ENTRY.id)


async def test_commits_that_come_together_share_a_write(ledger: Ledger, disk: Disk) -> None:
    entries = [replace(ENTRY, id=f"web.{n}.0000000a") for n in range(50)]
    await asyncio.gather(*(ledger.accept(e) for e in entries))
    assert disk.writes <= 2
    assert len(ledger.entries) == 50


async def test_a_torn_tail_was_never_acknowledged_and_is_dropped(ledger: Ledger, path: Path) -> None:
    await ledger.accept(ENTRY)
    whole = path.read_bytes()
    for cut in (1, 10, 200):
        path.write_bytes(whole[:-cut])
        assert not again(path).entries
        assert path.read_bytes() == whole.splitlines(keepends=True)[0]
        path.write_bytes(whole)
    path.write_bytes(whole + b"00000000 [{")
    assert again(path).entries == ledger.entries
    assert path.read_bytes() == whole


async def test_a_last_line_of_zeros_is_torn_too(ledger: Ledger, path: Path) -> None:
    await ledger.accept(ENTRY)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 300 + b"\n")
    assert again(path).entries == ledger.entries


async def test_damage_in_the_middle_is_refused_in_words(ledger: Ledger, path: Path) -> None:
    await ledger.accept(ENTRY)
    await ledger.record(ENTRY.id, Ended(END))
    content = bytearray(path.read_bytes())
    content[content.index(b"accepted_at_ns")] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamaged, match=r"line 2 is damaged: its checksum .* move it away"):
        open_ledger(path)


async def test_a_file_that_is_no_ledger_is_refused(path: Path) -> None:
    path.write_text("hello\nworld\n")
    with pytest.raises(LedgerDamaged, match="line 1"):
        open_ledger(path)
    path.write_bytes(b"")
    with pytest.raises(LedgerDamaged, match="line 1"):
        open_ledger(path)


async def test_a_full_disk_refuses_a_start_and_takes_it_once_there_is_room(
    ledger: Ledger, disk: Disk, path: Path
) -> None:
    disk.full = disk.half = True
    with pytest.raises(LedgerUnwritable, match="No space left"):
        await ledger.accept(ENTRY)
    assert not ledger.entries
    assert not again(path).entries
    disk.full = disk.half = False
    await ledger.accept(ENTRY)
    assert again(path).entries == ledger.entries == {ENTRY.id: ENTRY}


async def test_a_full_disk_keeps_a_stop_in_mind_until_it_can_be_written(ledger: Ledger, disk: Disk, path: Path) -> None:
    await ledger.accept(ENTRY)
    disk.full = True
    with pytest.raises(LedgerUnwritable):
        await ledger.record(ENTRY.id, StopAsked(2, "Deleted", 1))
    assert ledger.entries[ENTRY.id].stop is not None
    assert ledger.durable_revision(ENTRY.id) == 1
    assert again(path).entries[ENTRY.id].stop is None
    disk.full = False
    await ledger.record(ENTRY.id, StopAsked(2, "Deleted", 1))
    assert again(path).entries[ENTRY.id].stop == StopAsked(2, "Deleted", 1)
    assert ledger.durable_revision(ENTRY.id) == 2


async def test_a_full_disk_keeps_in_mind_that_a_grace_was_cut_short(ledger: Ledger, disk: Disk) -> None:
    await ledger.accept(ENTRY)
    await ledger.record(ENTRY.id, StopAsked(2, "Deleted", 60))
    disk.full = True
    with pytest.raises(LedgerUnwritable):
        await ledger.record(ENTRY.id, StopAsked(0, "NodeLost", 5))
    assert ledger.entries[ENTRY.id].stop == StopAsked(2, "Deleted", 5)


async def test_a_full_disk_leaves_everything_else_as_it_was(ledger: Ledger, disk: Disk) -> None:
    await ledger.accept(ENTRY)
    disk.full = True
    for change in (Cleared(0), Ended(END), Updated(5, InPlace())):
        with pytest.raises(LedgerUnwritable):
            await ledger.record(ENTRY.id, change)
        assert ledger.entries[ENTRY.id] == ENTRY
    with pytest.raises(LedgerUnwritable):
        await ledger.forget(ENTRY.id)
    with pytest.raises(LedgerUnwritable):
        await ledger.bind("cluster-a", 1)
    assert ledger.cluster_id == ""
    assert not ledger.was_forgotten(ENTRY.id)


async def test_a_caller_that_is_cut_off_leaves_nothing_in_doubt(ledger: Ledger, path: Path) -> None:
    task = asyncio.ensure_future(ledger.accept(ENTRY))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ledger.is_durable(ENTRY.id)
    assert again(path).entries == ledger.entries


async def test_compaction_keeps_what_counts_and_drops_the_rest(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.bind("cluster-a", 3)
    await ledger.accept(replace(ENTRY, id="old.0.0000000a"))
    await ledger.forget("old.0.0000000a")
    await ledger.accept(ENTRY)
    for attempt in range(20):
        await ledger.record(ENTRY.id, Cleared(attempt))
        await ledger.record(ENTRY.id, AttemptOver(attempt, EXIT, 1, 99))
    before = path.stat().st_size
    monkeypatch.setattr(ledger, "_compact_over", 1)
    await ledger.record(ENTRY.id, Cleared(20))
    assert path.stat().st_size < before / 5
    found = again(path)
    assert found.entries == ledger.entries
    assert found.was_forgotten("old.0.0000000a")
    assert (found.uid, found.cluster_id, found.epoch) == (ledger.uid, "cluster-a", 3)
    await ledger.record(ENTRY.id, AttemptOver(20, EXIT, 1, 99))
    assert again(path).entries[ENTRY.id].attempt == 21


async def test_an_end_stays_what_it_was(ledger: Ledger) -> None:
    await ledger.accept(ENTRY)
    await ledger.record(ENTRY.id, Ended(END))
    await ledger.record(ENTRY.id, Ended(replace(END, reason="Other")))
    await ledger.record(ENTRY.id, Cleared(0))
    await ledger.record(ENTRY.id, AttemptOver(0, EXIT, 1, 0))
    await ledger.record(ENTRY.id, StopAsked(9, "Deleted", 1))
    entry = ledger.entries[ENTRY.id]
    assert (entry.end, entry.attempt, entry.cleared, entry.stop, entry.revision) == (END, 0, False, None, 9)


async def test_others_may_not_read_it(ledger: Ledger, path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0
