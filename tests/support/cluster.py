"""A small cluster of real processes: controllers on one store, agents on the fake runtime, each killed by its id at the
end whatever happened. tree: another checkout whose code a process runs."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support.agent_process import runtimes_of
from support.ports import unused_port

BOUND_S = 30.0
"""For anything that is waited for; far more than it takes."""
T = TypeVar("T")


def until(what: str, holds: Callable[[], T], bound_s: float = BOUND_S) -> T:
    """What it returned, once that is true."""
    deadline = time.monotonic() + bound_s
    while True:
        try:
            found = holds()
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:  # not there yet
            found, why = None, repr(error)
        else:
            why = repr(found)
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: {why}"
        time.sleep(0.05)


@dataclass
class Process:
    """`python -m <module>` with these flags, in its own folder."""

    module: str
    folder: Path
    flags: list[str]
    tree: Path | None = None
    running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KAKURI_")}
        if self.tree is not None:
            environment["PYTHONPATH"] = str(self.tree)
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-P", "-m", self.module, *self.flags]
            self.running = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def kill(self) -> None:
        """As by kill -9; also one that is stopped."""
        if self.running is not None:
            self.running.kill()
            self.running.wait(BOUND_S)
            self.running = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@dataclass
class Controller(Process):
    port: int = 0

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON. Raises OSError when nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers or {})
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", path)
        return answer if status == 200 else None

    def serve(self) -> None:
        self.start()
        until("the controller is ready", self._ready)

    def _ready(self) -> bool:
        assert self.running is not None
        assert self.running.poll() is None, self.log
        return self.call("GET", "/readyz")[0] == 200

    def put(self, id_: str, **fields: Any) -> Any:
        usual = {"image": "a/b:1", "runtime_class": "native", "memory_mb": 16, "cpu_millicores": 10}
        status, answer = self.call("PUT", f"/workloads/{id_}", {**usual, **fields})
        assert status in {200, 201}, answer
        return answer

    def state(self, id_: str) -> str:
        found = self.get(f"/workloads/{id_}")
        return str(found["status"]["state"]) if found else ""

    def allocations(self, id_: str) -> list[dict[str, Any]]:
        """Those of a workload that are not released."""
        items = self.get("/allocations?limit=500")["items"]
        return [a for a in items if a["workload"] == id_ and not a["released"]]

    @property
    def epochs_led(self) -> int:
        """How often it has won the lease."""
        return self.log.count('"event": "leading"') + self.log.count("leading  ")


@dataclass
class Cluster:
    folder: Path
    store: str
    flags: list[str] = field(default_factory=list)
    """For each controller."""
    controllers: list[Controller] = field(default_factory=list)
    agents: dict[str, Process] = field(default_factory=dict)

    def controller(self, *, tree: Path | None = None) -> Controller:
        """Another one, serving."""
        port = unused_port()
        name = f"c{len(self.controllers) + 1}"
        flags = ["--http", f"127.0.0.1:{port}", "--store", self.store, "--holder", name, *self.flags]
        made = Controller("controller", self.folder / name, flags, tree, port=port)
        self.controllers.append(made)
        made.serve()
        return made

    def agent(
        self,
        name: str,
        *more: str,
        tree: Path | None = None,
        servers: list[Controller] | None = None,
    ) -> Process:
        """Another node, registered and ready. more: flags of its agent."""
        told = servers if servers is not None else self.controllers
        if tree is not None:
            told = told[:1]
        flags = ["--node", name, "--state-dir", str(self.folder / name / "state"), "--runtime", "fake"]
        flags += ["--grpc", f"127.0.0.1:{unused_port()}", "--json", "127.0.0.1:0", *more]
        for controller in told:
            flags += ["--server", f"http://127.0.0.1:{controller.port}"]
        made = self.agents[name] = Process("agent", self.folder / name, flags, tree)
        made.start()
        until(f"{name} is ready", lambda: told[0].get(f"/nodes/{name}")["status"]["ready"])
        return made

    def close(self) -> None:
        for process in (*self.agents.values(), *self.controllers):
            if process.running is not None:
                process.signal(signal.SIGCONT)
            process.kill()
        for agent in self.agents.values():
            # Its runtime and its fencer outlive it.
            for pid in runtimes_of(agent.folder):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster on the store with this URL."""
    made: list[Cluster] = []

    def make(store: str, *flags: str) -> Cluster:
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(Cluster(folder, store, list(flags)))
        return made[-1]

    yield make
    for each in made:
        each.close()
