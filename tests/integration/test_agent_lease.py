"""The node's lease with real processes: an agent that is killed or held up, on a private containerd, with runc and with
gVisor. The test is the controller."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from agent.boot import boot_ns
from agent.fencer import CGROUPS, find_cgroups
from agent.lease import FENCE_FILE, SECOND, Fence, decode
from agent.oci import DEMO_IMAGE
from agent.prerequisites import can_run
from kakuri.agentapi.v1 import agent_pb2 as wire
from kakuri.agentapi.v1 import agent_pb2_grpc
from kakuri.model import FEATURE_LEASE
from support.agent_process import BOUND_S, Process, runtimes_of
from support.agents import CLUSTER, start_of, stop_of
from support.containerd import leftovers
from support.needs import need

pytestmark = pytest.mark.real

LEASE_S, STOP_BOUND_S = 2.0, 6.0
STUBBORN = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One agent for all of this file, ended with all that it ran."""
    why = can_run()
    need(why is None, f"a private containerd can't run here: {why}")
    made = Process(tmp_path_factory.mktemp("lease") / "agent", flags=("--runtime", "containerd"))
    yield made
    for running in made.running:
        if (told := made.told) is not None:
            os.kill(told["runtime_pid"], signal.SIGCONT)  # of a test that failed midway
        running.kill()
        running.wait(BOUND_S)
    done = made.run("--shutdown")
    assert done.returncode == 0, done.stderr
    assert not runtimes_of(made.state_dir)
    left = leftovers(made.state_dir)
    assert not left, left


class Controller:
    """Observes and grants the lease until it is told to be silent."""

    def __init__(self, stub: agent_pb2_grpc.AgentStub, state_dir: Path) -> None:
        self.stub = stub
        self.state_dir = state_dir
        self.fence = wire.Fence(cluster_id=CLUSTER, epoch=1)
        self.statuses: dict[str, wire.AllocationStatus] = {}
        self.told = wire.ObserveResponse()
        self._granting: asyncio.Task[None] | None = None

    async def observe(self) -> None:
        request = wire.ObserveRequest(
            fence=self.fence,
            instance=self.told.instance,
            since=self.told.revision,
            wait_s=0.3,
            lease_s=LEASE_S,
            stop_bound_s=STOP_BOUND_S,
            heard=self.told.sent_at_ns,
        )
        self.told = await self.stub.Observe(request, timeout=BOUND_S)
        self.statuses |= {s.allocation_id: s for s in self.told.allocations}

    async def until(self, *ids: str, holds: Callable[[wire.AllocationStatus], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not all(i in self.statuses and holds(self.statuses[i]) for i in ids):
                await self.observe()

    async def apply(self, *things: wire.Start | wire.Stop) -> None:
        starts = [t for t in things if isinstance(t, wire.Start)]
        stops = [t for t in things if isinstance(t, wire.Stop)]
        request = wire.ApplyRequest(fence=self.fence, ledger_uid=self.told.ledger_uid, starts=starts, stops=stops)
        answer = await self.stub.Apply(request, timeout=BOUND_S)
        assert not any(o.result for o in answer.outcomes), answer

    async def run(self, *ids: str) -> None:
        """These run, and the odd ones of them in gVisor; those that are named kept outlive the lease."""
        await self.observe()
        await self.apply(*(_start(i) for i in ids))
        await self.until(*ids, holds=lambda s: s.state == "Running" and s.started_at_ns > 0)

    def containers(self, *ids: str) -> list[str]:
        return [self.statuses[i].container_id for i in ids]

    @property
    def on_disk(self) -> Fence:
        return decode((self.state_dir / FENCE_FILE).read_bytes())


def _start(id_: str) -> wire.Start:
    keep = id_.startswith("kept")
    return start_of(
        id_,
        image=DEMO_IMAGE,
        command=STUBBORN,
        grace_s=60,
        handler="runsc" if id_.split(".")[1] == "1" else "runc",
        policy="Always" if keep else "Never",
        on_disconnect="keep" if keep else "replace",
        features=[] if keep else [FEATURE_LEASE],
    )


@asynccontextmanager
async def controlling(process: Process, address: str) -> AsyncIterator[Controller]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Controller(agent_pb2_grpc.AgentStub(channel), process.state_dir)


def processes(containers: Iterable[str]) -> set[int]:
    """What lives in their cgroups."""
    pids: set[int] = set()
    for cgroup in find_cgroups(CGROUPS, list(containers)):
        for folder, _, _ in os.walk(cgroup):
            try:
                pids |= {int(pid) for pid in Path(folder, "cgroup.procs").read_text().split()}
            except OSError:
                continue
    return pids


async def until_dead(containers: list[str]) -> int:
    """When nothing lived in them any more, by the clock of the lease."""
    deadline = time.monotonic() + BOUND_S
    while processes(containers):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return boot_ns()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "held up"])
async def test_with_the_agent_gone_what_is_bound_ends_in_time_and_nothing_else_does(
    process: Process, number: signal.Signals
) -> None:
    suffix = f"{number:08x}"
    bound = [f"web.0.{suffix}", f"web.1.{suffix}"]
    kept = [f"kept.0.{suffix}", f"kept.1.{suffix}"]
    told = process.start()
    async with controlling(process, told["grpc"]) as controller:
        await controller.run(*bound, *kept)
        begun = boot_ns()
        while boot_ns() < begun + (LEASE_S + 0.5) * SECOND:
            await controller.observe()  # which renews
        containers = controller.containers(*bound)
        assert all(processes([c]) for c in containers)
        assert controller.on_disk.ids >= set(containers)
        running = process.running[-1]
        running.send_signal(number)
        if number == signal.SIGSTOP:
            os.kill(told["runtime_pid"], number)  # and with the runtime, too
        lease = controller.on_disk.lease
        dead_ns = await until_dead(containers)
        assert lease.kill_at_ns <= dead_ns <= lease.deadline_ns + STOP_BOUND_S * SECOND
        assert all(processes([c]) for c in controller.containers(*kept))
    if number == signal.SIGKILL:
        process.end(number)
        told = process.start()
    else:
        os.kill(told["runtime_pid"], signal.SIGCONT)
        running.send_signal(signal.SIGCONT)
    async with controlling(process, told["grpc"]) as controller:
        await controller.until(*bound, holds=lambda s: s.released)
        for id_ in bound:
            status = controller.statuses[id_]
            assert (status.state, status.reason, status.restarts) == ("Failed", "NodeLost", 0)
        await controller.until(*kept, holds=lambda s: s.state == "Running")
        assert all(s.restarts == 0 for s in controller.statuses.values())
        await controller.apply(*(stop_of(i, revision=9) for i in kept))
        await controller.until(*kept, holds=lambda s: s.released)
    process.end()
