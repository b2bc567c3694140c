"""Builders of the objects that tests are about: each gives a whole valid object, and takes what the test cares for.

One rule: a test names every field that its outcome hangs on; the rest is the same in all tests.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.plan.snapshot import HostPort, NodeView, Snapshot, WorkloadView
from kakuri.model import (
    BUILT_IN,
    FEATURE_LEASE,
    Allocation,
    Capacity,
    Desired,
    Node,
    NodeManifest,
    NodeRegistration,
    NodeStatus,
    PortMapping,
    ProvedClass,
    RuntimeClass,
    RuntimeClassManifest,
    State,
    Workload,
    WorkloadManifest,
    WorkloadSpec,
    WorkloadStatus,
)

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def a_spec(**fields: Any) -> WorkloadSpec:
    return WorkloadSpec(**_SPEC | fields)


def a_manifest(id_: str = "web", **fields: Any) -> WorkloadManifest:
    return WorkloadManifest(id=id_, **_SPEC | fields)


def a_workload(id_: str = "web", *, status: WorkloadStatus | None = None, **fields: Any) -> Workload:
    """A workload as the server shows it."""
    server = {
        "uid": f"uid-{id_}",
        "generation": 1,
        "resource_version": 1,
        "created_at": NOW,
        "status": status or WorkloadStatus(),
    }
    return Workload(id=id_, **_SPEC | server | fields)


def a_port(host_port: int | None = 8080, *, port: int = 80, **fields: Any) -> PortMapping:
    return PortMapping(port=port, host_port=host_port, **fields)


def an_allocation(workload: str = "web", slot: int = 0, **fields: Any) -> Allocation:
    """An allocation that its node has accepted and that runs, unless fields say otherwise.

    suffix: the end of its id; age_s: how long before NOW it was made.
    """
    suffix = fields.pop("suffix", "00000000")
    age_s = fields.pop("age_s", 60.0)
    spec = fields.pop("spec", None) or a_spec()
    revision = fields.get("revision", 1)
    running = fields.get("state", State.RUNNING) is State.RUNNING
    usual = {
        "id": f"{workload}.{slot}.{suffix}",
        "workload": workload,
        "workload_uid": f"uid-{workload}",
        "slot": slot,
        "node": "n1",
        "runtime_class": spec.runtime_class,
        "generation": 1,
        "spec_hash": spec.replacing_hash(),
        "spec": spec,
        "accepted_revision": revision,
        "state": State.RUNNING,
        "started_once": running,
        "ledger_uid": "ledger-n1",
        "created_at": later(-age_s),
        "started_at": later(-age_s + 1) if running else None,
    }
    return Allocation.model_construct(**_ALLOCATION | usual | fields)


def an_end(workload: str = "web", slot: int = 0, **fields: Any) -> Allocation:
    """An allocation that ran, succeeded, and of which nothing is left."""
    usual = {
        "state": State.SUCCEEDED,
        "reason": "Completed",
        "exit_code": 0,
        "started_once": True,
        "released": True,
        "finished_at": NOW,
        "observed_at": NOW,
    }
    return an_allocation(workload, slot, **usual | fields)


def a_failed_start(workload: str = "web", slot: int = 0, **fields: Any) -> Allocation:
    """An allocation that never ran: its sandbox failed just now, and nothing of it is left."""
    usual = {"state": State.FAILED, "reason": "SandboxFailed", "exit_code": None, "started_once": False}
    return an_end(workload, slot, **usual | fields)


def a_stop(workload: str = "web", slot: int = 0, **fields: Any) -> Allocation:
    """An allocation that was told to stop and has not ended yet."""
    usual = {"state": State.TERMINATING, "desired": Desired.STOP, "revision": 2, "started_once": True}
    return an_allocation(workload, slot, **usual | fields)


def a_registration(**fields: Any) -> NodeRegistration:
    usual = {
        "address": "127.0.0.1:9001",
        "capacity": Capacity(memory_mb=4096, cpu_millicores=4000),
        "runtime_classes": (ProvedClass(id="native", handler="runc"), ProvedClass(id="gvisor", handler="runsc")),
        "instance": "instance-1",
        "ledger_uid": "ledger-n1",
        "version": "0.1.0",
        "runtime": "containerd 1.7",
        "features": (FEATURE_LEASE,),
    }
    return NodeRegistration(**usual | fields)


def a_node_manifest(id_: str = "n1", **fields: Any) -> NodeManifest:
    return NodeManifest(id=id_, **fields)


def a_node(id_: str = "n1", *, status: NodeStatus | None = None, **fields: Any) -> Node:
    """A node as the server shows it: registered and ready."""
    registered = a_registration().model_dump(exclude={"simulated"})
    usual = {
        "uid": f"uid-{id_}",
        "generation": 1,
        "resource_version": 1,
        "created_at": NOW,
        "status": status or NodeStatus(**registered, ready=True, reason="Ready", registered_at=NOW),
    }
    return Node(id=id_, **usual | fields)


def a_runtime_class(id_: str = "native", **fields: Any) -> RuntimeClass:
    manifest = next((c for c in BUILT_IN if c.id == id_), RuntimeClassManifest(id=id_, handler=id_))
    server = {"uid": f"uid-{id_}", "generation": 1, "resource_version": 1, "created_at": NOW}
    return RuntimeClass(**manifest.model_dump() | server | fields)


def a_node_view(id_: str = "n1", **fields: Any) -> NodeView:
    """A node as the planner sees it: ready, empty, 4096 MiB and 4 cores, with runc and gVisor."""
    usual: dict[str, Any] = {
        "labels": {},
        "ready": True,
        "schedulable": True,
        "runtime_classes": frozenset({"native", "gvisor"}),
        "memory_mb": 4096,
        "cpu_millicores": 4000,
        "ledger_uid": f"ledger-{id_}",
        "features": frozenset({FEATURE_LEASE}),
    }
    return NodeView(id=id_, **usual | fields)


def a_view(id_: str = "web", *, allocations: Iterable[Allocation] = (), **fields: Any) -> WorkloadView:
    """A workload as the planner sees it. Fields of the spec may be given beside those of the view."""
    spec_fields = {k: fields.pop(k) for k in list(fields) if k in WorkloadSpec.model_fields}
    usual: dict[str, Any] = {
        "uid": f"uid-{id_}",
        "version": 1,
        "generation": 1,
        "spec": fields.pop("spec", None) or a_spec(**spec_fields),
        "deleting": False,
        "status": WorkloadStatus(),
    }
    return WorkloadView(id=id_, allocations=tuple(allocations), **usual | fields)


def a_snapshot(
    workloads: WorkloadView | Iterable[WorkloadView] = (),
    nodes: NodeView | Iterable[NodeView] | None = None,
    *,
    now: datetime = NOW,
    seed: str = "seed",
) -> Snapshot:
    """These workloads on these nodes (n1 alone unless given). What the workloads' allocations take of the nodes is
    counted on top of what the nodes were built with."""
    views = (workloads,) if isinstance(workloads, WorkloadView) else tuple(workloads)
    if nodes is None:
        nodes = (a_node_view(),)
    machines = (nodes,) if isinstance(nodes, NodeView) else tuple(nodes)
    live = [a for w in views for a in w.allocations if a.live]
    draining = {n.id: n.drain for n in machines}
    return Snapshot(
        now=now,
        workloads=views,
        nodes=tuple(_with_what_is_taken(n, [a for a in live if a.node == n.id]) for n in machines),
        runtime_classes={c.id: a_runtime_class(c.id) for c in BUILT_IN},
        seed=seed,
        leaving=tuple(a for a in live if a.leaves_a_drain and draining.get(a.node) is not None),
    )


def host_ports(spec: WorkloadSpec) -> frozenset[HostPort]:
    return frozenset(HostPort(m.host_ip, m.host_port, m.protocol.value) for m in spec.ports if m.host_port is not None)


def _with_what_is_taken(node: NodeView, live: list[Allocation]) -> NodeView:
    return replace(
        node,
        used_memory_mb=node.used_memory_mb + sum(a.spec.memory_mb for a in live),
        used_cpu_millicores=node.used_cpu_millicores + sum(a.spec.cpu_millicores for a in live),
        host_ports=node.host_ports.union(*(host_ports(a.spec) for a in live)),
    )


_SPEC: dict[str, Any] = {
    "image": "localhost/demo:1.0",
    "runtime_class": "native",
    "memory_mb": 64,
    "cpu_millicores": 100,
}
_ALLOCATION: dict[str, Any] = {
    name: field.default for name, field in Allocation.model_fields.items() if not field.is_required()
}
