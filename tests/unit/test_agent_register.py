"""The node tells the controller of itself until it is heard, and what proves handlers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from agent.canary import Canaries
from agent.endpoints import Endpoint, Endpoints
from agent.register import AnyOf, Registration, measure_capacity, node_labels
from agent.settings import parse
from cri.client import CriClient
from cri.fake import FakeRuntime, Fault
from kakuri.client import ServerUnreachable
from kakuri.model import Capacity, NodeRegistration, ProvedClass
from kakuri.model.fields import check_labels
from support.agents import SkippingClock, runtime_has

Make = Callable[..., Canaries]


class Controller:
    """What hears it."""

    def __init__(self) -> None:
        self.away = False
        self.heard: list[NodeRegistration] = []
        self.tries = 0

    async def register_node(self, id_: str, registration: NodeRegistration) -> object:
        self.tries += 1
        if self.away:
            raise ServerUnreachable("http://x", "connection refused")
        self.heard.append(registration)
        return id_


def registration(instance: str = "i") -> NodeRegistration:
    return NodeRegistration(
        address="127.0.0.1:9001", capacity=Capacity(memory_mb=1, cpu_millicores=1), instance=instance, ledger_uid="u"
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0.002)


async def test_it_is_told_again_until_heard_and_then_now_and_then(clock: SkippingClock) -> None:
    controller = Controller()
    controller.away = True
    observed = 0
    teller = Registration("n", registration, clock, observed_at_ns=lambda: observed)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(teller.tell_for_ever(controller))
        for _ in range(8):
            await settle()
            clock.skip(5)
        assert controller.tries >= 8
        controller.away = False
        clock.skip(5)
        await settle()
        assert len(controller.heard) == 1
        observed = clock.now_ns()
        clock.skip(6)  # nobody had observed by then: soon again
        await settle()
        assert len(controller.heard) == 2
        clock.skip(20)
        await settle()
        assert len(controller.heard) == 2
        clock.skip(11)
        await settle()
        assert len(controller.heard) == 3
        teller.changed()
        await settle()
        assert len(controller.heard) == 4
        telling.cancel()


def test_a_machine_keeps_some_memory_for_itself_and_has_labels_that_are_labels() -> None:
    capacity = measure_capacity()
    assert capacity.memory_mb > 0
    assert capacity.cpu_millicores % 1000 == 0
    labels = node_labels(parse(["--label", "zone=a"])[0])
    check_labels(dict(labels))
    assert labels["zone"] == "a"
    assert {"kakuri.dev/hostname", "kakuri.dev/arch", "kakuri.dev/os"} <= labels.keys()


@pytest.fixture
async def canaries_of(tmp_path: Path, runtime: FakeRuntime, clock: SkippingClock) -> AsyncIterator[Make]:
    clients: list[CriClient] = []

    def make(*handlers: str) -> Canaries:
        client = CriClient(runtime.endpoint)
        clients.append(client)
        endpoints = Endpoints([Endpoint(client, handlers, simulated=True)])
        return Canaries(
            endpoints, clock, tmp_path / "proved.json", changed=lambda: None, unavailable={"kata": "no /dev/kvm"}
        )

    yield make
    for client in clients:
        await client.close()


async def first(canaries: Canaries) -> None:
    async with asyncio.TaskGroup() as tasks:
        flying = tasks.create_task(canaries.run())
        await asyncio.wait_for(canaries.tried.wait(), 10)
        flying.cancel()


async def test_handlers_are_offered_only_when_a_canary_came_back(canaries_of: Make, runtime: FakeRuntime) -> None:
    runtime.faults.add(Fault("RunPodSandbox", code=grpc.StatusCode.UNKNOWN, message="no shim", times=1))
    canaries = canaries_of("runsc")
    await first(canaries)
    assert canaries.classes == ()
    assert {u.handler: u.message for u in canaries.unproved} == {
        "kata": "no /dev/kvm",
        "runsc": "a canary sandbox does not run on it: no shim",
    }
    assert "no shim" in canaries.why_not("gvisor")
    canaries = canaries_of("runsc", "runc")
    await first(canaries)
    assert canaries.classes == (ProvedClass(id="gvisor", handler="runsc"), ProvedClass(id="native", handler="runc"))
    assert canaries.runtime == "kakuri-fake 1"
    assert not (await runtime_has(runtime))[0]


async def test_a_handler_that_is_not_what_its_name_says_is_not_offered(canaries_of: Make, runtime: FakeRuntime) -> None:
    runtime.faults.report_handler = "runc"
    canaries = canaries_of("runsc")
    await first(canaries)
    assert canaries.classes == ()
    assert "reports runc" in canaries.why_not("gvisor")


async def test_a_proof_is_remembered_and_a_failure_is_tried_again(
    canaries_of: Make, runtime: FakeRuntime, clock: SkippingClock
) -> None:
    await first(canaries_of("runc"))
    runtime.faults.add(Fault("RunPodSandbox", code=grpc.StatusCode.UNKNOWN, times=1))
    again = canaries_of("runc", "runsc")
    async with asyncio.TaskGroup() as tasks:
        flying = tasks.create_task(again.run())
        await asyncio.wait_for(again.tried.wait(), 10)
        assert [c.id for c in again.classes] == ["native"]
        clock.skip(31)
        async with asyncio.timeout(10):
            while [c.id for c in again.classes] != ["gvisor", "native"]:
                await asyncio.sleep(0.01)
        flying.cancel()


async def test_what_a_killed_agents_canary_left_is_removed(canaries_of: Make, runtime: FakeRuntime) -> None:
    runtime.faults.add(Fault("PodSandboxStatus", delay_s=60, times=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await canaries_of("runc").run()
    runtime.faults.clear()
    await first(canaries_of("runc"))
    assert not (await runtime_has(runtime))[0]


async def test_any_controller_that_answers_is_told_and_asked_first_from_then_on() -> None:
    first, second = Controller(), Controller()
    both = AnyOf([first, second])
    first.away = True
    assert await both.register_node("n", registration()) == "n"
    first.away = False
    await both.register_node("n", registration("i2"))
    assert (first.tries, len(second.heard)) == (1, 2)
    first.away = second.away = True
    with pytest.raises(ServerUnreachable):
        await both.register_node("n", registration())
