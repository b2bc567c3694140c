"""Which runtimes this agent uses: those it was told of, else a private one that it starts and looks after.

One rule: what is simulated says so, whoever started it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.containerd import PrivateContainerd
from agent.endpoints import Endpoint, Endpoints
from agent.fake_runtime import PrivateFake
from agent.prerequisites import can_run
from agent.private_runtime import PrivateRuntime, Runtime, RuntimeUnavailable
from agent.settings import Settings
from cri.client import CriClient
from cri.errors import CriError
from cri.fake import NAME as FAKE_NAME
from kakuri.log import get_logger

ASK_DEADLINE_S = 10.0
_log = get_logger("agent.runtimes")


@dataclass(frozen=True)
class Found:
    """What the agent works with."""

    kind: str
    """containerd, fake or external."""
    endpoints: Endpoints
    unavailable: Mapping[str, str]
    """Handlers that the machine lacks, and why."""
    private: PrivateRuntime | None = None
    runtime: Runtime | None = None


@asynccontextmanager
async def find_runtimes(settings: Settings, state_dir: Path) -> AsyncIterator[Found]:
    """Connected while the context lasts; a private runtime goes on after it. Raises RuntimeUnavailable."""
    async with AsyncExitStack() as stack:

        def connect(url: str) -> CriClient:
            client = CriClient(url)
            stack.push_async_callback(client.close)
            return client

        if settings.endpoints:
            yield Found("external", await _external(settings, connect), {})
            return
        private = private_runtime(settings, state_dir)
        runtime = await private.start()
        endpoint = endpoint_of(runtime, connect(runtime.endpoint))
        yield Found(runtime.kind, Endpoints([endpoint]), runtime.unavailable, private, runtime)


def endpoint_of(runtime: Runtime, client: CriClient) -> Endpoint:
    """What workers use of a runtime that is ours alone."""
    return Endpoint(
        client,
        runtime.handlers,
        runtime.kind == "fake",
        cgroup_parent=runtime.cgroup_parent,
        notes=runtime.notes,
        end_task=runtime.end_task,
    )


def private_runtime(settings: Settings, state_dir: Path) -> PrivateRuntime:
    """The private runtime of this state dir, not started."""
    if settings.runtime == "fake":
        return PrivateFake(state_dir)
    why = can_run()
    if why is None:
        return PrivateContainerd(state_dir, gvisor_platform=settings.gvisor_platform)
    if settings.runtime == "containerd":
        raise RuntimeUnavailable(f"--runtime containerd: {why}")
    _log.warning("simulated runtime", why=why, meaning="nothing really runs: states are simulated and say so")
    return PrivateFake(state_dir)


async def _external(settings: Settings, connect: Callable[[str], CriClient]) -> Endpoints:
    endpoints = []
    for url, handlers in settings.endpoints:
        client = connect(url)
        name, named = await _ask(client)
        offered = handlers or named
        if not offered:
            raise RuntimeUnavailable(
                f"--cri-endpoint {url}: the runtime does not name its handlers, or does not answer; name them: "
                f"--cri-endpoint {url}=runc"
            )
        endpoints.append(Endpoint(client, offered, name == FAKE_NAME))
    try:
        return Endpoints(endpoints)
    except ValueError as error:
        raise RuntimeUnavailable(str(error)) from error


async def _ask(client: CriClient) -> tuple[str, tuple[str, ...]]:
    """(the runtime's name, the handlers that it names); empty where it says nothing."""
    try:
        async with asyncio.timeout(ASK_DEADLINE_S):
            version = await client.version()
            status = await client.status()
    except (CriError, TimeoutError) as error:
        _log.warning("runtime does not answer", endpoint=client.endpoint, error=str(error))
        return "", ()
    return version.runtime_name, tuple(h.name for h in status.runtime_handlers if h.name)
