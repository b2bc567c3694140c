"""The main job, shown: starts kakuri, applies examples/, shows the table converging, says what to try next.

Stays up until Ctrl-C; with DEMO_EXIT=1 it ends with 0 once all has converged. Either way nothing is left behind.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kakuri.client import Client, ClientError, Object

ROOT = Path(__file__).resolve().parent.parent
KAKURI = Path(sys.executable).with_name("kakuri")
CONVERGES_S = 180.0
"""Pulling nothing, starting a dozen containers on two cores takes about ten seconds."""
WEB_PORT = 18080  # the host_port of examples/01-web.yaml
PORTS = {"--http-port": 8080, "--agent-port": 9001, "--json-port": 9000}

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    if not _usable(WEB_PORT):
        console.print(
            f"port {WEB_PORT} of 127.0.0.1 is taken, and examples/01-web.yaml wants it: end what listens there"
        )
        return 1
    exits = os.environ.get("DEMO_EXIT", "") not in {"", "0"}
    folder = Path(tempfile.mkdtemp(prefix="kakuri-demo-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored, when a shell's background job
    try:
        with _dev(folder) as info:
            return asyncio.run(_show(info, folder, exits=exits))
    except KeyboardInterrupt:
        return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _dev(folder: Path) -> Iterator[Mapping[str, str]]:
    """A running `kakuri dev`; its dev.json. When this ends, so have the workloads and the runtime."""
    ports = [word for name, port in PORTS.items() for word in (name, str(_usable(port)))]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [KAKURI, "dev", "--dir", str(folder), *ports, *sys.argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"kakuri dev did not start; its logs are in {folder / 'logs'}")
        console.print(line.strip())
        yield json.loads((folder / "dev.json").read_text())
    finally:
        process.send_signal(signal.SIGTERM)  # first of all: nothing below may keep it from ending
        with contextlib.suppress(KeyboardInterrupt):
            process.wait(60)
        process.stdout.close()


def _usable(port: int) -> int:
    """The port, when nothing has it; else 0, which means any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


async def _show(info: Mapping[str, str], folder: Path, *, exits: bool) -> int:
    server = info["http"]
    if info["runtime"] == "fake":
        console.print(f"All workloads below are [bold]simulated[/bold]: {_why_simulated(folder)}")
    console.print("\n[bold]kakuri apply -f examples/[/bold]")
    applied = subprocess.run(  # noqa: ASYNC221, S603 - our own program, and nothing else runs yet
        [KAKURI, "--server", server, "apply", "-f", str(ROOT / "examples")], check=False
    )
    if applied.returncode:
        return applied.returncode
    async with Client(server) as client:
        try:
            async with asyncio.timeout(CONVERGES_S):
                workloads = await _watch(client)
        except TimeoutError:
            console.print(f"not converged within {CONVERGES_S:.0f} s; see {folder / 'logs'}")
            return 1
    _tell(workloads, info, folder)
    if not exits:
        console.print("\nup until Ctrl-C")
        await asyncio.Event().wait()
    return 0


def _why_simulated(folder: Path) -> str:
    for line in (folder / "logs" / "agent.log").read_text().splitlines():
        if '"simulated runtime"' in line:
            return f"no container can be run here: {json.loads(line)['why']}"
    return "it was asked for"


async def _watch(client: Client) -> Mapping[str, Object]:
    """Shows the table until all has converged; the workloads then."""
    with Live(console=console, refresh_per_second=8) as live:
        async for view in client.mirror("Workload"):
            live.update(_table(view.objects))
            # The view may lag behind; whether all has converged is read anew.
            workloads = {w["id"]: w for w in (await client.list("Workload")).items}
            if _converged(workloads.values(), (await client.list("Allocation")).items):
                live.update(_table(workloads), refresh=True)
                return workloads
    raise ClientError("the watch ended")


def _converged(workloads: Iterable[Object], allocations: Iterable[Object]) -> bool:
    """No action is due; each service's replica runs, each job's has ended, or it waits for a place and says why."""
    newest: dict[str, dict[int, Object]] = {}
    for allocation in allocations:
        if allocation["accepted_revision"] != allocation["revision"]:
            return False
        if allocation["desired"] == "run":
            newest.setdefault(allocation["workload"], {})[allocation["slot"]] = allocation
    return all(_settled(w, newest.get(w["id"], {})) for w in workloads)


def _settled(workload: Object, slots: Mapping[int, Object]) -> bool:
    """The status must say so too: it follows what is known of the allocations."""
    status = workload["status"]
    if status["observed_generation"] != workload["generation"]:
        return False
    ended = status["succeeded"] + status["failed"]
    as_due = ended + (status["ready"] if workload["restart_policy"] == "Always" else 0)
    if status["reason"] == "Unschedulable" and status["message"]:
        return as_due == len(slots)
    return bool(as_due == status["desired"] == len(slots))


def _table(workloads: Mapping[str, Object]) -> Table:
    table = Table("workload", "runtime class", "ready", "state", "reason", "exit", "node", box=None, pad_edge=False)
    for id_, workload in sorted(workloads.items()):
        status = workload["status"]
        state = status["state"] + (" (simulated)" if status.get("simulated") else "")
        colour = {"Running": "green", "Succeeded": "green", "Failed": "red"}.get(status["state"], "yellow")
        table.add_row(
            id_,
            workload["runtime_class"],
            f"{status['ready']}/{status['desired']}",
            f"[{colour}]{state}[/{colour}]",
            status["reason"],
            str(status.get("exit_code", "")),
            status.get("node") or "",
        )
    return table


def _tell(workloads: Mapping[str, Object], info: Mapping[str, str], folder: Path) -> None:
    """What was shown, seen from four sides. Each line is what was read just now."""
    server = info["http"]
    for id_, workload in sorted(workloads.items()):
        if workload["status"]["reason"] == "Unschedulable":
            console.print(f"\n[bold]why is {id_} pending?[/bold]")
            console.print("  " + workload["status"]["message"])
    for id_ in ("job-done", "sandboxed"):
        console.print(f"\n[bold]kakuri logs {id_}[/bold]   (the machine's own kernel is {os.uname().release})")
        logs = _output(KAKURI, "--server", server, "logs", id_)
        console.print("  " + logs.replace("\n", "\n  "))
    if info["runtime"] != "fake":
        web = f"http://127.0.0.1:{WEB_PORT}/"
        console.print(f"\n[bold]curl {web}[/bold]")
        console.print("  " + _fetched(web))
    query = "select id, image, runtime_class, node, state, reason from workloads"
    if shutil.which("sqlite3"):
        console.print(f"\n[bold]sqlite3 {folder / 'kakuri.db'} '{query}'[/bold]")
        console.print("  " + _output("sqlite3", str(folder / "kakuri.db"), query).replace("\n", "\n  "))
    console.print(f"\nthe reconcile log is {folder / 'logs' / 'controller.log'}")
    console.print(
        f"try: export KAKURI_SERVER={server}; {KAKURI} get workloads; {KAKURI} describe zone; {KAKURI} events"
    )


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    return (done.stdout or done.stderr).strip()


def _fetched(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http, on loopback
            return str(answer.read().decode().strip())
    except (urllib.error.URLError, OSError) as error:
        return f"no answer: {error}"


if __name__ == "__main__":
    sys.exit(main())
