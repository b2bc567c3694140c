"""How much kakuri adds to a start: POST's first byte → a watcher's receipt of Running, against the bare CRI calls.

    .venv/bin/python bench/start_latency.py [--dir DIR of a running `kakuri dev`] [--runs 20]

Without --dir it starts a kakuri of its own. Both ways use the same containerd, image, limits and runc, in turns.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from own_dev import running_dev

from cri.client import CriClient
from cri.convert import ContainerWish, SandboxOwner, container_config, sandbox_config
from kakuri.log import configure

IMAGE = "kakuri.local/demo:1.0"
MEMORY_MB = 64
CPU_MILLICORES = 100


async def through_kakuri(session: aiohttp.ClientSession, server: str, number: int) -> float:
    """Seconds from the request to the watcher's receipt of Running. The workload is deleted afterwards."""
    id_ = f"bench-{number}"
    workload = {
        "id": id_,
        "image": IMAGE,
        "runtime_class": "native",
        "memory_mb": MEMORY_MB,
        "cpu_millicores": CPU_MILLICORES,
        "command": ["sleep", "1000000"],
        "termination_grace_s": 0,
    }
    async with watching(session, server) as states:
        begun = time.perf_counter()
        async with session.post(f"{server}/workloads", json=workload) as answer:
            answer.raise_for_status()
        async for seen, state in states:
            if (seen, state) == (id_, "Running"):
                break
        took = time.perf_counter() - begun
        async with session.delete(f"{server}/workloads/{id_}") as answer:
            answer.raise_for_status()
        async for seen, state in states:
            if (seen, state) == (id_, "gone"):
                return took
    raise RuntimeError("the watch ended")


@asynccontextmanager
async def watching(session: aiohttp.ClientSession, server: str) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
    async with session.get(f"{server}/workloads") as answer:
        version = (await answer.json())["resource_version"]
    async with session.get(f"{server}/workloads?watch=1&resource_version={version}") as answer:

        async def states() -> AsyncIterator[tuple[str, str]]:
            async for line in answer.content:
                change = json.loads(line)
                if change["type"] == "DELETED":
                    yield change["object"]["id"], "gone"
                elif change["type"] != "BOOKMARK":
                    yield change["object"]["id"], change["object"]["status"]["state"]

        yield states()


async def bare(client: CriClient, logs: Path, number: int) -> float:
    """Seconds for the three calls that a start needs at the least. The pod is removed afterwards."""
    name = f"bare-{number}"
    owner = SandboxOwner(
        cluster_id="bench",
        workload_id=name,
        workload_uid=name,
        allocation_id=f"{name}.0.00000000",
        slot=0,
        generation=1,
        spec_hash="",
        epoch=0,
        origin="bench",
    )
    wish = ContainerWish(
        image=IMAGE,
        command=("sleep", "1000000"),
        args=(),
        env={},
        working_dir="",
        memory_mb=MEMORY_MB,
        cpu_millicores=CPU_MILLICORES,
        ports=(),
        runtime_class="native",
        handler="runc",
    )
    config = sandbox_config(owner, wish, log_directory=str(logs / name))
    begun = time.perf_counter()
    sandbox = await client.run_pod_sandbox(config, "runc")
    container = await client.create_container(sandbox, container_config(owner, wish, attempt=0), config)
    await client.start_container(container)
    took = time.perf_counter() - begun
    await client.stop_container(container, 0)
    await client.remove_container(container)
    await client.stop_pod_sandbox(sandbox)
    await client.remove_pod_sandbox(sandbox)
    return took


async def measure(folder: Path, runs: int) -> None:
    info = json.loads((folder / "dev.json").read_text())
    client = CriClient(info["cri"])
    ours, floor = [], []
    async with aiohttp.ClientSession() as session:
        for number in range(runs):
            floor.append(await bare(client, folder / "bench-logs", number))
            ours.append(await through_kakuri(session, info["http"], number))
    await client.close()
    for name, times in (("bare CRI calls", floor), ("through kakuri", ours)):
        print(
            f"{name}: median {statistics.median(times) * 1e3:.0f} ms, "
            f"best {min(times) * 1e3:.0f} ms, worst {max(times) * 1e3:.0f} ms ({runs} runs)"
        )
    print(f"kakuri adds {(statistics.median(ours) - statistics.median(floor)) * 1e3:.0f} ms (median)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dir", type=Path, help="the folder of a running `kakuri dev`")
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    configure("warning")
    if given.dir:
        asyncio.run(measure(given.dir, given.runs))
        return
    with running_dev() as folder:
        asyncio.run(measure(folder, given.runs))


if __name__ == "__main__":
    main()
