"""Which handlers work here: each has to run a canary sandbox and report itself before anything is offered on it.

One rule: only success is remembered (for this version of the runtime), so that a restarted agent serves at once; a
failure is tried again now and then, for somebody may have repaired it.
"""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.clock import Clock
from agent.endpoints import Endpoint, Endpoints
from agent.files import put_file
from agent.oci import PAUSE_IMAGE
from agent.sync import CANARY
from cri.convert import LABEL_ORIGIN, OURS, ContainerWish, SandboxOwner, container_config, sandbox_config
from cri.errors import CriError
from cri.v1 import runtime_pb2 as pb
from kakuri.log import get_logger
from kakuri.model import BUILT_IN, ProvedClass, UnprovedHandler

DEADLINE_S = 60.0
"""For one canary: a VM boots in it."""
FIRST_RETRY_S, LAST_RETRY_S = 30.0, 600.0
_MEMORY_MB = 320
"""An Edera zone has at least 300."""
_log = get_logger("agent.canary")


@dataclass(frozen=True)
class Proof:
    """What is known of one endpoint's handlers."""

    runtime: str = ""
    """Name and version, for people; empty while it was never reached."""
    proved: frozenset[str] = frozenset()
    unproved: Mapping[str, str] = field(default_factory=dict)
    """Handler → why not."""


class Canaries:
    """Sends canaries, and knows what they found."""

    def __init__(
        self,
        endpoints: Endpoints,
        clock: Clock,
        memory: Path,
        *,
        changed: Callable[[], None],
        unavailable: Mapping[str, str],
    ) -> None:
        """memory: a file for what was proved. unavailable: handlers that the machine lacks altogether, and why."""
        self.tried = asyncio.Event()
        """Each handler was tried once, or its proof remembered."""
        self._endpoints = endpoints
        self._clock = clock
        self._memory = memory
        self._changed = changed
        self._unavailable = unavailable
        self._proofs: dict[Endpoint, Proof] = {e: Proof() for e in endpoints.all}

    @property
    def proved(self) -> Mapping[str, str]:
        """Runtime class → handler."""
        return {c.id: c.handler for c in self.classes}

    @property
    def classes(self) -> tuple[ProvedClass, ...]:
        """What can be offered. A handler that no built-in class has stands under its own name."""
        handlers = {h for p in self._proofs.values() for h in p.proved}
        known = {c.handler: c.id for c in BUILT_IN}
        return tuple(
            sorted((ProvedClass(id=known.get(h, _as_name(h)), handler=h) for h in handlers), key=lambda c: c.id)
        )

    @property
    def unproved(self) -> tuple[UnprovedHandler, ...]:
        whys = {**self._unavailable, **{h: why for p in self._proofs.values() for h, why in p.unproved.items()}}
        return tuple(UnprovedHandler(handler=h, message=why) for h, why in sorted(whys.items()))

    @property
    def runtime(self) -> str:
        return ", ".join(p.runtime for p in self._proofs.values() if p.runtime)

    def why_not(self, runtime_class: str) -> str:
        """Why the node does not offer this class; empty when it is no class that is known here."""
        handler = next((c.handler for c in BUILT_IN if c.id == runtime_class), runtime_class)
        return next((u.message for u in self.unproved if u.handler == handler), "")

    async def run(self) -> None:
        """Proves all there is, then tries again what failed."""
        async with asyncio.TaskGroup() as tasks:
            first = [tasks.create_task(self._prove(e, remembered=True)) for e in self._endpoints.all]
            await asyncio.wait(first)
            self.tried.set()
            retry_s = FIRST_RETRY_S
            while True:
                await self._clock.wait(asyncio.Event(), self._clock.now_ns() + int(retry_s * 1e9))
                failed = [e for e in self._endpoints.all if self._proofs[e].unproved]
                for endpoint in failed:
                    await self._prove(endpoint, remembered=False)
                retry_s = min(retry_s * 2, LAST_RETRY_S) if failed else FIRST_RETRY_S

    async def _prove(self, endpoint: Endpoint, *, remembered: bool) -> None:
        try:
            version = await endpoint.client.version()
            runtime = f"{version.runtime_name} {version.runtime_version}"
            await self._remove_leftovers(endpoint)
        except CriError as error:
            why = f"the runtime at {endpoint.client.endpoint} can't be reached: {error.message}"
            self._set(endpoint, Proof(unproved=dict.fromkeys(endpoint.handlers, why)))
            return
        known = self._remembered(endpoint, runtime) if remembered else self._proofs[endpoint].proved
        open_ = [h for h in endpoint.handlers if h not in known]
        if known:
            self._set(endpoint, Proof(runtime, frozenset(known)))
        outcomes: dict[str, str] = {}

        async def fly(handler: str) -> None:
            outcomes[handler] = await _fly(endpoint, handler)

        async with asyncio.TaskGroup() as tasks:
            for handler in open_:
                tasks.create_task(fly(handler))
        proved = frozenset({*known, *(h for h, why in outcomes.items() if not why)})
        failed = {h: why for h, why in outcomes.items() if why}
        self._set(endpoint, Proof(runtime, proved, failed))
        if open_:
            _log.info("canaries flown", endpoint=endpoint.client.endpoint, proved=sorted(proved), failed=failed)
            await asyncio.to_thread(self._remember)

    def _set(self, endpoint: Endpoint, proof: Proof) -> None:
        if self._proofs[endpoint] != proof:
            self._proofs[endpoint] = proof
            self._changed()

    async def _remove_leftovers(self, endpoint: Endpoint) -> None:
        """What canaries of an agent that was killed left is gone."""
        for sandbox in await endpoint.client.list_pod_sandboxes({**OURS, LABEL_ORIGIN: CANARY}):
            await _remove(endpoint, sandbox.id)

    def _remembered(self, endpoint: Endpoint, runtime: str) -> frozenset[str]:
        try:
            noted = json.loads(self._memory.read_text()).get(endpoint.client.endpoint, {})
            fits = noted.get("runtime") == runtime
            return frozenset(noted.get("proved", ())) & frozenset(endpoint.handlers) if fits else frozenset()
        except (OSError, ValueError, AttributeError, TypeError):
            return frozenset()

    def _remember(self) -> None:
        noted = {e.client.endpoint: {"runtime": p.runtime, "proved": sorted(p.proved)} for e, p in self._proofs.items()}
        try:
            put_file(self._memory, json.dumps(noted).encode())
        except OSError as error:
            _log.warning("proof not remembered", path=str(self._memory), error=str(error))


async def _fly(endpoint: Endpoint, handler: str) -> str:
    """Why the handler does not work, in words; empty when it does. Nothing of the canary is left."""
    id_ = f"{CANARY}.{_as_name(handler)}.{secrets.token_hex(4)}"
    owner = SandboxOwner("", CANARY, "", id_, slot=0, generation=0, spec_hash="", epoch=0, origin=CANARY)
    wish = ContainerWish(
        image=PAUSE_IMAGE, command=(), args=(), env={}, working_dir="", memory_mb=_MEMORY_MB, cpu_millicores=1000,
        ports=(), runtime_class=CANARY, handler=handler,
    )  # fmt: skip
    config = sandbox_config(owner, wish, log_directory="", cgroup_parent=endpoint.cgroup_parent)
    sandbox = ""
    try:
        async with asyncio.timeout(DEADLINE_S):
            sandbox = await endpoint.client.run_pod_sandbox(config, handler)
            reported = (await endpoint.client.pod_sandbox_status(sandbox)).runtime_handler
            if reported != handler:
                return f"asked for the handler {handler}, but the sandbox reports {reported or 'none'}"
            return await _run_container(endpoint, sandbox, owner, wish, config)
    except CriError as error:
        return f"a canary sandbox does not run on it: {error.message}"
    except TimeoutError:
        return f"a canary sandbox did not run within {DEADLINE_S:g} s"
    finally:
        if sandbox:
            with contextlib.suppress(CriError, TimeoutError):
                async with asyncio.timeout(DEADLINE_S):
                    await _remove(endpoint, sandbox)


async def _run_container(
    endpoint: Endpoint, sandbox: str, owner: SandboxOwner, wish: ContainerWish, config: pb.PodSandboxConfig
) -> str:
    # Some handlers hold the sandbox by another runtime, and only a container shows that they work. Without an image
    # at hand the sandbox must do: nothing is pulled for a canary.
    if await endpoint.client.image_status(PAUSE_IMAGE) is None:
        return ""
    container = await endpoint.client.create_container(sandbox, container_config(owner, wish, attempt=0), config)
    await endpoint.client.start_container(container)
    state = (await endpoint.client.container_status(container)).state
    return "" if state == pb.CONTAINER_RUNNING else "a container in the canary sandbox ended at once"


async def _remove(endpoint: Endpoint, sandbox: str) -> None:
    await endpoint.client.stop_pod_sandbox(sandbox)
    await endpoint.client.remove_pod_sandbox(sandbox)


def _as_name(handler: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", handler.lower()).strip("-")[:63].strip("-") or "handler"
