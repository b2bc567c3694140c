"""`kakuri dev` over a pretended controller and agent: who is started, found again, restarted, ended."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kakuri.cli.failure import Failure
from kakuri.dev import Wanted, real_programs, running_ports
from kakuri.dev.folder import Folder
from kakuri.dev.ports import Ports, choose
from kakuri.dev.supervisor import LOG_BYTES, Delays, Ended, Program, adopt, find, rotate, start
from kakuri.host import node_name
from kakuri.model.fields import check_name
from support import fakedev
from support.children import Spawn

WAIT_S = 15.0


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder for one dev; whatever was started for it is ended."""
    path = tmp_path / "dev"
    yield path
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(path) in word for word in process.cmdline()):
                process.kill()


class Dev:
    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self._folder = folder

    @classmethod
    async def start(cls, spawn: Spawn, folder: Path, *words: str) -> "Dev":
        process = await spawn(
            sys.executable,
            fakedev.__file__,
            "dev",
            str(folder),
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process, folder)

    async def ready(self) -> dict[str, Any]:
        assert self.process.stdout
        async with asyncio.timeout(WAIT_S):
            line = await self.process.stdout.readline()
        assert line.startswith(b"kakuri is ready at http://127.0.0.1:"), await self.said()
        return self.state()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._folder / "dev.json").read_text())
        return found

    async def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    async def said(self) -> str:
        assert self.process.stderr
        async with asyncio.timeout(WAIT_S):
            return (await self.process.stderr.read()).decode()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_ready_is_one_line_and_a_file_and_sigterm_ends_all(folder: Path, spawn: Spawn) -> None:
    dev = await Dev.start(spawn, folder)
    state = await dev.ready()
    assert sorted(state) == ["agent", "cri", "http", "json", "pids", "runtime"]
    assert (state["cri"], state["runtime"]) == ("unix:///x.sock", "fake")
    pids = state["pids"]
    assert sorted(pids) == ["agent", "controller", "dev", "fake"]
    assert len({os.getsid(pids[name]) for name in ("dev", "controller", "agent")}) == 3
    assert await dev.end() == 0
    assert not alive(pids["controller"])
    assert not alive(pids["agent"])
    assert (folder / "agent" / "shut-down").exists()
    assert not (folder / "dev.json").exists()
    assert dev.process.stdout
    assert await dev.process.stdout.read() == b""


async def test_with_keep_the_workloads_are_left(folder: Path, spawn: Spawn) -> None:
    dev = await Dev.start(spawn, folder, "keep")
    pids = (await dev.ready())["pids"]
    assert await dev.end(signal.SIGINT) == 0
    assert not alive(pids["agent"])
    assert not (folder / "agent" / "shut-down").exists()


async def test_a_child_that_dies_is_started_again_on_the_same_port(folder: Path, spawn: Spawn) -> None:
    dev = await Dev.start(spawn, folder)
    before = await dev.ready()
    os.kill(before["pids"]["controller"], signal.SIGKILL)
    await until(lambda: dev.state()["pids"].get("controller") not in {None, before["pids"]["controller"]})
    after = dev.state()
    assert (after["http"], after["pids"]["agent"]) == (before["http"], before["pids"]["agent"])
    await dev.end()
    assert "the controller was killed by signal 9; starting it again in 0.2 s" in await dev.said()


async def test_the_next_dev_goes_on_with_what_a_killed_one_left(folder: Path, spawn: Spawn) -> None:
    first = await Dev.start(spawn, folder)
    before = await first.ready()
    await first.end(signal.SIGKILL)
    assert alive(before["pids"]["controller"])
    second = await Dev.start(spawn, folder)
    after = await second.ready()
    names = ("controller", "agent")
    assert [after["pids"][n] for n in names] == [before["pids"][n] for n in names]
    assert [after[n] for n in ("http", "agent", "json")] == [before[n] for n in ("http", "agent", "json")]
    os.kill(after["pids"]["agent"], signal.SIGKILL)  # an adopted one is looked after too
    await until(lambda: second.state()["pids"].get("agent") not in {None, after["pids"]["agent"]})
    assert await second.end() == 0
    assert "found running, going on with: controller, agent" in await second.said()


async def test_what_died_while_nobody_looked_is_started_beside_what_lives(folder: Path, spawn: Spawn) -> None:
    first = await Dev.start(spawn, folder)
    before = await first.ready()
    await first.end(signal.SIGKILL)
    os.kill(before["pids"]["controller"], signal.SIGKILL)
    await until(lambda: not alive(before["pids"]["controller"]))
    second = await Dev.start(spawn, folder)
    after = await second.ready()
    assert after["http"] == before["http"]  # the agent knows no other
    assert after["pids"]["agent"] == before["pids"]["agent"]
    assert after["pids"]["controller"] != before["pids"]["controller"]
    await second.end()


async def test_a_second_dev_on_a_folder_is_refused(folder: Path, spawn: Spawn) -> None:
    first = await Dev.start(spawn, folder)
    await first.ready()
    second = await Dev.start(spawn, folder)
    assert await second.process.wait() == 1
    assert f"another kakuri dev (pid {first.process.pid}) looks after {folder}" in await second.said()
    await first.end()


async def test_a_port_that_is_taken_is_told(folder: Path, spawn: Spawn) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        dev = await Dev.start(spawn, folder, str(port))
        assert await dev.process.wait() == 1
        said = await dev.said()
    assert f"port {port} is taken by " in said
    assert "choose another with --http-port (0 for any)" in said


async def test_a_child_that_can_not_start_is_told_with_its_last_words(folder: Path, spawn: Spawn) -> None:
    folder.mkdir()
    (folder / "broken").touch()
    dev = await Dev.start(spawn, folder)
    async with asyncio.timeout(WAIT_S):
        assert await dev.process.wait() == 1
    assert "the controller ended with 1 4 times and never got ready; its log ends:" in (said := await dev.said())
    assert "the database is newer than this code" in said
    assert find(fakedev.programs(Folder(folder), _wanted(folder), _any_ports())[1]) is None


def _wanted(folder: Path) -> Any:
    from kakuri.dev import Wanted

    return Wanted(folder, "auto", "n1", keep=False, ports={})


def _any_ports() -> Any:
    from kakuri.dev.ports import Ports

    return Ports(0, 0, 0)


def test_delays_double_to_a_bound_and_a_good_life_forgets_them() -> None:
    delays = Delays(first_s=0.2, longest_s=5, good_life_s=10)
    found, delay_s = [], 0.0
    for lived_s in (1, 1, 1, 1, 1, 1, 11, 1):
        delay_s = delays.after(Ended(1, lived_s), delay_s)
        found.append(delay_s)
    assert found == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 0.2, 0.4]


async def test_a_program_is_found_by_its_command_line_alone(folder: Path) -> None:
    mark = str(folder)
    command = (sys.executable, "-c", "import signal; signal.pause()", "run", mark)
    program = Program("p", command, (("run", mark),), folder / "logs" / "p.log")
    assert adopt(program) is None
    life = start(program)
    await until(lambda: find(program) is not None)
    found = adopt(program)
    assert found
    assert (found.pid, found.adopted, life.adopted) == (life.pid, True, False)
    await life.stop(5)
    assert find(program) is None


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(folder: Path) -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    program = Program("p", (sys.executable, "-c", code, str(folder)), ((str(folder),),), folder / "p.log")
    life = start(program)
    await until(lambda: program.log.read_text() == "up\n")
    await life.stop(0.1)
    assert not alive(life.pid)


def test_a_log_over_its_bound_gives_way_to_a_new_one(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    rotate(log)
    with log.open("wb") as file:
        file.truncate(LOG_BYTES + 1)
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "a.log.1").stat().st_size == LOG_BYTES + 1


def test_ports_come_from_what_runs_then_flags_then_defaults() -> None:
    flags = {"http": None, "agent": 0, "json": 0}
    running = {"http": 1234}
    chosen = choose({**flags, "agent": 0}, running, {**running})
    assert chosen.http == 1234
    assert chosen.agent not in {0, 9001, chosen.json}
    with pytest.raises(Failure, match="has its http port at 1234; leave --http-port out"):
        choose({**flags, "http": 8080}, running, running)
    with pytest.raises(Failure, match="port 1234 is chosen for both --http-port and --agent-port"):
        choose({**flags, "agent": 1234}, running, running)


def test_ports_are_read_from_command_lines() -> None:
    agent = [
        "python",
        "-m",
        "agent",
        "--grpc",
        "127.0.0.1:1",
        "--json",
        "127.0.0.1:2",
        "--server",
        "http://127.0.0.1:3",
    ]
    assert running_ports([], agent) == {"http": 3, "agent": 1, "json": 2}
    assert running_ports(["--http", "127.0.0.1:9"], []) == {"http": 9}
    assert running_ports([], []) == {}


def test_the_controller_of_a_folder_has_one_name_in_the_lease_whatever_its_port(tmp_path: Path) -> None:
    wanted = Wanted(tmp_path, "fake", "n1", False, {})
    names = set()
    for port in (8080, 40_000):
        controller, _ = real_programs(Folder(tmp_path), wanted, Ports(port, 9001, 9000))
        names.add(controller.command[controller.command.index("--holder") + 1])

    assert len(names) == 1  # else the next one would wait for the lease of one that was killed


def test_the_hosts_name_makes_a_nodes_id(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, id_ in (("Big_Box.example.com", "big-box"), ("-", "local"), ("a" * 80, "a" * 63)):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert check_name(node_name()) == id_
