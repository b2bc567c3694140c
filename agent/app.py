"""Where the agent is put together: the only module that names all of its parts.

One rule: SIGTERM ends the agent and nothing else. Containers and a private runtime live on, and the next agent on the
same state dir finds them.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from agent.announcing import Announcing
from agent.calls import Calls
from agent.canary import Canaries
from agent.clock import SystemClock
from agent.fencer_program import DetachedFencer, keep_watched
from agent.hand import ByHand
from agent.jsonlines import serving
from agent.ledger import LedgerError, open_ledger
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.private_runtime import RuntimeUnavailable, supervise
from agent.register import Registration, measure_capacity, node_labels
from agent.runtimes import find_runtimes
from agent.server import BindError, serving_grpc
from agent.settings import Settings
from agent.shutdown import shut_down
from agent.sync import Sync
from kakuri import __version__
from kakuri.host import split_address
from kakuri.log import configure, get_logger
from kakuri.model import NodeRegistration

FIRST_CANARIES_S = 15.0
"""How long the first registration waits for canaries, so that a node that is ready also offers what it can."""
DRAIN_S = 5.0
"""For calls under way when the agent ends: longer than a start takes, shorter than a supervisor's patience."""
_log = get_logger("agent")


class AgentError(Exception):
    """Why the agent can't start, in words."""


async def run(settings: Settings, *, shutdown: bool) -> None:
    """Serves until SIGTERM or SIGINT; or, for a shutdown, ends all that runs here. Raises AgentError."""
    configure(settings.log_level)
    state_dir = settings.state_dir.absolute()
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(state_dir):
            if shutdown:
                await shut_down(settings, state_dir)
            else:
                await _serve(settings, state_dir)
    except OSError as error:
        raise AgentError(_in_words(error, state_dir)) from error
    except (LedgerError, RuntimeUnavailable, BindError) as error:
        raise AgentError(str(error)) from error
    except BaseExceptionGroup as group:
        told, other = group.split((LedgerError, RuntimeUnavailable, BindError, OSError))
        if told is None or other is not None:
            raise
        raise AgentError(_in_words(_first(told), state_dir)) from group


def _in_words(error: BaseException, state_dir: Path) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or state_dir}: {error.strerror or error}"
    return str(error)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _serve(settings: Settings, state_dir: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    (state_dir / "agent.json").unlink(missing_ok=True)
    clock = SystemClock()
    ledger = open_ledger(state_dir / "ledger")
    observations = Observations(ledger.uid)
    async with AsyncExitStack() as stack:
        stack.callback(ledger.close)
        if settings.runtime != "fake":
            await keep_watched(state_dir)
        found = await stack.enter_async_context(find_runtimes(settings, state_dir))
        endpoints = found.endpoints
        fencer = None if all(e.simulated for e in endpoints.all) else DetachedFencer(state_dir)
        notes = next((e.notes for e in endpoints.all if e.notes is not None), None)
        starts = notes.starts if notes is not None else None
        lease = NodeLease(ledger, clock, state_dir, fencer_program=fencer, starts=starts)
        stack.callback(lease.close)
        sync = Sync(ledger, observations, endpoints, lease, clock, logs_folder=state_dir / "logs")
        calls = Calls(ledger, observations, sync, endpoints, lease, clock, logs_folder=state_dir / "logs")
        address = ""

        def describe() -> NodeRegistration:
            return NodeRegistration(
                address=address,
                capacity=measure_capacity(),
                labels=dict(labels),
                runtime_classes=canaries.classes,
                unproved=canaries.unproved,
                instance=observations.instance,
                ledger_uid=ledger.uid,
                version=__version__,
                runtime=canaries.runtime,
                simulated=endpoints.simulated,
                features=calls.features,
            )

        labels = node_labels(settings)
        registration = Registration(settings.node, describe, clock, observed_at_ns=lambda: calls.observed_at_ns)
        canaries = Canaries(
            endpoints,
            clock,
            state_dir / "proved.json",
            changed=registration.changed,
            unavailable=found.unavailable,
        )
        by_hand = ByHand(calls, ledger, canaries, clock)
        async with asyncio.TaskGroup() as tasks:
            work: list[asyncio.Task[None]] = [tasks.create_task(sync.run()), tasks.create_task(canaries.run())]
            await sync.looked.wait()
            work.append(tasks.create_task(lease.run(sync)))
            host, port = split_address(settings.grpc)
            async with serving_grpc(calls, host, port) as bound, _serving_json(by_hand, settings) as by_json:
                address = settings.advertise or _reachable(host, bound)
                served = {"pid": os.getpid(), "grpc": f"{host}:{bound}", "json": f"{by_json[0]}:{by_json[1]}"}
                runtime_pid = found.runtime.pid if found.runtime is not None else None
                announcing = Announcing(
                    state_dir / "agent.json",
                    {**served, "cri": endpoints.all[0].client.endpoint, "runtime": found.kind},
                    runtime_pid,
                )
                work.append(tasks.create_task(announcing.run()))
                if found.private is not None:
                    supervising = supervise(found.private, lambda now: announcing.change(now.pid))
                    work.append(tasks.create_task(supervising))
                work.append(tasks.create_task(_register(registration, canaries, settings.server)))
                _log.info("agent serves", node=settings.node, runtime=found.kind, **served)
                await stop.wait()
                _log.info("agent ends", leaves="containers and runtime as they are")
                await sync.drain(DRAIN_S)
                for task in work:
                    task.cancel()


@asynccontextmanager
async def _serving_json(by_hand: ByHand, settings: Settings) -> AsyncIterator[tuple[str, int]]:
    async with AsyncExitStack() as stack:
        try:
            bound = await stack.enter_async_context(serving(by_hand, *split_address(settings.json_lines)))
        except OSError as error:
            why = error.strerror or str(error)
            raise BindError(f"--json {settings.json_lines}: can't listen there: {why}") from error
        yield bound


async def _register(registration: Registration, canaries: Canaries, servers: Sequence[str]) -> None:
    try:
        async with asyncio.timeout(FIRST_CANARIES_S):
            await canaries.tried.wait()
    except TimeoutError:
        _log.warning("canaries still fly", waited_s=FIRST_CANARIES_S)
    await registration.run(servers)


def _reachable(host: str, port: int) -> str:
    # Where all addresses are listened on, none of them is named; the host's name has to do, unless --advertise says.
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return f"{os.uname().nodename}:{port}"
    return f"{host}:{port}"


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """No other agent works on this state dir. Raises AgentError when one does."""
    with (state_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise AgentError(
                f"another agent (pid {pid}) works on {state_dir}; end it, or use another --state-dir"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        yield
