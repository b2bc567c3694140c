"""Debian's docker-registry on loopback, for tests of the pull path."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.needs import need
from support.ports import unused_port

_UP_S = 15.0


@dataclass(frozen=True)
class Registry:
    """It speaks plain HTTP."""

    address: str
    """host:port; an image is <address>/<name>:<tag>."""

    def push(self, archive: Path, name: str) -> str:
        """The image of this OCI archive is there. name: with its tag. Returns the reference to pull."""
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false",
             f"oci-archive:{archive}", f"docker://{self.address}/{name}"],
            check=True, timeout=60,
        )  # fmt: skip
        return f"{self.address}/{name}"


@contextlib.contextmanager
def loopback_registry(folder: Path) -> Iterator[Registry]:
    """An empty registry, which keeps its images in the folder; gone in the end."""
    for program in ("docker-registry", "skopeo"):
        need(shutil.which(program) is not None, f"{program} is not installed: apt-get install {program}")
    port = unused_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/images}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_up(port, process, folder / "registry.log")
        yield Registry(f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


def _wait_up(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"docker-registry did not come up: {log.read_text()}")
