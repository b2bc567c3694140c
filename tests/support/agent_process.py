"""An agent as a process of its own, for tests that kill it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BOUND_S = 20.0


@dataclass
class Process:
    """`python -m agent` on one state dir."""

    state_dir: Path
    flags: tuple[str, ...] = ("--runtime", "fake")
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self) -> dict[str, Any]:
        """What agent.json says, once it serves."""
        process = self._spawn()
        self.running.append(process)

        def serves() -> dict[str, Any] | None:
            assert process.poll() is None, self.log
            told = self.told
            return told if told and told["pid"] == process.pid else None

        return until(serves)

    def run(self, *more: str) -> "subprocess.CompletedProcess[str]":
        command = self._command(*more)
        return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S * 3, check=False)

    def end(self, number: int = signal.SIGTERM) -> int:
        process = self.running.pop()
        process.send_signal(number)
        return process.wait(BOUND_S)

    @property
    def log(self) -> str:
        return (self.state_dir / "test.log").read_text()

    @property
    def told(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.state_dir / "agent.json").read_text())
        except FileNotFoundError:
            return None

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self.state_dir.mkdir(exist_ok=True)
        with (self.state_dir / "test.log").open("ab") as log:
            return subprocess.Popen(self._command(), stdout=log, stderr=log)

    def _command(self, *more: str) -> list[str]:
        places = ("--grpc", "127.0.0.1:0", "--json", "127.0.0.1:0", "--server", "http://127.0.0.1:1")
        return [
            sys.executable,
            "-m",
            "agent",
            "--node",
            "n1",
            "--state-dir",
            str(self.state_dir),
            *places,
            *self.flags,
            *more,
        ]


def runtimes_of(state_dir: Path) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(state_dir) in " ".join(p.info["cmdline"] or ())]


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + BOUND_S
    while not (value := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value
