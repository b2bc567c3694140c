"""apply, delete and wait, as people use them; and what a wait makes of a status."""

from pathlib import Path

import pytest

from kakuri.cli.judge import Done, Goal, Never, Verdict, Waiting, judge
from support.command_line import Result, kakuri
from support.fakeserver import FakeServer, workload

GOOD = """\
kind: Workload
id: web
image: example/app:1.0
runtime_class: gvisor
memory_mb: 64
cpu_millicores: 100
"""


async def test_apply_sends_only_what_was_written(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(GOOD)
    result = await kakuri("apply", "-f", str(tmp_path), "--dry-run")
    assert result == Result(0, "workload/web created (dry run)\n", "")
    method, path, body = server.requests[0]
    assert (method, path) == ("POST", "/apply?dry_run=1")
    assert sorted(body["objects"][0]) == ["cpu_millicores", "id", "image", "kind", "memory_mb", "runtime_class"]


async def test_a_bad_file_is_1_and_nothing_is_sent(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(GOOD + "---\nkind: Node\nid: UPPER\n")
    result = await kakuri("apply", "-f", str(tmp_path / "m.yaml"))
    assert result.code == 1
    assert f"{tmp_path}/m.yaml:9:1: id: 'UPPER' is not a name" in result.err
    assert server.requests == []


async def test_what_the_server_refuses_is_shown_at_its_place_in_the_file(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(GOOD)
    errors = [{"pointer": "/objects/0/runtime_class", "detail": "there is no runtime class 'gvisor'"}]
    server.refusals = [(422, {"reason": "Invalid", "detail": "1 field is invalid", "errors": errors})]
    result = await kakuri("apply", "-f", str(tmp_path / "m.yaml"))
    assert result.code == 1
    assert f"{tmp_path}/m.yaml:4:1: runtime_class: there is no runtime class 'gvisor'" in result.err
    assert "nothing was applied" in result.err


async def test_apply_wait_waits_for_readiness(server: FakeServer) -> None:
    server.put(workload("web", status={"ready": 0, "state": "Pending", "reason": "Pulling"}))
    server.on_watch = lambda: server.change("MODIFIED", workload("web"))
    result = await kakuri("apply", "--wait", "-f", "-", stdin=GOOD)
    assert (result.code, result.out) == (0, "workload/web created\n")
    assert "workload/web: Pending, 0 of 1 ready, Pulling" in result.err


async def test_apply_wait_that_does_not_get_there_is_3_and_says_why(server: FakeServer) -> None:
    status = {"ready": 0, "state": "Pending", "reason": "Unschedulable", "message": "0 of 1 nodes fit"}
    server.put(workload("web", status=status))
    result = await kakuri("apply", "--wait", "--timeout", "0.2", "-f", "-", stdin=GOOD)
    assert (result.code, result.out) == (3, "workload/web created\n")
    assert "not within 0.2 s up to date and up" in result.err
    assert "workload/web: Pending, 0 of 1 ready, Unschedulable: 0 of 1 nodes fit" in result.err


async def test_apply_wait_of_a_job_that_failed_is_3_at_once(server: FakeServer) -> None:
    server.put(workload("web", restart_policy="Never", status={"ready": 0, "state": "Failed", "reason": "OOMKilled"}))
    result = await kakuri("apply", "--wait", "-f", "-", stdin=GOOD)
    assert result.code == 3
    assert "workload/web: Failed, OOMKilled (waiting longer won't help)" in result.err


async def test_apply_wait_waits_for_an_id_that_is_still_terminating(server: FakeServer) -> None:
    server.put(workload("web", deleted_at="2024-01-01T00:00:01Z"))
    server.refusals = [(409, {"reason": "Terminating", "detail": "Workload 'web' is still being deleted"})]

    def go() -> None:
        server.on_watch = lambda: None
        server.change("DELETED", workload("web"))

    server.on_watch = go
    result = await kakuri("apply", "--wait", "--timeout", "0.5", "-f", "-", stdin=GOOD)
    assert "still being deleted, waiting for them to go: web" in result.err
    assert result.out == "workload/web created\n"
    refused = [(409, {"reason": "Terminating", "detail": "Workload 'web' is still being deleted"})]
    server.refusals = refused
    without = await kakuri("apply", "-f", "-", stdin=GOOD)
    assert (without.code, without.out) == (1, "")
    assert "still being deleted" in without.err


async def test_delete_by_name_file_and_labels(server: FakeServer, tmp_path: Path) -> None:
    for id_ in ("a", "b", "c", "d", "e"):
        server.put(workload(id_, labels={"app": id_}))
    server.put({"id": "n1"}, "Node")
    assert (await kakuri("delete", "a")).out == "workload/a deleting\n"
    assert (await kakuri("delete", "workload", "b", "node/n1")).out == "workload/b deleting\nnode/n1 deleted\n"
    assert (await kakuri("delete", "-l", "app=c")).out == "workload/c deleting\n"
    file = tmp_path / "d.yaml"
    file.write_text(GOOD.replace("id: web", "id: d"))
    assert (await kakuri("delete", "-f", str(file))).out == "workload/d deleting\n"
    again = await kakuri("delete", "d", "e")
    assert (again.code, again.out) == (1, "workload/e deleting\n")
    assert "workload/d: there is no Workload 'd'" in again.err
    assert (await kakuri("delete", "--ignore-missing", "d")).code == 0


async def test_delete_wait_ends_when_it_is_gone(server: FakeServer) -> None:
    server.put(workload("web"))
    assert (await kakuri("delete", "--wait", "web")).code == 0


async def test_wait_for_running_needs_all_replicas(server: FakeServer) -> None:
    server.put(workload("web", replicas=2))
    result = await kakuri("wait", "web", "--for=state=Running", "--timeout", "0.1")
    assert result.code == 3
    assert "Running, 1 of 2 ready" in result.err
    server.put(workload("web", replicas=2, status={"ready": 2, "updated": 2}))
    assert (await kakuri("wait", "web", "--for=state=Running")).out == "workload/web Running\n"


async def test_wait_for_what_does_not_exist_is_3_at_once(server: FakeServer) -> None:
    result = await kakuri("wait", "nope", "--timeout", "60")
    assert result.code == 3
    assert result.err == "error: not Running:\n  workload/nope: it does not exist (waiting longer won't help)\n"


async def test_wait_outlives_a_lost_connection(server: FakeServer) -> None:
    server.put(workload("web", status={"ready": 0}))

    def cut() -> None:
        server.put(workload("web"))
        server.changes.put_nowait({"type": "CUT"})

    server.on_watch = cut
    result = await kakuri("wait", "web")
    assert result.code == 0
    assert "lost the server (it closed the connection); waiting for it" in result.err


@pytest.mark.parametrize(
    ("changes", "status", "goal", "verdict"),
    [
        pytest.param({}, {}, "settled", Done(), id="a service that is up is settled"),
        pytest.param({}, {}, "state=Running", Done(), id="a service that is up is Running"),
        pytest.param({}, {"ready": 0}, "state=Running", Waiting("Running, 0 of 1 ready"), id="crashing is not Running"),
        pytest.param(
            {"generation": 2},
            {},
            "updated",
            Waiting("the controller has not looked at it yet"),
            id="an old status is not believed",
        ),
        pytest.param(
            {"replicas": 2}, {"ready": 2}, "updated", Waiting("Running, 2 of 2 ready"), id="an old slot is left"
        ),
        pytest.param({"restart_policy": "Never"}, {}, "settled", Waiting("Running, 1 of 1 ready"), id="a job must end"),
        pytest.param({"restart_policy": "Never"}, {}, "updated", Done(), id="a job that runs is updated"),
        pytest.param({}, {"state": "Succeeded", "ready": 0, "succeeded": 1}, "settled", Done(), id="a job that ended"),
        pytest.param({}, {"state": "Failed", "ready": 0}, "settled", Never("Failed"), id="a job that failed"),
        pytest.param({}, {"state": "Failed", "ready": 0}, "state=Failed", Done(), id="failing can be the goal"),
        pytest.param(
            {}, {"state": "Failed", "ready": 0}, "state=Succeeded", Never("Failed"), id="failed never succeeds"
        ),
        pytest.param(
            {},
            {"state": "Failed", "ready": 0, "updated": 0},
            "updated",
            Waiting("Failed"),
            id="a failed run of an old spec is replaced",
        ),
        pytest.param(
            {"replicas": 0},
            {"state": "Pending", "ready": 0, "updated": 0, "desired": 0},
            "settled",
            Done(),
            id="none wanted and none there",
        ),
        pytest.param(
            {},
            {"conditions": [{"type": "Progressing", "status": True, "reason": "ScalingDown"}]},
            "settled",
            Waiting("replicas that are too many are ending"),
            id="one too many is still there",
        ),
        pytest.param({"deleted_at": "x"}, {}, "updated", Never("it is being deleted"), id="what goes never gets there"),
        pytest.param({"deleted_at": "x"}, {}, "deleted", Waiting("Running, 1 of 1 ready"), id="not gone yet"),
    ],
)
def test_a_wait_judges_by_what_the_server_says(
    changes: dict[str, object], status: dict[str, object], goal: str, verdict: Verdict
) -> None:
    assert judge(workload(**changes, status=status), Goal(goal)) == verdict
