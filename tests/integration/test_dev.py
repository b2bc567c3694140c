"""`kakuri dev` with the real controller and agent, on the runtime where nothing really runs: a kill -9 of anything
ends no workload, and the end leaves no process behind."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kakuri.client import Client
from support.children import Spawn

MAIN = [sys.executable, "-c", "from kakuri.cli import main; main()"]
READY_S = 40.0
WEB = """\
kind: Workload
id: web
image: example/app:1.0
runtime_class: native
memory_mb: 64
cpu_millicores: 100
replicas: 2
"""


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder for one dev; every process that names it is ended."""
    path = tmp_path / "dev"
    yield path
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(path) in word for word in process.cmdline()):
                process.kill()


async def start(spawn: Spawn, folder: Path, *flags: str) -> asyncio.subprocess.Process:
    ports = ["--http-port", "0", "--agent-port", "0", "--json-port", "0"]
    return await spawn(
        *MAIN,
        *("dev", "--dir", str(folder), "--runtime", "fake", "--node", "n1"),
        *ports,
        *flags,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder.parent,
    )


async def ready(dev: asyncio.subprocess.Process, folder: Path) -> dict[str, Any]:
    assert dev.stdout
    async with asyncio.timeout(READY_S):
        line = await dev.stdout.readline()
    assert line.startswith(b"kakuri is ready at "), line
    return state(folder)


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dev.json").read_text())
    return found


async def kakuri(spawn: Spawn, server: str, *words: str, stdin: str = "") -> str:
    """What the command line prints; it must end well."""
    process = await spawn(
        *MAIN, "--server", server, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(READY_S):
        out, _ = await process.communicate(stdin.encode())
    assert process.returncode == 0, words
    return out.decode()


async def allocations(server: str) -> list[tuple[str, str, int]]:
    async with Client(server) as client:
        found = (await client.list("Allocation")).items
    return sorted((a["id"], a["sandbox_id"], a["restarts"]) for a in found if a["state"] == "Running")


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(READY_S):
        while not true():
            await asyncio.sleep(0.05)


def named(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            if any(str(folder) in word for word in line) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(line))
    return found


async def test_killed_parts_come_back_and_the_workloads_never_noticed(folder: Path, spawn: Spawn) -> None:
    # Where a person happens to be there may be folders of our packages' names; they must not be taken for ours.
    for name in ("agent", "controller"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "__init__.py").write_text("raise SystemExit('not this one')")
    dev = await start(spawn, folder)
    first = await ready(dev, folder)
    server = first["http"]
    await kakuri(spawn, server, "apply", "--wait", "-f", "-", stdin=WEB)
    running = await allocations(server)
    assert len(running) == 2

    for name in ("controller", "agent"):
        before = state(folder)["pids"][name]
        os.kill(before, signal.SIGKILL)
        await until(lambda n=name, b=before: state(folder)["pids"].get(n) not in {None, b})
        await kakuri(spawn, server, "wait", "web", "--timeout", "30")
        assert await allocations(server) == running

    dev.kill()
    await dev.wait()
    before = state(folder)
    second = await start(spawn, folder)
    after = await ready(second, folder)
    for same in ("http", "agent", "json", "cri"):
        assert after[same] == before[same]
    for name in ("controller", "agent", "fake"):
        assert after["pids"][name] == before["pids"][name]
    assert await allocations(server) == running

    second.terminate()
    async with asyncio.timeout(READY_S):
        assert await second.wait() == 0
    assert named(folder) == []


async def test_with_keep_the_workloads_run_on_into_the_next_dev(folder: Path, spawn: Spawn) -> None:
    dev = await start(spawn, folder, "--keep")
    server = (await ready(dev, folder))["http"]
    await kakuri(spawn, server, "apply", "--wait", "-f", "-", stdin=WEB)
    running = await allocations(server)
    dev.send_signal(signal.SIGINT)
    async with asyncio.timeout(READY_S):
        assert await dev.wait() == 0
    assert [line for line in named(folder) if "-m controller" in line or "-m agent" in line] == []

    again = await start(spawn, folder)
    server = (await ready(again, folder))["http"]
    await kakuri(spawn, server, "wait", "web", "--timeout", "30")
    assert await allocations(server) == running
    again.terminate()
    async with asyncio.timeout(READY_S):
        assert await again.wait() == 0
    assert named(folder) == []


async def test_a_start_that_fails_in_a_used_folder_leaves_nothing_running(folder: Path, spawn: Spawn) -> None:
    dev = await start(spawn, folder)
    await ready(dev, folder)
    dev.terminate()
    await dev.wait()
    with closing(sqlite3.connect(folder / "kakuri.db")) as database, database:
        database.execute("update alembic_version set version_num = '9999'")

    failing = await start(spawn, folder)
    async with asyncio.timeout(READY_S):
        await failing.wait()

    assert failing.returncode == 1
    assert named(folder) == []
