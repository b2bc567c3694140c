"""The main job on a real containerd, as a user has it: what issue and README promise, shown."""

import json
import platform
import subprocess
import time
import urllib.request

import pytest

from support.dev import Dev
from support.runtime import Machine

pytestmark = pytest.mark.real

SERVICE = """
kind: Workload
id: {id}
image: kakuri.local/demo:1.0
runtime_class: {runtime_class}
memory_mb: 64
cpu_millicores: 50
replicas: {replicas}
command: [sh, -c]
args: ['echo "started as $0"; trap "exit 0" TERM; sleep 1000000 & wait']
termination_grace_s: 2
"""
JOB = """
kind: Workload
id: {id}
image: kakuri.local/demo:1.0
runtime_class: {runtime_class}
memory_mb: 64
cpu_millicores: 100
restart_policy: {policy}
command: [sh, -c]
args: ['{script}']
"""


def service(id_: str, *, runtime_class: str = "native", replicas: int = 1) -> str:
    return SERVICE.format(id=id_, runtime_class=runtime_class, replicas=replicas)


def job(id_: str, script: str, *, runtime_class: str = "native", policy: str = "Never") -> str:
    return JOB.format(id=id_, script=script, runtime_class=runtime_class, policy=policy)


def test_the_seeds_example_is_posted_and_comes_back_with_its_state(dev: Dev) -> None:
    example = {
        "id": "wl-123",
        "image": "ghcr.io/example/secure-app:1.0",
        "runtime_class": "edera-zone",
        "memory_mb": 512,
        "cpu_millicores": 500,
    }

    posted = dev.http("POST", "/workloads", example)

    assert posted.status == 201
    assert posted.headers["Location"] == "/workloads/wl-123"
    dev.until("a reason is on record", lambda: dev.workload("wl-123")["status"]["reason"] == "Unschedulable")
    seen = dev.workload("wl-123")
    assert {k: seen[k] for k in example} == example
    assert seen["status"]["state"] == "Pending"
    assert "edera" in seen["status"]["message"]
    assert dev.http("POST", "/workloads", example).status == 409


def test_a_gvisor_job_sees_gvisors_kernel_and_a_native_one_the_machines(dev: Dev) -> None:
    dev.apply(
        job("kernel-gvisor", "uname -r", runtime_class="gvisor")
        + "---"
        + job("kernel-native", "uname -r", runtime_class="native")
    )

    dev.until_state("kernel-gvisor", "Succeeded")
    dev.until_state("kernel-native", "Succeeded")

    assert dev.cli("logs", "kernel-native").strip() == platform.release()
    inside = dev.cli("logs", "kernel-gvisor").strip()
    assert inside
    assert inside != platform.release()


def test_a_container_killed_behind_our_back_runs_again_and_describe_says_why(dev: Dev, machine: Machine) -> None:
    dev.apply(service("victim"))
    dev.until_state("victim", "Running")

    machine.kill_container(dev.allocations("victim")[0]["container_id"])

    def ran_again() -> bool:
        status = dev.workload("victim")["status"]
        return status["restarts"] == 1 and status["state"] == "Running" and status["ready"] == 1

    dev.until("it runs again", ran_again)
    told = dev.cli("describe", "workload", "victim")
    assert "137" in told
    assert "estart" in told


def test_replicas_follow_three_five_one_with_exactly_that_many_sandboxes(dev: Dev, machine: Machine) -> None:
    for replicas in (3, 5, 1):
        dev.apply(service("many", replicas=replicas), "--wait")
        dev.until(
            f"{replicas} sandboxes",
            lambda replicas=replicas: len(machine.sandboxes("many")) == replicas,
        )
        assert dev.workload("many")["status"]["ready"] == replicas


def test_a_new_image_replaces_slot_by_slot_and_a_bad_one_pauses_while_the_others_run_on(dev: Dev) -> None:
    first = service("rolled", replicas=3)
    dev.apply(first, "--wait")
    before = {a["id"] for a in dev.allocations("rolled")}

    dev.apply(first.replace("started as", "begun as"), "--wait")
    after = {a["id"] for a in dev.allocations("rolled") if a["state"] == "Running"}
    assert len(after) == 3
    assert not before & after

    dev.apply(first.replace("kakuri.local/demo:1.0", "localhost:1/absent:1"))

    def paused() -> bool:
        conditions = {c["type"]: c for c in dev.workload("rolled")["status"].get("conditions", [])}
        return "Progressing" in conditions and conditions["Progressing"]["status"] is False

    dev.until("the change is paused", paused)
    time.sleep(1)  # long enough for a change that does not pause to take the next slot
    status = dev.workload("rolled")["status"]
    assert status["ready"] == 2
    assert {a["id"] for a in dev.allocations("rolled") if a["state"] == "Running"} < after
    assert "ImagePullBackOff" in dev.cli("describe", "workload", "rolled")

    dev.apply(first, "--wait")
    assert dev.workload("rolled")["status"]["ready"] == 3


def test_jobs_end_with_their_exit_code_and_an_oom_says_so(dev: Dev) -> None:
    dev.apply(
        "---".join(
            [
                job("never-good", "exit 0"),
                job("never-bad", "exit 3"),
                job("on-failure-good", "exit 0", policy="OnFailure"),
                job("on-failure-bad", "exit 4", policy="OnFailure") + "max_restarts: 1\n",
                job("greedy", "exec tail /dev/zero"),
                job("greedy-gvisor", "exec tail /dev/zero", runtime_class="gvisor"),
            ]
        )
    )

    ended = {
        id_: dev.until_state(id_, state)["status"]
        for id_, state in {
            "never-good": "Succeeded",
            "never-bad": "Failed",
            "on-failure-good": "Succeeded",
            "greedy": "Failed",
            "greedy-gvisor": "Failed",
            "on-failure-bad": "Failed",
        }.items()
    }

    assert ended["never-good"]["exit_code"] == 0
    assert ended["never-bad"]["exit_code"] == 3
    assert ended["on-failure-good"]["reason"] == "Completed"
    assert ended["on-failure-bad"]["reason"] == "BackoffLimitExceeded"
    assert ended["on-failure-bad"]["exit_code"] == 4
    assert ended["on-failure-bad"]["restarts"] == 1
    assert ended["greedy"]["reason"] == "OOMKilled"
    assert ended["greedy-gvisor"]["reason"] == "OOMKilled"


@pytest.mark.parametrize("runtime_class", ["native", "gvisor"])
def test_a_host_port_answers_on_loopback(dev: Dev, runtime_class: str, free_port: int) -> None:
    dev.apply(
        service("web", runtime_class=runtime_class).replace(
            "trap", "echo hello > /www/index.html; httpd -p 8080 -h /www; trap"
        )
        + f"ports: [{{port: 8080, host_port: {free_port}}}]\n",
        "--wait",
    )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/index.html", timeout=2) as page:
                return bool(page.read() == b"hello\n")
        except OSError:
            return False

    dev.until("the port answers", answers, within_s=15)


def test_after_a_delete_nothing_of_it_is_left_on_the_machine(dev: Dev, machine: Machine, free_port: int) -> None:
    assert machine.leftovers() == []
    dev.apply(
        service("gone", replicas=2)
        + "---"
        + service("gone-gvisor", runtime_class="gvisor")
        + f"ports: [{{port: 8080, host_port: {free_port}}}]\n",
        "--wait",
    )
    assert machine.leftovers() != []

    dev.cli("delete", "workload", "gone", "gone-gvisor", "--wait")

    assert machine.sandboxes("gone") == machine.sandboxes("gone-gvisor") == []
    dev.until("nothing is left", lambda: machine.leftovers() == [], within_s=10)
    assert dev.http("GET", "/workloads/gone").status == 404


def test_a_person_reads_the_workloads_in_sql(dev: Dev) -> None:
    dev.apply(service("readable"), "--wait")

    rows = subprocess.run(
        [
            "sqlite3",
            "-json",
            str(dev.folder / "kakuri.db"),
            "select id, image, runtime_class, node, state, reason from workloads",
        ],
        capture_output=True,
        check=True,
    ).stdout

    [row] = [r for r in json.loads(rows) if r["id"] == "readable"]
    assert (row["image"], row["runtime_class"], row["state"]) == ("kakuri.local/demo:1.0", "native", "Running")
    assert row["node"]


def test_the_reconcile_log_tells_what_a_pass_saw_and_did_and_why(dev: Dev) -> None:
    dev.apply(service("told"), "--wait")

    lines = [json.loads(x) for x in (dev.folder / "logs" / "controller.log").read_text().splitlines() if x[:1] == "{"]
    passes = [x for x in lines if x["event"] == "reconciled" and any("told" in s for s in x["saw"])]

    assert any("told (generation 1) wants 1, has nothing" in s for s in passes[0]["saw"])
    [placed] = [a for p in passes for a in p["actions"] if a.startswith("place told.0.")]
    assert " on " in placed
    assert ": " in placed
    assert any("told: Running" in b for p in passes for b in p["became"])


def test_a_command_that_is_not_in_the_image_says_so(dev: Dev) -> None:
    dev.apply(job("no-command", "true").replace("command: [sh, -c]", "command: [/no/such/thing]"))

    status = dev.until_state("no-command", "Failed")["status"]

    assert status["reason"] == "StartError"
    assert status["exit_code"] == 128
    assert "/no/such/thing" in status["message"]


def test_a_host_port_that_is_taken_on_the_machine_says_so(dev: Dev, taken_port: int) -> None:
    dev.apply(service("blocked") + f"ports: [{{port: 8080, host_port: {taken_port}}}]\n")

    def blocked() -> bool:
        status = dev.workload("blocked")["status"]
        return status["reason"] == "HostPortInUse" and str(taken_port) in status["message"]

    dev.until("the reason is on record", blocked)


def test_two_workloads_that_want_one_host_port_do_not_both_run(dev: Dev, free_port: int) -> None:
    ports = f"ports: [{{port: 8080, host_port: {free_port}}}]\n"
    dev.apply(service("first") + ports, "--wait")
    dev.apply(service("second") + ports)

    dev.until("the second waits", lambda: dev.workload("second")["status"]["reason"] == "Unschedulable")
    assert str(free_port) in dev.workload("second")["status"]["message"]

    dev.cli("delete", "workload", "first", "--wait")
    dev.until_state("second", "Running")


def test_logs_of_the_attempt_before_are_kept(dev: Dev, machine: Machine) -> None:
    dev.apply(service("twice").replace("started as $0", "attempt $(cat /proc/sys/kernel/random/uuid)"), "--wait")
    dev.until("it has logged", lambda: "attempt" in dev.cli("logs", "twice"))
    first = dev.cli("logs", "twice")
    machine.kill_container(dev.allocations("twice")[0]["container_id"])
    dev.until("it was restarted", lambda: dev.workload("twice")["status"]["restarts"] == 1)
    dev.until("it has logged again", lambda: "attempt" in dev.cli("logs", "twice") != first)

    assert dev.cli("logs", "twice", "--previous") == first
    assert dev.cli("logs", "twice") != first


def test_simulated_workloads_are_said_to_be_simulated(simulated_dev: Dev) -> None:
    simulated_dev.apply(service("pretended"), "--wait")

    assert "simulated" in simulated_dev.cli("get", "workloads")
    assert simulated_dev.info["runtime"] == "fake"
