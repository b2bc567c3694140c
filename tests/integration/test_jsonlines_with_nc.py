"""The seed's protocol, spoken by a person with nc, beside a live controller."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.dev import Dev
from support.runtime import Machine

pytestmark = pytest.mark.real

WORKLOAD = {
    "id": "wl-123",
    "image": "kakuri.local/demo:1.0",
    "runtime_class": "native",
    "memory_mb": 512,
    "cpu_millicores": 500,
    "command": ["sleep", "1000000"],
    "termination_grace_s": 1,
}


class Nc:
    """One nc, and what is typed into it."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.process = subprocess.Popen(["nc", host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, **message: Any) -> Any:
        self.type(json.dumps(message) + "\n")
        return self.read()

    def until(self, id_: str, state: str) -> Any:
        deadline = time.monotonic() + 30
        while (answer := self.ask(type="GetStatus", id=id_)).get("state") != state:
            assert time.monotonic() < deadline, f"{id_} is not {state}: {answer}"
            time.sleep(0.1)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def nc(dev: Dev) -> Iterator[Nc]:
    nc = Nc(dev.info["json"])
    yield nc
    nc.ask(type="StopWorkload", id="wl-123")
    nc.close()


def test_the_transcript_works_and_the_workload_lives_on_beside_a_live_controller(
    dev: Dev, machine: Machine, nc: Nc
) -> None:
    started = nc.ask(type="StartWorkload", workload=WORKLOAD)
    assert started == {"type": "Status", "id": "wl-123", "state": "Pending"}
    assert nc.until("wl-123", "Running") == {"type": "Status", "id": "wl-123", "state": "Running"}

    # A pass of the controller over this node, caused by a workload of its own, leaves it alone.
    dev.apply("kind: Workload\nid: other\n" + _manifest(), "--wait")
    dev.cli("delete", "workload", "other", "--wait")
    assert nc.ask(type="GetStatus", id="wl-123")["state"] == "Running"
    [node] = dev.http("GET", "/nodes").json["items"]
    assert [(r["id"].partition(".")[0], r["memory_mb"]) for r in node["status"]["by_hand"]] == [("wl-123", 512)]
    assert "wl-123" in dev.cli("describe", "node", node["id"])
    assert len(machine.sandboxes("wl-123")) == 1
    assert dev.http("GET", "/workloads/wl-123").status == 404

    assert nc.ask(type="StopWorkload", id="wl-123") == {"type": "Status", "id": "wl-123", "state": "Terminating"}
    nc.type("nonsense\n")
    assert nc.read() == {"type": "Error", "code": "InvalidArgument", "message": "not a JSON object"}
    dev.until("nothing of it is left", lambda: machine.sandboxes("wl-123") == [])


def _manifest() -> str:
    return "\n".join(f"{k}: {json.dumps(v)}" for k, v in WORKLOAD.items() if k != "id") + "\n"


def test_half_lines_and_several_lines_a_packet_are_both_understood(nc: Nc) -> None:
    line = json.dumps({"type": "StartWorkload", "workload": WORKLOAD})
    nc.type(line[:40])
    time.sleep(0.3)  # so that the halves really travel apart
    nc.type(line[40:] + "\n" + json.dumps({"type": "GetStatus", "id": "wl-123"}) + "\n{}\n")

    assert nc.read()["type"] == "Status"
    assert nc.read()["id"] == "wl-123"
    assert nc.read()["code"] == "InvalidArgument"


def test_a_class_that_the_node_has_not_is_refused_with_those_it_has(nc: Nc) -> None:
    answer = nc.ask(type="StartWorkload", workload=WORKLOAD | {"runtime_class": "edera-zone"})

    assert answer["type"] == "Error"
    assert "edera-zone" in answer["message"]
    assert "native" in answer["message"]
