"""What people and faults may do next in a world: each move draws its numbers and makes one step.

One rule: a move draws from what it is given alone, be it Hypothesis or a seed, so that either can drive the world.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sim.world import World

T = TypeVar("T")
IDS = ("api", "db", "job", "web", "x")


class Draw(Protocol):
    def one_of(self, options: Sequence[T]) -> T: ...
    def number(self, least: int, most: int) -> int: ...


class Seeded:
    """Draws from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, most)


# -- people --------------------------------------------------------------------------------------------------------


def put(world: World, draw: Draw) -> None:
    id_ = draw.one_of(IDS)
    spec: dict[str, Any] = {"replicas": draw.number(0, 3), "termination_grace_s": draw.one_of((0, 2, 10))}
    match draw.number(0, 9):
        case 0 | 1 | 2 | 3:
            spec |= {"image": draw.one_of(("demo:1", "demo:2", "demo:3")), "labels": {"v": draw.one_of(("1", "2"))}}
        case 4 | 5 | 6:
            spec |= {"on_disconnect": "replace", "image": draw.one_of(("demo:1", "demo:2"))}
        case 7 | 8:
            ends = draw.one_of(("exit 0 after 2", "exit 3 after 1", "exit 0 after 30", "exit 0"))
            # Each time another spec: what runs once must not come round again.
            spec |= {"restart_policy": "Never", "env": {"KAKURI_FAKE": ends, "TAG": str(world.steps)}}
        case _:
            ends = draw.one_of(("exit 0 after 3", "exit 1 after 1"))
            env = {"KAKURI_FAKE": ends, "TAG": str(world.steps)}
            spec |= {"restart_policy": "OnFailure", "max_restarts": 2, "env": env}
    if draw.number(0, 9) == 0 and "env" not in spec:
        spec["env"] = {"KAKURI_FAKE": "stubborn"}
    world.put(id_, **spec)


def change(world: World, draw: Draw) -> None:
    """Of what is there, one thing."""
    there = [id_ for id_, want in sorted(world.people.wants.items()) if want.spec is not None]
    if not there:
        put(world, draw)
        return
    id_ = draw.one_of(there)
    want = world.people.wants[id_].spec
    assert want is not None
    spec = want.model_dump(mode="json", exclude_defaults=True)
    is_job = want.restart_policy != "Always"
    match draw.number(0, 4):
        case 0 | 1:
            spec["replicas"] = draw.number(0, 4)
        case 2:
            spec["labels"] = {"v": str(draw.number(1, 9))}
        case 3 if is_job:
            spec["env"] = {**want.env, "TAG": str(world.steps)}
        case 3:
            spec["image"] = draw.one_of(("demo:1", "demo:2", "demo:3"))
        case _ if not is_job:
            spec["on_disconnect"] = draw.one_of(("keep", "replace"))
    world.put(id_, **spec)


def delete(world: World, draw: Draw) -> None:
    world.delete(draw.one_of(IDS))


def cordon(world: World, draw: Draw) -> None:
    world.cordon(draw.one_of(tuple(world.nodes)), on=draw.number(0, 2) == 0)


def delete_by_force(world: World, draw: Draw) -> None:
    world.delete_by_force(draw.one_of(IDS))


def drain(world: World, draw: Draw) -> None:
    world.drain(draw.one_of(tuple(world.nodes)), deadline_s=draw.one_of((None, 5.0, 30.0)))


def uncordon(world: World, draw: Draw) -> None:
    world.uncordon(draw.one_of(tuple(world.nodes)))


def forget(world: World, draw: Draw) -> None:
    world.forget(draw.one_of(tuple(world.nodes)))


def back_up(world: World, draw: Draw) -> None:
    world.back_up()


def restore(world: World, draw: Draw) -> None:
    world.restore()


def confirm(world: World, draw: Draw) -> None:
    world.confirm()


# -- time ----------------------------------------------------------------------------------------------------------


def wait(world: World, draw: Draw) -> None:
    world.wait(draw.one_of((0.2, 0.5, 1.0, 2.0, 3.0, 5.0)))


def wait_long(world: World, draw: Draw) -> None:
    world.wait(draw.one_of((10.0, 20.0, 45.0)))


# -- faults --------------------------------------------------------------------------------------------------------


def crash(world: World, draw: Draw) -> None:
    world.crash(draw.one_of(_sides(world)), down_s=draw.one_of((0.1, 1.0, 3.0, 12.0, 50.0)))


def crash_at(world: World, draw: Draw) -> None:
    """Mostly agents: their calls are the ones that can't be taken back."""
    world.crash_at(draw.one_of(_callers(world)), draw.number(1, 30), down_s=draw.one_of((0.1, 1.0, 5.0)))


def freeze(world: World, draw: Draw) -> None:
    world.freeze(draw.one_of(_sides(world)), for_s=draw.one_of((1.0, 6.0, 15.0, 60.0)))


def cut(world: World, draw: Draw) -> None:
    a = draw.one_of((*world.controllers, *world.nodes))
    b = draw.one_of(("*", *world.controllers) if a in world.nodes else ("*", "store", *world.nodes))
    world.cut(a, b, for_s=draw.one_of((2.0, 8.0, 20.0, 60.0, 100.0)))


def reboot(world: World, draw: Draw) -> None:
    world.reboot(draw.one_of(tuple(world.nodes)), down_s=draw.one_of((1.0, 20.0, 70.0)))


def lose_ledger(world: World, draw: Draw) -> None:
    world.lose_ledger(draw.one_of(tuple(world.nodes)), down_s=draw.one_of((1.0, 20.0)))


def set_clock(world: World, draw: Draw) -> None:
    side = draw.one_of((*world.controllers, *world.nodes))
    world.set_clock(side, draw.one_of((0.0, 0.0, -3600.0, 3600.0, 5.0, -5.0)))


def fill_disk(world: World, draw: Draw) -> None:
    world.fill_disk(draw.one_of(tuple(world.nodes)), for_s=draw.one_of((1.0, 10.0)))


def end_container(world: World, draw: Draw) -> None:
    code, reason = draw.one_of(((1, ""), (0, ""), (137, "OOMKilled"), (255, "Unknown")))
    world.end_container(draw.one_of(tuple(world.nodes)), draw.number(0, 5), exit_code=code, reason=reason)


def end_sandbox(world: World, draw: Draw) -> None:
    world.end_sandbox(draw.one_of(tuple(world.nodes)), draw.number(0, 5))


def wipe_runtime(world: World, draw: Draw) -> None:
    world.wipe_runtime(draw.one_of(tuple(world.nodes)))


def weather(world: World, draw: Draw) -> None:
    kind = draw.one_of(("fair", "lossy", "late", "bad store", "slow runtimes", "storm"))
    world.weather_is(**WEATHERS[kind])


WEATHERS: dict[str, dict[str, float]] = {
    "fair": {},
    "lossy": {"lost": 0.2, "doubled": 0.2, "broken": 0.1},
    "late": {"late": 0.3, "doubled": 0.1},
    "bad store": {"store_down": 0.1, "store_slow": 0.2},
    "slow runtimes": {"runtime_slow": 0.2, "runtime_silent": 0.03, "events_lost": 0.5},
    "storm": {
        "lost": 0.1, "doubled": 0.1, "late": 0.1, "broken": 0.05, "store_down": 0.05, "store_slow": 0.1,
        "runtime_slow": 0.05, "events_lost": 0.3,
    },
}  # fmt: skip

Move = Callable[[World, Draw], None]
MOVES: dict[Move, int] = {
    put: 12,
    change: 12,
    delete: 4,
    delete_by_force: 1,
    cordon: 2,
    drain: 2,
    uncordon: 3,
    forget: 1,
    wait: 14,
    wait_long: 5,
    crash: 7,
    crash_at: 10,
    freeze: 4,
    cut: 6,
    reboot: 2,
    lose_ledger: 1,
    set_clock: 2,
    fill_disk: 2,
    end_container: 3,
    end_sandbox: 2,
    wipe_runtime: 1,
    weather: 5,
    back_up: 2,
    restore: 1,
    confirm: 2,
}
"""Each with how often it is made, in proportion."""


def _callers(world: World) -> tuple[str, ...]:
    return (*world.controllers, *world.nodes, *world.nodes)


def _sides(world: World) -> tuple[str, ...]:
    return (*world.controllers, *world.nodes, *(f"runtime {n}" for n in world.nodes))


_TABLE: tuple[Move, ...] = tuple(move for move, weight in MOVES.items() for _ in range(weight))


def play(world: World, seed: int, steps: int) -> None:
    """So many moves, as the seed has them."""
    draw = Seeded(seed)
    for _ in range(steps):
        draw.one_of(_TABLE)(world, draw)
