"""PURE: the store's values ↔ agent.proto's messages. One rule: nothing is decided here."""

from collections.abc import Sequence
from datetime import UTC, datetime

from controller.exchange import Errand, ObservedAllocation, Report, Sent
from controller.plan.snapshot import features_of
from kakuri.agentapi.v1 import agent_pb2 as pb
from kakuri.model import Allocation, Desired, Reason, WorkloadSpec

_RESULTS: dict[int, str] = {
    pb.ApplyOutcome.ACCEPTED: "accepted",
    pb.ApplyOutcome.REFUSED: "refused",
    pb.ApplyOutcome.BUSY: "busy",
}


def apply_request(
    fence: pb.Fence, ledger_uid: str, errands: Sequence[Errand], stops: Sequence[str], removals: Sequence[str]
) -> pb.ApplyRequest:
    """stops, removals: ids that SQL no longer has."""
    request = pb.ApplyRequest(fence=fence, ledger_uid=ledger_uid)
    for errand in errands:
        allocation = errand.allocation
        match allocation.desired:
            case Desired.RUN:
                request.starts.append(_start(errand))
            case Desired.STOP:
                request.stops.append(_stop(allocation, allocation.revision))
            case Desired.REMOVE:
                if allocation.accepted_revision < allocation.revision - 1:
                    # Its end was concluded while its node was away, which has not heard yet that it is to end.
                    request.stops.append(_stop(allocation, allocation.revision - 1))
                request.removals.append(pb.Remove(allocation_id=allocation.id, revision=allocation.revision))
    request.stops.extend(
        pb.Stop(
            allocation_id=i, revision=_LAST_REVISION, reason=Reason.DELETED.value, termination_grace_s=ORPHAN_GRACE_S
        )
        for i in stops
    )
    request.removals.extend(pb.Remove(allocation_id=i, revision=_LAST_REVISION) for i in removals)
    return request


ORPHAN_GRACE_S = 10  # the default of a workload: what this one was promised is known no more
_LAST_REVISION = 2**53
"""Above any that a row had: no delayed start of the same allocation can be newer."""


def _stop(allocation: Allocation, revision: int) -> pb.Stop:
    return pb.Stop(
        allocation_id=allocation.id,
        revision=revision,
        reason=allocation.desired_reason,
        termination_grace_s=allocation.spec.termination_grace_s,
    )


def _start(errand: Errand) -> pb.Start:
    allocation, spec = errand.allocation, errand.allocation.spec
    return pb.Start(
        allocation_id=allocation.id,
        workload_id=allocation.workload,
        workload_uid=allocation.workload_uid,
        slot=allocation.slot,
        revision=allocation.revision,
        spec_hash=allocation.spec_hash,
        container=_container(spec, errand.handler),
        in_place=pb.InPlaceSpec(
            restart_policy=spec.restart_policy.value,
            restart_limit=-1 if spec.restart_limit is None else spec.restart_limit,
            termination_grace_s=spec.termination_grace_s,
            labels=spec.labels,
            generation=allocation.generation,
            on_disconnect=spec.on_disconnect.value,
        ),
        required_features=features_of(spec),
    )


def _container(spec: WorkloadSpec, handler: str) -> pb.ContainerSpec:
    return pb.ContainerSpec(
        image=spec.image,
        command=spec.command,
        args=spec.args,
        env=spec.env,
        working_dir=spec.working_dir or "",
        memory_mb=spec.memory_mb,
        cpu_millicores=spec.cpu_millicores,
        ports=[
            pb.PortMapping(port=p.port, host_port=p.host_port or 0, host_ip=p.host_ip, protocol=p.protocol.value)
            for p in spec.ports
        ],
        runtime_class=spec.runtime_class,
        handler=handler,
    )


def sent(outcomes: Sequence[pb.ApplyOutcome]) -> list[Sent]:
    return [
        Sent(
            allocation_id=o.allocation_id,
            revision=o.revision,
            result=_RESULTS[o.result],  # type: ignore[arg-type]  # the table has every value of the closed enum
            reason=o.reason,
            message=o.message,
        )
        for o in outcomes
    ]


def report(node: str, response: pb.ObserveResponse) -> Report:
    return Report(
        node=node,
        instance=response.instance,
        revision=response.revision,
        ledger_uid=response.ledger_uid,
        full=response.full,
        allocations=tuple(_observed(a) for a in response.allocations),
        gone=tuple(response.gone),
        sent_at_ns=response.sent_at_ns,
    )


def _observed(status: pb.AllocationStatus) -> ObservedAllocation:
    return ObservedAllocation(
        id=status.allocation_id,
        workload=status.workload_id,
        slot=status.slot,
        origin=status.origin,
        revision=status.revision,
        state=status.state,
        reason=status.reason,
        message=status.message,
        exit_code=status.exit_code if status.HasField("exit_code") else None,
        restarts=status.restarts,
        started_once=status.started_once,
        released=status.released,
        simulated=status.simulated,
        handler=status.handler,
        sandbox_id=status.sandbox_id,
        container_id=status.container_id,
        ip=status.ip,
        memory_mb=status.memory_mb,
        cpu_millicores=status.cpu_millicores,
        workload_uid=status.workload_uid,
        started_at=_time(status.started_at_ns),
        finished_at=_time(status.finished_at_ns),
    )


def _time(ns: int) -> datetime | None:
    return datetime.fromtimestamp(ns / 1e9, tz=UTC) if ns else None
