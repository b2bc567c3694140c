"""cordon, uncordon, drain, node forget, node release and delete --force, as people use them."""

from typing import Any

import pytest

from kakuri.cli import drain as drain_module
from kakuri.cli import node as node_module
from kakuri.cli.drain import read_seconds
from kakuri.cli.failure import Usage
from support.command_line import Result, kakuri
from support.fakeserver import FakeServer, workload

NODE = {"kind": "Node", "id": "n1", "uid": "u1", "generation": 3, "labels": {"zone": "a"}, "schedulable": True}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (drain_module, node_module):
        monkeypatch.setattr(module, "LOOK_S", 0.01)


def progress(state: str = "Draining", **fields: Any) -> dict[str, Any]:
    return {"node": "n1", "state": state, "ready": True, "left": [], "waiting": [], "moved": 0, "by_hand": [], **fields}


def left(id_: str, why: str) -> dict[str, str]:
    return {"allocation": id_, "workload": id_.partition(".")[0], "state": "Running", "why": why}


# -- cordon ------------------------------------------------------------------------------------------------------------
async def test_cordon_and_uncordon_keep_a_nodes_labels(server: FakeServer) -> None:
    server.put(NODE, "Node")
    assert await kakuri("cordon", "node/n1") == Result(0, "node/n1 cordoned\n", "")
    method, path, body = server.requests[-1]
    assert (method, path) == ("PUT", "/nodes/n1")
    assert body == {"kind": "Node", "id": "n1", "labels": {"zone": "a"}, "schedulable": False}
    assert server.kinds["Node"]["n1"]["if_match"] == '"u1.3"'
    assert (await kakuri("uncordon", "n1")).out == "node/n1 uncordoned\n"
    assert server.requests[-1][2]["schedulable"] is True


async def test_a_node_that_somebody_else_edits_meanwhile_is_read_again(server: FakeServer) -> None:
    server.put(NODE, "Node")
    server.refusals = [(409, {"reason": "Stale", "detail": "has changed"})]
    assert (await kakuri("cordon", "n1")).code == 0
    assert [m for m, _, _ in server.requests] == ["GET", "PUT", "GET", "PUT"]
    server.refusals = [(409, {"reason": "Stale", "detail": "has changed"})] * 5
    assert (await kakuri("cordon", "n1")).code == 1


async def test_cordon_is_for_nodes(server: FakeServer) -> None:
    assert (await kakuri("cordon", "workload/web")).code == 2
    assert (await kakuri("cordon", "n1")).err == "error: there is no Node 'n1'\n"


# -- drain -------------------------------------------------------------------------------------------------------------
async def test_drain_tells_each_news_once_and_ends_when_it_is_drained(server: FakeServer) -> None:
    turn = left("web.1.b", "waits its turn: 1 not up")
    server.acts = {
        "POST /nodes/n1/drain": [(202, progress(left=[left("web.0.a", "is about to be stopped"), turn]))],
        "GET /nodes/n1/drain": [
            (200, progress(left=[left("web.0.a", "is stopping"), turn])),
            (200, progress(left=[left("web.0.a", "is stopping"), turn])),
            (200, progress(left=[turn], waiting=[{"workload": "web", "slot": 0, "why": "Pulling: busybox"}])),
            (200, progress("Drained", moved=2)),
        ],
    }
    result = await kakuri("drain", "n1", "--deadline", "10m")
    assert (result.code, result.out) == (0, "node/n1 drained\n")
    assert server.requests[0][2] == {"deadline_s": 600}
    assert result.err.splitlines() == [
        "web.0.a: is about to be stopped",
        "web.1.b: waits its turn: 1 not up",
        "web.0.a: is stopping",
        "web slot 0: moved, Pulling: busybox",
        "node/n1: all moved",
    ]


async def test_a_drain_that_takes_too_long_is_3_and_names_what_cant_move(server: FakeServer) -> None:
    stuck = left("job.0.a", "is a job that is left to finish; there is no deadline")
    server.acts = {
        "POST /nodes/n1/drain": [(202, progress(left=[stuck], by_hand=["hand.0.c"]))],
        "GET /nodes/n1/drain": [(200, progress(left=[stuck]))],
    }
    result = await kakuri("drain", "node/n1", "--timeout", "0.1")
    assert (result.code, result.out) == (3, "")
    assert "hand.0.c started by hand there, and is left alone" in result.err
    assert "node/n1 is not drained within 0.1 s; it goes on:\n  job.0.a: is a job" in result.err
    assert server.requests[0][2] == {}, "a drain that goes on keeps its deadline"


async def test_a_deadline_is_taken_away_in_a_word_of_its_own(server: FakeServer) -> None:
    server.acts = {"POST /nodes/n1/drain": [(202, progress())]}
    await kakuri("drain", "n1", "--no-wait", "--deadline", "none")
    assert server.requests[0][2] == {"deadline_s": None}


async def test_a_timeout_of_0_is_one_look(server: FakeServer) -> None:
    going = {"node": "n1", "released": False, "left": ["x.0.a"]}
    server.acts = {
        "POST /nodes/n1/drain": [(202, progress(left=[left("web.0.a", "is stopping")]))],
        "GET /nodes/n1/drain": [(200, progress(left=[left("web.0.a", "is stopping")]))],
        "POST /nodes/n1/release": [(202, going)],
    }
    assert (await kakuri("drain", "n1", "--timeout", "0")).code == 3
    assert [m for m, _, _ in server.requests] == ["POST", "GET"]
    server.requests.clear()
    released = await kakuri("node", "release", "n1", "--stop", "--timeout", "0")
    assert released.code == 3
    assert "x.0.a has not ended" in released.err
    assert len(server.requests) == 1


async def test_drain_no_wait_only_asks(server: FakeServer) -> None:
    server.acts = {"POST /nodes/n1/drain": [(202, progress())]}
    assert await kakuri("drain", "n1", "--no-wait") == Result(0, "node/n1 draining\n", "")
    assert len(server.requests) == 1


async def test_a_drain_that_somebody_ends_is_an_error(server: FakeServer) -> None:
    server.acts = {
        "POST /nodes/n1/drain": [(202, progress())],
        "GET /nodes/n1/drain": [(404, {"reason": "NotDraining", "detail": "node n1 is not being drained"})],
    }
    result = await kakuri("drain", "n1")
    assert (result.code, result.err) == (1, "error: node/n1: somebody ended the drain\n")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400)])
def test_a_deadline_is_read_as_people_write_it(text: str, seconds: int) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["10 minutes", "-5", "1.5h", "soon", "m", "1w"])
def test_a_deadline_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="write 90s, 10m or 2h"):
        read_seconds(text)


# -- node --------------------------------------------------------------------------------------------------------------
async def test_forget_says_what_may_still_run(server: FakeServer) -> None:
    server.put({"id": "web.0.a", "node": "n1", "released": False}, "Allocation")
    server.put({"id": "web.1.b", "node": "n1", "released": True}, "Allocation")
    server.acts = {"POST /nodes/n1/forget": [(200, {"kind": "Node", "id": "n1"})]}
    result = await kakuri("node", "forget", "n1")
    assert (result.code, result.out) == (0, "node/n1 forgotten\n")
    assert result.err == "warning: web.0.a may still run on n1; it is told to end them if it is back\n"


async def test_forget_of_a_ready_node_is_refused_in_the_servers_words(server: FakeServer) -> None:
    server.acts = {"POST /nodes/n1/forget": [(409, {"reason": "InUse", "detail": "node n1 is ready; drain it"})]}
    assert await kakuri("node", "forget", "n1") == Result(1, "", "error: node n1 is ready; drain it\n")


async def test_release_asks_until_it_is_done(server: FakeServer) -> None:
    going = {"node": "n1", "released": False, "left": ["x.0.a"]}
    server.acts = {"POST /nodes/n1/release": [(202, going), (202, going), (200, {**going, "released": True})]}
    result = await kakuri("node", "release", "n1", "--from", "cluster-b", "--stop")
    assert (result.code, result.out) == (0, "node/n1 released\n")
    assert result.err.count("node/n1: still to end there: x.0.a") == 1
    assert server.requests[0][2] == {"stop": True, "held_by": "cluster-b"}
    server.acts = {"POST /nodes/n1/release": [(202, going)]}
    late = await kakuri("node", "release", "n1", "--stop", "--timeout", "0.1")
    assert late.code == 3
    assert "x.0.a has not ended" in late.err


# -- delete --force ----------------------------------------------------------------------------------------------------
async def test_a_forced_deletion_warns_of_where_it_may_still_run(server: FakeServer) -> None:
    server.put(workload("web"))
    server.put({"id": "web.0.a", "workload": "web", "node": "n2", "released": False}, "Allocation")
    server.put({"id": "web.1.b", "workload": "web", "node": "n3", "released": True}, "Allocation")
    result = await kakuri("delete", "--force", "web")
    assert (result.code, result.out) == (0, "workload/web deleted\n")
    assert result.err == "warning: workload/web may still run on n2 until the node has been told to end it\n"
    assert server.requests[-1][:2] == ("DELETE", "/workloads/web?force=1")


async def test_force_is_for_workloads(server: FakeServer) -> None:
    for words in (("node/n1",), ("nodes", "-l", "zone=a")):
        result = await kakuri("delete", "--force", *words)
        assert result.code == 2
        assert "kakuri node forget" in result.err
    assert server.requests == []


async def test_many_by_labels_go_in_one_request_and_one_that_went_meanwhile_harms_none(server: FakeServer) -> None:
    for id_ in ("a", "b", "c"):
        server.put(workload(id_, labels={"app": "web"}))
    server.on_apply = lambda: server.kinds["Workload"].pop("b")
    result = await kakuri("delete", "-l", "app=web")
    assert (result.code, result.out) == (0, "workload/a deleting\nworkload/c deleting\n")
    server.on_apply = lambda: None
    for id_ in ("d", "e"):
        server.put(workload(id_, labels={"app": "web"}))
    server.requests.clear()
    assert (await kakuri("delete", "-l", "app=web")).out == "workload/d deleting\nworkload/e deleting\n"
    assert [m for m, _, _ in server.requests] == ["GET", "POST"]


# -- describe and get -------------------------------------------------------------------------------------------------
async def test_a_draining_node_and_what_was_given_up_there_are_shown(server: FakeServer) -> None:
    drain = {"asked_at": "2024-01-01T00:00:00Z", "deadline_at": "2024-01-01T01:00:00Z"}
    tombstone = {"id": "web.0.a", "reason": "ForceDeleted", "message": "workload web was deleted by force"}
    status = {"ready": True, "drain": drain, "tombstones": [tombstone]}
    server.put({**NODE, "schedulable": False, "status": status}, "Node")
    out = (await kakuri("describe", "node/n1")).out
    for part in (
        "Ready,draining",
        "deadline 2024-01-01T01:00:00Z",
        "Given up, to be ended here",
        "web.0.a",
        "by force",
    ):
        assert part in out
    status["drain"] = {**drain, "drained_at": "2024-01-01T00:30:00Z"}
    assert "Ready,drained" in (await kakuri("get", "nodes")).out
