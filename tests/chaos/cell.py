"""A whole kakuri on one machine: a PostgreSQL, controllers and agents, each on a host of its own.

One rule: all of it is under one folder and one key, so that what is left over can be told, and the end removes it.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agent.oci import BUSYBOX, Entry, RunConfig, read_static, write_archive
from agent.places import Places
from agent.remains import clear_remains, find_remains
from chaos import database
from chaos.hosts import HERE, Host, Network, run
from chaos.programs import Program, signal_all

CONTROLLERS = ("c0", "c1", "c2")
AGENTS = ("n0", "n1", "n2")
DATABASE = "db"
IMAGES = ("kakuri.local/chaos:1", "kakuri.local/chaos:2")
HTTP_PORT, GRPC_PORT = 8080, 9001
_END_GRACE_S = 10.0
_SHUTDOWN_BOUND_S = 150


@dataclass(frozen=True)
class Waits:
    """What the controllers are told of how long a silent node is waited for."""

    lease_s: float = 30.0
    stop_bound_s: float = 10.0
    slack_s: float = 5.0

    @property
    def lost_s(self) -> float:
        """From the last word of a node until what is bound to its lease is replaced."""
        return self.lease_s + self.stop_bound_s + self.slack_s

    @property
    def flags(self) -> list[str]:
        told = {"node-lease-s": self.lease_s, "node-stop-bound-s": self.stop_bound_s, "clock-slack-s": self.slack_s}
        return [word for name, value in told.items() for word in (f"--{name}", f"{value:g}")]


@dataclass
class Node:
    """A host with an agent and its private containerd."""

    program: Program
    state_dir: Path
    places: Places = field(init=False)

    def __post_init__(self) -> None:
        self.places = Places.of(self.state_dir)

    def runtime_pids(self) -> list[int]:
        """Its containerd's, if it runs."""
        return self._pids("--config", str(self.places.config))

    def fencer_pids(self) -> list[int]:
        return self._pids("agent.fencer", str(self.state_dir))

    def fenced(self) -> set[str]:
        """The containers and sandboxes that its fencers killed, as they say; each has several cgroups."""
        log = self.state_dir / "fencer.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return {line.rpartition("/")[2] for line in lines if "the lease is over: killed" in line}

    def _pids(self, *words: str) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if tuple(line[-len(words) :]) == words and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found


class Cell:
    """open() has it all running; close() leaves nothing, and says what it could not remove."""

    def __init__(self, waits: Waits) -> None:
        self.key = uuid.uuid4().hex[:4]
        self.folder = Path(tempfile.mkdtemp(prefix=f"kakuri-chaos-{self.key}-", dir="/tmp"))
        self.folder.chmod(0o711)  # the user postgres has its own folder in it
        self.network = Network(self.key)
        self.waits = waits
        self.database = Program("postgres", HERE, (), self.folder / "postgres.log", with_children=True)
        self.controllers: dict[str, Program] = {}
        self.nodes: dict[str, Node] = {}
        self._python: dict[str, str] = {}

    @property
    def programs(self) -> list[Program]:
        return [self.database, *self.controllers.values(), *(node.program for node in self.nodes.values())]

    @property
    def servers(self) -> dict[str, str]:
        """Controller → the URL of its API."""
        return {name: f"http://{self._host(name).address}:{HTTP_PORT}" for name in CONTROLLERS}

    def open(self, tree: Path) -> None:
        """tree: where the code of controllers and agents is taken from."""
        self._python = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        self.network.open([DATABASE, *CONTROLLERS, *AGENTS])
        self.database.host = self._host(DATABASE)
        self.database.argv = database.create(self.folder / "postgres", self.database.host.address)
        self.database.start()
        database.wait_ready(self.database)
        store = database.url(self.database.host.address)
        self._run_python("-m", "controller", "db", "upgrade", "--store", store)
        for name in CONTROLLERS:
            host = self._host(name)
            flags = ["--http", f"{host.address}:{HTTP_PORT}", "--store", store, "--holder", name, *self.waits.flags]
            self.controllers[name] = self._program(name, "-m", "controller", *flags)
            self.controllers[name].start()
        for name, server in zip(AGENTS, self.servers.values(), strict=True):
            self.nodes[name] = self._node(name, server)
            self.nodes[name].program.start()

    def close(self) -> None:
        """Everything has ended and is removed. What is left anyway is what leftovers() says."""
        for program in (*(node.program for node in self.nodes.values()), *self.controllers.values()):
            program.end(_END_GRACE_S)
        with ThreadPoolExecutor(len(AGENTS)) as threads:
            list(threads.map(self._shut_down, self.nodes.values()))
        self.database.end(_END_GRACE_S)
        self.network.close()

    def forget(self) -> None:
        """The folder with all logs is gone too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def leftovers(self) -> list[str]:
        found = self.network.leftovers()
        for node in self.nodes.values():
            if left := find_remains(node.places):
                found.append(f"of {node.program.name}: {left}")
            if node.places.volatile.exists():
                found.append(f"folder {node.places.volatile}")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.folder) in word for word in process.cmdline()):
                    found.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return [*found, *(f"mount {line}" for line in mounts if str(self.folder) in line)]

    def _host(self, name: str) -> Host:
        return self.network.hosts[name]

    def _program(self, name: str, *arguments: str) -> Program:
        argv = [sys.executable, *arguments]
        return Program(name, self._host(name), argv, self.folder / f"{name}.log", self._python)

    def _node(self, name: str, server: str) -> Node:
        state_dir = self.folder / name
        for image in IMAGES:
            _build_image(state_dir / "images" / f"{image.rpartition(':')[2]}.tar", image)
        flags = ["--node", name, "--state-dir", str(state_dir), "--runtime", "containerd", "--server", server]
        addresses = ["--grpc", f"{self._host(name).address}:{GRPC_PORT}", "--json", "127.0.0.1:9000"]
        return Node(self._program(name, "-m", "agent", *flags, *addresses, "--gvisor-platform", "ptrace"), state_dir)

    def _run_python(self, *arguments: str) -> None:
        run("env", *(f"{k}={v}" for k, v in self._python.items()), sys.executable, *arguments)

    def _shut_down(self, node: Node) -> None:
        """As a person would do it; should that fail, what is there is removed by its names."""
        signal_all([*node.runtime_pids(), *node.fencer_pids()], signal.SIGCONT)
        program = node.program
        ending = Program(program.name, program.host, [*program.argv, "--shutdown"], program.log, self._python)
        ending.start()
        assert ending.process is not None
        with contextlib.suppress(Exception):
            ending.process.wait(_SHUTDOWN_BOUND_S)
        ending.kill()
        signal_all([*node.runtime_pids(), *node.fencer_pids()], signal.SIGKILL)
        clear_remains(node.places)


def _build_image(path: Path, name: str) -> None:
    busybox = read_static(BUSYBOX, package="busybox-static")
    folders = [Entry(folder) for folder in ("bin", "dev", "etc", "proc", "sys", "tmp")]
    programs = [Entry("bin/busybox", content=busybox), *(Entry(f"bin/{p}", target="busybox") for p in ("sh", "sleep"))]
    note = Entry("etc/image", mode=0o644, content=name.encode())
    write_archive(path, name, [*folders, *programs, note], RunConfig(["/bin/sh"], env={"PATH": "/bin"}))
