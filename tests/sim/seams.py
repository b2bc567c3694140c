"""Where the product asks the machine for something that a world has to answer: ids, cgroups, locks, and who reads its
log.

One rule: all of it is as it was when a step is over, so that a world disturbs nothing else in its process.
"""

import functools
import secrets
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from agent import fencer
from controller.store.one_controller import OneController
from sim.loop import HERE


@contextmanager
def patched(world: Any) -> Iterator[None]:
    """Ids come from the seed, cgroups are this world's, and what the product logs is heard here alone."""
    config, take = structlog.get_config(), OneController.take

    def take_until_death(lock: OneController, *args: Any, **named: Any) -> None:
        take(lock, *args, **named)
        HERE.get().on_death.append(lock.release)

    machine = {
        (secrets, "token_hex"): lambda n=32: f"{world.rng.getrandbits(8 * n):0{2 * n}x}",
        (OneController, "take"): take_until_death,
        (fencer, "can_fence"): lambda: True,
        (fencer, "find_cgroups"): lambda _, ids: HERE.get().machine.runtime.cgroups(ids),
        (fencer, "kill_cgroup"): _kill_cgroup,
        (fencer, "_say"): lambda what: world.note("fencer", what),
    }
    real = {(module, name): getattr(module, name) for module, name in machine}
    for (module, name), simulated in machine.items():
        setattr(module, name, simulated)
    structlog.configure(
        processors=[functools.partial(_hear, world)],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        for (module, name), value in real.items():
            setattr(module, name, value)
        structlog.configure(**config)


def _hear(world: Any, _: Any, __: str, event: dict[str, Any]) -> Any:
    name = event.pop("event")
    if name in {"pass failed", "worker failed"} and event.get("exc_info"):
        world.witness.broken(f"a fault of ours ({name}, {HERE.get().name}): {traceback.format_exc()}")
    if world.listening:
        world.told.append((world.loop.time(), HERE.get().name, name, event))
    raise structlog.DropEvent


def _kill_cgroup(cgroup: Path) -> list[int]:
    killed: list[int] = HERE.get().machine.runtime.kill_cgroup(cgroup)
    return killed
