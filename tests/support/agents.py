"""An agent's core on the fake runtime, in the test's own process, with a clock that the test can move on."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent import boot
from agent.calls import Calls
from agent.endpoints import Endpoint, Endpoints
from agent.ledger import Ledger, open_ledger
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.sync import Sync
from cri.client import CriClient
from cri.convert import LABEL_ALLOCATION
from cri.fake import FakeRuntime
from cri.v1 import runtime_pb2 as pb
from kakuri.agentapi.v1 import agent_pb2 as wire

CLUSTER = "cluster-a"
WEB, API, JOB = "web.0.0000000a", "api.0.0000000b", "job.0.0000000c"
BOUND_S = 10.0


class SkippingClock:
    """Real time, but a test may skip some of it."""

    def __init__(self) -> None:
        self._skipped_ns = 0
        self._skips = asyncio.Event()

    def now_ns(self) -> int:
        return time.time_ns() + self._skipped_ns

    def boot_ns(self) -> int:
        return boot.boot_ns() + self._skipped_ns

    def skip(self, seconds: float) -> None:
        self._skipped_ns += int(seconds * 1e9)
        self._skips.set()
        self._skips = asyncio.Event()

    async def wait(self, kick: asyncio.Event, until_ns: int | None) -> None:
        while not kick.is_set() and (until_ns is None or self.now_ns() < until_ns):
            waits = [asyncio.ensure_future(kick.wait()), asyncio.ensure_future(self._skips.wait())]
            left_s = None if until_ns is None else max(until_ns - self.now_ns(), 0) / 1e9 + 0.001
            try:
                await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in waits:
                    waiting.cancel()


@dataclass
class Agent:
    """One life of an agent."""

    ledger: Ledger
    observations: Observations
    sync: Sync
    calls: Calls
    clock: SkippingClock
    logs: Path
    epoch: int = 1

    @property
    def fence(self) -> wire.Fence:
        return wire.Fence(cluster_id=CLUSTER, epoch=self.epoch)

    async def apply(self, *things: wire.Start | wire.Stop | wire.Remove) -> list[wire.ApplyOutcome]:
        request = wire.ApplyRequest(
            fence=self.fence,
            ledger_uid=self.ledger.uid,
            starts=[t for t in things if isinstance(t, wire.Start)],
            stops=[t for t in things if isinstance(t, wire.Stop)],
            removals=[t for t in things if isinstance(t, wire.Remove)],
        )
        return list((await self.calls.apply(request)).outcomes)

    async def until(self, id_: str, holds: Callable[[wire.AllocationStatus], bool]) -> wire.AllocationStatus:
        """The status, once this holds of it."""
        seen: list[str] = []
        deadline = time.monotonic() + BOUND_S
        instance, revision = "", 0
        while True:
            response = await self.calls.observe(
                wire.ObserveRequest(fence=self.fence, instance=instance, since=revision, wait_s=0.2)
            )
            instance, revision = response.instance, response.revision
            for status in response.allocations:
                if status.allocation_id == id_:
                    seen.append(f"{status.state}/{status.reason}: {status.message}")
                    if holds(status):
                        return status
            if time.monotonic() > deadline:
                raise AssertionError(f"{id_} did not come so far within {BOUND_S} s; it was " + " → ".join(seen))

    async def until_state(self, id_: str, state: str, reason: str | None = None) -> wire.AllocationStatus:
        return await self.until(id_, lambda s: s.state == state and reason in {None, s.reason})

    async def until_released(self, id_: str) -> wire.AllocationStatus:
        return await self.until(id_, lambda s: s.released)


Life = Callable[[], AbstractAsyncContextManager[Agent]]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime(tmp_path / "cri.sock", images=["demo:1"]) as fake:
        yield fake


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


@pytest.fixture
def life(tmp_path: Path, runtime: FakeRuntime, clock: SkippingClock) -> Life:
    """Each call is another life of the same agent; the end of its block is a kill."""
    return lambda: living_agent(tmp_path, [runtime.endpoint], clock)


@pytest.fixture
async def agent(life: Life) -> AsyncIterator[Agent]:
    async with life() as alive:
        yield alive


@asynccontextmanager
async def living_agent(
    folder: Path,
    endpoints: Sequence[str],
    clock: SkippingClock,
    *,
    endpoint: Callable[[CriClient], Endpoint] = lambda client: Endpoint(client, ("runc", "runsc"), simulated=True),
) -> AsyncIterator[Agent]:
    """An agent on this state dir, until the block ends; then it is gone as if it had been killed."""
    clients = [CriClient(e) for e in endpoints]
    ledger = open_ledger(folder / "ledger")
    observations = Observations(ledger.uid)
    ends = Endpoints([endpoint(c) for c in clients])
    logs = folder / "logs"
    lease = NodeLease(ledger, clock, folder, fencer_program=None)
    sync = Sync(ledger, observations, ends, lease, clock, logs_folder=logs)
    calls = Calls(ledger, observations, sync, ends, lease, clock, logs_folder=logs)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(sync.run())
            await sync.looked.wait()
            leasing = tasks.create_task(lease.run(sync))
            try:
                yield Agent(ledger, observations, sync, calls, clock, logs)
            finally:
                running.cancel()
                leasing.cancel()
    finally:
        lease.close()
        ledger.close()
        for client in clients:
            await client.close()


def start_of(id_: str, **changes: object) -> wire.Start:
    """A start as a controller sends it. policy, limit, image, handler, env, ports, command, grace_s, revision."""
    workload, slot, _ = id_.split(".")
    spec = wire.ContainerSpec(
        image=str(changes.get("image", "demo:1")),
        memory_mb=64,
        cpu_millicores=500,
        runtime_class="native",
        handler=str(changes.get("handler", "runc")),
        env=changes.get("env", {}),  # type: ignore[arg-type]
        ports=changes.get("ports", ()),  # type: ignore[arg-type]
        command=changes.get("command", ()),  # type: ignore[arg-type]
    )
    in_place = wire.InPlaceSpec(
        restart_policy=str(changes.get("policy", "Always")),
        restart_limit=int(str(changes.get("limit", -1))),
        termination_grace_s=int(str(changes.get("grace_s", 1))),
        generation=1,
        on_disconnect=str(changes.get("on_disconnect", "")),
    )
    return wire.Start(
        allocation_id=id_,
        workload_id=workload,
        workload_uid="uid-" + workload,
        slot=int(slot),
        revision=int(str(changes.get("revision", 1))),
        spec_hash="0123456789abcdef",
        container=spec,
        in_place=in_place,
        required_features=changes.get("features", ()),  # type: ignore[arg-type]
    )


def fake_env(script: str) -> dict[str, str]:
    """What the fake's container is to do; see cri/fake_script.py."""
    return {"KAKURI_FAKE": script}


def stop_of(id_: str, reason: str = "Deleted", revision: int = 2) -> wire.Stop:
    return wire.Stop(allocation_id=id_, revision=revision, reason=reason, termination_grace_s=1)


async def runtime_has(runtime: FakeRuntime) -> tuple[Counter[str], Counter[str]]:
    return await sandboxes_and_running(runtime.endpoint)


async def sandboxes_and_running(endpoint: str) -> tuple[Counter[str], Counter[str]]:
    """(sandboxes, containers that run), by the allocation's id."""
    client = CriClient(endpoint)
    try:
        sandboxes = Counter(s.metadata.name for s in await client.list_pod_sandboxes())
        containers = [c for c in await client.list_containers() if c.state == pb.CONTAINER_RUNNING]
        return sandboxes, Counter(c.labels[LABEL_ALLOCATION] for c in containers)
    finally:
        await client.close()
