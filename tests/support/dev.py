"""A whole kakuri, as a user has it: `kakuri dev` on a folder of its own, its command line, its HTTP.

Everything that was started ends with the fixture, and what is left on the machine then is a failure.
"""

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
from typing import Any

import pytest

from support.needs import need

KAKURI = Path(sys.executable).with_name("kakuri")
READY_S = 60
ENDED_S = 60


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Dev:
    """A running `kakuri dev`."""

    folder: Path
    runtime: str
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    ready_line: str = ""
    server: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> "Dev":
        """Returns when it says that it is ready."""
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        stderr = (self.folder / "dev.stderr").open("ab")
        ports = ("--http-port", "0", "--agent-port", "0", "--json-port", "0")
        self.process = subprocess.Popen(
            [KAKURI, "dev", "--dir", str(self.folder), "--runtime", self.runtime, *ports, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | self.environment,
            start_new_session=True,
        )
        stderr.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if not line:
            self.process.wait(READY_S)
            raise AssertionError("kakuri dev ended before it was ready:\n" + self.told())
        self.ready_line = line
        self.server = self.info["http"]
        return self

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "dev.json").read_text())

    def told(self) -> str:
        """All that was logged, for a failure's message."""
        files = [self.folder / "dev.stderr", *sorted((self.folder / "logs").glob("*.log"))]
        return "\n".join(f"--- {f.name}\n{f.read_text()[-8000:]}" for f in files if f.exists())

    def cli(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 90) -> str:
        """What the command said on stdout. check: it must have ended with 0."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(
                f"kakuri {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 90) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [KAKURI, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | {"KAKURI_SERVER": self.server, "NO_COLOR": "1", "COLUMNS": "200"},
        )

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        given = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        request = urllib.request.Request(self.server + path, data=given, method=method)
        if given is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Response(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, dict(error.headers), error.read())

    def workload(self, id_: str) -> Any:
        return self.http("GET", f"/workloads/{id_}").json

    def allocations(self, workload: str) -> list[Any]:
        return self.http("GET", f"/allocations?workload={workload}").json["items"]

    def events(self, workload: str) -> list[Any]:
        return self.http("GET", f"/events?object_kind=Workload&object_id={workload}").json["items"]

    def apply(self, manifest: str, *more: str) -> str:
        return self.cli("apply", "-f", "-", *more, stdin=manifest)

    def until(self, what: str, holds: Callable[[], Any], *, within_s: float = 60) -> Any:
        """What holds() gave, once that is true; else a failure that says what was waited for."""
        deadline = time.monotonic() + within_s
        while not (value := holds()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s: {what}\n" + self.state())
            time.sleep(0.1)
        return value

    def until_state(self, workload: str, state: str, *, within_s: float = 60) -> Any:
        def holds() -> Any:
            seen = self.workload(workload)
            status = seen["status"]
            good = status["state"] == state and status["observed_generation"] == seen["generation"]
            return seen if good and (state != "Running" or status["ready"] == status["desired"]) else None

        return self.until(f"{workload} is {state}", holds, within_s=within_s)

    def state(self) -> str:
        try:
            return self.cli("get", "workloads", "-o", "wide", check=False) + self.told()
        except (OSError, subprocess.SubprocessError):
            return self.told()

    def clear(self) -> None:
        """No workload is left."""
        ids = [w["id"] for w in self.http("GET", "/workloads").json["items"]]
        if ids:
            self.cli("delete", "workload", *ids, "--wait")

    def kill(self, name: str) -> int:
        """One of the processes that dev.json names is killed with -9; returns its id."""
        pid = int(self.info["pids"][name])
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self) -> None:
        """dev has ended, and the workloads and the runtime with it, also when a test killed it and failed then."""
        if self.process is None:
            return
        self._terminate()
        if self.process.returncode and (self.folder / "dev.json").exists():
            self.arguments = ()
            self.start()
            self._terminate()

    def _terminate(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(ENDED_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(5)
            if self.process.stdout is not None:
                self.process.stdout.close()


def can_run_containerd() -> None:
    """Skips, or fails in CI, where there is no containerd to be had."""
    need(os.geteuid() == 0, "containerd needs root")
    for program in ("containerd", "runc", "runsc"):
        need(any((Path(d) / program).exists() for d in ("/usr/bin", "/usr/sbin", "/usr/local/bin")), f"no {program}")


@pytest.fixture(scope="session")
def shared_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One kakuri on a real containerd for all tests that leave it as it was."""
    can_run_containerd()
    dev = Dev(tmp_path_factory.mktemp("dev"), "containerd")
    try:
        yield dev.start()
    finally:
        dev.stop()


@pytest.fixture
def dev(shared_dev: Dev) -> Iterator[Dev]:
    """The shared kakuri, without workloads before and after."""
    yield shared_dev
    shared_dev.clear()


@pytest.fixture
def simulated_dev(tmp_path: Path) -> Iterator[Dev]:
    """A kakuri on the simulated runtime."""
    dev = Dev(tmp_path / "dev", "fake")
    try:
        yield dev.start()
    finally:
        dev.stop()
