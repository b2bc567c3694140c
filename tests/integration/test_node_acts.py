"""Drain, forced deletion, forget and release on processes: a controller, agents on the fake runtime, and `kakuri`."""

import asyncio
import json
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.agent_process import runtimes_of
from support.agents import sandboxes_and_running
from support.cluster import Cluster, Controller, Process, until
from support.dev import KAKURI

Make = Callable[..., Cluster]
QUICK = ("--node-silent-after-s", "2")


def kakuri(controller: Controller, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [KAKURI, *words],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=os.environ | {"KAKURI_SERVER": f"http://127.0.0.1:{controller.port}", "NO_COLOR": "1"},
    )


def runs_on(agent: Process) -> Counter[str]:
    """The containers that run on its runtime, by workload, whatever any controller thinks."""
    told = json.loads((agent.folder / "state" / "agent.json").read_text())
    _, running = asyncio.run(sandboxes_and_running(told["cri"]))
    return Counter(id_.partition(".")[0] for id_ in running.elements())


def status(controller: Controller, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = controller.get(f"/workloads/{id_}")["status"]
    return found


def up(controller: Controller, id_: str) -> bool:
    seen = status(controller, id_)
    return bool(seen["ready"] == seen["desired"])


def events(controller: Controller, id_: str) -> Counter[str]:
    return Counter({e["reason"]: e["count"] for e in controller.get(f"/events?object_id={id_}&limit=500")["items"]})


@contextmanager
def lowest_ready(controller: Controller, id_: str) -> Iterator[list[int]]:
    """The lowest count of ready slots that was seen meanwhile, as the only entry."""
    lowest = [status(controller, id_)["ready"]]
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lowest[0] = min(lowest[0], status(controller, id_)["ready"])
            time.sleep(0.02)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield lowest
    finally:
        over.set()
        looking.join()


def test_a_drain_moves_what_it_can_names_the_rest_and_is_done_when_all_runs_elsewhere(
    cluster: Make, tmp_path: Path
) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db", *QUICK)
    controller = world.controller()
    agents = {name: world.agent(name, "--label", f"name={name}") for name in ("n1", "n2", "n3")}
    here = {"node_selector": {"name": "n1"}}
    controller.put("web", replicas=4, termination_grace_s=1)
    controller.put("pinned", **here)
    controller.put("job", restart_policy="Never", **here)
    for id_ in ("web", "pinned", "job"):
        until(f"{id_} is up", lambda id_=id_: up(controller, id_))
    assert runs_on(agents["n1"])["web"] >= 1

    with lowest_ready(controller, "web") as lowest:
        stuck = kakuri(controller, "drain", "n1", "--timeout", "8")
    assert stuck.returncode == 3, stuck
    assert "pinned.0." in stuck.stderr
    assert "has no place elsewhere: 0 of 3 nodes fit: 2 lack the labels of node_selector (name=n1)" in stuck.stderr
    assert "is a job (restart_policy Never) that is left to finish; there is no deadline" in stuck.stderr
    assert runs_on(agents["n1"]) == {"pinned": 1, "job": 1}
    assert up(controller, "web")
    assert lowest[0] == 3, "max_unavailable is 1"

    done = subprocess.Popen(
        [KAKURI, "--server", f"http://127.0.0.1:{controller.port}", "drain", "n1", "--deadline", "1s"],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    until("the deadline emptied n1", lambda: not runs_on(agents["n1"]))
    until("pinned has no place", lambda: status(controller, "pinned")["reason"] == "Unschedulable")
    progress = controller.get("/nodes/n1/drain")
    assert (progress["state"], progress["left"]) == ("Draining", []), "what it left has no new place"
    assert [w["workload"] for w in progress["waiting"]] == ["pinned"]
    assert done.poll() is None
    assert kakuri(controller, "delete", "pinned", "--wait").returncode == 0
    assert done.communicate(timeout=60) == ("node/n1 drained\n", None)

    seen = status(controller, "job")
    assert (seen["state"], seen["reason"]) == ("Failed", "Drained")
    until("the end is told", lambda: events(controller, "n1")["Drained"] == 1)
    assert events(controller, "n1")["DrainDeadline"] == 1
    assert "draining" in kakuri(controller, "describe", "node/n1").stdout
    assert kakuri(controller, "uncordon", "n1").returncode == 0
    controller.put("back", **here)
    until("n1 takes work again", lambda: up(controller, "back"))
    assert status(controller, "job")["state"] == "Failed", "a job that has run is not run again"
    assert runs_on(agents["n1"]) == {"back": 1}


def test_what_was_given_up_on_a_silent_node_is_ended_when_its_agent_is_back(cluster: Make, tmp_path: Path) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db", *QUICK)
    controller = world.controller()
    agent = world.agent("n1", "--label", "name=n1")
    here = {"node_selector": {"name": "n1"}}
    controller.put("gone", **here)
    controller.put("job", restart_policy="Never", **here)
    controller.put("web")
    for id_ in ("gone", "job", "web"):
        until(f"{id_} is up", lambda id_=id_: up(controller, id_))
    everything = {"gone": 1, "job": 1, "web": 1}
    agent.kill()
    until("n1 is silent", lambda: not controller.get("/nodes/n1")["status"]["ready"])

    kakuri(controller, "delete", "gone")
    stuck = kakuri(controller, "delete", "gone", "--wait", "--timeout", "0.5")
    assert stuck.returncode == 3
    assert "kakuri delete --force gone" in stuck.stderr
    forced = kakuri(controller, "delete", "--force", "gone")
    assert (forced.returncode, forced.stdout) == (0, "workload/gone deleted\n")
    assert "may still run on n1" in forced.stderr
    assert controller.get("/workloads/gone") is None
    assert runs_on(agent) == everything, "nobody could be told"

    other = world.agent("n2")
    assert kakuri(controller, "node", "forget", "n2").returncode == 1, "it is ready"
    forgotten = kakuri(controller, "node", "forget", "n1")
    assert (forgotten.returncode, forgotten.stdout) == (0, "node/n1 forgotten\n")
    assert "may still run on n1" in forgotten.stderr
    until("web runs on n2", lambda: runs_on(other) == {"web": 1})
    until("the job is lost", lambda: status(controller, "job")["reason"] == "NodeLost")
    assert status(controller, "job")["state"] == "Failed"
    assert [n["id"] for n in controller.get("/nodes")["items"]] == ["n2"]

    agent.start()
    until("n1 is back", lambda: controller.get("/nodes/n1")["status"]["ready"])
    until("its ghosts have ended", lambda: not runs_on(agent))
    until("and nothing is held against it", lambda: not controller.get("/nodes/n1")["status"]["tombstones"])
    controller.put("new", **here)
    until("it takes work", lambda: up(controller, "new"))
    assert runs_on(agent) == {"new": 1}
    assert status(controller, "job")["state"] == "Failed", "what may have run is not run again"


def test_a_node_is_released_to_another_cluster_and_by_its_own(cluster: Make, tmp_path: Path) -> None:
    theirs = cluster(f"sqlite:///{tmp_path}/theirs.db", *QUICK)
    ours = cluster(f"sqlite:///{tmp_path}/ours.db", *QUICK)
    old, new = theirs.controller(), ours.controller()
    agent = theirs.agent("n1")
    old.put("web", termination_grace_s=1)
    until("web is up", lambda: up(old, "web"))
    held_by = old.get("/version")["cluster_id"]
    agent.kill()
    old.kill()
    agent.flags[agent.flags.index("--server") + 1] = f"http://127.0.0.1:{new.port}"
    agent.start()
    until("n1 refuses", lambda: new.get("/nodes/n1")["status"]["reason"] == "Refused")

    assert "AgentRefused" not in kakuri(new, "node", "release", "n1", "--from", "nobody").stdout
    wrong = kakuri(new, "node", "release", "n1", "--from", "nobody")
    assert (wrong.returncode, held_by in wrong.stderr) == (1, True), wrong
    kept = kakuri(new, "node", "release", "n1", "--from", held_by)
    assert (kept.returncode, "web.0." in kept.stderr) == (1, True), kept
    assert runs_on(agent) == {"web": 1}
    released = kakuri(new, "node", "release", "n1", "--from", held_by, "--stop")
    assert (released.returncode, released.stdout) == (0, "node/n1 released\n"), released
    assert not runs_on(agent)
    until("n1 is the new cluster's", lambda: new.get("/nodes/n1")["status"]["ready"])
    new.put("db", termination_grace_s=1)
    until("db is up", lambda: up(new, "db"))

    own = kakuri(new, "node", "release", "n1")
    assert (own.returncode, "kakuri drain n1" in own.stderr) == (1, True), own
    own = kakuri(new, "node", "release", "n1", "--stop")
    assert own.returncode == 0, own
    back = new.get("/nodes/n1")
    assert back is None or not back["schedulable"], "should it have registered again already"
    until("db waits", lambda: status(new, "db")["reason"] == "Unschedulable")
    assert not runs_on(agent)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert not runtimes_of(tmp_path), "what was started has ended"
