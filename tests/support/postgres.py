"""A PostgreSQL of the tests' own: started once for the session, a fresh database for each test that asks for one."""

import asyncio
import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.needs import need
from support.ports import unused_port

_BOUND_S = 60
_FAST = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=60 -c shared_buffers=32MB "
    "-c autovacuum=off -c listen_addresses=127.0.0.1"
)


# In an order that foreign keys allow.
_TABLES = (
    "events",
    "changes",
    "allocations",
    "workloads",
    "nodes",
    "runtime_classes",
    "leases",
    "tombstones",
    "cluster",
)
_REMEMBER = "CREATE SCHEMA seed; " + "; ".join(f"CREATE TABLE seed.{t} AS TABLE public.{t}" for t in _TABLES)
_RESET = (
    "".join(f"DELETE FROM {t}; " for t in _TABLES)
    + "".join(f"INSERT INTO {t} TABLE seed.{t}; " for t in reversed(_TABLES))
    + "UPDATE cluster SET cluster_id = gen_random_uuid()"
)


@dataclass
class Server:
    """A running server, and how to reach its databases."""

    binaries: Path
    folder: Path
    port: int

    def url(self, database: str) -> str:
        return f"postgresql://kakuri:secret@127.0.0.1:{self.port}/{database}"

    def run(self, binary: str, *arguments: str) -> str:
        done = subprocess.run(
            [*_as_postgres(), str(self.binaries / binary), *arguments],
            check=False,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BOUND_S,
            env={"PATH": os.environ["PATH"], "PGPASSWORD": "secret", "LC_ALL": "C"},
        )
        assert done.returncode == 0, f"{binary} failed: {done.stdout}"
        return done.stdout

    def sql(self, statement: str, database: str = "postgres") -> str:
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "kakuri", "-d", database)
        return self.run("psql", *where, "-v", "ON_ERROR_STOP=1", "-qAtc", statement)

    def start(self) -> None:
        # Its output goes to a file: a pipe would stay open for as long as the server lives.
        options = f"{_FAST} -c port={self.port} -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-D", str(self.folder / "db"), "-o", options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "db"), "-m", "immediate", "-w", "stop")

    def fresh(self, template: str) -> str:
        """The name of a new database, copied from the template."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a template database "kakuri_template" at the newest schema."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parent.parent.name))
    need(bool(found), "PostgreSQL is not on this machine: apt-get install postgresql")
    if os.geteuid() == 0:
        need(shutil.which("runuser") is not None, "PostgreSQL won't run as root and there is no runuser")
    # Not under pytest's own folder: the user postgres may not look into it.
    folder = Path("/tmp") / f"kakuri-postgres-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    server = Server(found[-1].parent, folder, unused_port())
    try:
        server.run("initdb", "-D", str(folder / "db"), "-U", "kakuri", "-A", "trust", "--no-sync", "--locale=C.UTF-8")
        server.start()
        try:
            server.sql("CREATE DATABASE kakuri_template")
            _migrate(server.url("kakuri_template"))
            server.sql("CREATE DATABASE kakuri_shared TEMPLATE kakuri_template")
            server.sql(_REMEMBER, "kakuri_shared")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """The URL of a fresh database at the newest schema."""
    name = postgres_server.fresh("kakuri_template")
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture
def shared_postgres_url(postgres_server: Server) -> str:
    """The URL of the session's own database, as it was after its migration. Far quicker than a fresh one; for tests
    that change rows alone."""
    postgres_server.sql(_RESET, "kakuri_shared")
    return postgres_server.url("kakuri_shared")


@pytest.fixture
def empty_postgres_url(postgres_server: Server) -> Iterator[str]:
    """The URL of a database without any table."""
    name = postgres_server.fresh("template0")
    yield postgres_server.url(name)
    postgres_server.drop(name)


def _as_postgres() -> list[str]:
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


def _migrate(url: str) -> None:
    from controller.store import upgrade

    # In a thread: pytest-asyncio's loop may be around in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(upgrade(url))).result(_BOUND_S)
