"""A controller process whose disk is full, read-only, or holds a newer schema; and a command line without a server."""

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.dev import KAKURI
from support.needs import need

WORKLOAD = {"image": "a/b:1", "runtime_class": "native", "memory_mb": 64, "cpu_millicores": 10}


@dataclass
class Controller:
    folder: Path
    port: int
    store: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> "Controller":
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "controller"),
                *(
                    "--http",
                    f"127.0.0.1:{self.port}",
                    "--store",
                    self.store or f"sqlite:///{self.folder / 'kakuri.db'}",
                ),
            ],
            stderr=subprocess.PIPE,
        )
        return self

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def until_answers(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                if self.call("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, "the controller is not ready"
            time.sleep(0.05)

    def end(self) -> str:
        """What it said on stderr."""
        if self.process is None:
            return ""
        self.process.terminate()
        _, told = self.process.communicate(timeout=20)
        return told.decode()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    need(os.geteuid() == 0, "a disk of its own takes root to mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "kakuri-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def on_small_disk(small_disk: Path, free_port: int) -> Iterator[Controller]:
    controller = Controller(small_disk, free_port).start()
    try:
        controller.until_answers()
        yield controller
    finally:
        controller.end()


def test_a_full_disk_is_503_with_why_loses_nothing_and_recovers(on_small_disk: Controller, small_disk: Path) -> None:
    assert on_small_disk.call("POST", "/workloads", WORKLOAD | {"id": "before"})[0] == 201
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass

    status, problem = _first_refusal(on_small_disk)

    assert status == 503
    assert "full" in problem["detail"]
    assert on_small_disk.call("GET", "/workloads/before")[0] == 200

    filler.unlink()
    on_small_disk.until_answers()
    assert on_small_disk.call("POST", "/workloads", WORKLOAD | {"id": "after"})[0] == 201
    refused = on_small_disk.call("GET", f"/workloads/{problem['id']}")
    assert refused[0] == 404


def _first_refusal(controller: Controller) -> tuple[int, Any]:
    """Pages that are there already take some writes yet; the first that does not fit is refused."""
    for number in range(200):
        body = WORKLOAD | {"id": f"full-{number}", "env": {"A": "x" * 20_000}}
        status, answer = controller.call("POST", "/workloads", body)
        if status != 201:
            return status, answer | {"id": body["id"]}
    raise AssertionError("a full disk took 200 writes of 20 kB")


def test_a_read_only_disk_at_start_is_said_and_a_writable_one_is_taken(small_disk: Path, free_port: int) -> None:
    controller = Controller(small_disk, free_port).start()
    controller.until_answers()
    assert controller.call("POST", "/workloads", WORKLOAD | {"id": "before"})[0] == 201
    controller.end()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    refused = Controller(small_disk, free_port).start()
    assert refused.process is not None
    _, told = refused.process.communicate(timeout=20)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)

    assert refused.process.returncode == 1
    assert "Read-only file system" in told.decode()
    again = Controller(small_disk, free_port).start()
    again.until_answers()
    assert again.call("GET", "/workloads/before")[0] == 200
    again.end()


async def test_a_store_that_turns_read_only_is_503_with_why_and_recovers(postgres_url: str, free_port: int) -> None:
    import asyncpg

    from controller.store import upgrade

    await upgrade(postgres_url)
    controller = Controller(Path(), free_port, store=postgres_url).start()
    database = await asyncpg.connect(postgres_url)
    try:
        await asyncio.to_thread(controller.until_answers)
        name = await database.fetchval("select current_database()")
        await database.execute(f'alter database "{name}" set default_transaction_read_only = on')
        await _end_other_connections(database)

        status, problem = await asyncio.to_thread(controller.call, "POST", "/workloads", WORKLOAD | {"id": "during"})
        assert status == 503
        assert "read-only" in problem["detail"]

        await database.execute("set default_transaction_read_only = off")
        await database.execute(f'alter database "{name}" reset default_transaction_read_only')
        await _end_other_connections(database)
        await asyncio.to_thread(controller.until_answers)
        assert (await asyncio.to_thread(controller.call, "POST", "/workloads", WORKLOAD | {"id": "after"}))[0] == 201
        assert (await asyncio.to_thread(controller.call, "GET", "/workloads/during"))[0] == 404
    finally:
        await database.close()
        await asyncio.to_thread(controller.end)


async def _end_other_connections(database: Any) -> None:
    """New connections get the new default; the controller's pool opens new ones when its own are gone."""
    await database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )


def test_a_database_of_a_newer_schema_is_refused_at_start_in_words(tmp_path: Path, free_port: int) -> None:
    first = Controller(tmp_path, free_port).start()
    first.until_answers()
    first.end()
    with sqlite3.connect(tmp_path / "kakuri.db") as database:
        database.execute("update alembic_version set version_num = '9999'")

    second = Controller(tmp_path, free_port).start()
    assert second.process is not None
    _, told = second.process.communicate(timeout=20)

    assert second.process.returncode == 1
    assert "newer" in told.decode()
    assert "9999" in told.decode()
    assert str(tmp_path / "kakuri.db") in told.decode()


def test_a_port_that_is_taken_is_said(tmp_path: Path, taken_port: int) -> None:
    controller = Controller(tmp_path, taken_port).start()
    assert controller.process is not None
    _, told = controller.process.communicate(timeout=20)

    assert controller.process.returncode == 1
    assert str(taken_port) in told.decode()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--store", "postgresql://me:secret@127.0.0.1:1/x"], 1, "postgresql://me:***@127.0.0.1:1/x can't be reached"),
        (["--store", "mysql://me:secret@127.0.0.1/x"], 1, "'mysql://me:***@127.0.0.1/x' names no store; use sqlite:"),
        (["--store", "postgresql:/me:secret@127.0.0.1/x"], 1, "'postgresql' names no store; use sqlite:////path"),
        (["--http", "1.2.3.4:x"], 2, "--http: '1.2.3.4:x' is not an address; use host:port, such as 127.0.0.1:8080"),
    ],
)
def test_a_controller_told_wrongly_says_what_would_be_right_and_no_password(
    flags: list[str], code: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller", *flags], capture_output=True, text=True, check=False, timeout=20
    )

    assert done.returncode == code
    assert said in done.stderr
    assert "secret" not in done.stderr


def test_what_was_accepted_is_there_after_a_kill(tmp_path: Path, free_port: int) -> None:
    controller = Controller(tmp_path, free_port).start()
    controller.until_answers()
    for number in range(20):
        assert controller.call("POST", "/workloads", WORKLOAD | {"id": f"w{number}"})[0] == 201
    assert controller.process is not None
    controller.process.kill()
    controller.process.communicate(timeout=10)

    again = Controller(tmp_path, free_port).start()
    try:
        again.until_answers()
        items = again.call("GET", "/workloads")[1]["items"]
    finally:
        again.end()
    assert {w["id"] for w in items} == {f"w{n}" for n in range(20)}


@pytest.mark.parametrize("command", [["get", "workloads"], ["apply", "-f", "-"], ["delete", "workload", "x"]])
def test_without_a_server_the_command_line_ends_with_1_and_says_where_it_looked(command: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{unused.getsockname()[1]}"
        manifest = "kind: Workload\nid: x\n" + "".join(f"{k}: {v}\n" for k, v in WORKLOAD.items())
        done = subprocess.run(
            [KAKURI, "--server", server, *command],
            input=manifest,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    assert done.returncode == 1
    assert server in done.stderr
    assert done.stdout == ""
