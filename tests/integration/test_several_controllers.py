"""Several controllers on one PostgreSQL: any of them serves, one acts, and another takes over when that one is gone."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cluster import Cluster, Controller, until

pytestmark = pytest.mark.real
Make = Callable[..., Cluster]


def leader(cluster: Cluster) -> Controller:
    """The one whose log says so last. Exactly one leads at a time; which, its log tells with its epoch."""

    def find() -> Controller | None:
        found = [(epoch, c) for c in cluster.controllers if c.running and (epoch := newest_epoch(c))]
        return max(found, key=lambda f: f[0])[1] if found else None

    return until("one of them leads", find)


def newest_epoch(controller: Controller) -> int:
    lines = [line for line in controller.log.splitlines() if "leading" in line and "epoch" in line]
    return max((int(line.partition("epoch")[2].strip('":= ').split()[0].strip(',"}')) for line in lines), default=0)


def test_what_any_of_them_accepts_runs_and_a_killed_leader_is_replaced(cluster: Make, postgres_url: str) -> None:
    world = cluster(postgres_url)
    for _ in range(3):
        world.controller()
    first = leader(world)
    others = [c for c in world.controllers if c is not first]
    world.agent("n1")

    # A sweep would find it after 30 s; the commit tells of it.
    others[0].put("web", replicas=2)
    until("web runs", lambda: others[1].state("web") == "Running", 10)

    first.kill()
    killed_at = time.monotonic()
    second = until("another leads", lambda: (c := leader(world)) is not first and c)
    took_s = time.monotonic() - killed_at
    assert took_s < 20, "far more than the ten seconds that `make chaos` measures"
    others[0].put("later")
    until("later runs", lambda: others[1].state("later") == "Running")
    assert newest_epoch(second) > newest_epoch(first)
    assert [a["slot"] for a in others[0].allocations("web")] == [0, 1]


def test_a_leader_that_was_stopped_finds_another_when_it_wakes_and_does_nothing(
    cluster: Make, postgres_url: str
) -> None:
    world = cluster(postgres_url)
    world.controller()
    first = leader(world)
    second = world.controller()
    world.agent("n1")
    second.put("web")
    until("web runs", lambda: second.state("web") == "Running")
    first.signal(signal.SIGSTOP)
    until("the other leads", lambda: newest_epoch(second) > newest_epoch(first))
    second.put("web", replicas=3)
    until("web has three", lambda: len(second.allocations("web")) == 3)

    first.signal(signal.SIGCONT)

    until("the first knows", lambda: "lease ran out" in first.log or "another controller leads" in first.log)
    second.put("after")
    until("after runs", lambda: second.state("after") == "Running")
    assert leader(world) is second
    assert first.get("/workloads/after")["status"]["state"] == "Running", "it serves the API all the same"


def test_an_agent_that_is_told_of_all_registers_with_whichever_lives(cluster: Make, postgres_url: str) -> None:
    world = cluster(postgres_url)
    alive, dead = world.controller(), world.controller()  # the first leads
    dead.kill()

    world.agent("n1", servers=[alive, dead])
    world.agent("n2", servers=[alive])

    alive.put("web", replicas=2)
    until("web runs on both", lambda: {a["node"] for a in alive.allocations("web")} == {"n1", "n2"})


def test_a_lost_node_s_replace_workloads_run_elsewhere_and_are_stopped_where_they_were(
    cluster: Make, postgres_url: str, tmp_path: Path
) -> None:
    world = cluster(
        postgres_url,
        "--node-silent-after-s",
        "1",
        "--node-lease-s",
        "3",
        "--node-stop-bound-s",
        "3",
        "--clock-slack-s",
        "1",
    )
    api = world.controller()
    agent = world.agent("n1")
    api.put("gives", on_disconnect="replace")
    api.put("keeps")
    until("both run", lambda: api.state("gives") == api.state("keeps") == "Running")
    [before] = api.allocations("gives")
    world.agent("n2")

    agent.signal(signal.SIGSTOP)

    until("gives runs elsewhere", lambda: [a["node"] for a in api.allocations("gives")] == ["n2"])
    until("gives is ready", lambda: api.state("gives") == "Running")
    node = api.get("/nodes/n1")["status"]
    assert (node["ready"], node["reason"]) == (False, "NodeLost")
    [kept] = api.allocations("keeps")
    assert (kept["node"], kept["state"], kept["reason"]) == ("n1", "Unknown", "NodeLost")

    agent.signal(signal.SIGCONT)

    until("n1 is back", lambda: api.get("/nodes/n1")["status"]["ready"])
    until("keeps never stopped", lambda: api.state("keeps") == "Running")
    assert [a["id"] for a in api.allocations("keeps")] == [kept["id"]]
    gone = api.get(f"/allocations/{before['id']}")
    assert gone is None or (gone["state"], gone["reason"]) == ("Failed", "NodeLost")
    assert [a["node"] for a in api.allocations("gives")] == ["n2"]
