"""The main tables, with the runtime classes that every database has and the name of a new cluster."""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_BUILT_IN = (("edera-zone", "edera", 300), ("gvisor", "runsc", 32), ("kata", "kata", 128), ("native", "runc", 6))


def upgrade() -> None:
    _create_tables()
    _create_indexes()
    _fill()


def _id_type() -> sa.types.TypeEngine[str]:
    return sa.Text(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()


def _json_type() -> sa.types.TypeEngine[object]:
    return postgresql.JSONB() if op.get_bind().dialect.name == "postgresql" else sa.JSON()


def _columns(type_: sa.types.TypeEngine[object], *names: str) -> list[sa.Column[object]]:
    """Columns of one type; a name that ends in ? may be NULL."""
    return [sa.Column(name.rstrip("?"), type_, nullable=name.endswith("?")) for name in names]


def _create_tables() -> None:
    id_, text, number, flag = _id_type(), sa.Text(), sa.BigInteger(), sa.Boolean()
    json, time = _json_type(), sa.DateTime(timezone=True)
    op.create_table(
        "cluster",
        sa.Column("cluster_id", text, primary_key=True),
        *_columns(number, "resource_version", "changes_held_after"),
    )
    op.create_table(
        "runtime_classes",
        sa.Column("id", id_, primary_key=True),
        *_columns(text, "uid", "handler"),
        *_columns(number, "min_memory_mb", "generation"),
        *_columns(time, "created_at"),
        *_columns(number, "resource_version"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", id_, primary_key=True),
        *_columns(text, "uid"),
        *_columns(flag, "ready", "schedulable"),
        *_columns(text, "reason", "message", "address"),
        *_columns(number, "memory_mb", "cpu_millicores"),
        *_columns(json, "labels", "user_labels"),
        *_columns(text, "ledger_uid"),
        *_columns(json, "registration?", "by_hand"),
        *_columns(time, "registered_at?"),
        *_columns(number, "generation"),
        *_columns(time, "created_at"),
        *_columns(number, "resource_version"),
    )
    op.create_table(
        "workloads",
        sa.Column("id", id_, primary_key=True),
        *_columns(text, "uid", "image"),
        *_columns(id_, "runtime_class"),
        *_columns(text, "node?", "state", "reason", "message"),
        *_columns(number, "replicas", "generation", "version"),
        *_columns(flag, "waits_for_place"),
        *_columns(json, "labels", "spec", "status"),
        *_columns(time, "created_at", "deleted_at?"),
        *_columns(number, "resource_version"),
        sa.ForeignKeyConstraint(["runtime_class"], ["runtime_classes.id"], name="workloads_runtime_class"),
    )
    op.create_table(
        "allocations",
        sa.Column("id", id_, primary_key=True),
        *_columns(id_, "workload_id"),
        *_columns(text, "workload_uid"),
        *_columns(number, "slot"),
        *_columns(id_, "node"),
        *_columns(text, "runtime_class", "state", "reason", "message"),
        *_columns(number, "exit_code?", "restarts"),
        *_columns(text, "desired", "desired_reason"),
        *_columns(number, "revision", "accepted_revision", "generation"),
        *_columns(text, "spec_hash"),
        *_columns(number, "failures"),
        *_columns(flag, "started_once", "released", "simulated"),
        *_columns(text, "handler", "ledger_uid", "sandbox_id", "container_id", "ip"),
        *_columns(number, "memory_mb", "cpu_millicores"),
        *_columns(flag, "has_host_ports"),
        *_columns(json, "spec"),
        *_columns(time, "created_at", "started_at?", "finished_at?", "observed_at?"),
        *_columns(number, "resource_version"),
        sa.ForeignKeyConstraint(["workload_id"], ["workloads.id"], name="allocations_workload"),
        sa.ForeignKeyConstraint(["node"], ["nodes.id"], name="allocations_node"),
    )
    op.create_table(
        "events",
        sa.Column("id", id_, primary_key=True),
        *_columns(text, "object_kind", "object_id", "type", "reason", "message", "allocation", "node"),
        *_columns(number, "count"),
        *_columns(time, "first_seen", "last_seen"),
        *_columns(number, "resource_version"),
    )
    op.create_table(
        "changes",
        sa.Column("resource_version", number, primary_key=True, autoincrement=False),
        *_columns(text, "kind", "object_id"),
        *_columns(flag, "deleted"),
    )
    op.create_table(
        "leases",
        sa.Column("name", text, primary_key=True),
        *_columns(text, "holder"),
        *_columns(number, "epoch"),
        *_columns(sa.Double(), "expires_at"),
    )


def _create_indexes() -> None:
    op.create_index("workloads_by_runtime_class", "workloads", ["runtime_class"])
    _create_partial(
        "workloads_waiting",
        "workloads",
        ["resource_version"],
        where="waits_for_place",
        sqlite="waits_for_place = 1",
    )
    op.create_index("allocations_by_workload", "allocations", ["workload_id"])
    op.create_index("allocations_by_node", "allocations", ["node"])
    live = {"where": "NOT released", "sqlite": "released = 0"}
    unsent = "accepted_revision < revision"
    _create_partial("allocations_live_slot", "allocations", ["workload_uid", "slot"], **live, unique=True)
    _create_partial("allocations_unsent", "allocations", ["node", "created_at"], where=unsent, sqlite=unsent)
    _create_partial("allocations_usage", "allocations", ["node", "memory_mb", "cpu_millicores"], **live)
    _create_partial(
        "allocations_host_ports",
        "allocations",
        ["node"],
        where="NOT released AND has_host_ports",
        sqlite="released = 0 AND has_host_ports = 1",
    )
    op.create_index("events_by_object", "events", ["object_id", "object_kind"])
    op.create_index("events_by_time", "events", ["last_seen", "id"])
    op.create_index("events_by_resource_version", "events", ["resource_version"])


def _create_partial(
    name: str, table: str, columns: list[str], *, where: str, sqlite: str, unique: bool = False
) -> None:
    op.create_index(name, table, columns, unique=unique, sqlite_where=sa.text(sqlite), postgresql_where=sa.text(where))


def _fill() -> None:
    now = datetime.now(UTC)
    if op.get_bind().dialect.name == "sqlite":
        now = now.replace(tzinfo=None)  # it keeps no zone: all its times are UTC
    cluster = sa.table("cluster", *map(sa.column, ("cluster_id", "resource_version", "changes_held_after")))
    op.bulk_insert(cluster, [{"cluster_id": str(uuid.uuid4()), "resource_version": 0, "changes_held_after": 0}])
    leases = sa.table("leases", *map(sa.column, ("name", "holder", "epoch", "expires_at")))
    op.bulk_insert(leases, [{"name": "controller", "holder": "", "epoch": 0, "expires_at": 0.0}])
    runtime_classes = sa.table(
        "runtime_classes",
        *map(sa.column, ("id", "uid", "handler", "min_memory_mb", "generation")),
        sa.column("created_at", sa.DateTime(timezone=True)),
        sa.column("resource_version"),
    )
    op.bulk_insert(
        runtime_classes,
        [
            {
                "id": id_,
                "uid": str(uuid.uuid4()),
                "handler": handler,
                "min_memory_mb": least,
                "generation": 1,
                "created_at": now,
                "resource_version": 0,
            }
            for id_, handler, least in _BUILT_IN
        ],
    )
