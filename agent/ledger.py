"""What was accepted, and the ends that SQL has not acknowledged: on disk, so that a restart forgets nothing.

One rule: what a method was awaited for is on the disk when it returns; when it raises, nothing of it counts.

The file is append-only: one line a commit, `crc32 [record, …]`, so that what was committed together is torn together.
A torn last line was never acknowledged and is dropped; damage before it is refused, for it may hide an end, and
what has ended would run again. Commits that come while one is being written share the next one's fsync.

    LedgerError
    ├── LedgerDamaged      the file can't be trusted; says where, and what to do
    └── LedgerUnwritable   temporary: disk full, read-only
"""

import asyncio
import json
import secrets
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from agent.entry import Change, Entry, apply_change
from agent.files import put_file
from agent.ledger_file import LedgerFile
from kakuri.log import get_logger

VERSION = 1
COMPACT_OVER_BYTES = 1 << 20
"""No compaction below it. Smaller, and a busy node rewrites all the time; larger, and a start reads for longer."""
MAX_FORGOTTEN = 1000
"""Removed ids that are remembered, so that a start that was delayed on its way does not bring one back."""

_log = get_logger("agent.ledger")
_ENTRY = TypeAdapter(Entry)


class LedgerError(Exception):
    pass


class LedgerDamaged(LedgerError):  # noqa: N818 - named as people see it
    pass


class LedgerUnwritable(LedgerError):  # noqa: N818
    pass


class AppendOnly(Protocol):
    """The file, as the ledger uses it. Both raise OSError, and then it may hold any part of the line."""

    size: int

    def append(self, line: bytes) -> None: ...
    def rewrite(self, lines: bytes) -> None: ...


@dataclass(slots=True)
class _Fence:
    cluster_id: str = ""
    epoch: int = 0


@dataclass(slots=True)
class _Batch:
    """What is committed together."""

    entries: dict[str, Entry] = field(default_factory=dict)
    changes: list[tuple[str, Change]] = field(default_factory=list)
    """What made these entries of earlier ones."""
    forgotten: list[str] = field(default_factory=list)
    fence: _Fence | None = None
    over: bool = False
    """Written, or failed to be."""
    error: LedgerUnwritable | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        fence = [_fence_record(self.fence)] if self.fence is not None else []
        return [*fence, *map(_entry_record, self.entries.values()), *({"forget": id_} for id_ in self.forgotten)]


class Ledger:
    """The entries of this node, and whose controller it obeys."""

    def __init__(self, file: AppendOnly, uid: str, *, label: str = "the ledger") -> None:
        """Made by open_ledger."""
        self.uid = uid
        self._file = file
        self._label = label
        self._durable: dict[str, Entry] = {}
        self._latest: dict[str, Entry] = {}
        self._forgotten: dict[str, None] = {}
        self._fence = _Fence()
        self._batch = _Batch()
        self._lock = asyncio.Lock()
        self._broken = False
        self._compact_over = COMPACT_OVER_BYTES
        # A thread of its own: a slow disk must not wait behind other work, nor other work behind it.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    @property
    def entries(self) -> Mapping[str, Entry]:
        """By id. Changes that are being written stand in here already."""
        return MappingProxyType(self._latest)

    @property
    def cluster_id(self) -> str:
        """The cluster that this agent is bound to; empty before the first Apply."""
        return self._fence.cluster_id

    @property
    def epoch(self) -> int:
        """The newest that it has acted under."""
        return self._fence.epoch

    def was_forgotten(self, id_: str) -> bool:
        return id_ in self._forgotten

    def is_durable(self, id_: str) -> bool:
        """Whether what entries says of it is on the disk."""
        return self._durable.get(id_) is self._latest.get(id_)

    def is_accepted(self, id_: str) -> bool:
        """Whether it is on the disk, be it as it was before a change that is being written."""
        return id_ in self._durable

    def durable_revision(self, id_: str) -> int:
        """The newest revision of it that is on the disk."""
        entry = self._durable.get(id_)
        return entry.revision if entry is not None else 0

    async def accept(self, entry: Entry) -> None:
        """A new allocation is durable."""
        self._put(entry)
        await self._commit(self._batch)

    async def record(self, id_: str, change: Change) -> Entry:
        """The entry after the change, durable. A stop that can't be written raises too, and is kept in memory."""
        before = self._latest[id_]
        after = apply_change(before, change)
        if after is before and self.is_durable(id_):
            return after
        self._put(after)
        self._batch.changes.append((id_, change))
        await self._commit(self._batch)
        return self._latest.get(id_, after)

    async def forget(self, id_: str) -> None:
        """The entry is gone, and its id will not be accepted again."""
        self._batch.forgotten.append(id_)
        await self._commit(self._batch)

    async def bind(self, cluster_id: str, epoch: int) -> None:
        """From now on this cluster's and no other's, and of no older epoch."""
        if (cluster_id, epoch) == (self._fence.cluster_id, self._fence.epoch):
            return
        fence = _Fence(cluster_id, max(epoch, self._fence.epoch))
        self._batch.fence = fence
        await self._commit(self._batch)

    async def unbind(self, cluster_id: str) -> None:
        """No cluster's any more, and nothing of this one is left in it. All of that is released."""
        fence = _Fence()
        over = [e.id for e in self._latest.values() if e.origin == cluster_id]
        self._batch.forgotten += over
        self._batch.fence = fence
        await self._commit(self._batch)

    def close(self) -> None:
        """What is being written is written to its end."""
        self._disk.shutdown(wait=True)

    def _put(self, entry: Entry) -> None:
        self._latest[entry.id] = entry
        self._batch.entries[entry.id] = entry

    async def _commit(self, batch: _Batch) -> None:
        cancelled: asyncio.CancelledError | None = None
        while not batch.over:
            # A caller that is cut off stays until it is known whether its records are on the disk: see the one rule.
            try:
                async with self._lock:
                    # Whoever comes first writes for all who joined meanwhile.
                    if not batch.over:
                        self._batch = _Batch()
                        await self._write(batch)
            except asyncio.CancelledError as asked:
                cancelled = asked
        if batch.error is not None:
            raise batch.error
        if cancelled is not None:
            raise cancelled

    async def _write(self, batch: _Batch) -> None:
        whole = self._broken or self._file.size > self._compact_over
        work = self._rewriting(batch) if whole else self._appending(batch)
        writing = asyncio.get_running_loop().run_in_executor(self._disk, work)
        cancelled: asyncio.CancelledError | None = None
        while not writing.done():
            try:
                await asyncio.wait({writing})
            except asyncio.CancelledError as asked:
                cancelled = asked  # the thread can't be called back
        failed = writing.exception()
        if failed is not None:
            self._give_up(batch, failed)
        else:
            self._keep(batch)
            self._broken = False
            if whole:
                self._compact_over = max(COMPACT_OVER_BYTES, 4 * self._file.size)
        batch.over = True
        if cancelled is not None:
            raise cancelled

    def _appending(self, batch: _Batch) -> Callable[[], None]:
        return lambda: self._file.append(_line(batch.records))

    def _rewriting(self, batch: _Batch) -> Callable[[], None]:
        entries = {**self._durable, **batch.entries}
        forgotten = [*self._forgotten, *batch.forgotten][-MAX_FORGOTTEN:]
        for id_ in batch.forgotten:
            entries.pop(id_, None)
        fence = batch.fence or self._fence

        def work() -> None:
            lines = [
                _header(self.uid),
                _line([_fence_record(fence), {"forgotten": forgotten}]),
                *(_line([_entry_record(e)]) for e in entries.values()),
            ]
            self._file.rewrite(b"".join(lines))

        return work

    def _keep(self, batch: _Batch) -> None:
        self._durable.update(batch.entries)
        for id_ in batch.forgotten:
            self._durable.pop(id_, None)
            self._latest.pop(id_, None)
            self._remember(id_)
        if batch.fence is not None:
            self._fence = batch.fence

    def _give_up(self, batch: _Batch, error: BaseException) -> None:
        self._broken = True
        why = (error.strerror or error) if isinstance(error, OSError) else error
        batch.error = LedgerUnwritable(f"{self._label} can't be written ({why}): free some space or make it writable")
        for id_, entry in batch.entries.items():
            durable = self._durable.get(id_)
            if durable is None:
                if self._latest.get(id_) is entry:
                    del self._latest[id_]
                continue  # else what came on top of it says all of it again
            # A stop that was asked stays asked, and a grace that was cut short so, whatever the disk says.
            kept = replace(durable, stop=entry.stop) if entry.stop not in {None, durable.stop} else durable
            self._latest[id_] = kept
            if id_ in self._batch.entries:
                # What came on top of it is to stand on what is on the disk.
                for changed, change in self._batch.changes:
                    kept = apply_change(kept, change) if changed == id_ else kept
                self._latest[id_] = self._batch.entries[id_] = kept

    def _remember(self, id_: str) -> None:
        self._forgotten.pop(id_, None)
        self._forgotten[id_] = None
        while len(self._forgotten) > MAX_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]

    def _replay(self, record: dict[str, Any]) -> None:
        match record:
            case {"entry": dict(fields)} | {"leased": dict(fields)}:
                entry = _ENTRY.validate_python(fields, strict=False)
                self._durable[entry.id] = self._latest[entry.id] = entry
            case {"forget": str(id_)}:
                self._durable.pop(id_, None)
                self._latest.pop(id_, None)
                self._remember(id_)
            case {"forgotten": list(ids)}:
                for id_ in ids:
                    self._remember(str(id_))
            case {"fence": {"cluster_id": str(cluster_id), "epoch": int(epoch)}}:
                self._fence = _Fence(cluster_id, epoch)
            case _:
                raise ValueError(f"unknown record {sorted(record)}")


def open_ledger(path: Path) -> Ledger:
    """The ledger in this file, made with a new uid when there is none. Raises LedgerDamaged, LedgerUnwritable."""
    try:
        if not path.exists():
            uid = secrets.token_hex(16)
            put_file(path, _header(uid))
            return Ledger(LedgerFile(path), uid, label=str(path))
        content = path.read_bytes()
        return _read(path, content)
    except OSError as error:
        why = error.strerror or error
        raise LedgerUnwritable(f"{path}: {why}; the agent must be able to read and write it") from error


def _read(path: Path, content: bytes) -> Ledger:
    lines = content.split(b"\n")
    torn = lines.pop()  # nothing, when the last line is whole
    records: list[list[dict[str, Any]]] = []
    good = 0
    for number, line in enumerate(lines, start=1):
        parsed = _parse(line)
        if parsed is None:
            if number == len(lines) and number > 1 and not torn:
                torn = line
                break
            raise _damaged(path, number, "its checksum does not fit")
        records.append(parsed)
        good += len(line) + 1
    match records:
        case [[{"ledger": {"version": int(version), "uid": str(uid)}}], *rest] if version <= VERSION:
            pass
        case _:
            raise _damaged(path, 1, "it is no header of a ledger that this version reads")
    file = LedgerFile(path)
    if torn:
        _log.warning("ledger tail dropped", path=str(path), torn_bytes=len(content) - good)
        file.truncate(good)
    ledger = Ledger(file, uid, label=str(path))
    for number, batch in enumerate(rest, start=2):
        for record in batch:
            try:
                ledger._replay(record)  # noqa: SLF001 - the same module: a ledger is made here and nowhere else
            except (ValueError, ValidationError) as error:
                raise _damaged(path, number, f"it can't be understood: {error}") from error
    return ledger


def _damaged(path: Path, number: int, what: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"{path}: line {number} is damaged: {what}. Restore the file from a copy; or move it away, and this node's "
        "allocations then count as lost (NodeLost): their containers are removed, and what should run is replaced"
    )


def _entry_record(entry: Entry) -> dict[str, Any]:
    # Defaults are written out: another version's must not change what was accepted.
    # A version that knows of no lease must not take over what is bound to one: it does not know this name.
    return {"leased" if entry.leased else "entry": _ENTRY.dump_python(entry, mode="json")}


def _fence_record(fence: _Fence) -> dict[str, Any]:
    return {"fence": {"cluster_id": fence.cluster_id, "epoch": fence.epoch}}


def _header(uid: str) -> bytes:
    return _line([{"ledger": {"version": VERSION, "uid": uid}}])


def _line(records: list[dict[str, Any]]) -> bytes:
    text = json.dumps(records, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> list[dict[str, Any]] | None:
    checksum, space, text = line.partition(b" ")
    if not space or checksum != b"%08x" % zlib.crc32(text):
        return None
    records: list[dict[str, Any]] = json.loads(text)
    return records
