"""Bringing a database to the schema of this code, or saying in words why it is not.

One rule: what is not understood is not touched. A schema that this code doesn't know is refused, and an older SQLite
file is copied before it is changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import sqlalchemy as sa

from controller.store.contract import SchemaMismatch
from controller.store.copies import copy_sqlite
from controller.store.schema import REVISION

if TYPE_CHECKING:
    from alembic.config import Config

_VERSIONS = sa.table("alembic_version", sa.column("version_num"))


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did. backup: the copy made first (SQLite)."""

    before: str | None
    """The revision it was at; None for a new database."""
    after: str
    backup: Path | None = None

    @property
    def changed(self) -> bool:
        return self.before != self.after


def revision_of(connection: sa.Connection) -> str | None:
    """The revision that the database is at; None when it has no schema of ours."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.select(_VERSIONS.c.version_num))


def check(current: str | None, where: str, url: str) -> None:
    """Returns when the schema is this code's; else SchemaMismatch with what to do."""
    if is_current(current):
        return
    if current is None:
        raise SchemaMismatch(f"{where} has no schema yet: run `kakuri db upgrade --store {url}`")
    check_known(current, where)
    raise SchemaMismatch(
        f"{where} has schema {current}, this kakuri needs {REVISION}: run `kakuri db upgrade --store {url}`"
    )


def is_current(revision: str | None) -> TypeGuard[str]:
    return revision == REVISION


def check_known(current: str, where: str) -> None:
    if current not in _known():
        raise SchemaMismatch(
            f"{where} has schema {current}, which is newer than this kakuri knows (up to {REVISION}): "
            "use the newer kakuri that wrote it, or restore a backup from before it"
        )


def upgrade_connection(connection: sa.Connection, where: str) -> Upgrade:
    """Within the caller's transaction. Another that came first leaves nothing to do."""
    before = revision_of(connection)
    if is_current(before):
        return Upgrade(before, before)
    if before is not None:
        check_known(before, where)
    elif _is_foreign(connection):
        raise SchemaMismatch(f"{where} holds tables that are not kakuri's; use a database of its own")
    from alembic import command  # noqa: PLC0415 - 0.1 s that a start at the newest schema doesn't need

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return Upgrade(before, REVISION)


def _is_foreign(connection: sa.Connection) -> bool:
    return bool(sa.inspect(connection).get_table_names())


def _known() -> set[str]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see upgrade_connection

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see upgrade_connection

    config = Config()
    config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def scripts_folder() -> Path:
    """Beside this code's own package: neither the working folder nor another package of that name can come before."""
    return Path(__file__).resolve().parents[2] / "migrations"


def back_up(path: Path, revision: str) -> Path:
    """A copy of the SQLite database, its write-ahead log included, beside it."""
    target = path.with_name(f"{path.name}.schema-{revision}.bak")
    copy_sqlite(path, target)
    return target
