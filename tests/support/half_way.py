"""python half_way.py URL: writes a workload as a leader would, says so in the middle of it, and goes no further."""

import asyncio
import sys
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from builders import NOW, a_manifest  # noqa: E402 - found by the line above
from controller.store import changes, open_store, postgres  # noqa: E402
from controller.store.contract import Put  # noqa: E402
from controller.store.sql import SqlTables  # noqa: E402

postgres.IDLE_IN_TRANSACTION_S = 1.0


def _stay(*_: object) -> int:
    print("half way", flush=True)  # noqa: T201 - what is waited for
    threading.Event().wait()
    return 0


async def _main(url: str) -> None:
    store = await open_store(url)
    changes.log = _stay  # after the rows are written, before the counter
    keep = SqlTables.runtime_classes

    def with_the_lease(tables: SqlTables, **how: object) -> object:
        tables.lease_epoch()
        return keep(tables, **how)  # type: ignore[arg-type]

    SqlTables.runtime_classes = with_the_lease  # type: ignore[method-assign,assignment]
    await store.apply([Put(a_manifest("half"))], now=NOW)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
