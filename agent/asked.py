"""PURE: what a controller asks for, as the ledger keeps it.

One rule: what an older controller does not send is what it was before there was a choice.
"""

from agent.entry import Entry, InPlace, StopAsked
from cri.convert import ContainerWish, PortWish
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.model import OnDisconnect, RestartPolicy, workload_of

MAX_GRACE_S = 3600


def entry_of(start: wire.Start, fence: wire.Fence, now_ns: int) -> Entry:
    given = start.container
    return Entry(
        id=start.allocation_id,
        workload_id=start.workload_id,
        origin=fence.cluster_id,
        revision=start.revision,
        accepted_at_ns=now_ns,
        workload_uid=start.workload_uid,
        slot=start.slot,
        spec_hash=start.spec_hash,
        epoch=fence.epoch,
        wish=ContainerWish(
            image=given.image,
            command=tuple(given.command),
            args=tuple(given.args),
            env=dict(given.env),
            working_dir=given.working_dir,
            memory_mb=given.memory_mb,
            cpu_millicores=given.cpu_millicores,
            ports=tuple(
                PortWish(p.port, p.host_port, p.host_ip or "127.0.0.1", "udp" if p.protocol == "udp" else "tcp")
                for p in given.ports
            ),
            runtime_class=given.runtime_class,
            handler=given.handler,
        ),
        in_place=in_place_of(start.in_place),
    )


def tombstone(asked: StopAsked, id_: str, fence: wire.Fence, now_ns: int) -> Entry:
    return Entry(
        id=id_,
        workload_id=workload_of(id_),
        origin=fence.cluster_id,
        revision=asked.revision,
        accepted_at_ns=now_ns,
        slot=int(id_.split(".")[1]),
        epoch=fence.epoch,
        stop=asked,
    )


def in_place_of(given: wire.InPlaceSpec) -> InPlace:
    return InPlace(
        restart_policy=RestartPolicy(given.restart_policy),
        restart_limit=given.restart_limit,
        grace_s=bounded_grace_s(given.termination_grace_s),
        labels=dict(given.labels),
        generation=given.generation,
        on_disconnect=OnDisconnect(given.on_disconnect or OnDisconnect.KEEP),
    )


def bounded_grace_s(grace_s: int) -> int:
    return min(max(grace_s, 0), MAX_GRACE_S)
