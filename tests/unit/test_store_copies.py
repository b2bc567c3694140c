"""Backup, check and restore of a SQLite store: whole copies while others write, and nothing done by halves."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from builders import NOW, a_manifest
from controller import db
from controller.store import open_store
from controller.store.backup import back_up_store
from controller.store.bring_back import EPOCHS, VERSIONS, BroughtBack, bring_back
from controller.store.check import check_store
from controller.store.contract import Put, Store, StoreError
from kakuri.selector import Selector
from support.store_script import StoreScript


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kakuri.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """Served, as by a controller."""
    store = await open_store(url, serving=True)
    yield store
    await store.close()


# -- backup ----------------------------------------------------------------------------------------------------------
async def test_a_backup_that_is_made_while_a_controller_writes_is_whole(store: Store, url: str, tmp_path: Path) -> None:
    ended = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not ended.is_set():
            pair = [Put(a_manifest(f"{side}-{written}", args=("x" * 2000,))) for side in ("left", "right")]
            await store.apply(pair, now=NOW)
            written += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        while written < 20:
            await asyncio.sleep(0.001)
        for n in range(3):
            await back_up_store(url, tmp_path / f"backup-{n}.db", force=False)
        ended.set()
    for n in range(3):
        names = {row[0] for row in _rows(tmp_path / f"backup-{n}.db", "select id from workloads")}
        pairs = {name.partition("-")[2] for name in names}
        assert len(names) == 2 * len(pairs) >= 40, "never a half of a transaction"
        assert await check_store(f"sqlite:///{tmp_path}/backup-{n}.db") == ([], [])


async def test_a_backup_is_one_file_for_its_owner_alone(store: Store, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    await back_up_store(url, folder / "b.db", force=False)
    assert [p.name for p in folder.iterdir()] == ["b.db"]
    assert stat.S_IMODE((folder / "b.db").stat().st_mode) == 0o600


async def test_a_backup_replaces_a_file_only_when_told(store: Store, url: str, tmp_path: Path) -> None:
    target = tmp_path / "b.db"
    target.write_text("precious")
    with pytest.raises(StoreError, match="--force"):
        await back_up_store(url, target, force=False)
    assert target.read_text() == "precious"
    await back_up_store(url, target, force=True)
    assert _rows(target, "select count(*) from cluster") == [(1,)]


async def test_a_backup_of_nothing_makes_nothing(url: str, path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        await back_up_store(url, tmp_path / "b.db", force=False)
    with pytest.raises(StoreError, match="there is no folder"):
        await back_up_store(url, tmp_path / "nowhere/b.db", force=False)
    assert list(tmp_path.iterdir()) == []


async def test_the_database_itself_is_no_place_for_its_backup(store: Store, url: str, path: Path) -> None:
    with pytest.raises(StoreError, match="is the database itself"):
        await back_up_store(url, path, force=True)
    for beside in ("-wal", "-shm", "-journal", ".lock"):
        with pytest.raises(StoreError, match="belongs to the database"):
            await back_up_store(url, path.with_name(path.name + beside), force=True)
    await store.ping()


# -- check -----------------------------------------------------------------------------------------------------------
async def test_a_sound_store_has_no_findings_also_while_it_is_served(store: Store, url: str) -> None:
    script = StoreScript(store)
    await script.node()
    await script.put()
    await script.running()
    assert await check_store(url) == ([], [])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("delete from nodes", "refers to a row of nodes"),
        ("update allocations set accepted_revision = revision + 1", "accepted a revision that they never had"),
        ("update allocations set state = 'Odd'", "have an unknown state"),
        ("update workloads set resource_version = 10000", "the counter stands at"),
        ("delete from changes where resource_version = 2", "the log of changes has"),
        ("update allocations set spec = '{\"image\": 1}'", "web.0.00000000 in allocations have a spec"),
        ("delete from leases", "holds the lease, has 0 rows"),
        ("update alembic_version set version_num = '9999'", "newer than this kakuri knows"),
    ],
)
async def test_what_is_wrong_is_told_with_what_to_do(url: str, path: Path, damage: str, told: str) -> None:
    store = await open_store(url)
    script = StoreScript(store)
    await script.node()
    await script.put()
    await script.running()
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(damage)
    found, _ = await check_store(url)
    assert [f for f in found if told in f.what and f.do], found


async def test_two_live_allocations_of_a_slot_are_found(url: str, path: Path) -> None:
    store = await open_store(url)
    script = StoreScript(store)
    await script.node()
    await script.put(replicas=2)
    await script.running()
    await script.running(slot=1, suffix="11111111")
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("drop index allocations_live_slot; update allocations set slot = 0")
    found, _ = await check_store(url)
    assert [f.what for f in found] == ["slot 0 of workload web has 2 live allocations"]


async def test_a_damaged_file_is_told_and_a_missing_one_is_not_made(url: str, path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        await check_store(url)
    assert not path.exists()
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    found, _ = await check_store(url)
    assert "not a database" in found[0].what


async def test_a_torn_page_is_found(url: str, path: Path) -> None:
    store = await open_store(url)
    await store.apply([Put(a_manifest(f"w{n}", args=("x" * 3000,))) for n in range(50)], now=NOW)
    await store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(8192))
    found, _ = await check_store(url)
    assert found


async def test_a_backup_that_is_looked_over_stays_as_it_is(store: Store, url: str, tmp_path: Path) -> None:
    backup = tmp_path / "b.db"
    await back_up_store(url, backup, force=False)
    before = backup.read_bytes()
    assert await check_store(f"sqlite:///{backup}") == ([], [])
    assert backup.read_bytes() == before


@pytest.mark.parametrize("verb", ["check", "restore", "upgrade"])
def test_what_names_no_store_is_told_in_words(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("kakuri.db", "mysql://root:secret@host/db"):
        with pytest.raises(SystemExit, match="2"):
            db.run([verb, "--store", url])
        told = capsys.readouterr().err
        assert "names no store; use sqlite:////path" in told
        assert "secret" not in told


# -- restore ---------------------------------------------------------------------------------------------------------
async def test_a_restore_goes_on_above_the_backup_and_what_it_replaces(url: str, path: Path, tmp_path: Path) -> None:
    store = await open_store(url)
    await StoreScript(store).put("old")
    await back_up_store(url, tmp_path / "b.db", force=False)
    for _ in range(5):
        epoch = (await store.acquire_lease("c", ttl_s=60)).epoch
    await StoreScript(store).put("new")
    newest = await store.resource_version()
    await store.close()

    done = await _restored(url, tmp_path / "b.db")

    assert done.epoch == epoch + EPOCHS
    again = await open_store(url)
    assert [w.id for w in (await again.list_workloads(selector=Selector())).items] == ["old"]
    assert await again.resource_version() == newest + VERSIONS
    assert await again.hold() is not None
    assert (await again.acquire_lease("c", ttl_s=60)).epoch == done.epoch + 1
    await again.close()
    assert done.kept is not None
    assert _rows(done.kept, "select id from workloads order by id") == [("new",), ("old",)]
    assert {p.name for p in tmp_path.iterdir()} == {"b.db", done.kept.name, "kakuri.db", "kakuri.db.lock"}
    assert await check_store(url) == ([], ["it was restored at 2030-01-01T12:00:00Z and waits for `kakuri db confirm`"])


async def test_a_served_file_is_not_restored(store: Store, url: str, tmp_path: Path) -> None:
    await back_up_store(url, tmp_path / "b.db", force=False)
    with pytest.raises(StoreError, match=r"controller already \(pid \d+\): stop it first"):
        await _restored(url, tmp_path / "b.db")
    assert await store.hold() is None


async def test_no_damaged_foreign_or_unknown_file_is_restored(url: str, path: Path, tmp_path: Path) -> None:
    await (await open_store(url)).close()
    before = path.read_bytes()
    (tmp_path / "text").write_text("no database")
    with closing(sqlite3.connect(tmp_path / "other")) as connection:
        connection.execute("create table t (a)")
    await (await open_store(f"sqlite:///{tmp_path}/foreign")).close()
    for name, told in (
        ("text", "no SQLite database"),
        ("other", "no schema of kakuri's"),
        ("missing", "there is no backup"),
        ("foreign", "agents refuse any other"),
    ):
        with pytest.raises(StoreError, match=told):
            await _restored(url, tmp_path / name)
        assert path.read_bytes() == before
        assert not list(tmp_path.glob("kakuri.db.*rest*"))
    await bring_back(url, tmp_path / "foreign", force=True, now=NOW)


async def test_a_restore_to_where_nothing_is_and_over_what_is_damaged(url: str, path: Path, tmp_path: Path) -> None:
    store = await open_store(url)
    await StoreScript(store).put("old")
    await back_up_store(url, tmp_path / "b.db", force=False)
    await store.close()
    path.unlink()
    assert (await _restored(url, tmp_path / "b.db")).kept is None
    path.write_bytes(b"torn" * 1000)
    path.with_name("kakuri.db-wal").write_bytes(b"left over" * 100)
    done = await _restored(url, tmp_path / "b.db")
    assert done.kept is not None
    assert done.kept.read_bytes().startswith(b"torn")
    again = await open_store(url)
    assert [w.id for w in (await again.list_workloads(selector=Selector())).items] == ["old"]
    await again.close()


async def test_postgresql_is_restored_by_its_own_tools(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="pg_restore"):
        await bring_back("postgresql://x@127.0.0.1:1/d", tmp_path / "b", force=False, now=NOW)
    with pytest.raises(StoreError, match="--from FILE"):
        await bring_back(url, None, force=False, now=NOW)


async def _restored(url: str, backup: Path) -> BroughtBack:
    return await bring_back(url, backup, force=False, now=NOW)


def _rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()
