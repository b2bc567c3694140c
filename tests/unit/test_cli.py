"""The command line as a whole: help, usage, which server, how a command ends, and the processes it becomes."""

import asyncio
import sys
from pathlib import Path

import pytest

from support.children import Spawn
from support.command_line import kakuri
from support.fakeserver import FakeServer, workload


async def test_the_help_loads_nothing_that_takes_longer_than_to_print_it(spawn: Spawn) -> None:
    slow = ("aiohttp", "grpc", "psutil", "pydantic", "rich", "ruamel.yaml", "sqlalchemy", "structlog")
    code = f"import kakuri.cli.app, sys; print([name for name in {slow} if name in sys.modules])"
    process = await spawn(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"[]\n"


async def test_help_names_the_verbs() -> None:
    result = await kakuri("--help")
    assert result.code == 0
    for verb in (
        "apply",
        "get",
        "describe",
        "delete",
        "logs",
        "events",
        "wait",
        "dev",
        "controller",
        "agent",
        "version",
    ):
        assert f"\n  {verb} " in result.out


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["get"],
        ["get", "cows"],
        ["get", "workloads", "-o", "xml"],
        ["get", "workloads", "web", "-l", "app=web"],
        ["get", "events", "-l", "app=web"],
        ["apply"],
        ["delete"],
        ["delete", "nodes"],
        ["delete", "web", "-l", "app=web"],
        ["delete", "event/e1"],
        ["wait"],
        ["wait", "web", "--for", "state=Fine"],
        ["wait", "node/n1"],
        ["dev", "--runtime", "docker"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_2_and_says_nothing_on_stdout(words: list[str], server: FakeServer) -> None:
    result = await kakuri(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert server.requests == []


async def test_a_server_that_is_down_is_1_and_says_where_it_looked() -> None:
    result = await kakuri("--server", "http://127.0.0.1:9", "get", "workloads")
    assert result.code == 1
    assert "no kakuri server answers at http://127.0.0.1:9: connection refused" in result.err
    assert "kakuri dev" in result.err


async def test_the_config_file_names_the_server(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAKURI_SERVER")
    file = tmp_path / "config" / "kakuri" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'server = "{server.url}"\n')
    assert (await kakuri("version")).out == f"client 0.1.0\nserver 9.9 at {server.url}\n"
    file.write_text("server = 5\n")
    assert (await kakuri("get", "nodes")).err.endswith(
        'config.toml: server is not text; write server = "http://127.0.0.1:8080"\n'
    )


async def test_a_reader_who_leaves_early_is_no_error(server: FakeServer, spawn: Spawn) -> None:
    for index in range(3000):
        server.put(workload(f"w{index}"))
    kakuri_command = [sys.executable, "-c", "from kakuri.cli import main; main()", "get", "workloads", "-o", "json"]
    process = await spawn(*kakuri_command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    await process.stdout.readexactly(10)
    process.stdout._transport.close()  # type: ignore[attr-defined]  # StreamReader has no close
    assert await process.wait() == 0
    assert await process.stderr.read() == b""


async def test_ctrl_c_is_quiet_and_130(server: FakeServer, spawn: Spawn) -> None:
    server.put(workload("web"))
    process = await spawn(
        sys.executable,
        "-c",
        "from kakuri.cli import main; main()",
        "get",
        "workloads",
        "-w",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    await process.stdout.readline()
    row = await process.stdout.readline()
    assert row.split()[0] == b"web"
    server.change("MODIFIED", workload("web", status={"state": "Failed", "ready": 0}))
    assert b"Failed" in await process.stdout.readline()
    server.change("DELETED", workload("web"))
    assert b"Gone" in await process.stdout.readline()
    process.send_signal(2)
    assert await process.wait() == 130
    assert await process.stderr.read() == b""


async def test_the_long_runners_are_started_as_modules_with_their_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def become(program: str, words: list[str], environment: dict[str, str]) -> None:
        assert environment["PYTHONSAFEPATH"] == "1"
        started.append(words[1:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    await kakuri("controller", "--http", "127.0.0.1:1", "--help")
    await kakuri("agent", "--node", "n1", "--shutdown")
    await kakuri("db", "upgrade", "--store", "sqlite:////x.db")
    await kakuri("db", "backup", "--store", "sqlite:////x.db", "--to", "y")
    assert started == [
        ["-m", "controller", "--http", "127.0.0.1:1", "--help"],
        ["-m", "agent", "--node", "n1", "--shutdown"],
        ["-m", "controller", "db", "upgrade", "--store", "sqlite:////x.db"],
        ["-m", "controller", "db", "backup", "--store", "sqlite:////x.db", "--to", "y"],
    ]


async def test_dev_refuses_a_node_name_that_is_none_before_it_starts_anything(tmp_path: Path) -> None:
    result = await kakuri("dev", "--dir", str(tmp_path / "dev"), "--node", "Bad_Name")
    assert result.code == 2
    assert result.err.startswith("error: --node: 'Bad_Name' is not a name; use at most 63 of a-z")
    assert not (tmp_path / "dev").exists()
