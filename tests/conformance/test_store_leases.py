"""Leadership, on every store: one holder at a time, an epoch that only grows, the database's clock."""

import asyncio

import pytest

from controller.store.contract import Store
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


async def test_two_processes_of_one_name_do_not_both_lead_on_one_sqlite_file(store_subject: StoreSubject) -> None:
    if store_subject.kind != "sqlite":
        pytest.skip("a file lock is SQLite's")
    assert store_subject.again is not None
    first, second = store_subject.store, await store_subject.again()
    assert (await first.acquire_lease("same", ttl_s=60)).mine
    lease = await second.acquire_lease("same", ttl_s=60)
    assert (lease.mine, lease.holder, lease.epoch) == (False, "same", 1)
    await first.close()
    lease = await second.acquire_lease("same", ttl_s=60)
    assert (lease.mine, lease.epoch) == (True, 2)
