"""`kakuri dev`: a controller and an agent on this machine, looked after until it ends.

One rule: this process holds nothing. Killed, it leaves all running; started again, it finds all by the folder.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kakuri.cli.failure import Failure
from kakuri.cli.session import tell
from kakuri.client import Client, ClientError
from kakuri.dev.folder import Folder
from kakuri.dev.ports import HOST, Ports, choose
from kakuri.dev.supervisor import Ended, Program, Watch, find, rotate, spawn

STOP_S = 15.0
"""For a child that was sent SIGTERM. Too low and it loses what it was writing; too high and Ctrl-C seems to hang."""
SHUTDOWN_S = 180.0
"""For all workloads to end (each has its grace, capped by the agent) and the private runtime after them."""
NEWS_S = 15.0
"""Between two words about what is still missing before all is ready."""
LOOK_S = 0.1
HOLDER = "dev"
"""The controller's name in the lease: the same whatever its port, so that the next one of a folder leads at once and
does not wait for the lease of one that was killed."""
STAMP_S = 2.0
"""Between two looks at whether the agent's runtime is another process."""
HOPELESS = 4
"""So many starts in a row that never got ready: it can't start at all, and a person must read why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the flags say. ports: 0 for any, None when not said."""

    directory: Path
    runtime: str
    node: str
    keep: bool
    ports: Mapping[str, int | None]


def run(wanted: Wanted, announce: Callable[[str], None], programs: "Programs | None" = None) -> None:
    """Returns when it was told to end and all that should end has. announce: the one line on stdout. programs: what
    is run; by default a real controller and a real agent."""
    folder = Folder(wanted.directory)
    with folder.locked():
        asyncio.run(_Dev(folder, wanted, announce, programs or real_programs).run())


def real_programs(folder: Folder, wanted: Wanted, ports: Ports) -> tuple[Program, Program]:
    """The controller and the agent."""
    # Else a folder named agent or controller, where a person happens to be, would be imported instead of ours.
    environment = {"PYTHONSAFEPATH": "1"}
    called = (sys.executable, "-m", "controller")
    controller = Program(
        "controller",
        (*called, "--http", f"{HOST}:{ports.http}", "--store", folder.store, "--holder", HOLDER),
        (("-m", "controller"), ("--store", folder.store)),
        folder.log("controller"),
        environment,
    )
    agent = Program(
        "agent",
        (sys.executable, "-m", "agent", *agent_flags(folder, wanted, ports)),
        (("-m", "agent", "--node"), ("--state-dir", str(folder.agent))),
        folder.log("agent"),
        environment,
    )
    return controller, agent


def agent_flags(folder: Folder, wanted: Wanted, ports: Ports) -> Sequence[str]:
    flags = {
        "--node": wanted.node,
        "--state-dir": str(folder.agent),
        "--grpc": f"{HOST}:{ports.agent}",
        "--json": f"{HOST}:{ports.json}",
        "--server": f"http://{HOST}:{ports.http}",
        "--runtime": wanted.runtime,
    }
    return [part for flag in flags.items() for part in flag]


def running_ports(controller: Sequence[str], agent: Sequence[str]) -> dict[str, int]:
    """The ports in these command lines; the lines are empty for what does not run."""
    found = {
        "http": _port_of(controller, "--http") or _port_of(agent, "--server"),
        "agent": _port_of(agent, "--grpc"),
        "json": _port_of(agent, "--json"),
    }
    return {name: port for name, port in found.items() if port}


def _port_of(command_line: Sequence[str], flag: str) -> int | None:
    return _port(_value_of(command_line, flag) or "")


def _value_of(command_line: Sequence[str], flag: str) -> str | None:
    """The word after this flag."""
    return command_line[command_line.index(flag) + 1] if flag in command_line[:-1] else None


def _port(address: str) -> int | None:
    port = address.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() else None


Programs = Callable[[Folder, Wanted, Ports], tuple[Program, Program]]
"""The controller and the agent, called as these ports ask."""


class _Dev:
    def __init__(self, folder: Folder, wanted: Wanted, announce: Callable[[str], None], programs: Programs) -> None:
        self._folder = folder
        self._wanted = wanted
        self._announce = announce
        self._programs = programs
        self._stop = asyncio.Event()
        self._ready = False
        self._failures: dict[str, int] = {}

    async def run(self) -> None:
        self._listen()
        # Which ports they have decides how they are called, so what lives is looked for by the marks alone.
        anything = self._programs(self._folder, self._wanted, Ports(0, 0, 0))
        lines = [process.cmdline() if (process := find(p)) else [] for p in anything]
        running = running_ports(*lines)
        last = _ports_of(self._folder.read_state()) if running else {}
        self._ports = choose(self._wanted.ports, _kept(running, lines), {**last, **running})
        self._check_runtime(lines[1])
        self._watches = [
            Watch(program, on_start=self._started, on_end=self._ended)
            for program in self._programs(self._folder, self._wanted, self._ports)
        ]
        adopted = [w.program.name for w in self._watches if w.adopt()]
        if adopted:
            tell(f"found running, going on with: {', '.join(adopted)}")
        else:
            self._folder.clear_state()
        found_running = bool(adopted) or self._runtime_runs()
        try:
            await self._look_after()
        except BaseExceptionGroup as group:
            # What ran before is not ended for a fault of ours; of what was started just now nothing is left.
            await self._end(keep=found_running)
            failures, others = group.split(Failure)
            if others is not None or failures is None:
                raise
            raise failures.exceptions[0] from None
        await self._end(keep=self._wanted.keep)

    async def _look_after(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(w.keep()) for w in self._watches]
            tasks.append(group.create_task(self._say_when_ready()))
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup asks to outlive a terminal. A shell's background job ignores SIGINT too, but who sends it means so.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._told_to_stop)

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            tell("leaving at once; what still runs is found by the next kakuri dev on this folder")
            os._exit(130)
        self._stop.set()

    def _check_runtime(self, agent: Sequence[str]) -> None:
        """An agent that lives can't be given another runtime: its workloads are on the one it has."""
        wanted = self._wanted.runtime
        has = _value_of(agent, "--runtime") or "auto"
        if agent and wanted not in {"auto", has}:
            raise Failure(
                f"the agent that runs in this folder was started with --runtime {has}, not {wanted}; "
                "end it first (run kakuri dev and press Ctrl-C)"
            )

    def _started(self, _program: Program) -> None:
        if self._ready:
            self._write_state()

    def _ended(self, program: Program, ended: Ended, delay_s: float) -> None:
        name = program.name
        self._failures[name] = 0 if self._ready else self._failures.get(name, 0) + 1
        if self._failures[name] >= HOPELESS:
            words = self._folder.last_words(name)
            raise Failure(f"the {name} {ended} {HOPELESS} times and never got ready; its log ends:\n{words}")
        tell(f"the {name} {ended}; starting it again in {delay_s:g} s (log: {program.log})")

    async def _say_when_ready(self) -> None:
        loop = asyncio.get_running_loop()
        said = loop.time()
        async with Client(f"http://{HOST}:{self._ports.http}") as client:
            while missing := await self._missing(client):
                if loop.time() - said > NEWS_S:
                    said = loop.time()
                    tell(f"not ready yet: {missing}")
                await asyncio.sleep(LOOK_S)
        self._ready = True
        state = self._write_state()
        self._announce(
            f"kakuri is ready at {state['http']} (agent {state['agent']}, JSON lines {state['json']}, "
            f"runtime {state['runtime']} {state['cri']}, folder {self._folder.path})"
        )
        stamp = self._folder.agent_stamp()
        while True:
            await asyncio.sleep(STAMP_S)
            if stamp != (stamp := self._folder.agent_stamp()):
                self._write_state()

    async def _missing(self, client: Client) -> str:
        """What is missing before all is ready; empty when nothing is."""
        agent = self._watches[1].life
        try:
            await client.ready()
            if agent is None or self._folder.read_agent().get("pid") != agent.pid:
                return "the agent does not serve yet"
            node = await client.get("Node", self._node())
        except ClientError as error:
            return str(error)
        status = node.get("status", {})
        return "" if status.get("ready") else f"the node: {status.get('message') or status.get('reason') or 'unknown'}"

    def _runtime_runs(self) -> bool:
        """Whether a private runtime of this folder lives, with whatever runs in it."""
        try:
            runtime = psutil.Process(self._folder.read_agent().get("runtime_pid") or -1)
            return any(str(self._folder.path) in word for word in runtime.cmdline())
        except (psutil.Error, ValueError):
            return False

    def _node(self) -> str:
        """The agent's node: an adopted agent may have been given another name."""
        process = find(self._watches[1].program)
        line = process.cmdline() if process else []
        return _value_of(line, "--node") or self._wanted.node

    def _write_state(self) -> Mapping[str, Any]:
        agent = self._folder.read_agent()
        pids = {"dev": os.getpid()} | {w.program.name: w.life.pid for w in self._watches if w.life}
        if agent.get("runtime_pid"):
            pids[agent["runtime"]] = agent["runtime_pid"]
        state = {
            "http": f"http://{HOST}:{self._ports.http}",
            "agent": f"{HOST}:{self._ports.agent}",
            "json": f"{HOST}:{self._ports.json}",
            "cri": agent.get("cri", ""),
            "runtime": agent.get("runtime", ""),
            "pids": pids,
        }
        self._folder.write_state(state)
        return state

    async def _end(self, *, keep: bool) -> None:
        """Controller and agent have ended, and without keep the workloads and the private runtime too."""
        if not keep:
            tell("ending the workloads, the agent and the controller (--keep leaves workloads running)")
        for watch in self._watches:  # the controller first: it would replace what the agent ends
            await watch.stop(STOP_S)
        if not keep:
            await self._shut_down()
        self._folder.clear_state()

    async def _shut_down(self) -> None:
        program = self._watches[1].program
        command = [*program.command, "--shutdown"]
        rotate(program.log)
        with program.log.open("ab") as log:
            child = await asyncio.to_thread(spawn, command, log, program.environment)
        try:
            code = await asyncio.to_thread(child.wait, SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            raise Failure(
                f"the workloads did not end within {SHUTDOWN_S:g} s; {program.log} says more. Run kakuri dev on "
                "this folder and end it again."
            ) from None
        if code:
            words = self._folder.last_words("agent")
            raise Failure(f"ending the workloads failed; the agent's log ends:\n{words}")


def _kept(running: Mapping[str, int], lines: Sequence[Sequence[str]]) -> dict[str, int]:
    """Ports that are held by what runs: of a dead controller only the number is known, and it must be free."""
    controller, agent = lines
    held = {"http": bool(controller), "agent": bool(agent), "json": bool(agent)}
    return {name: port for name, port in running.items() if held[name]}


def _ports_of(state: Mapping[str, Any]) -> dict[str, int]:
    found = {name: _port(str(state.get(name, ""))) for name in ("http", "agent", "json")}
    return {name: port for name, port in found.items() if port is not None}
