"""What controller and agent cost when nothing happens: percent of one core, with 20 workloads running.

.venv/bin/python bench/idle.py [--workloads 20] [--seconds 60]
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import psutil
from own_dev import KAKURI, running_dev

SETTLE_S = 10.0
"""After the last start: what is still being reported is no idleness."""

ONE = """
kind: Workload
id: idle-{n}
image: kakuri.local/demo:1.0
runtime_class: native
memory_mb: 16
cpu_millicores: 10
command: [sleep, "1000000"]
termination_grace_s: 0
"""


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def measure(folder: Path, workloads: int, seconds: float) -> None:
    info = json.loads((folder / "dev.json").read_text())
    manifests = "---".join(ONE.format(n=n) for n in range(workloads))
    subprocess.run(
        [KAKURI, "--server", info["http"], "apply", "--wait", "-f", "-"],
        input=manifests,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    time.sleep(SETTLE_S)
    before = {name: cpu_s(info["pids"][name]) for name in ("controller", "agent", "dev")}
    begun = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    used = {name: (cpu_s(info["pids"][name]) - was) / took * 100 for name, was in before.items()}
    for name, percent in used.items():
        print(f"{name}: {percent:.2f}% of a core")
    print(
        f"controller and agent together: {used['controller'] + used['agent']:.2f}% of a core "
        f"({workloads} workloads, {took:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workloads", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with running_dev() as folder:
        measure(folder, given.workloads, given.seconds)


if __name__ == "__main__":
    main()
