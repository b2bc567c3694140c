from datetime import UTC, datetime

import pytest

from builders import a_port, a_spec, an_allocation
from controller.exchange import Errand
from controller.nodes import wire
from kakuri.agentapi.v1 import agent_pb2 as pb
from kakuri.model import Desired, RestartPolicy

FENCE = pb.Fence(cluster_id="c", epoch=3)


def test_each_errand_becomes_what_its_row_wants() -> None:
    errands = [
        Errand(an_allocation(slot=0, revision=1), "runc"),
        Errand(an_allocation(slot=1, revision=2, desired=Desired.STOP, desired_reason="Updating"), "runc"),
        Errand(an_allocation(slot=2, revision=3, desired=Desired.REMOVE), "runc"),
    ]

    request = wire.apply_request(FENCE, "ledger", errands, stops=["x"], removals=["y"])

    assert request.fence == FENCE
    assert request.ledger_uid == "ledger"
    assert [(s.slot, s.revision, s.container.handler) for s in request.starts] == [(0, 1, "runc")]
    assert [(s.allocation_id, s.reason) for s in request.stops] == [
        (errands[1].allocation.id, "Updating"),
        ("x", "Deleted"),
    ]
    assert [r.allocation_id for r in request.removals] == [errands[2].allocation.id, "y"]
    assert request.stops[1].revision > 10**9


def test_a_start_bears_all_that_a_container_needs() -> None:
    spec = a_spec(
        image="example.com/a:1",
        command=("run",),
        args=("-x",),
        env={"A": "b"},
        working_dir="/srv",
        memory_mb=64,
        cpu_millicores=250,
        ports=(a_port(18080, port=80),),
        restart_policy=RestartPolicy.ALWAYS,
        labels={"app": "web"},
        termination_grace_s=7,
    )

    [start] = wire.apply_request(FENCE, "l", [Errand(an_allocation(spec=spec, generation=4), "runsc")], [], []).starts

    container = start.container
    assert (container.image, list(container.command), list(container.args)) == ("example.com/a:1", ["run"], ["-x"])
    assert (dict(container.env), container.working_dir) == ({"A": "b"}, "/srv")
    assert (container.memory_mb, container.cpu_millicores, container.handler) == (64, 250, "runsc")
    [port] = container.ports
    assert (port.port, port.host_port, port.host_ip, port.protocol) == (80, 18080, "127.0.0.1", "tcp")
    in_place = start.in_place
    assert (in_place.restart_policy, in_place.restart_limit, in_place.termination_grace_s) == ("Always", -1, 7)
    assert (dict(in_place.labels), in_place.generation) == ({"app": "web"}, 4)


def test_a_report_keeps_no_exit_code_apart_from_zero() -> None:
    running = pb.AllocationStatus(
        allocation_id="a.0.1", state="Running", started_at_ns=1_500_000_000, memory_mb=64, cpu_millicores=250
    )
    done = pb.AllocationStatus(allocation_id="a.0.2", state="Succeeded", exit_code=0)

    report = wire.report("n", pb.ObserveResponse(instance="i", revision=2, allocations=[running, done], gone=["g"]))

    assert [a.exit_code for a in report.allocations] == [None, 0]
    assert (report.allocations[0].memory_mb, report.allocations[0].cpu_millicores) == (64, 250)
    assert report.allocations[0].started_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert report.allocations[1].started_at is None
    assert (report.node, report.gone) == ("n", ("g",))


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (pb.ApplyOutcome.ACCEPTED, "accepted"),
        (pb.ApplyOutcome.REFUSED, "refused"),
        (pb.ApplyOutcome.BUSY, "busy"),
    ],
)
def test_every_result_of_the_wire_has_its_word(result: pb.ApplyOutcome.Result, word: str) -> None:
    [sent] = wire.sent([pb.ApplyOutcome(allocation_id="a", result=result, revision=5, reason="R", message="m")])

    assert (sent.result, sent.revision, sent.reason, sent.message) == (word, 5, "R", "m")
