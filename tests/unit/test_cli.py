"""The command line as people use it: words in, text and exit code out. It runs in a thread beside a fake server."""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kakuri.cli import main
from kakuri.cli.judge import Done, Goal, Never, Verdict, Waiting, judge
from support.children import Spawn
from support.fakeserver import FakeServer, workload

GOOD = """\
kind: Workload
id: web
image: example/app:1.0
runtime_class: gvisor
memory_mb: 64
cpu_millicores: 100
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeServer]:
    monkeypatch.delenv("KAKURI_SERVER", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    async with FakeServer().serving() as running:
        monkeypatch.setenv("KAKURI_SERVER", running.url)
        yield running


def call(*words: str, stdin: str = "") -> Result:
    out, err, old = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.StringIO(),
        (sys.argv, sys.stdout, sys.stderr, sys.stdin),
    )
    sys.argv, sys.stdout, sys.stderr = ["kakuri", *words], out, err
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
    try:
        with pytest.raises(SystemExit) as end:
            main()
        out.flush()
        code = end.value.code
        assert isinstance(code, int)
        return Result(code, out.buffer.getvalue().decode(), err.getvalue())
    finally:
        sys.argv, sys.stdout, sys.stderr, sys.stdin = old


async def kakuri(*words: str, stdin: str = "") -> Result:
    return await asyncio.to_thread(call, *words, stdin=stdin)


async def test_the_help_loads_nothing_that_takes_longer_than_to_print_it(spawn: Spawn) -> None:
    slow = ("aiohttp", "grpc", "psutil", "pydantic", "rich", "ruamel.yaml", "sqlalchemy", "structlog")
    code = f"import kakuri.cli.app, sys; print([name for name in {slow} if name in sys.modules])"
    process = await spawn(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"[]\n"


async def test_help_names_the_verbs() -> None:
    result = await kakuri("--help")
    assert result.code == 0
    for verb in (
        "apply",
        "get",
        "describe",
        "delete",
        "logs",
        "events",
        "wait",
        "dev",
        "controller",
        "agent",
        "version",
    ):
        assert f"\n  {verb} " in result.out


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["get"],
        ["get", "cows"],
        ["get", "workloads", "-o", "xml"],
        ["get", "workloads", "web", "-l", "app=web"],
        ["get", "events", "-l", "app=web"],
        ["apply"],
        ["delete"],
        ["delete", "nodes"],
        ["delete", "web", "-l", "app=web"],
        ["delete", "event/e1"],
        ["wait"],
        ["wait", "web", "--for", "state=Fine"],
        ["wait", "node/n1"],
        ["dev", "--runtime", "docker"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_2_and_says_nothing_on_stdout(words: list[str], server: FakeServer) -> None:
    result = await kakuri(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err
    assert server.requests == []


async def test_a_server_that_is_down_is_1_and_says_where_it_looked() -> None:
    result = await kakuri("--server", "http://127.0.0.1:9", "get", "workloads")
    assert result.code == 1
    assert "no kakuri server answers at http://127.0.0.1:9: connection refused" in result.err
    assert "kakuri dev" in result.err


async def test_the_config_file_names_the_server(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAKURI_SERVER")
    file = tmp_path / "config" / "kakuri" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'server = "{server.url}"\n')
    assert (await kakuri("version")).out == f"client 0.1.0\nserver 9.9 at {server.url}\n"
    file.write_text("server = 5\n")
    assert (await kakuri("get", "nodes")).err.endswith(
        'config.toml: server is not text; write server = "http://127.0.0.1:8080"\n'
    )


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


async def test_a_reader_who_leaves_early_is_no_error(server: FakeServer, spawn: Spawn) -> None:
    for index in range(3000):
        server.put(workload(f"w{index}"))
    kakuri_command = [sys.executable, "-c", "from kakuri.cli import main; main()", "get", "workloads", "-o", "json"]
    process = await spawn(*kakuri_command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    await process.stdout.readexactly(10)
    process.stdout._transport.close()  # type: ignore[attr-defined]  # StreamReader has no close
    assert await process.wait() == 0
    assert await process.stderr.read() == b""


async def test_ctrl_c_is_quiet_and_130(server: FakeServer, spawn: Spawn) -> None:
    server.put(workload("web"))
    process = await spawn(
        sys.executable,
        "-c",
        "from kakuri.cli import main; main()",
        "get",
        "workloads",
        "-w",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    await process.stdout.readline()
    row = await process.stdout.readline()
    assert row.split()[0] == b"web"
    server.change("MODIFIED", workload("web", status={"state": "Failed", "ready": 0}))
    assert b"Failed" in await process.stdout.readline()
    server.change("DELETED", workload("web"))
    assert b"Gone" in await process.stdout.readline()
    process.send_signal(2)
    assert await process.wait() == 130
    assert await process.stderr.read() == b""


async def test_the_long_runners_are_started_as_modules_with_their_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def become(program: str, words: list[str], environment: dict[str, str]) -> None:
        assert environment["PYTHONSAFEPATH"] == "1"
        started.append(words[1:])
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    await kakuri("controller", "--http", "127.0.0.1:1", "--help")
    await kakuri("agent", "--node", "n1", "--shutdown")
    await kakuri("db", "upgrade", "--store", "sqlite:////x.db")
    assert started == [
        ["-m", "controller", "--http", "127.0.0.1:1", "--help"],
        ["-m", "agent", "--node", "n1", "--shutdown"],
        ["-m", "controller", "db", "upgrade", "--store", "sqlite:////x.db"],
    ]


async def test_dev_refuses_a_node_name_that_is_none_before_it_starts_anything(tmp_path: Path) -> None:
    result = await kakuri("dev", "--dir", str(tmp_path / "dev"), "--node", "Bad_Name")
    assert result.code == 2
    assert result.err.startswith("error: --node: 'Bad_Name' is not a name; use at most 63 of a-z")
    assert not (tmp_path / "dev").exists()


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
