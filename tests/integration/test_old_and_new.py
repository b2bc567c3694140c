"""One version back, as processes of its real code: its agent under this controller, this agent under its controller."""

from collections.abc import Callable
from pathlib import Path

from support.cluster import Cluster, Controller, until

Make = Callable[..., Cluster]


def lives(api: Controller, node: str) -> None:
    """A workload is created, changed in place and by replacement, scaled and deleted there."""
    api.put("web", replicas=2)
    until("web runs", lambda: api.state("web") == "Running" and len(api.allocations("web")) == 2)
    before = {a["id"] for a in api.allocations("web")}
    api.put("web", replicas=2, labels={"team": "a"})
    until("labels are in place", lambda: settled(api) and {a["id"] for a in api.allocations("web")} == before)
    api.put("web", replicas=1, env={"A": "b"}, labels={"team": "a"})
    until(
        "web was replaced",
        lambda: settled(api) and len(now := {a["id"] for a in api.allocations("web")}) == 1 and not now & before,
    )
    assert {a["node"] for a in api.allocations("web")} == {node}
    api.call("DELETE", "/workloads/web")
    until("web is gone", lambda: api.call("GET", "/workloads/web")[0] == 404)


def settled(api: Controller) -> bool:
    status = api.get("/workloads/web")["status"]
    conditions = {c["type"]: c for c in status["conditions"]}
    generation = api.get("/workloads/web")["generation"]
    return bool(status["observed_generation"] == generation and conditions["Progressing"]["reason"] == "UpToDate")


def test_an_agent_one_version_back_does_all_that_it_knows(cluster: Make, previous_tree: Path, tmp_path: Path) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    api = world.controller()
    world.agent("old", tree=previous_tree)

    lives(api, "old")


def test_what_an_older_agent_does_not_know_it_is_not_given(cluster: Make, previous_tree: Path, tmp_path: Path) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    api = world.controller()
    world.agent("old", tree=previous_tree)
    api.put("gives", on_disconnect="replace")

    until("it says why it runs nowhere", lambda: "node-lease" in str(api.get("/workloads/gives")["status"]))
    world.agent("new")
    until("it runs on the node that knows", lambda: api.state("gives") == "Running")
    assert {a["node"] for a in api.allocations("gives")} == {"new"}


def test_this_agent_obeys_a_controller_one_version_back(cluster: Make, previous_tree: Path, tmp_path: Path) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    api = world.controller(tree=previous_tree)
    world.agent("new")

    lives(api, "new")


def test_an_agent_that_is_replaced_by_the_other_version_goes_on_with_what_runs(
    cluster: Make, previous_tree: Path, tmp_path: Path
) -> None:
    world = cluster(f"sqlite:///{tmp_path}/kakuri.db")
    api = world.controller()
    agent = world.agent("n1", tree=previous_tree)
    api.put("web")
    until("web runs", lambda: api.state("web") == "Running")
    [before] = api.allocations("web")
    for tree in (None, previous_tree):
        instance = instance_of(api)
        agent.kill()
        agent.tree = tree
        agent.start()
        until("the other one is heard", lambda: instance_of(api) not in {"", instance})  # noqa: B023
        until("web runs", lambda: api.state("web") == "Running")
    [after] = api.allocations("web")
    assert (after["id"], after["restarts"], after["container_id"]) == (before["id"], 0, before["container_id"])


def instance_of(api: Controller) -> str:
    """The name of the agent's life that answers now."""
    status = api.get("/nodes/n1")["status"]
    return str(status["instance"]) if status["ready"] else ""
