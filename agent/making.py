"""The making of an allocation's sandbox and containers.

One rule: what is made is told as the runtime answered; whether it is as it should be is asked of its status.
"""

import asyncio
from collections.abc import Callable

from agent import logs
from agent.action import CreateContainer
from agent.endpoints import Endpoint
from agent.entry import Entry
from agent.means import Means
from cri.convert import ObservedContainer, ObservedSandbox, container_config, sandbox_config
from cri.v1 import runtime_pb2 as pb


async def make_sandbox(means: Means, entry: Entry) -> ObservedSandbox:
    """A new sandbox of it. Raises CriError, OSError."""
    assert entry.wish is not None
    endpoint = means.endpoints.of(entry.wish.handler)
    (means.logs / entry.id).mkdir(parents=True, exist_ok=True)
    id_ = await endpoint.client.run_pod_sandbox(_sandbox_config(means, entry, endpoint), entry.wish.handler)
    now_ns = means.clock.now_ns()
    return ObservedSandbox(id_, entry.id, entry.owner, ready=True, handler="", ip="", created_at_ns=now_ns)


async def make_container(
    means: Means, entry: Entry, action: CreateContainer, *, last_look: Callable[[], None]
) -> ObservedContainer:
    """The container of this attempt, not started. last_look: raises when it must not be made. Raises CriError."""
    assert entry.wish is not None
    endpoint = means.endpoints.of(entry.wish.handler)
    if action.attempt > 1:
        # What --previous shows stays.
        await asyncio.to_thread(logs.forget_before, means.logs / entry.id, action.attempt - 1)
    last_look()
    config = container_config(entry.owner, entry.wish, attempt=action.attempt)
    id_ = await endpoint.client.create_container(action.sandbox_id, config, _sandbox_config(means, entry, endpoint))
    return ObservedContainer(
        id=id_,
        sandbox_id=action.sandbox_id,
        allocation_id=entry.id,
        attempt=action.attempt,
        state="created",
        exit_code=None,
        reason="",
        message="",
        created_at_ns=means.clock.now_ns(),
        started_at_ns=0,
        finished_at_ns=0,
    )


def _sandbox_config(means: Means, entry: Entry, endpoint: Endpoint) -> pb.PodSandboxConfig:
    assert entry.wish is not None
    folder = str(means.logs / entry.id)
    return sandbox_config(entry.owner, entry.wish, log_directory=folder, cgroup_parent=endpoint.cgroup_parent)
