"""get, describe, logs and events, as people use them."""

import json

import pytest

from support.command_line import Result, kakuri
from support.fakeserver import FakeServer, workload


async def test_get_shows_a_table(server: FakeServer) -> None:
    server.put(
        workload("web", replicas=3, status={"ready": 2, "nodes": 2, "reason": "CrashLoopBackOff", "restarts": 4})
    )
    server.put(workload("job", status={"state": "Pending", "ready": 0, "node": None, "simulated": True}))
    result = await kakuri("get", "workloads")
    head, web, job = result.out.splitlines()
    assert head.split() == ["ID", "IMAGE", "CLASS", "READY", "STATE", "REASON", "RESTARTS", "NODE", "AGE"]
    assert web.split()[:9] == [
        "web",
        "example/app:1.0",
        "gvisor",
        "2/3",
        "Running",
        "CrashLoopBackOff",
        "4",
        "2",
        "nodes",
    ]
    assert "Pending (simulated)" in job


async def test_get_of_nothing_says_so_beside_an_empty_stdout(server: FakeServer) -> None:
    assert await kakuri("get", "wl") == Result(0, "", "no workload found\n")


async def test_get_by_name_and_by_labels(server: FakeServer) -> None:
    server.put(workload("web", labels={"app": "web"}))
    server.put(workload("db", labels={"app": "db"}))
    assert (await kakuri("get", "workload/db", "-o", "name")).out == "workload/db\n"
    assert (await kakuri("get", "wl", "web", "db", "-o", "name")).out == "workload/web\nworkload/db\n"
    assert (await kakuri("get", "workloads", "-l", "app=web", "-o", "name")).out == "workload/web\n"
    missing = await kakuri("get", "workload", "nope")
    assert (missing.code, missing.out) == (1, "")
    assert "there is no Workload 'nope'" in missing.err


async def test_what_get_prints_as_yaml_or_json_can_be_applied(server: FakeServer) -> None:
    odd = {"A": "yes", "B": "2020-1-1", "C": "0x1f", "D": "line\nline\u2028\x85", "E": "", "F": "\U0001f600", "G": "~"}
    server.put(workload("web", env=odd, args=["--port", "8080"], labels={"a/b": "1"}))
    server.put(workload("db", ports=[{"port": 80, "host_port": 8080, "host_ip": "127.0.0.1", "protocol": "tcp"}]))
    for form in ("yaml", "json"):
        shown = await kakuri("get", "workloads", "-o", form)
        applied = await kakuri("apply", "-f", "-", stdin=shown.out)
        assert applied == Result(0, "workload/web created\nworkload/db created\n", "")
        web, db = server.requests[-1][2]["objects"]
        assert web["env"] == odd
        assert web["args"] == ["--port", "8080"]
        assert db["ports"][0]["host_port"] == 8080
        assert "status" not in web


@pytest.mark.parametrize(
    ("form", "start"), [("yaml", "kind: Workload\nid: web\n"), ("json", '[\n  {\n    "kind": "Workload"')]
)
async def test_what_get_prints_begins_as_people_write_it(server: FakeServer, form: str, start: str) -> None:
    shown = workload("web")
    server.put({"image": shown.pop("image"), **shown})
    assert (await kakuri("get", "workloads", "-o", form)).out.startswith(start)


async def test_one_object_as_json_is_no_list(server: FakeServer) -> None:
    server.put(workload("web"))
    assert json.loads((await kakuri("get", "workload", "web", "-o", "json")).out)["id"] == "web"
    assert json.loads((await kakuri("get", "workloads", "-o", "json")).out)[0]["id"] == "web"


async def test_words_of_a_server_can_not_move_the_cursor(server: FakeServer) -> None:
    server.put(workload("web", status={"reason": "a\x1b[2Jb"}))
    assert "\x1b" not in (await kakuri("get", "workloads", "-o", "wide")).out


async def test_describe_tells_the_slots_the_why_and_the_events(server: FakeServer) -> None:
    condition = {"type": "Progressing", "status": False, "reason": "Paused", "message": "slot 0 failed to come up"}
    server.put(workload("web", env={"A": "b c"}, status={"ready": 0, "state": "Pending", "conditions": [condition]}))
    server.put(
        {"id": "web.0.0a1b2c3d", "workload": "web", "slot": 0, "node": "n1", "state": "Failed", "exit_code": 3},
        "Allocation",
    )
    server.explanations = [{"node": "n2", "fits": False, "why": ["needs 64 MiB, has 10"]}]
    event = {
        "object_kind": "Workload",
        "object_id": "web",
        "type": "Warning",
        "reason": "Paused",
        "message": "bad image",
    }
    server.put({"id": "e", "count": 2, **event}, "Event")
    out = (await kakuri("describe", "web")).out
    for part in ("A=b c", "slot 0 failed to come up", "web.0.0a1b2c3d", "needs 64 MiB, has 10", "bad image", "Slots"):
        assert part in out


async def test_describe_knows_the_other_kinds(server: FakeServer) -> None:
    status = {"ready": True, "capacity": {"memory_mb": 100, "cpu_millicores": 2000}, "simulated": True}
    server.put({"id": "n1", "status": status}, "Node")
    server.put({"id": "gvisor", "handler": "runsc", "min_memory_mb": 32}, "RuntimeClass")
    server.put({"id": "web.0.0a1b2c3d", "workload": "web", "state": "Running", "node": "n1"}, "Allocation")
    out = (await kakuri("describe", "node/n1", "runtime-class/gvisor", "allocation/web.0.0a1b2c3d")).out
    for part in ("Ready (simulated)", "0 of 100 MiB taken", "runsc", "32 MiB", "web.0.0a1b2c3d", "Events: none"):
        assert part in out


async def test_logs_are_those_of_the_newest_run(server: FakeServer) -> None:
    for id_, second in (("web.0.old", "1"), ("web.0.new", "2")):
        created = f"2024-01-01T00:00:0{second}Z"
        server.put({"id": id_, "workload": "web", "slot": 0, "created_at": created, "state": "Running"}, "Allocation")
    server.logs = {("web.0.new", False): b"now\n", ("web.0.old", False): b"before\n"}
    assert await kakuri("logs", "web") == Result(0, "now\n", "")
    assert (await kakuri("logs", "web", "--previous")).out == "before\n"  # the new one has no earlier attempt
    server.logs["web.0.new", True] = b"attempt before\n"
    assert (await kakuri("logs", "web", "-p")).out == "attempt before\n"
    assert (await kakuri("logs", "web.0.old")).out == "before\n"
    missing = await kakuri("logs", "web", "--slot", "4")
    assert (missing.code, missing.err) == (1, "error: workload/web has no slot 4; it has 0\n")


async def test_a_followed_log_goes_on_with_the_next_run_until_there_is_none(server: FakeServer) -> None:
    id_ = "web.0.0a1b2c3d"
    first = {"id": id_, "workload": "web", "slot": 0, "state": "Running", "started_once": True, "started_at": "T1"}
    second = first | {"started_at": "T2"}

    def run_again() -> None:
        server.logs[id_, False] = b"second\n"
        server.on_watch = lambda: server.change("MODIFIED", second | {"state": "Failed"}, "Allocation")
        server.change("MODIFIED", first | {"reason": "CrashLoopBackOff"}, "Allocation")
        server.change("MODIFIED", second, "Allocation")

    server.put(first, "Allocation")
    server.logs = {(id_, False): b"first\n"}
    server.on_watch = run_again
    result = await kakuri("logs", "-f", "web", "--tail", "7")
    assert (result.code, result.out) == (0, "first\nsecond\n")
    assert result.err == f"{id_} is Running, CrashLoopBackOff; waiting for it to run\n"
    asked = [path for _, path, _ in server.requests if path.startswith(f"/allocations/{id_}/logs?")]
    assert ["tail=7" in path for path in asked] == [True, False]


async def test_logs_of_what_never_ran_say_why(server: FakeServer) -> None:
    server.put(workload("web", status={"state": "Pending", "message": "0 of 1 nodes fit"}))
    result = await kakuri("logs", "web")
    assert (result.code, result.err) == (1, "error: workload/web has not run yet: 0 of 1 nodes fit\n")


async def test_events_of_one_object(server: FakeServer) -> None:
    for id_ in ("web", "db"):
        server.put({"id": f"e-{id_}", "object_kind": "Workload", "object_id": id_, "message": f"m-{id_}"}, "Event")
    out = (await kakuri("events", "--for", "web")).out
    assert "m-web" in out
    assert "m-db" not in out
