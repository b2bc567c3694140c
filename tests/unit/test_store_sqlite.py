"""What is SQLite's alone: its file, its locks, its broken disks, and the person who looks into it with sqlite3."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from builders import NOW, a_manifest
from controller.plan.action import Plan, WorkloadPlan
from controller.store import engine, open_store
from controller.store.check import check_store
from controller.store.contract import Put, Store, StoreError, Unavailable
from controller.store.sql import SqlStore
from kakuri.model import EventDraft, EventType, State, WorkloadStatus
from kakuri.selector import Selector
from support.children import Spawn
from support.needs import need
from support.store_script import StoreScript


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kakuri.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite:///{path}")
    yield store
    await store.close()


def look(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


# -- what a person sees ----------------------------------------------------------------------------------------------
async def test_a_person_can_ask_the_table_what_runs_where(store: Store, path: Path) -> None:
    script = StoreScript(store)
    await script.node()
    await script.put("web", labels={"app": "web"})
    query = "select id, image, runtime_class, node, state, reason from workloads"
    assert look(path, query) == [("web", "localhost/demo:1.0", "native", None, "Pending", "Scheduling")]
    await script.running()
    status = WorkloadStatus(state=State.RUNNING, reason="CrashLoopBackOff", message="again in 10 s", node="n1", nodes=1)
    await script.act(status=status)
    assert look(path, query) == [("web", "localhost/demo:1.0", "native", "n1", "Running", "CrashLoopBackOff")]
    assert look(path, "select message, replicas, generation from workloads") == [("again in 10 s", 1, 1)]
    await script.act(status=status.with_(node=None, nodes=2, reason=""))
    assert look(path, query) == [("web", "localhost/demo:1.0", "native", None, "Running", "")]
    await script.put("web", image="localhost/demo:2.0", runtime_class="gvisor")
    assert look(path, "select image, runtime_class, generation from workloads") == [("localhost/demo:2.0", "gvisor", 2)]
    await script.delete()
    assert look(path, "select state, reason, deleted_at from workloads")[0][:2] == ("Terminating", "Deleted")


async def test_the_json_columns_are_json(store: Store, path: Path) -> None:
    await StoreScript(store).put("web", labels={"app": "web"}, env={"A": "é"})
    ((spec, labels),) = look(path, "select spec, labels from workloads")
    assert json.loads(str(spec))["env"] == {"A": "é"}
    assert json.loads(str(labels)) == {"app": "web"}
    assert look(path, "select json_extract(spec, '$.image') from workloads") == [("localhost/demo:1.0",)]


async def test_times_are_utc_that_people_can_read(store: Store, path: Path) -> None:
    await StoreScript(store).put()
    assert look(path, "select created_at from workloads") == [(NOW.strftime("%Y-%m-%d %H:%M:%S.%f"),)]


# -- the file --------------------------------------------------------------------------------------------------------
async def test_what_was_committed_is_there_when_the_file_is_opened_again(path: Path) -> None:
    clusters = set()
    for n in range(3):
        store = await open_store(f"sqlite:///{path}")
        clusters.add(store.cluster_id)
        await store.apply([Put(a_manifest(f"w{n}"))], now=NOW)
        assert len((await store.list_workloads(selector=Selector())).items) == n + 1
        await store.close()
    assert len(clusters) == 1


async def test_the_file_is_the_owners_alone_and_written_ahead(store: Store, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert look(path, "pragma journal_mode") == [("wal",)]


async def test_every_connection_is_durable_and_checks_references(path: Path) -> None:
    engine.make_sqlite_file(path)
    for writer in (True, False):
        made = engine.sqlite_engine(path, writer=writer)
        with made.connect() as connection:
            settings = {
                name: connection.exec_driver_sql(f"pragma {name}").scalar_one()
                for name in ("synchronous", "foreign_keys", "query_only")
            }
        made.dispose()
        assert settings == {"synchronous": 2, "foreign_keys": 1, "query_only": int(not writer)}


async def test_names_with_signs_that_urls_know_are_files_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "a ?b#c"
    folder.mkdir()
    store = await open_store(f"sqlite:///{folder.as_posix().replace('?', '%3F')}/k.db")
    await store.close()
    assert [p.name for p in tmp_path.glob("**/k.db")] == ["k.db"]


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file or directory"):
        await open_store(f"sqlite:///{tmp_path}/nope/kakuri.db")


async def test_what_is_no_database_is_said_and_left_alone(path: Path) -> None:
    path.write_text("shopping: milk, eggs" * 100)
    with pytest.raises(StoreError, match="no SQLite database"):
        await open_store(f"sqlite:///{path}")
    assert path.read_text().startswith("shopping")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://h/d", "kakuri.db", "", "http://x"])
async def test_a_url_that_names_no_store_is_told_what_would(url: str) -> None:
    with pytest.raises(StoreError, match=r"use sqlite:////path/to/kakuri\.db"):
        await open_store(url)


# -- trouble ---------------------------------------------------------------------------------------------------------
async def test_a_lock_held_too_long_is_unavailable_and_then_it_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_S", 0.05)
    store = await open_store(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match="is locked") as error:
            await store.apply([Put(a_manifest())], now=NOW)
        assert error.value.temporary
        assert (await store.list_workloads(selector=Selector())).items == [], "readers are not kept waiting"
        other.rollback()
    await store.apply([Put(a_manifest())], now=NOW)
    await store.close()


async def test_a_full_disk_is_unavailable_and_then_it_goes_on(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=False).returncode
    need(mounted == 0, "this machine lets root mount no tmpfs")
    try:
        store = await open_store(f"sqlite:///{disk}/kakuri.db")
        ballast = disk / "ballast"
        _fill(ballast)
        with pytest.raises(Unavailable, match="is full; free some space"):
            await _often(lambda n: store.apply([Put(a_manifest(f"w{n}", args=("x" * 5000,)))], now=NOW))
        with pytest.raises(Unavailable, match="is full"):
            await store.apply([Put(a_manifest("large", args=("x" * 100_000,)))], now=NOW)
        there = len((await store.list_workloads(selector=Selector())).items)
        ballast.unlink()
        await store.ping()
        await store.apply([Put(a_manifest("after"))], now=NOW)
        assert len((await store.list_workloads(selector=Selector())).items) == there + 1
        await store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def test_a_read_only_store_is_unavailable_and_recovers(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "mounting a folder read-only needs root")
    folder = tmp_path / "folder"
    folder.mkdir()
    store = await open_store(f"sqlite:///{folder}/kakuri.db")
    await store.apply([Put(a_manifest("before"))], now=NOW)
    await store.close()
    bind = subprocess.run(["mount", "--bind", folder, folder], check=False).returncode
    need(bind == 0, "this machine lets root bind no mounts")
    try:
        store = await open_store(f"sqlite:///{folder}/kakuri.db")
        _close_files(store)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"read-only|can't be read or written"):
                await store.apply([Put(a_manifest("meanwhile"))], now=NOW)
            with pytest.raises(Unavailable):
                await store.ping()
        subprocess.run(["mount", "-o", "remount,bind,rw", folder], check=True)
        await store.ping()
        await store.apply([Put(a_manifest("after"))], now=NOW)
        await store.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_file_that_vanished_is_unavailable_and_no_new_database(store: Store, path: Path) -> None:
    moved = path.with_name("moved.db")
    path.rename(moved)
    _close_files(store)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.apply([Put(a_manifest())], now=NOW)
    assert not path.exists()
    moved.rename(path)
    await store.apply([Put(a_manifest())], now=NOW)


async def test_a_controller_that_was_killed_halfway_leaves_nothing_half_done_and_no_lock(
    path: Path, spawn: Spawn
) -> None:
    code = Path(__file__).parents[1] / "support" / "half_way.py"
    child = await spawn(sys.executable, code, f"sqlite:///{path}", stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 20) == b"half way\n"
    child.kill()
    await child.wait()
    store = await open_store(f"sqlite:///{path}", serving=True)
    (outcome,) = await store.apply([Put(a_manifest("half"))], now=NOW)
    assert outcome.result == "created"
    assert await check_store(f"sqlite:///{path}") == ([], [])
    await store.close()


# -- its size --------------------------------------------------------------------------------------------------------
async def test_twenty_thousand_writes_of_changing_status_leave_the_file_bounded(path: Path) -> None:
    store = await open_store(f"sqlite:///{path}", changes_kept=1000, events_kept=100)
    script = StoreScript(store)
    ids = [f"w{n}" for n in range(100)]
    for id_ in ids:
        await script.put(id_)
    views = (await store.load_snapshot(ids, now=NOW, seed="s")).workloads
    sizes = []
    for round_ in range(200):
        status = WorkloadStatus(message=f"pass {round_} " * 20)
        said = EventDraft(
            object_kind="Workload", object_id="w", type=EventType.NORMAL, reason="R", message=f"pass {round_}"
        )
        plan = Plan(tuple(WorkloadPlan(v.id, v.version + round_, (), status, True, (said,)) for v in views))
        assert len((await store.apply_plan(plan, epoch=0, now=NOW)).written) == len(ids)
        sizes.append(path.stat().st_size + path.with_name("kakuri.db-wal").stat().st_size)
    assert await store.resource_version() > 20_000
    assert max(sizes[100:]) <= max(sizes[:100]) * 1.05
    await store.close()


async def test_what_a_mass_of_deletions_freed_is_given_back(path: Path) -> None:
    store = await open_store(f"sqlite:///{path}", changes_kept=1000)
    for start in range(0, 2000, 1000):
        puts = [Put(a_manifest(f"w{n}", args=("x" * 4000,))) for n in range(start, start + 1000)]
        await store.apply(puts, now=NOW)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("update workloads set spec = '{}' where id != 'w0'; pragma wal_checkpoint(TRUNCATE)")
    large = path.stat().st_size
    script = StoreScript(store)
    for n in range(60):
        await script.put("w0", args=(str(n),))
    await store.close()
    assert path.stat().st_size < large / 2


async def test_a_reader_that_never_ends_does_not_make_the_log_grow_once_it_has_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAL_BYTES", 2**20)
    monkeypatch.setattr(engine, "_WAL_AGAIN_S", 0)
    monkeypatch.setattr(engine, "WAL_KEPT_BYTES", 2**20)
    store = await open_store(f"sqlite:///{path}")
    log = path.with_name("kakuri.db-wal")
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("begin")
        reader.execute("select * from workloads").fetchall()
        while log.stat().st_size < 2 * 2**20:
            await store.apply([Put(a_manifest("w", args=(os.urandom(50_000).hex(),)))], now=NOW)
    await store.apply([Put(a_manifest("after"))], now=NOW)
    assert log.stat().st_size <= 2**20
    await store.close()


async def test_a_closed_store_says_so(path: Path) -> None:
    store = await open_store(f"sqlite:///{path}")
    await store.close()
    with pytest.raises(Unavailable, match="is closed"):
        await store.resource_version()


async def test_a_hung_disk_is_unavailable_after_the_deadline(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DEADLINE_S", 0.05)
    kicked = asyncio.Event()
    store.on_commit(kicked.set)
    slow = _SlowRows(await store.resource_version())
    monkeypatch.setattr("controller.store.changes.current", slow)
    with pytest.raises(Unavailable, match="did not answer in time"):
        await store.apply([Put(a_manifest())], now=NOW)
    slow.hung.set()
    # The write went on without its caller; who listens for commits hears of it.
    await asyncio.wait_for(kicked.wait(), 5)


class _SlowRows:
    def __init__(self, answer: int) -> None:
        self.hung = threading.Event()
        self._answer = answer

    def __call__(self, _: object) -> int:
        assert self.hung.wait(5)
        return self._answer


async def _often(do: Callable[[int], Awaitable[object]]) -> None:
    for n in range(200):
        await do(n)


def _close_files(store: Store) -> None:
    """As if its connections had to be made anew: files that are open already would stay as they are."""
    assert isinstance(store, SqlStore)
    database = store._database
    assert isinstance(database, engine.SqliteDatabase)
    database._writer.dispose()
    database._readers.dispose()


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"x" * 4096)
        except OSError:
            return
