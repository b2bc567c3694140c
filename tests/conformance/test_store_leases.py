"""Leadership, on every store: one holder at a time, an epoch that only grows, the database's clock."""

import asyncio
import os
from pathlib import Path

import pytest

from controller.store import open_store
from controller.store.contract import Store, StoreError
from support.stores import StoreSubject


async def test_a_free_lease_is_taken_at_once(store: Store) -> None:
    lease = await store.acquire_lease("a", ttl_s=60)
    assert (lease.holder, lease.mine, lease.epoch, lease.ttl_s) == ("a", True, 1, 60)


async def test_another_is_told_whose_it_is_and_for_how_long(store: Store) -> None:
    await store.acquire_lease("a", ttl_s=60)
    lease = await store.acquire_lease("b", ttl_s=60)
    assert (lease.holder, lease.mine, lease.epoch) == ("a", False, 1)
    assert 50 < lease.ttl_s <= 60
    assert await store.renew_lease("a", epoch=1, ttl_s=60), "the attempt changed nothing"


async def test_the_same_holder_takes_it_from_its_earlier_life_with_a_new_epoch(store: Store) -> None:
    await store.acquire_lease("a", ttl_s=60)
    lease = await store.acquire_lease("a", ttl_s=60)
    assert (lease.mine, lease.epoch) == (True, 2)
    assert not await store.renew_lease("a", epoch=1, ttl_s=60), "the earlier life leads no more"
    assert await store.renew_lease("a", epoch=2, ttl_s=60)


async def test_an_expired_lease_is_taken_and_its_holder_learns_of_it(store: Store) -> None:
    await store.acquire_lease("a", ttl_s=0.0)
    lease = await store.acquire_lease("b", ttl_s=60)
    assert (lease.mine, lease.epoch) == (True, 2)
    assert not await store.renew_lease("a", epoch=1, ttl_s=60)


async def test_an_expired_lease_that_nobody_took_is_renewed(store: Store) -> None:
    await store.acquire_lease("a", ttl_s=0.0)
    assert await store.renew_lease("a", epoch=1, ttl_s=60)
    assert not (await store.acquire_lease("b", ttl_s=60)).mine


async def test_a_released_lease_is_free_and_its_epoch_is_not_used_again(store: Store) -> None:
    await store.acquire_lease("a", ttl_s=60)
    await store.release_lease("b", epoch=1)
    await store.release_lease("a", epoch=9)
    assert not (await store.acquire_lease("b", ttl_s=60)).mine
    await store.release_lease("a", epoch=1)
    lease = await store.acquire_lease("b", ttl_s=60)
    assert (lease.mine, lease.epoch) == (True, 2)


async def test_of_many_that_try_at_once_one_leads(store_subject: StoreSubject) -> None:
    if store_subject.again is None:
        pytest.skip("the store in memory is one process's own")
    stores = [await store_subject.again() for _ in range(4)]
    leases = await asyncio.gather(*(s.acquire_lease(f"h{i}", ttl_s=60) for i, s in enumerate(stores)))
    assert [lease.mine for lease in leases].count(True) == 1
    assert {lease.epoch for lease in leases if lease.mine} == {1}


async def test_a_sqlite_file_has_one_controller_and_the_next_is_told_whose_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kakuri.db"
    first = await open_store(url, serving=True)
    (tmp_path / "link.db").symlink_to(tmp_path / "kakuri.db")
    for name in (url, f"sqlite:///{tmp_path}/link.db"):
        with pytest.raises(StoreError, match=rf"controller already \(pid {os.getpid()}\).*use PostgreSQL"):
            await open_store(name, serving=True)
    await (await open_store(url)).close()  # to look at it is no serving
    await first.close()
    await (await open_store(url, serving=True)).close()


async def test_the_one_controller_of_a_file_takes_the_lease_of_one_that_is_gone_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kakuri.db"
    dead = await open_store(url)
    assert (await dead.acquire_lease("dead", ttl_s=600)).mine
    await dead.close()
    store = await open_store(url, serving=True)
    lease = await store.acquire_lease("next", ttl_s=60)
    assert (lease.mine, lease.epoch) == (True, 2)
    await store.close()
