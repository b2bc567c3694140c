"""An accepted POST survives a kill -9 of its controller: write, read 201, kill at once; the next one must have it.

One rule: the kill comes with the answer's first line, before anything that the controller may do after it.

    python -m chaos.accepted [KILLS]    on SQLite and on PostgreSQL
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import database
from chaos.hosts import HERE, run
from chaos.programs import Program

_SERVES_BOUND_S = 30.0
_ANSWER_BOUND_S = 30.0
_RETRY_S = 0.002
_TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """Of one database."""

    kind: str
    kills: int
    seconds: float
    lost: tuple[str, ...]

    def __str__(self) -> str:
        lost = f"LOST: {', '.join(self.lost[:20])}" if self.lost else "nothing was lost"
        return f"{self.kind}: {self.kills} controllers killed right after a 201, in {self.seconds:.0f} s: {lost}"


def kill_after_each_answer(store: str, kills: int) -> Outcome:
    """Each controller is asked for what the one before it accepted, accepts one more, and is killed."""
    began = time.monotonic()
    port = _unused_port()
    made: dict[str, str] = {}
    lost: list[str] = []
    with _nursery("--http", f"127.0.0.1:{port}", "--store", store, "--log-level", "error") as nursery:
        for number in range(kills + 1):
            pid = _start(nursery)
            try:
                _wait_served(port)
                lost += [id_ for id_ in list(made)[-1:] if not _has(port, id_, made[id_])]
                if number < kills:
                    id_ = f"w{number:05}"
                    made[id_] = _post_and_kill(port, pid, id_)
                else:
                    lost += [id_ for id_, uid in made.items() if not _has(port, id_, uid)]
            finally:
                _end(nursery, pid)
    kind = store.partition(":")[0]
    return Outcome(kind, kills, time.monotonic() - began, tuple(dict.fromkeys(lost)))


def main(kills: int) -> int:
    """Both databases at once. 1 when anything was lost."""
    folder = Path(tempfile.mkdtemp(prefix="kakuri-accepted-", dir="/tmp"))
    folder.chmod(0o711)
    server = Program("postgres", HERE, (), folder / "postgres.log", with_children=True)
    try:
        server.argv = database.create(folder / "postgres", HERE.address, port=(port := _unused_port()))
        server.start()
        database.wait_ready(server, port)
        stores = [f"sqlite:///{folder}/kakuri.db", database.url(HERE.address, port)]
        run(
            "env",
            f"PYTHONPATH={_TESTS.parent}",
            sys.executable,
            "-m",
            "controller",
            "db",
            "upgrade",
            "--store",
            stores[1],
        )
        with ThreadPoolExecutor(len(stores)) as threads:
            outcomes = list(threads.map(lambda store: kill_after_each_answer(store, kills), stores))
    finally:
        server.end(5.0)
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.writelines(f"{outcome}\n" for outcome in outcomes)
    return int(any(outcome.lost for outcome in outcomes))


@contextlib.contextmanager
def _nursery(*flags: str) -> Iterator["subprocess.Popen[str]"]:
    paths = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos.nursery", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _start(nursery: "subprocess.Popen[str]") -> int:
    """The id of a new controller's process."""
    assert nursery.stdin is not None
    nursery.stdin.write("start\n")
    nursery.stdin.flush()
    return int(_told(nursery))


def _end(nursery: "subprocess.Popen[str]", pid: int) -> None:
    """It is gone, if it was not before."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _told(nursery)


def _told(nursery: "subprocess.Popen[str]") -> str:
    assert nursery.stdout is not None
    line = nursery.stdout.readline()
    if not line:
        raise RuntimeError("the process that forks controllers has ended")
    return line


def _wait_served(port: int) -> None:
    deadline = time.monotonic() + _SERVES_BOUND_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no controller listens on {port} after {_SERVES_BOUND_S:g} s")
        time.sleep(_RETRY_S)


def _post_and_kill(port: int, pid: int, id_: str) -> str:
    """It was accepted, and its controller killed. Returns its uid."""
    spec = {"image": "kakuri.local/none:1", "runtime_class": "native", "memory_mb": 16, "cpu_millicores": 10}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_BOUND_S)
    with contextlib.closing(connection):
        connection.request("POST", "/workloads", json.dumps({"id": id_, **spec}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        os.kill(pid, signal.SIGKILL)
        body = answer.read()
    if answer.status != 201:
        raise RuntimeError(f"POST {id_}: {answer.status} {body.decode()}")
    return str(answer.headers["ETag"]).strip('"').partition(".")[0]


def _has(port: int, id_: str, uid: str) -> bool:
    """Whether the very same object is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_BOUND_S)
    with contextlib.closing(connection):
        connection.request("GET", f"/workloads/{id_}")
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
    return answer.status == 200 and found["uid"] == uid


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
