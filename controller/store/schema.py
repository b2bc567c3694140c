"""The tables, as the newest migration leaves them (a test compares the two).

One rule: columns a person asks for stand beside the JSON that is the whole truth, and are written with it.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

REVISION = "0005"
"""The migration that these tables are the result of."""

metadata = sa.MetaData()


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite keeps it without its zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - given
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class JsonText(sa.TypeDecorator[str]):
    """JSON to the database, text to us: pydantic reads and writes it at once, without dictionaries between."""

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else sa.JSON())

    def bind_processor(self, dialect: sa.Dialect) -> None:
        pass

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        pass

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return self.impl_instance.coerce_compared_value(op, value)  # a key stays a key


# Ids sort by code point everywhere, as they do in Python: pages and locks go by that order.
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _id(name: str, *args: Any, **options: Any) -> sa.Column[str]:
    return sa.Column(name, _ID, *args, nullable=False, **options)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _int(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _bool(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


def _json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, JsonText, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, UtcTime, nullable=nullable)


def _partial(name: str, *columns: str, where: str, sqlite: str, unique: bool = False) -> sa.Index:
    # SQLite takes a partial index only for a query that has its very words, and has no booleans.
    return sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(where))


_LIVE, _LIVE_SQLITE = "NOT released", "released = 0"
_UNSENT = "accepted_revision < revision"

cluster = sa.Table(
    "cluster",
    metadata,
    sa.Column("cluster_id", sa.Text, primary_key=True),
    _int("resource_version"),
    _int("changes_held_after"),
    _time("restored_at", nullable=True),
    sa.Column("restored_epoch", sa.BigInteger, nullable=False, server_default="0"),
)

runtime_classes = sa.Table(
    "runtime_classes",
    metadata,
    _id("id", primary_key=True),
    _text("uid"),
    _text("handler"),
    _int("min_memory_mb"),
    _int("generation"),
    _time("created_at"),
    _int("resource_version"),
)

nodes = sa.Table(
    "nodes",
    metadata,
    _id("id", primary_key=True),
    _text("uid"),
    _bool("ready"),
    _bool("schedulable"),
    _text("reason"),
    _text("message"),
    _text("address"),
    _int("memory_mb"),
    _int("cpu_millicores"),
    _json("labels"),
    _json("user_labels"),
    _text("ledger_uid"),
    _json("registration", nullable=True),
    _json("by_hand"),
    _time("registered_at", nullable=True),
    _int("generation"),
    _time("created_at"),
    _int("resource_version"),
    _time("lost_at", nullable=True),
    sa.Column("inventory_epoch", sa.BigInteger, nullable=False, server_default="0"),
    _json("drain", nullable=True),
)

workloads = sa.Table(
    "workloads",
    metadata,
    _id("id", primary_key=True),
    _text("uid"),
    _text("image"),
    _id("runtime_class", sa.ForeignKey("runtime_classes.id", name="workloads_runtime_class")),
    # The one node that all its allocations are on; none when there are none or several.
    sa.Column("node", sa.Text),
    _text("state"),
    _text("reason"),
    _text("message"),
    _int("replicas"),
    _int("generation"),
    _int("version"),
    _bool("waits_for_place"),
    _json("labels"),
    _json("spec"),
    _json("status"),
    _time("created_at"),
    _time("deleted_at", nullable=True),
    _int("resource_version"),
    sa.Index("workloads_by_runtime_class", "runtime_class"),
    _partial("workloads_waiting", "resource_version", where="waits_for_place", sqlite="waits_for_place = 1"),
)

allocations = sa.Table(
    "allocations",
    metadata,
    _id("id", primary_key=True),
    _id("workload_id", sa.ForeignKey("workloads.id", name="allocations_workload")),
    _text("workload_uid"),
    _int("slot"),
    _id("node", sa.ForeignKey("nodes.id", name="allocations_node")),
    _text("runtime_class"),
    _text("state"),
    _text("reason"),
    _text("message"),
    _int("exit_code", nullable=True),
    _int("restarts"),
    _text("desired"),
    _text("desired_reason"),
    _int("revision"),
    _int("accepted_revision"),
    _int("generation"),
    _text("spec_hash"),
    _int("failures"),
    _bool("started_once"),
    _bool("released"),
    _bool("simulated"),
    _text("handler"),
    _text("ledger_uid"),
    _text("sandbox_id"),
    _text("container_id"),
    _text("ip"),
    _int("memory_mb"),
    _int("cpu_millicores"),
    _bool("has_host_ports"),
    _json("spec"),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    _time("observed_at", nullable=True),
    _int("resource_version"),
    sa.Column("lease_bound", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("allocations_by_workload", "workload_id"),
    sa.Index("allocations_by_node", "node"),
    # At most one live allocation for a slot, whatever the planner thinks.
    _partial("allocations_live_slot", "workload_uid", "slot", where=_LIVE, sqlite=_LIVE_SQLITE, unique=True),
    _partial("allocations_unsent", "node", "created_at", where=_UNSENT, sqlite=_UNSENT),
    # All that a node's usage takes, so that it is read from the index alone.
    _partial("allocations_usage", "node", "memory_mb", "cpu_millicores", where=_LIVE, sqlite=_LIVE_SQLITE),
    _partial(
        "allocations_host_ports",
        "node",
        where=f"{_LIVE} AND has_host_ports",
        sqlite=f"{_LIVE_SQLITE} AND has_host_ports = 1",
    ),
)

events = sa.Table(
    "events",
    metadata,
    _id("id", primary_key=True),
    _text("object_kind"),
    _text("object_id"),
    _text("type"),
    _text("reason"),
    _text("message"),
    _text("allocation"),
    _text("node"),
    _int("count"),
    _time("first_seen"),
    _time("last_seen"),
    _int("resource_version"),
    sa.Index("events_by_object", "object_id", "object_kind"),
    sa.Index("events_by_time", "last_seen", "id"),
    sa.Index("events_by_resource_version", "resource_version"),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    _id("id", primary_key=True),
    _id("node"),
    _id("workload"),
    _int("slot"),
    _text("reason"),
    _text("message"),
    _bool("blocks"),
    _time("created_at"),
    sa.Index("tombstones_by_node", "node"),
    sa.Index("tombstones_by_workload", "workload"),
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("resource_version", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("object_id"),
    _bool("deleted"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    _text("holder"),
    _int("epoch"),
    # Seconds since 1970 by the database's own clock.
    sa.Column("expires_at", sa.Double, nullable=False),
)
