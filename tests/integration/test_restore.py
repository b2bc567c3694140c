"""An old backup brought back under real agents: nothing is ended or doubled until a person has confirmed it."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.client import CriClient
from cri.convert import LABEL_ALLOCATION, LABEL_SLOT, LABEL_WORKLOAD
from cri.v1 import runtime_pb2 as pb
from support.cluster import BOUND_S, Cluster, Controller, until
from support.dev import KAKURI

pytestmark = pytest.mark.real


def test_a_second_controller_on_a_sqlite_file_is_refused_in_words_and_a_killed_ones_file_is_free(
    cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    pair = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    first = pair.controller()
    assert first.running is not None
    done = _run(sys.executable, "-m", "controller", "--store", pair.store, "--http", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"has a controller already (pid {first.running.pid})" in done.stderr
    assert "use PostgreSQL for several" in done.stderr
    assert _db("check", "--store", pair.store).returncode == 0, "to look at it beside a controller is fine"
    first.kill()
    pair.controller()


def test_an_old_backup_ends_and_doubles_nothing_until_it_is_confirmed(
    cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    first = world.controller()
    for name in ("n1", "n2"):
        world.agent(name)
    for id_ in ("kept", "deleted", "scaled"):
        first.put(id_, replicas=2)
    until("all run", lambda: all(_ready(first, id_) == 2 for id_ in ("kept", "deleted", "scaled")))
    _ok(_db("backup", "--store", world.store, "--to", str(tmp_path / "b.db")))
    assert first.call("DELETE", "/workloads/deleted")[0] == 202
    first.put("added", replicas=2)
    first.put("scaled", replicas=4)
    until("it is gone", lambda: first.call("GET", "/workloads/deleted")[0] == 404)
    until("all run again", lambda: (_ready(first, "added"), _ready(first, "scaled")) == (2, 4))
    before = _containers(world)
    assert Counter(workload for workload, _ in before.values()) == {"kept": 2, "added": 2, "scaled": 4}
    refused = _db("restore", "--store", world.store, "--from", str(tmp_path / "b.db"))
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    first.kill()

    _ok(_db("restore", "--store", world.store, "--from", str(tmp_path / "b.db")))
    first.serve()
    hold = until("both nodes are read", lambda: (h := first.get("/restore")) and not h["unread"] and h)
    assert {a["workload"] for a in hold["unknown"]} == {"added", "scaled"}
    assert Counter(a["workload"] for a in hold["missing"]) == {"deleted": 2}
    first.put("new")
    assert _containers(world) == before, "nothing was ended"
    assert not first.allocations("new"), "and nothing started"

    shown = _db("confirm", "--yes", "--now", "--server", f"http://127.0.0.1:{first.port}").stdout
    assert shown.count("not in the backup; it is ended on") == 4
    assert shown.count("it is lost, and replaced") == 2
    wanted = {"kept": 2, "deleted": 2, "scaled": 2, "new": 1}
    until("it has converged", lambda: all(_ready(first, id_) == count for id_, count in wanted.items()))
    until("each slot runs once", lambda: Counter(_containers(world).values()) == _once(wanted))
    after = _containers(world)
    assert {i for i, (w, _) in before.items() if w == "kept"} <= after.keys(), "what both knew runs on"
    assert first.call("GET", "/restore")[0] == 404
    assert _db("check", "--store", world.store).returncode == 0


def _ready(controller: Controller, id_: str) -> int:
    found = controller.get(f"/workloads/{id_}")
    return int(found["status"]["ready"]) if found else 0


def _once(wanted: dict[str, int]) -> Counter[tuple[str, int]]:
    return Counter((id_, slot) for id_, count in wanted.items() for slot in range(count))


def _containers(world: Cluster) -> dict[str, tuple[str, int]]:
    """Allocation → workload and slot of every container that runs, as the runtimes themselves say it."""
    return asyncio.run(_listed([agent.folder / "state" / "agent.json" for agent in world.agents.values()]))


async def _listed(places: list[Path]) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for place in places:
        client = CriClient(json.loads(place.read_text())["cri"])
        try:
            for container in await client.list_containers():
                labels = container.labels
                if container.state == pb.CONTAINER_RUNNING:
                    found[labels[LABEL_ALLOCATION]] = labels[LABEL_WORKLOAD], int(labels[LABEL_SLOT])
        finally:
            await client.close()
    return found


def _ok(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stderr


def _db(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return _run(str(KAKURI), "db", *arguments)


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)
