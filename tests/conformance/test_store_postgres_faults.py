"""PostgreSQL at its worst: stopped, out of disk, its answer to a commit lost, its clients killed or stopped halfway."""

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from builders import NOW, a_manifest
from controller.store import engine, open_store, postgres
from controller.store.backup import back_up_store
from controller.store.bring_back import bring_back
from controller.store.check import check_store
from controller.store.contract import Put, Store, StoreError, Unavailable
from controller.store.sql import SqlStore
from kakuri.selector import Selector
from support.children import Spawn
from support.needs import need
from support.postgres import Server

_BOUND_S = 20


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with _opened(postgres_url) as store:
        yield store


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(engine, "DEADLINE_S", 1.0)
    monkeypatch.setattr(engine, "LEASE_DEADLINE_S", 0.5)


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


async def _workloads(store: Store) -> int:
    return len((await store.list_workloads(selector=Selector())).items)


async def _sql(server: Server, url: str, statement: str) -> str:
    return await asyncio.to_thread(server.sql, statement, url.rpartition("/")[2])


# -- a server that says nothing --------------------------------------------------------------------------------------
async def test_a_stopped_server_is_unavailable_in_time_and_goes_on_when_it_does(
    soon: None, postgres_server: Server, postgres_url: str
) -> None:
    async with _opened(postgres_url) as store:
        lease = await store.acquire_lease("me", ttl_s=60)
        await store.apply([Put(a_manifest("before"))], now=NOW)
        with _stopped(postgres_server):
            for _ in range(2):  # over connections that were there, and over new ones
                async with asyncio.timeout(_BOUND_S):
                    calls = (
                        store.apply([Put(a_manifest("meanwhile"))], now=NOW),
                        store.list_workloads(selector=Selector()),
                        store.renew_lease("me", epoch=lease.epoch, ttl_s=60),
                        *(store.ping() for _ in range(12)),
                    )
                    answers = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(a) for a in answers} == {Unavailable}
                assert "did not answer in time" in str(answers[0])
        async with asyncio.timeout(_BOUND_S):
            await _until_available(store)
        assert await store.renew_lease("me", epoch=lease.epoch, ttl_s=60)
        await store.apply([Put(a_manifest("after"))], now=NOW)
        ids = {w.id for w in (await store.list_workloads(selector=Selector())).items}
        assert ids == {"before", "after"}, "what was cut off before its commit is not there"


async def test_the_lease_does_not_wait_behind_other_calls(postgres_server: Server, postgres_url: str) -> None:
    async with _opened(postgres_url) as store:
        lease = await store.acquire_lease("me", ttl_s=60)
        await _sql(postgres_server, postgres_url, _SLOW.format(when="BEFORE INSERT", how="", seconds=1.5))
        slow = [asyncio.create_task(store.apply([Put(a_manifest(f"w{n}"))], now=NOW)) for n in range(20)]
        await asyncio.sleep(0.2)
        assert await store.renew_lease("me", epoch=lease.epoch, ttl_s=60)
        assert not any(s.done() for s in slow)
        await asyncio.gather(*slow)


async def test_both_ends_notice_a_peer_that_vanished_without_a_word(store: Store) -> None:
    assert isinstance(store, SqlStore)
    database = store._database
    assert isinstance(database, postgres.PostgresDatabase)
    async with database._engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        peer = driver._transport.get_extra_info("socket")
        bound_ms = int(postgres.VANISHED_S * 1000)
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == bound_ms
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in (("tcp_user_timeout", bound_ms), ("tcp_keepalives_idle", 2), ("tcp_keepalives_count", 3)):
            assert int(await driver.fetchval("SELECT setting FROM pg_settings WHERE name = $1", name)) == value


# -- how a transaction ends ------------------------------------------------------------------------------------------
_SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$;
CREATE {how} TRIGGER slow {when} ON workloads {how_long} FOR EACH ROW EXECUTE FUNCTION slow()
""".replace("{how_long}", "")
_SLOW_COMMIT = _SLOW.replace("ON workloads ", "ON workloads DEFERRABLE INITIALLY DEFERRED ").format(
    how="CONSTRAINT", when="AFTER INSERT", seconds=30
)
_TRIES = """
CREATE SEQUENCE tries;
CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$;
CREATE TRIGGER fails BEFORE INSERT ON changes FOR EACH ROW EXECUTE FUNCTION fails()
"""


async def test_a_commit_whose_answer_is_lost_says_that_it_may_be_there_and_is_not_tried_again(
    store: Store, postgres_server: Server, postgres_url: str
) -> None:
    await _sql(postgres_server, postgres_url, _SLOW_COMMIT)
    writing = asyncio.create_task(store.apply([Put(a_manifest("web"))], now=NOW))
    await _until_commits(postgres_server, postgres_url)
    await _sql(
        postgres_server,
        postgres_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT;' AND state = 'active'",
    )
    with pytest.raises(Unavailable, match="may be there or not: look before you write it again"):
        await writing
    await _sql(postgres_server, postgres_url, "DROP TRIGGER slow ON workloads")
    assert await _workloads(store) == 0


async def test_a_commit_that_takes_too_long_says_the_same(
    soon: None, postgres_server: Server, postgres_url: str
) -> None:
    async with _opened(postgres_url) as store:
        await _sql(postgres_server, postgres_url, _SLOW_COMMIT)
        with pytest.raises(Unavailable, match="may be there or not"):
            await store.apply([Put(a_manifest("web"))], now=NOW)
        assert await _workloads(store) == 0


async def test_a_statement_that_takes_too_long_says_what_happened_and_writes_nothing(
    soon: None, postgres_server: Server, postgres_url: str
) -> None:
    async with _opened(postgres_url) as store:
        await _sql(postgres_server, postgres_url, _SLOW.format(when="BEFORE INSERT", how="", seconds=30))
        with pytest.raises(Unavailable) as error:
            await store.apply([Put(a_manifest("web"))], now=NOW)
        assert "may be there" not in error.value.message, "it was not yet committing"
        assert await _workloads(store) == 0


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_what_the_server_rolled_back_for_another_is_run_again_and_written_once(
    store: Store, postgres_server: Server, postgres_url: str, code: str
) -> None:
    await _sql(postgres_server, postgres_url, _TRIES.format(times=3, code=code))
    before = await store.resource_version()
    (outcome,) = await store.apply([Put(a_manifest("web"))], now=NOW)
    assert outcome.result == "created"
    assert await store.resource_version() == before + 1


async def test_what_is_rolled_back_again_and_again_is_unavailable(
    store: Store, postgres_server: Server, postgres_url: str
) -> None:
    await _sql(postgres_server, postgres_url, _TRIES.format(times=1000, code="40001"))
    with pytest.raises(Unavailable, match="not now"):
        await store.apply([Put(a_manifest("web"))], now=NOW)
    assert await _workloads(store) == 0


async def test_a_full_disk_is_unavailable_and_then_it_goes_on(
    store: Store, postgres_server: Server, postgres_url: str, small_disk: Path
) -> None:
    await asyncio.to_thread(postgres_server.sql, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    try:
        await _sql(postgres_server, postgres_url, "ALTER TABLE workloads SET TABLESPACE small")
        written = 0

        async def fill() -> None:
            nonlocal written
            for written in range(1000):
                # Not to be made smaller by the server.
                await store.apply([Put(a_manifest(f"w{written}", args=(os.urandom(3000).hex(),)))], now=NOW)

        with pytest.raises(Unavailable, match=r"the disk of .* is full; free some space"):
            await fill()
        assert await _workloads(store) == written
        await _sql(postgres_server, postgres_url, "ALTER TABLE workloads SET TABLESPACE pg_default")
        await store.apply([Put(a_manifest("after"))], now=NOW)
        await store.close()
    finally:
        name = postgres_url.rpartition("/")[2]
        await asyncio.to_thread(postgres_server.drop, name)
        await asyncio.to_thread(postgres_server.sql, "DROP TABLESPACE small")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    need(os.geteuid() == 0, "mounting a small disk needs root")
    disk = Path("/tmp") / f"kakuri-small-{os.getpid()}"  # the user postgres may not look into pytest's own folder
    disk.mkdir()
    options = f"size=2m,uid={pwd.getpwnam('postgres').pw_uid},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
    disk.rmdir()


# -- a client that goes away halfway ---------------------------------------------------------------------------------
async def test_a_stopped_controller_in_the_middle_of_a_transaction_does_not_keep_the_lease_from_the_next(
    store: Store, postgres_url: str, spawn: Spawn
) -> None:
    child = await _half_way(spawn, postgres_url)
    child.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(_BOUND_S):
        while True:
            try:
                lease = await store.acquire_lease("next", ttl_s=60)
            except Unavailable:
                continue
            break
    assert lease.mine
    assert await _workloads(store) == 0


async def test_a_killed_controller_leaves_nothing_half_done_and_no_lock(
    store: Store, postgres_url: str, spawn: Spawn
) -> None:
    child = await _half_way(spawn, postgres_url)
    child.kill()
    await child.wait()
    async with asyncio.timeout(_BOUND_S):
        assert (await store.acquire_lease("next", ttl_s=60)).mine
        (outcome,) = await store.apply([Put(a_manifest("half"))], now=NOW)
    assert outcome.result == "created"


async def _half_way(spawn: Spawn, url: str) -> asyncio.subprocess.Process:
    """A process in the middle of a transaction that has written a workload and holds the lease's row."""
    code = Path(__file__).parents[1] / "support" / "half_way.py"
    child = await spawn(sys.executable, code, url, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    async with asyncio.timeout(_BOUND_S):
        assert await child.stdout.readline() == b"half way\n"
    return child


# -- kakuri db … -----------------------------------------------------------------------------------------------------
async def test_a_backup_is_pg_dumps_and_a_loaded_one_is_adopted(
    postgres_server: Server, postgres_url: str, tmp_path: Path
) -> None:
    async with _opened(postgres_url) as store:
        await store.apply([Put(a_manifest("old"))], now=NOW)
        await back_up_store(postgres_url, tmp_path / "b.dump", force=False)
        assert (tmp_path / "b.dump").read_bytes().startswith(b"PGDMP")
        newest = await store.resource_version()
        with pytest.raises(StoreError, match="a controller is connected"):
            await bring_back(postgres_url, None, force=False, now=NOW)
    assert await check_store(postgres_url) == ([], [])
    done = await bring_back(postgres_url, None, force=False, now=NOW)
    async with _opened(postgres_url) as store:
        assert await store.hold() is not None
        assert await store.resource_version() > newest + 2**31
        assert (await store.acquire_lease("c", ttl_s=60)).epoch == done.epoch + 1
    assert [n.partition(" at ")[0] for n in (await check_store(postgres_url))[1]] == ["it was restored"]


async def test_what_is_wrong_in_postgresql_is_found_too(
    store: Store, postgres_server: Server, postgres_url: str
) -> None:
    await store.apply([Put(a_manifest("web"))], now=NOW)
    await _sql(postgres_server, postgres_url, "DELETE FROM changes; UPDATE workloads SET resource_version = 99")
    found, _ = await check_store(postgres_url)
    assert len(found) == 2


# -- helpers ---------------------------------------------------------------------------------------------------------
class _stopped:  # noqa: N801 - reads as a word
    """Every process of the server is stopped inside the block."""

    def __init__(self, server: Server) -> None:
        pid = int((server.folder / "db" / "postmaster.pid").read_text().splitlines()[0])
        self._master = psutil.Process(pid)
        self._all: list[psutil.Process] = []

    def __enter__(self) -> None:
        self._master.suspend()  # first: it must fork no more
        self._all = [self._master, *self._master.children()]
        for process in self._all[1:]:
            process.suspend()

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._all):
            process.resume()


async def _until_available(store: Store) -> None:
    while True:
        try:
            await store.ping()
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return


async def _until_commits(server: Server, url: str) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT;' AND wait_event = 'PgSleep'"
    deadline = time.monotonic() + _BOUND_S
    while await _sql(server, url, waiting) != "1\n":
        assert time.monotonic() < deadline, "nothing commits"
