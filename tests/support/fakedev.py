"""`kakuri dev` with a pretended controller and agent: run as a script, it is dev, or one of the two.

fakedev.py dev FOLDER [keep] [PORT]      fakedev.py controller|agent …flags as the real ones have
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from kakuri.cli.output import put
from kakuri.dev import Wanted, agent_flags, run
from kakuri.dev.folder import Folder
from kakuri.dev.ports import Ports
from kakuri.dev.supervisor import Program


def programs(folder: Folder, wanted: Wanted, ports: Ports) -> tuple[Program, Program]:
    me = (sys.executable, __file__)
    controller = (*me, "controller", "--http", f"127.0.0.1:{ports.http}", "--store", folder.store)
    agent = (*me, "agent", *agent_flags(folder, wanted, ports))
    return (
        Program(
            "controller", controller, (("controller", "--http"), ("--store", folder.store)), folder.log("controller")
        ),
        Program("agent", agent, (("agent", "--node"), ("--state-dir", str(folder.agent))), folder.log("agent")),
    )


def dev(words: list[str]) -> None:
    port = next((int(w) for w in words if w.isdigit()), 0)
    wanted = Wanted(Path(words[0]), "auto", "n1", "keep" in words, {"http": port, "agent": 0, "json": 0})
    run(wanted, lambda line: put([line]), programs)


class Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": {"ready": True}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def controller(flags: dict[str, str]) -> None:
    if (Path(flags["--store"].removeprefix("sqlite:///")).parent / "broken").exists():
        sys.exit("the database is newer than this code")
    HTTPServer(("127.0.0.1", int(flags["--http"].rpartition(":")[2])), Api).serve_forever()


def agent(flags: dict[str, str]) -> None:
    state = Path(flags["--state-dir"])
    state.mkdir(parents=True, exist_ok=True)
    if "--shutdown" in sys.argv:
        (state / "shut-down").write_text("")
        return
    about = {"pid": os.getpid(), "cri": "unix:///x.sock", "runtime": "fake", "runtime_pid": 1}
    (state / "agent.json").write_text(json.dumps(about))
    signal.pause()


def main() -> None:
    role, *words = sys.argv[1:]
    if role == "dev":
        from kakuri.cli.session import guarded

        guarded(lambda: dev(words))
    flags = dict(zip(words[::2], words[1::2], strict=False))
    {"controller": controller, "agent": agent}[role](flags)


if __name__ == "__main__":
    main()
