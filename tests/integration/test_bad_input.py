"""Bad input to a kakuri that really runs containers: a clear answer, nothing half applied, and all else goes on."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from agent.oci import DEMO_ARCHIVE
from support.dev import Dev
from support.registry import loopback_registry

pytestmark = pytest.mark.real

WORKLOAD = {"image": "kakuri.local/demo:1.0", "runtime_class": "native", "memory_mb": 64, "cpu_millicores": 50}
TOO_LONG = b"x" * 100_000_000 + b"\n"


def manifest(id_: str, **fields: Any) -> str:
    """One document; JSON is YAML."""
    spec = {"kind": "Workload", "id": id_, **WORKLOAD, "args": ["sleep", "1000000"], "termination_grace_s": 1, **fields}
    return f"---\n{json.dumps(spec)}\n"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        pytest.param(b"", "bad.yaml:1:1: has nothing in it", id="an empty file"),
        pytest.param(b"\x7fELF\x02\x01\x00", "bad.yaml:1:1: is binary, not YAML", id="binary"),
        pytest.param(b"a: &a [*a, *a]\n", "bad.yaml:1:", id="an alias of itself"),
        pytest.param(b"a: " + b"[" * 100_000, "nests deeper than 32 levels", id="depth"),
        pytest.param(b"# " + b"x" * 10_000_000, "bad.yaml:1:1: is over 4 MiB", id="10 MB"),
        pytest.param(manifest("good").encode(), "id: Workload good is already at", id="an id twice"),
        pytest.param(manifest("other", runtime_class="nope").encode(), "runtime_class: runtime class", id="a class"),
        pytest.param(
            manifest("other", security_profile="trusted").encode(), "security_profile: is no field", id="a field"
        ),
    ],
)
def test_a_good_document_beside_a_bad_one_is_not_applied(dev: Dev, tmp_path: Path, bad: bytes, said: str) -> None:
    (tmp_path / "good.yaml").write_text(manifest("good"))
    (tmp_path / "bad.yaml").write_bytes(bad)

    done = dev.run("apply", "-f", str(tmp_path))

    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert dev.http("GET", "/workloads").json["items"] == []


def test_what_no_issue_has_brought_yet_is_422_or_404(dev: Dev) -> None:
    wanted = WORKLOAD | {"id": "early", "security_profile": "trusted", "isolation_policy": "strict"}
    refused = dev.http("POST", "/workloads", wanted)

    assert refused.status == 422
    assert {e["pointer"] for e in refused.json["errors"]} == {"/security_profile", "/isolation_policy"}
    assert dev.http("GET", "/workloads/early").status == 404
    node = dev.http("GET", "/nodes").json["items"][0]["id"]
    for path in ("/plan", "/security-profiles", "/isolation-policies", f"/nodes/{node}/drain"):
        assert dev.http("GET", path).status == 404
    for stream in ("exec", "attach", "portforward", "isolation"):
        assert dev.http("POST", f"/allocations/early.0.0000000a/{stream}", {}).status == 404


def test_an_id_that_is_still_terminating_is_409_and_apply_wait_waits(dev: Dev) -> None:
    deaf = {"command": ["sh", "-c"], "args": ["trap '' TERM; sleep 1000000 & wait; wait"], "termination_grace_s": 2}
    dev.apply(manifest("slow", **deaf), "--wait")
    dev.cli("delete", "workload", "slow")

    posted = dev.http("POST", "/workloads", WORKLOAD | {"id": "slow"})
    both = dev.run("apply", "-f", "-", stdin=manifest("beside") + manifest("slow"))

    assert (posted.status, posted.json["reason"]) == (409, "Terminating")
    assert both.returncode == 1
    assert "still being deleted" in both.stderr
    assert dev.http("GET", "/workloads/beside").status == 404

    assert "workload/slow created" in dev.apply(manifest("slow"), "--wait")
    assert dev.workload("slow")["status"]["state"] == "Running"


def test_an_image_that_is_not_there_waits_with_the_registrys_words_and_a_pushed_one_runs(
    dev: Dev, tmp_path: Path
) -> None:
    def waits_because(words: str) -> bool:
        status = dev.workload("pulled")["status"]
        return (status["state"], status["reason"]) == ("Pending", "ImagePullBackOff") and words in status["message"]

    with loopback_registry(tmp_path) as registry:
        missing = f"{registry.address}/team/demo:none"
        dev.apply(manifest("pulled", image=missing))
        dev.until("the registry's words are told", lambda: waits_because(f"{missing}: not found"))
        assert f"{missing}: not found" in dev.cli("describe", "pulled")

        image = registry.push(dev.folder / "agent" / "images" / DEMO_ARCHIVE, "team/demo:2.0")
        dev.apply(manifest("pulled", image=image), "--wait")

    dev.apply(manifest("pulled", image=f"{registry.address}/team/demo:gone"))
    dev.until("that no registry is there is told", lambda: "connection refused" in dev.cli("describe", "pulled"))


def test_less_memory_than_the_runtime_class_needs_is_refused_at_every_door(dev: Dev) -> None:
    tiny = WORKLOAD | {"id": "tiny", "runtime_class": "gvisor", "memory_mb": 8}

    posted = dev.http("POST", "/workloads", tiny)
    applied = dev.run("apply", "-f", "-", stdin=manifest("tiny", runtime_class="gvisor", memory_mb=8))
    (by_hand,) = json_lines(dev, json.dumps({"type": "StartWorkload", "workload": tiny}).encode() + b"\n")

    assert (posted.status, posted.json["errors"][0]["pointer"]) == (422, "/memory_mb")
    assert applied.returncode == 1
    assert "at least 32 MiB" in applied.stderr
    assert by_hand["code"] == "InvalidArgument"
    assert "workload.memory_mb" in by_hand["message"]


def test_an_agent_that_was_sent_rubbish_and_100_mb_still_answers(dev: Dev) -> None:
    question = b'{"type":"GetStatus","id":"nobody"}\n'
    said = json_lines(dev, b"nonsense\n" + b'{"type":"Reboot"}\n' + TOO_LONG + b"\x00\xff\n" + question)

    assert [a.get("code") for a in said] == ["InvalidArgument"] * 4 + ["NotFound"]
    assert said[0]["message"] == "not a JSON object"
    assert "use StartWorkload, GetStatus or StopWorkload" in said[1]["message"]
    assert "longer than" in said[2]["message"]


def json_lines(dev: Dev, sent: bytes) -> list[Any]:
    """What the agent's JSON port answers to these bytes, until it has nothing more to say."""
    host, _, port = dev.info["json"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, connection.makefile("rb") as answers:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in answers]
