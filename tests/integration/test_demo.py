"""`make demo`, as far as the script that it runs: it shows the main job, ends by itself, and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.dev import can_run_containerd

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"


def shown(tmp_path: Path, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *flags],
        env=os.environ | {"DEMO_EXIT": "1", "TMPDIR": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert left == []
    assert list(tmp_path.glob("kakuri-demo-*")) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    return done.stdout


@pytest.mark.real
def test_the_demo_shows_the_main_job_and_leaves_nothing(tmp_path: Path) -> None:
    can_run_containerd()

    told = shown(tmp_path)

    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if " edera-zone " in line or "/" in line}
    assert rows["web"][:3] == ["native", "1/1", "Running"]
    assert rows["sandboxed"][:3] == ["gvisor", "2/2", "Running"]
    assert rows["job-done"][2:5] == ["Succeeded", "Completed", "0"]
    assert rows["job-failed"][2:5] == ["Failed", "Error", "3"]
    assert rows["job-oom"][2:5] == ["Failed", "OOMKilled", "137"]
    assert rows["zone"][2:4] == ["Pending", "Unschedulable"]
    assert "no Edera runtime found" in told
    assert "hello from kakuri" in told
    assert "my kernel is" in told
    assert f"my kernel is {os.uname().release}" not in told


def test_where_no_container_can_run_the_demo_says_that_all_is_simulated(tmp_path: Path) -> None:
    told = shown(tmp_path, "--runtime", "fake")

    assert "simulated" in told
    assert "Running (simulated)" in told
