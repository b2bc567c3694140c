"""Each part is killed with -9 while 10 workloads run. Nothing restarts, doubles or is forgotten."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.dev import KAKURI, Dev, can_run_containerd
from support.runtime import Machine

pytestmark = pytest.mark.real

ONE = """
kind: Workload
id: w{n}
image: kakuri.local/demo:1.0
runtime_class: {runtime_class}
memory_mb: 48
cpu_millicores: 20
command: [sh, -c]
args: ['trap "exit 0" TERM; sleep 1000000 & wait']
termination_grace_s: 2
"""
JOB = """
kind: Workload
id: job
image: kakuri.local/demo:1.0
runtime_class: native
memory_mb: 48
cpu_millicores: 20
restart_policy: OnFailure
command: [sh, -c]
args: ['echo ran; exit 0']
"""
TEN = "---".join([ONE.format(n=n, runtime_class="gvisor" if n == 0 else "native") for n in range(10)] + [JOB])


def processes(machine: Machine) -> dict[str, tuple[str, str]]:
    """Container id → what tells one run of it from another."""
    return {c.id: (c.metadata.name, str(c.created_at)) for c in machine.containers()}


def all_is_right(dev: Dev) -> bool:
    items = dev.http("GET", "/workloads").json["items"]
    states = {w["id"]: (w["status"]["state"], w["status"]["ready"], w["status"]["restarts"]) for w in items}
    job = states.pop("job")
    return len(states) == 10 and job[0] == "Succeeded" and set(states.values()) == {("Running", 1, 0)}


@pytest.fixture(scope="module")
def killed_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A kakuri on a real containerd, whose parts are killed."""
    can_run_containerd()
    dev = Dev(tmp_path_factory.mktemp("dev"), "containerd")
    try:
        yield dev.start()
    finally:
        dev.stop()


@pytest.fixture
def ten(killed_dev: Dev) -> Dev:
    """Ten workloads that run and were never restarted, and a job that is done."""
    workloads = killed_dev.http("GET", "/workloads").json["items"]
    if restarted := [w["id"] for w in workloads if w["status"]["restarts"]]:
        killed_dev.cli("delete", "workload", *restarted, "--wait")
    killed_dev.apply(TEN)
    killed_dev.until("all run", lambda: all_is_right(killed_dev), within_s=90)
    return killed_dev


@pytest.fixture
def machine(ten: Dev) -> Machine:
    return Machine(ten)


def test_controller_agent_and_containerd_are_each_killed_and_no_container_notices(ten: Dev, machine: Machine) -> None:
    before = processes(machine)
    tasks = sorted(machine.ctr("tasks", "ls").splitlines())
    rows = {a["id"] for a in ten.http("GET", "/allocations").json["items"]}

    for part in ("controller", "agent", "containerd"):
        dead = ten.kill(part)
        ten.until(f"{part} is there again", lambda part=part, dead=dead: back(ten, part, dead), within_s=15)
        ten.until(f"all is right after {part} was killed", lambda: served(ten), within_s=10)
        time.sleep(1)  # for what would come late and wrongly: a second sandbox, a restart
        assert served(ten)
        assert processes(machine) == before
        assert sorted(machine.ctr("tasks", "ls").splitlines()) == tasks
        assert {a["id"] for a in ten.http("GET", "/allocations").json["items"]} == rows


def back(dev: Dev, part: str, dead: int) -> bool:
    pid = dev.info["pids"].get(part)
    return bool(pid) and pid != dead and psutil.pid_exists(pid)


def served(dev: Dev) -> bool:
    try:
        [node] = dev.http("GET", "/nodes").json["items"]
        return bool(node["status"]["ready"]) and all_is_right(dev)
    except OSError:
        return False


def test_a_killed_dev_leaves_all_running_and_the_next_one_adopts_it(ten: Dev, machine: Machine) -> None:
    before = processes(machine)
    pids = ten.info["pids"]
    assert ten.process is not None
    os.kill(ten.process.pid, signal.SIGKILL)
    ten.process.wait(5)

    time.sleep(1)  # long enough for children that end with their parent
    assert all(psutil.pid_exists(pids[name]) for name in ("controller", "agent", "containerd"))

    ten.start()
    assert {k: v for k, v in ten.info["pids"].items() if k != "dev"} == {k: v for k, v in pids.items() if k != "dev"}
    assert served(ten)
    assert processes(machine) == before


def test_while_the_controller_is_away_the_agent_restarts_what_should_run_and_reports_it_later(
    ten: Dev, machine: Machine
) -> None:
    assert ten.process is not None
    [victim] = ten.allocations("w1")
    dev_process = psutil.Process(ten.process.pid)
    dev_process.suspend()  # else it would start the controller again at once
    try:
        ten.kill("controller")
        machine.kill_container(victim["container_id"])
        ten.until(
            "the agent has restarted it",
            lambda: [
                c for c in machine.containers() if c.metadata.attempt == 1 and c.pod_sandbox_id == victim["sandbox_id"]
            ],
            within_s=20,
        )
    finally:
        dev_process.resume()

    ten.until("the restart is on record", lambda: reported(ten), within_s=15)
    assert ten.allocations("w1")[0]["id"] == victim["id"]


def reported(dev: Dev) -> bool:
    try:
        status = dev.workload("w1")["status"]
    except OSError:
        return False
    return bool(status["restarts"] == 1 and status["state"] == "Running")


def test_a_finished_job_never_runs_again_whatever_is_restarted(ten: Dev) -> None:
    [finished] = ten.allocations("job")
    for part in ("containerd", "agent", "controller"):
        dead = ten.kill(part)
        ten.until(f"{part} is there again", lambda part=part, dead=dead: back(ten, part, dead), within_s=15)
    ten.until("all is right", lambda: served(ten), within_s=15)
    time.sleep(1)

    assert [a["id"] for a in ten.allocations("job")] == [finished["id"]]
    assert ten.cli("logs", "job") == "ran\n"


def test_keep_leaves_the_workloads_and_a_plain_end_leaves_nothing(tmp_path: Path) -> None:
    can_run_containerd()
    dev = Dev(tmp_path / "dev", "containerd", ("--keep",))
    try:
        dev.start()
        dev.apply(ONE.format(n=0, runtime_class="native"), "--wait")
        machine = Machine(dev)
        before = processes(machine)
        dev.stop()
        assert processes(machine) == before

        dev.arguments = ()
        dev.start()
        dev.until("it is seen to run", lambda: dev.workload("w0")["status"]["ready"] == 1)
        assert processes(machine) == before
    finally:
        dev.stop()
    left = [p.cmdline() for p in psutil.process_iter() if any(str(dev.folder) in word for word in _words(p))]
    assert left == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(dev.folder) not in mounts


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_two_devs_on_one_folder_are_refused(killed_dev: Dev) -> None:
    second = subprocess.run(
        [KAKURI, "dev", "--dir", str(killed_dev.folder), "--http-port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert second.returncode == 1
    assert str(killed_dev.folder) in second.stderr
