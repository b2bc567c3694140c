"""A PostgreSQL that is killed: its own server, which syncs what it commits, reachable over the hosts' network.

One rule: its postmaster is our child and its other processes are the postmaster's, so that a kill reaches them all.
"""

import os
import pwd
import subprocess
import time
from pathlib import Path

from chaos.hosts import run
from chaos.programs import Program

PORT = 5432
_READY_BOUND_S = 60.0
_OPTIONS = {
    "listen_addresses": "*",
    "max_connections": "100",
    "shared_buffers": "32MB",
    # A partitioned client's connection must not hold its locks for longer than the fault lasts.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}


def create(folder: Path, address: str, port: int = PORT) -> list[str]:
    """A database cluster is in the folder. Returns how the server is run."""
    binaries = find_binaries()
    assert binaries is not None, "the caller has looked"
    folder.mkdir(mode=0o700)
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "env", "LC_ALL=C"]
    data = folder / "data"
    how = ["-U", "kakuri", "-A", "trust", "--no-sync", "--locale=C.UTF-8"]
    run(*as_user, str(binaries / "initdb"), "-D", str(data), *how)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all kakuri {address.rpartition('.')[0]}.0/24 trust\n")
    options = {**_OPTIONS, "port": str(port), "unix_socket_directories": str(folder)}
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [*as_user, str(binaries / "postgres"), "-D", str(data), *flags]


def url(address: str, port: int = PORT) -> str:
    return f"postgresql://kakuri@{address}:{port}/kakuri"


def wait_ready(server: Program, port: int = PORT) -> None:
    """It answers, and has the database."""
    binaries = find_binaries()
    assert binaries is not None, "it was created with them"
    address = server.host.address
    where = ["-h", address, "-p", str(port), "-U", "kakuri", "-d", "postgres"]
    psql = [str(binaries / "psql"), *where, "-qAtc", "CREATE DATABASE kakuri"]
    deadline = time.monotonic() + _READY_BOUND_S
    while True:
        done = subprocess.run(psql, check=False, capture_output=True, text=True, timeout=10)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline or not server.alive:
            raise RuntimeError(f"PostgreSQL is not ready: {done.stderr.strip()}; see {server.log}")
        time.sleep(0.1)


def find_binaries() -> Path | None:
    """The folder with the newest PostgreSQL's programs; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parent.parent.name))
    return found[-1].parent if found else None
