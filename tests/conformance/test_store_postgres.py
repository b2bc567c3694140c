"""What is PostgreSQL's alone: a server that goes away, connections that break, and what a URL may say."""

import asyncio

import asyncpg
import pytest

from builders import NOW, a_manifest
from controller.store import open_store
from controller.store.contract import Put, SchemaMismatch, Unavailable
from kakuri.selector import Selector
from support.postgres import Server


async def test_broken_connections_are_made_anew(postgres_server: Server, shared_postgres_url: str) -> None:
    store = await open_store(shared_postgres_url)
    await store.apply([Put(a_manifest("a"))], now=NOW)
    postgres_server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'kakuri_shared'")
    await store.apply([Put(a_manifest("b"))], now=NOW)
    assert len((await store.list_workloads(selector=Selector())).items) == 2
    await store.close()


async def test_a_server_that_went_away_is_unavailable_until_it_is_back(
    postgres_server: Server, shared_postgres_url: str
) -> None:
    store = await open_store(shared_postgres_url)
    await store.apply([Put(a_manifest("a"))], now=NOW)
    await asyncio.to_thread(postgres_server.stop)
    try:
        with pytest.raises(Unavailable) as error:
            await store.apply([Put(a_manifest("b"))], now=NOW)
        assert "secret" not in error.value.message
        with pytest.raises(Unavailable):
            await store.ping()
        with pytest.raises(Unavailable):
            await store.list_workloads(selector=Selector())
    finally:
        await asyncio.to_thread(postgres_server.start)
    await store.ping()
    await store.apply([Put(a_manifest("b"))], now=NOW)
    await store.close()


async def test_a_read_only_server_is_unavailable(postgres_server: Server, shared_postgres_url: str) -> None:
    store = await open_store(shared_postgres_url)
    alter = "ALTER DATABASE kakuri_shared SET default_transaction_read_only = {}"
    postgres_server.sql(alter.format("on"))
    try:
        postgres_server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'kakuri_shared'")
        with pytest.raises(Unavailable, match="is read-only"):
            await store.apply([Put(a_manifest("a"))], now=NOW)
        with pytest.raises(Unavailable, match="is read-only"):
            await store.ping()
    finally:
        postgres_server.sql("SET default_transaction_read_only = off; " + alter.format("off"), "postgres")
        postgres_server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'kakuri_shared'")
    await store.apply([Put(a_manifest("a"))], now=NOW)
    await store.close()


async def test_a_row_locked_too_long_is_unavailable(shared_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.engine.BUSY_S", 0.1)
    store = await open_store(shared_postgres_url)
    await store.apply([Put(a_manifest("a"))], now=NOW)
    other = await asyncpg.connect(shared_postgres_url)
    try:
        async with other.transaction():
            await other.execute("SELECT * FROM workloads FOR UPDATE")
            with pytest.raises(Unavailable, match="is locked"):
                await store.apply([Put(a_manifest("a", replicas=2))], now=NOW)
    finally:
        await other.close()
    await store.apply([Put(a_manifest("a", replicas=2))], now=NOW)
    await store.close()


@pytest.mark.parametrize("url", ["postgresql://kakuri:secret@127.0.0.1:1/kakuri", "postgres://x:secret@127.0.0.1:1/d"])
async def test_a_server_that_is_not_there_is_unavailable_and_the_password_untold(url: str) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as error:
        await open_store(url)
    assert "secret" not in error.value.message


async def test_a_database_that_is_not_there_is_unavailable(postgres_server: Server) -> None:
    with pytest.raises(Unavailable, match="does not exist"):
        await open_store(postgres_server.url("nope"))


async def test_an_empty_database_is_refused_with_what_to_run(empty_postgres_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="kakuri db upgrade --store postgresql://") as error:
        await open_store(empty_postgres_url)
    assert "secret" not in error.value.message


async def test_the_urls_of_libpq_work(shared_postgres_url: str) -> None:
    store = await open_store(shared_postgres_url.replace("postgresql:", "postgres:") + "?sslmode=disable")
    await store.ping()
    await store.close()
