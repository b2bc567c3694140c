"""The README's tour and the examples, run as they stand."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.dev import KAKURI, Dev

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def tour() -> list[str]:
    """The commands of the five minutes, without `kakuri dev` itself."""
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Five minutes") : text.index("## What a workload looks like")]
    blocks = BLOCK.findall(section)
    assert blocks[0] == "kakuri dev\n"
    return blocks[1:]


def test_the_tour_runs_as_it_stands(dev: Dev, tmp_path: Path, free_port: int) -> None:
    (tmp_path / ".kakuri").symlink_to(dev.folder)
    (tmp_path / "examples").mkdir()
    for example in (ROOT / "examples").glob("*.yaml"):
        # The machine that runs the tests may have its own use for the port.
        (tmp_path / "examples" / example.name).write_text(example.read_text().replace("18080", str(free_port)))
    json_port = dev.info["json"].rsplit(":", 1)[1]
    said = ""
    for block in tour():
        script = block.replace("18080", str(free_port)).replace("127.0.0.1 9000", f"127.0.0.1 {json_port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=os.environ | {"KAKURI_SERVER": dev.server, "PATH": f"{KAKURI.parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{dev.state()}"
        said += done.stdout

    assert "hello from kakuri" in said
    assert os.uname().release in said.splitlines()
    assert "write 512 without quotes" in said
    assert "no Edera runtime found" in said
    assert '"state":"Running"' in said.replace(" ", "")
    assert dev.http("GET", "/workloads").json["items"] == []


def test_the_examples_converge_as_their_comments_say(dev: Dev, tmp_path: Path, free_port: int) -> None:
    for example in (ROOT / "examples").glob("*.yaml"):
        (tmp_path / example.name).write_text(example.read_text().replace("18080", str(free_port)))

    dev.cli("apply", "-f", str(tmp_path))

    dev.until_state("web", "Running")
    dev.until_state("sandboxed", "Running")
    assert dev.until_state("job-done", "Succeeded")["status"]["exit_code"] == 0
    assert dev.until_state("job-failed", "Failed")["status"]["exit_code"] == 3
    assert dev.until_state("job-oom", "Failed")["status"]["reason"] == "OOMKilled"
    assert dev.workload("zone")["status"]["reason"] == "Unschedulable"
