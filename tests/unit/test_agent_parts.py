"""The small parts of the agent's core."""

import asyncio
import socket
from dataclasses import replace

import pytest

from agent.action import CreateContainer, EnsureImage, Look
from agent.endpoints import Endpoint, Endpoints
from agent.entry import Entry, Exit
from agent.gate import Gate
from agent.observations import MAX_GONE, Observations
from agent.ports import find_conflict
from agent.progress import Outcome, Progress, Trouble, after_failure
from agent.seen import Seen
from agent.status import SILENT_LOOKS, status_of
from cri.client import CriClient
from cri.convert import PortWish
from cri.errors import Unavailable
from kakuri.agentapi.v1 import agent_pb2 as wire
from support.steps import CLEARED, ENTRY, NEW, NOW, RAN, STOP, WISH, container, has, sandbox


async def test_a_gate_lets_a_few_in_and_a_hung_one_loses_its_turn() -> None:
    gate = Gate(at_once=2, lent_s=0.05)
    first = await gate.take()
    await gate.take()
    third = asyncio.ensure_future(gate.take())
    await asyncio.sleep(0.01)
    assert not third.done()
    first.give_back()
    first.give_back()
    await asyncio.wait_for(third, 1)
    await asyncio.wait_for(gate.take(), 1)  # the second never gives its turn back


def wants(*ports: PortWish, id_: str = "web.0.0000000a", at: int = NOW) -> Entry:
    return replace(ENTRY, id=id_, accepted_at_ns=at, wish=replace(WISH, ports=ports))


def test_a_port_that_a_program_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "in use" in find_conflict(wants(PortWish(80, port)), {})
        assert "in use" in find_conflict(wants(PortWish(80, port, "0.0.0.0")), {})
        assert find_conflict(wants(PortWish(80, port, protocol="udp")), {}) == ""
    assert find_conflict(wants(PortWish(80, port)), {}) == ""
    assert find_conflict(wants(PortWish(80)), {}) == ""


def test_an_address_that_is_not_this_nodes_is_told() -> None:
    assert "does not have the address" in find_conflict(wants(PortWish(80, 18080, "203.0.113.9")), {})


def test_of_two_that_want_a_port_the_first_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    a = wants(PortWish(80, port), at=NOW)
    b = wants(PortWish(80, port, "0.0.0.0"), id_="api.0.0000000b", at=NOW + 1)
    both = {a.id: a, b.id: b}
    assert find_conflict(a, both) == ""
    assert a.id in find_conflict(b, both)
    assert find_conflict(b, {a.id: replace(a, released=True), b.id: b}) == ""


async def test_a_reader_that_was_away_for_too_long_gets_everything() -> None:
    told = Observations("uid")
    told.publish(wire.AllocationStatus(allocation_id="a"))
    first = await told.since(told.instance, 0, 0)
    assert not first.full
    for n in range(MAX_GONE + 2):
        told.publish(wire.AllocationStatus(allocation_id=f"x{n}"))
        told.withdraw(f"x{n}")
    last = await told.since(told.instance, first.revision, 0)
    assert last.full
    assert [s.allocation_id for s in last.allocations] == ["a"]
    assert (await told.since("another", last.revision, 0)).full
    assert (await told.since(told.instance, last.revision + 1, 0)).full


async def test_what_did_not_change_is_no_news() -> None:
    told = Observations("uid")
    assert told.publish(wire.AllocationStatus(allocation_id="a", state="Running"))
    assert not told.publish(wire.AllocationStatus(allocation_id="a", state="Running"))
    told.withdraw("b")
    assert told.publish(wire.AllocationStatus(allocation_id="a", state="Failed"))


async def test_two_runtimes_may_not_have_one_handler_and_a_missing_one_is_told() -> None:
    clients = [CriClient("unix:///nowhere/a"), CriClient("unix:///nowhere/b")]
    with pytest.raises(ValueError, match="runc is given for unix:///nowhere/a and for unix:///nowhere/b"):
        Endpoints([Endpoint(c, ("runc",)) for c in clients])
    endpoints = Endpoints([Endpoint(clients[0], ("runc",))])
    with pytest.raises(Unavailable, match="has the handler kata"):
        endpoints.of("kata")
    for client in clients:
        await client.close()


def state(entry: Entry, seen: Seen = NEW, progress: Progress | None = None, *, ran: bool = False) -> tuple[str, str]:
    status = status_of(entry, seen, progress or Progress(), ran=ran, simulated=False)
    return status.state, status.reason


SILENT = Progress(troubles={Look: Trouble(SILENT_LOOKS, "RuntimeUnreachable", "connection refused", NOW)})


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (state(ENTRY), ("Pending", "Starting")),
        (state(ENTRY, NEW, Progress(pulling=True)), ("Pending", "Pulling")),
        (
            state(ENTRY, NEW, after_failure(Progress(), EnsureImage("x"), Outcome.REFUSED, "no such image", NOW)),
            ("Pending", "ImagePullBackOff"),
        ),
        (state(CLEARED, has(sandbox(), container("running"))), ("Running", "")),
        (state(CLEARED, has(sandbox(), container("exited")), ran=True), ("Running", "")),
        (state(CLEARED, has(sandbox(), container("created"))), ("Pending", "Starting")),
        (state(CLEARED, has(sandbox(), container("created")), ran=True), ("Running", "CrashLoopBackOff")),
        (state(CLEARED, Seen()), ("Pending", "Starting")),
        (state(CLEARED, Seen(), ran=True), ("Running", "")),
        (state(replace(CLEARED, started_once=True), Seen()), ("Running", "")),
        (state(CLEARED, has(sandbox(), container("created")), SILENT), ("Pending", "RuntimeUnreachable")),
        (state(CLEARED, has(sandbox(), container("running")), SILENT), ("Running", "RuntimeUnreachable")),
        (state(RAN), ("Running", "CrashLoopBackOff")),
        (
            state(replace(RAN, started_once=False, last=Exit(128, "StartError", "no such file", 0, NOW))),
            ("Pending", "StartError"),
        ),
        (state(replace(CLEARED, stop=STOP), has(sandbox(), container("running"))), ("Terminating", "Deleted")),
    ],
    ids=[
        "accepted",
        "its image is being pulled",
        "its image can't be pulled",
        "it runs",
        "it has ended, and the ledger doesn't say yet what that means",
        "created is not running",
        "what ran never becomes Pending again",
        "what may run and was not looked at is not said to run",
        "unless it was told to run before",
        "or an attempt before it has run",
        "created in a runtime that is away is not running",
        "running in a runtime that is away is running",
        "between two attempts",
        "between two attempts that never ran",
        "being stopped",
    ],
)
def test_state_and_reason(what: tuple[str, str], expected: tuple[str, str]) -> None:
    assert what == expected


def test_a_short_silence_of_the_runtime_is_not_told_and_a_long_one_is() -> None:
    progress = Progress()
    running = has(sandbox(), container("running"))
    for _ in range(3):
        assert state(CLEARED, running, progress) == ("Running", "")
        progress = after_failure(progress, Look(), Outcome.UNREACHABLE, "connection refused", NOW)
    assert state(CLEARED, running, progress) == ("Running", "RuntimeUnreachable")


def test_the_message_between_attempts_says_how_it_ended_and_when_it_goes_on() -> None:
    progress = after_failure(Progress(), CreateContainer("s", 1), Outcome.TIMED_OUT, "no answer", NOW)
    status = status_of(RAN, NEW, progress, ran=True, simulated=False)
    assert (
        status.message == "the last run ended with exit code 1 (Error); restarting 10 s after it; StartError: no answer"
    )
