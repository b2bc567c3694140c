"""The agent as a process of its own: what it serves, what a kill leaves, what a shutdown ends. On the fake runtime."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.agentapi.v1 import agent_pb2_grpc
from support.agent_process import BOUND_S, Process, runtimes_of, until
from support.agents import API, CLUSTER, WEB, start_of, stop_of


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path / "agent")
    yield made
    for running in made.running:
        running.kill()
        running.wait(BOUND_S)
    done = made.run("--shutdown")
    assert done.returncode == 0, done.stderr
    assert not runtimes_of(made.state_dir)


class Caller:
    """What a controller does, over the wire."""

    def __init__(self, stub: agent_pb2_grpc.AgentStub, ledger_uid: str) -> None:
        self.stub = stub
        self.ledger_uid = ledger_uid
        self.fence = wire.Fence(cluster_id=CLUSTER, epoch=1)

    async def apply(self, **what: Any) -> wire.ApplyResponse:
        return await self.stub.Apply(wire.ApplyRequest(fence=self.fence, ledger_uid=self.ledger_uid, **what))

    async def until(self, id_: str, holds: Callable[[wire.AllocationStatus], bool]) -> wire.AllocationStatus:
        instance, revision = "", 0
        async with asyncio.timeout(BOUND_S):
            while True:
                request = wire.ObserveRequest(fence=self.fence, instance=instance, since=revision, wait_s=5)
                told = await self.stub.Observe(request)
                instance, revision = told.instance, told.revision
                for status in told.allocations:
                    if status.allocation_id == id_ and holds(status):
                        return status


def calling(address: str, does: Callable[[Caller], Any]) -> Any:
    async def call() -> Any:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = agent_pb2_grpc.AgentStub(channel)
            first = await stub.Observe(wire.ObserveRequest(fence=wire.Fence(cluster_id=CLUSTER, epoch=1)))
            return await does(Caller(stub, first.ledger_uid))

    return asyncio.run(call())


def running(status: wire.AllocationStatus) -> bool:
    return status.state == "Running" and not status.reason and status.started_at_ns > 0


async def start_web(caller: Caller) -> wire.AllocationStatus:
    await caller.apply(starts=[start_of(WEB)])
    return await caller.until(WEB, running)


def test_it_says_where_it_serves_and_answers_there(process: Process) -> None:
    told = process.start()
    assert told["runtime"] == "fake"
    assert told["cri"].startswith("unix://")
    assert psutil.pid_exists(told["runtime_pid"])
    status = calling(told["grpc"], start_web)
    assert status.simulated

    async def ask(caller: Caller) -> None:
        found = await caller.stub.GetStatus(wire.GetStatusRequest(id="web"))
        assert found.status.allocation_id == WEB
        for refused, code in (
            (caller.stub.GetStatus(wire.GetStatusRequest(id="nobody")), grpc.StatusCode.NOT_FOUND),
            (caller.stub.Apply(wire.ApplyRequest()), grpc.StatusCode.INVALID_ARGUMENT),
            (
                caller.stub.Apply(wire.ApplyRequest(fence=wire.Fence(cluster_id="other", epoch=1))),
                grpc.StatusCode.FAILED_PRECONDITION,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await refused
            assert error.value.code() == code
        log = [chunk.content async for chunk in caller.stub.Logs(wire.LogsRequest(allocation_id=WEB, tail=-1))]
        assert b"simulated" in b"".join(log)
        follow = caller.stub.Logs(wire.LogsRequest(allocation_id=WEB, tail=-1, follow=True))
        assert (await follow.read()).content
        await caller.apply(stops=[stop_of(WEB)])
        async with asyncio.timeout(BOUND_S):
            while await follow.read() is not grpc.aio.EOF:
                pass

    calling(told["grpc"], ask)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_end_leaves_all_running_and_its_next_life_finds_it(process: Process, number: int) -> None:
    first = process.start()
    before = calling(first["grpc"], start_web)
    process.end(number)
    assert psutil.pid_exists(first["runtime_pid"])
    second = process.start()
    assert second["runtime_pid"] == first["runtime_pid"]
    after = calling(second["grpc"], lambda caller: caller.until(WEB, running))
    assert (after.container_id, after.restarts) == (before.container_id, 0)


def test_a_runtime_that_died_is_started_again(process: Process) -> None:
    told = process.start()
    calling(told["grpc"], start_web)
    os.kill(told["runtime_pid"], signal.SIGKILL)
    again = until(lambda: (t := process.told) and t["runtime_pid"] != told["runtime_pid"] and t)
    assert again["pid"] == told["pid"]
    # The fake forgets all when it dies, so its container is lost, and runs again.
    status = calling(told["grpc"], lambda caller: caller.until(WEB, lambda s: running(s) and s.restarts == 1))
    assert "no longer in the runtime" in status.message


def test_an_agent_that_can_not_write_where_it_listens_serves_all_the_same_and_tells_it_later(process: Process) -> None:
    in_the_way = process.state_dir / "agent.json.new"
    in_the_way.mkdir(parents=True)
    (process.state_dir / "test.log").touch()

    def clear_the_way() -> None:
        until(lambda: "not announced" in process.log)
        in_the_way.rmdir()

    threading.Thread(target=clear_the_way).start()
    told = process.start()
    calling(told["grpc"], start_web)


def test_a_shutdown_ends_all_and_leaves_the_ends_to_be_told(process: Process) -> None:
    told = process.start()
    calling(told["grpc"], start_web)
    refused = process.run("--shutdown")
    assert refused.returncode == 1
    assert f"another agent (pid {told['pid']}) works on" in refused.stderr
    process.end()
    for _ in range(2):
        done = process.run("--shutdown")
        assert done.returncode == 0, done.stderr
        assert not runtimes_of(process.state_dir)
        assert not (process.state_dir / "agent.json").exists()
    told = process.start()
    ended = calling(told["grpc"], lambda caller: caller.until(WEB, lambda s: s.released))
    assert (ended.state, ended.reason, ended.message) == ("Failed", "NodeLost", "the node was shut down")


def test_a_shutdown_after_the_runtime_died_with_all_it_ran_says_so_too(process: Process) -> None:
    told = process.start()
    calling(told["grpc"], start_web)
    process.end(signal.SIGKILL)
    os.kill(told["runtime_pid"], signal.SIGKILL)
    done = process.run("--shutdown")
    assert done.returncode == 0, done.stderr
    ended = calling(process.start()["grpc"], lambda caller: caller.until(WEB, lambda s: s.released))
    assert (ended.state, ended.reason) == ("Failed", "NodeLost")


def test_by_hand_and_by_a_controller_go_side_by_side(process: Process) -> None:
    told = process.start()
    calling(told["grpc"], start_web)

    async def talk() -> None:
        host, port = told["json"].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def ask(**message: Any) -> Any:
            writer.write(json.dumps(message).encode() + b"\n")
            return json.loads(await asyncio.wait_for(reader.readline(), BOUND_S))

        async def until_state(state: str) -> None:
            async with asyncio.timeout(BOUND_S):
                while (await ask(type="GetStatus", id="wl-123"))["state"] != state:
                    await asyncio.sleep(0.02)

        workload = {
            "id": "wl-123", "image": "demo:1", "runtime_class": "edera-zone", "memory_mb": 512, "cpu_millicores": 500
        }  # fmt: skip
        while "none yet" in (first := await ask(type="StartWorkload", workload=workload)).get("message", ""):
            await asyncio.sleep(0.05)  # the canaries still fly
        assert first == {"type": "Status", "id": "wl-123", "state": "Pending"}
        await until_state("Running")
        again = await ask(type="StartWorkload", workload=workload)
        assert again == {"type": "Status", "id": "wl-123", "state": "Running"}
        other = await ask(type="StartWorkload", workload={**workload, "image": "other:1"})
        assert other["code"] == "AlreadyExists"
        unknown = await ask(type="StartWorkload", workload={**workload, "id": "wl-2", "runtime_class": "nope"})
        assert (unknown["code"], "'nope'" in unknown["message"]) == ("InvalidArgument", True)
        small = await ask(type="StartWorkload", workload={**workload, "id": "wl-2", "memory_mb": 20})
        assert "needs at least 300" in small["message"]
        theirs = await ask(type="StopWorkload", id="web")
        assert "run by a controller" in theirs["message"]
        assert (await ask(type="StartWorkload", workload={**workload, "id": "web"}))["code"] == "AlreadyExists"
        assert (await ask(type="GetStatus", id="web"))["state"] == "Running"
        assert (await ask(type="GetStatus", id="nobody"))["code"] == "NotFound"
        assert (await ask(type="StopWorkload", id="wl-123"))["state"] == "Terminating"
        await until_state("Succeeded")
        writer.close()

    async def no_controller_touches_it(caller: Caller) -> None:
        found = (await caller.stub.GetStatus(wire.GetStatusRequest(id="wl-123"))).status
        assert found.origin == "hand"
        response = await caller.apply(stops=[stop_of(found.allocation_id)])
        assert response.outcomes[0].result == wire.ApplyOutcome.REFUSED

    asyncio.run(talk())
    calling(told["grpc"], no_controller_touches_it)


def test_what_it_cannot_start_with_it_says_in_words(process: Process, tmp_path: Path) -> None:
    told = process.start()
    second = Process(tmp_path / "second", flags=("--cri-endpoint", f"{told['cri']}=runc"))
    for more, code, words in (
        (("--grpc", told["grpc"]), 1, f"--grpc {told['grpc']}: can't listen there"),
        (("--json", told["json"]), 1, f"--json {told['json']}: can't listen there"),
        (("--cri-endpoint", f"{told['cri']}=runc"), 1, "the handler runc is given for"),
        (("--node", "No Name"), 2, "--node: 'No Name' is not a name"),
    ):
        done = second.run(*more)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    ledger = second.state_dir / "ledger"
    ledger.write_text("00000000 [\n")
    done = second.run()
    assert (done.returncode, f"{ledger}: line 1 is damaged" in done.stderr) == (1, True), done.stderr


def test_a_runtime_that_was_there_already_is_used_and_left(process: Process, tmp_path: Path) -> None:
    told = process.start()
    other = Process(tmp_path / "other", flags=("--cri-endpoint", told["cri"]))
    try:
        second = other.start()
        assert (second["runtime"], second["runtime_pid"], second["cri"]) == ("external", None, told["cri"])

        async def start_web(caller: Caller) -> wire.AllocationStatus:
            await caller.apply(starts=[start_of(WEB)])
            return await caller.until(WEB, running)

        async def start_api(caller: Caller) -> wire.AllocationStatus:
            await caller.apply(starts=[start_of(API)])
            return await caller.until(API, running)

        before = calling(told["grpc"], start_web)
        assert calling(second["grpc"], start_api).simulated
        other.end()
        done = other.run("--shutdown")
        assert done.returncode == 0, done.stderr
    finally:
        for left in other.running:
            left.kill()
            left.wait(BOUND_S)
    assert psutil.pid_exists(told["runtime_pid"])
    report = calling(told["grpc"], lambda caller: caller.stub.Observe(wire.ObserveRequest(fence=caller.fence)))
    assert API not in {s.allocation_id for s in report.allocations if s.state == "Running"}
    [web] = [s for s in report.allocations if s.allocation_id == WEB]
    assert (web.state, web.restarts, web.container_id) == ("Running", 0, before.container_id)
