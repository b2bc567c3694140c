"""A kakuri for one measurement: started on a folder and ports of its own, and ended with it."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KAKURI = Path(sys.executable).with_name("kakuri")


@contextmanager
def running_dev(runtime: str = "containerd") -> Iterator[Path]:
    """The folder of a running `kakuri dev`."""
    folder = Path(tempfile.mkdtemp(prefix="kakuri-bench-"))
    ports = ("--http-port", "0", "--agent-port", "0", "--json-port", "0")
    process = subprocess.Popen(
        [KAKURI, "dev", "--dir", str(folder), "--runtime", runtime, *ports], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise SystemExit("kakuri dev did not start")
        yield folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
