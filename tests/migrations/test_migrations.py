"""Migrations: one line of them, free of the model, from anywhere to the tables that the code has, on both databases."""

import ast
import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from builders import NOW, a_manifest
from controller.store import migrate, open_store, schema, upgrade
from controller.store.contract import Put, SchemaMismatch, Unavailable
from controller.store.engine import is_sqlite, make_sqlite_file, sqlite_engine, sqlite_path
from controller.store.postgres import postgres_engine
from kakuri.model import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ScriptDirectory(str(migrate.scripts_folder()))
REVISIONS = [s.revision for s in reversed(list(SCRIPTS.walk_revisions()))]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a schema, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/kakuri.db"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A function that runs a plain function of a connection in a transaction."""
    if is_sqlite(url):
        make_sqlite_file(sqlite_path(url))
        engine = sqlite_engine(sqlite_path(url), writer=True)

        async def run(work: Any) -> Any:
            with engine.begin() as connection:
                return work(connection)

        try:
            yield run
        finally:
            engine.dispose()
        return
    remote = postgres_engine(url, inspects=True)

    async def run_remote(work: Any) -> Any:
        async with remote.begin() as connection:
            return await connection.run_sync(work)

    try:
        yield run_remote
    finally:
        await remote.dispose()


def step_to(revision: str) -> Any:
    def step(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(migrate.scripts_folder()))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    return step


# -- the line --------------------------------------------------------------------------------------------------------
def test_there_is_one_head_and_the_code_is_at_it() -> None:
    assert SCRIPTS.get_heads() == [schema.REVISION]
    assert len(SCRIPTS.get_bases()) == 1
    assert sorted(REVISIONS) == REVISIONS, "numbered in their order"


@pytest.mark.parametrize("script", list(SCRIPTS.walk_revisions()), ids=lambda s: s.revision)
def test_a_migration_is_named_for_what_it_does_and_imports_nothing_of_ours(script: Any) -> None:
    path = Path(script.path)
    number, kind, slug = path.stem.split("_", 2)
    assert number == script.revision
    assert kind in {"expand", "contract"}
    assert slug
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in {"kakuri", "controller", "agent", "cri", "."}}


# -- the tables ------------------------------------------------------------------------------------------------------
async def test_migrations_and_metadata_agree(empty_url: str) -> None:
    async with connected(empty_url) as run:
        await run(step_to("head"))
        options = {"compare_type": True, "compare_server_default": True}
        difference = await run(lambda c: compare_metadata(MigrationContext.configure(c, opts=options), schema.metadata))
        assert difference == []
        migrated = await run(described)
        await run(drop_all)
        await run(schema.metadata.create_all)
        assert await run(described) == migrated


def drop_all(connection: sa.Connection) -> None:
    found = sa.MetaData()
    found.reflect(connection)
    found.drop_all(connection)


def described(connection: sa.Connection) -> dict[str, Any]:
    """All that the database itself says of the tables, partial indexes included, the order of columns too."""
    inspector = sa.inspect(connection)
    names = [n for n in inspector.get_table_names() if n != "alembic_version"]
    return {
        name: {
            "columns": [(c["name"], repr(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "references": sorted(map(str, inspector.get_foreign_keys(name))),
            "indexes": sorted(
                (i["name"], i["column_names"], i["unique"], {k: str(v) for k, v in i["dialect_options"].items()})
                for i in inspector.get_indexes(name)
            ),
        }
        for name in sorted(names)
    }


@pytest.mark.parametrize("start", REVISIONS)
async def test_every_earlier_revision_comes_to_the_newest(empty_url: str, start: str) -> None:
    async with connected(empty_url) as run:
        await run(step_to(start))
        assert await run(migrate.revision_of) == start
        for revision in REVISIONS[REVISIONS.index(start) :]:
            await run(step_to(revision))
    done = await upgrade(empty_url)
    assert (done.after, done.changed) == (schema.REVISION, False)
    store = await open_store(empty_url)
    await store.apply([Put(a_manifest())], now=NOW)
    await store.close()


async def test_a_new_database_has_the_built_in_classes_and_a_cluster_of_its_own(empty_url: str, tmp_path: Path) -> None:
    done = await upgrade(empty_url)
    assert (done.before, done.after, done.backup, done.changed) == (None, schema.REVISION, None, True)
    store, other = await open_store(empty_url), await open_store(f"sqlite:///{tmp_path}/other.db")
    classes = (await store.list_runtime_classes()).items
    assert {(c.id, c.handler, c.min_memory_mb) for c in classes} == {
        (c.id, c.handler, c.min_memory_mb) for c in BUILT_IN
    }
    assert {c.created_at.tzinfo is not None for c in classes} == {True}
    assert store.cluster_id != other.cluster_id
    assert await store.resource_version() == 0
    await store.close()
    await other.close()


# -- what is refused -------------------------------------------------------------------------------------------------
async def test_a_newer_schema_is_refused_in_words(empty_url: str) -> None:
    await upgrade(empty_url)
    async with connected(empty_url) as run:
        await run(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    for attempt in (open_store, upgrade):
        with pytest.raises(SchemaMismatch, match="has schema 9999, which is newer than this kakuri knows"):
            await attempt(empty_url)


async def test_a_database_of_something_else_is_left_alone(empty_url: str) -> None:
    async with connected(empty_url) as run:
        await run(lambda c: c.execute(sa.text("CREATE TABLE shopping (item TEXT)")))
    with pytest.raises(SchemaMismatch, match="not kakuri's"):
        await upgrade(empty_url)
    async with connected(empty_url) as run:
        assert await run(lambda c: sa.inspect(c).get_table_names()) == ["shopping"]


async def test_two_upgrades_at_once_are_one(empty_url: str) -> None:
    done = await asyncio.gather(*(upgrade(empty_url) for _ in range(3)))
    assert {d.after for d in done} == {schema.REVISION}
    assert [d.changed for d in done].count(True) == 1


# -- SQLite's backup -------------------------------------------------------------------------------------------------
NEXT = """
from alembic import op
revision = "{number}"
down_revision = "{before}"
def upgrade():
    op.execute("CREATE TABLE novelty (id TEXT)")
    {then}
"""


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code of tomorrow, with one revision more. The path of its migration."""
    folder = tmp_path / "tomorrow"
    shutil.copytree(migrate.scripts_folder(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    number = f"{int(schema.REVISION) + 1:04}"
    path = folder / "versions" / f"{number}_expand_novelty.py"
    path.write_text(NEXT.format(number=number, before=schema.REVISION, then="pass"))
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "scripts_folder", lambda: folder)
        patch.setattr(migrate, "REVISION", number)
        yield path


async def an_older_database(path: Path) -> str:
    await upgrade(f"sqlite:///{path}")
    store = await open_store(f"sqlite:///{path}")
    await store.apply([Put(a_manifest())], now=NOW)
    await store.close()
    return f"sqlite:///{path}"


@pytest.fixture
async def old_url(tmp_path: Path) -> str:
    return await an_older_database(tmp_path / "kakuri.db")


async def test_sqlite_is_backed_up_and_migrated_at_start(old_url: str, next_revision: Path) -> None:
    path = sqlite_path(old_url)
    store = await open_store(old_url)
    assert (await store.get_workload("web")).id == "web"
    await store.close()
    (backup,) = path.parent.glob("*.bak")
    assert backup.name == f"kakuri.db.schema-{schema.REVISION}.bak"
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.REVISION,)]
        assert copy.execute("SELECT id FROM workloads").fetchall() == [("web",)]
    with closing(sqlite3.connect(path)) as now:
        assert now.execute("SELECT * FROM novelty").fetchall() == []
    backup.unlink()
    await (await open_store(old_url)).close()
    assert not list(path.parent.glob("*.bak")), "no copy is made when no migration is due"


async def test_a_new_file_needs_no_backup(tmp_path: Path) -> None:
    await (await open_store(f"sqlite:///{tmp_path}/kakuri.db")).close()
    assert not list(tmp_path.glob("*.bak"))


async def test_a_migration_that_fails_leaves_the_database_as_it_was(old_url: str, next_revision: Path) -> None:
    next_revision.write_text(next_revision.read_text().replace("pass", 'raise ZeroDivisionError("in the middle")'))
    with pytest.raises(ZeroDivisionError):
        await open_store(old_url)
    with closing(sqlite3.connect(sqlite_path(old_url))) as now:
        assert now.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.REVISION,)]
        assert now.execute("SELECT name FROM sqlite_master WHERE name = 'novelty'").fetchall() == []


async def test_without_room_for_a_backup_nothing_is_migrated(
    old_url: str, next_revision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("controller.store.open.back_up", full)
    with pytest.raises(Unavailable, match="no backup could be made"):
        await open_store(old_url)
    with closing(sqlite3.connect(sqlite_path(old_url))) as now:
        assert now.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.REVISION,)]


async def test_an_older_postgresql_is_refused_until_it_is_upgraded(postgres_url: str, next_revision: Path) -> None:
    with pytest.raises(SchemaMismatch, match="run `kakuri db upgrade --store"):
        await open_store(postgres_url)
    done = await upgrade(postgres_url)
    assert (done.before, done.changed) == (schema.REVISION, True)
    await (await open_store(postgres_url)).close()


# -- from a shell ----------------------------------------------------------------------------------------------------
def test_alembic_runs_from_a_shell(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kakuri.db"
    alembic = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini")]
    environment = {k: v for k, v in os.environ.items() if k != "KAKURI_CONTROLLER_STORE"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*alembic, *arguments],
            check=False,
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=60,
        )

    unnamed = run("current")
    assert unnamed.returncode != 0
    assert "no store is named" in unnamed.stdout + unnamed.stderr
    done = run("-x", f"url={url}", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    checked = run("check", KAKURI_CONTROLLER_STORE=url)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_another_package_called_migrations_in_the_working_folder_is_not_taken(tmp_path: Path) -> None:
    other = tmp_path / "migrations"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong one')")
    program = f"import asyncio; from controller.store import upgrade; asyncio.run(upgrade('sqlite:///{tmp_path}/k.db'))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
