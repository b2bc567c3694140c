"""Each kind of store, fresh, for the suites that all of them must pass."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.store import open_store
from controller.store.contract import Store
from support.store_script import StoreScript


@dataclass(frozen=True)
class StoreSubject:
    """A kind of store. again: another store on the same database, as a second controller has; None for memory."""

    kind: str
    store: Store
    again: Callable[[], Awaitable[Store]] | None


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store of each kind in turn."""
    match request.param:
        case "memory":
            yield "memory://"
        case "sqlite":
            yield f"sqlite:///{tmp_path}/kakuri.db"
        case _:
            yield request.getfixturevalue("shared_postgres_url")


@pytest.fixture
async def store_subject(store_url: str) -> AsyncIterator[StoreSubject]:
    async with contextlib.AsyncExitStack() as stack:

        async def opened() -> Store:
            store = await open_store(store_url)
            stack.push_async_callback(store.close)
            return store

        kind = store_url.partition(":")[0]
        yield StoreSubject(kind, await opened(), None if kind == "memory" else opened)


@pytest.fixture
def store(store_subject: StoreSubject) -> Store:
    """An empty store of each kind in turn."""
    return store_subject.store


@pytest.fixture
def script(store: Store) -> StoreScript:
    """A few words to make things happen in the store."""
    return StoreScript(store)
