"""The simulated world: machines, a database and a network, with the product's own code in all of them. A script of its
steps and a seed say all that happens.

One rule: a step is a call with plain values, so that a run can be written down and played again (`script()`).
"""

import functools
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from builders import a_manifest, a_node_manifest
from controller.store.contract import Delete, Put
from cri.v1 import runtime_pb2 as pb
from kakuri.model import Drain
from sim import settled
from sim.controllers import Controller
from sim.loop import Process, VirtualLoop
from sim.nodes import Node
from sim.people import People
from sim.runtimes import Runtime
from sim.seams import patched
from sim.stores import Files, Memories, Stores
from sim.wire import Weather, Wire
from sim.witness import Witness

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Broken(AssertionError):  # noqa: N818 - what the promise is then
    """A promise is broken; with the script that shows it."""


def step(method: "Callable[Concatenate[World, P], R]") -> "Callable[Concatenate[World, P], R]":
    """A step of a script: it is written down, and the promises are checked after it."""

    @functools.wraps(method)
    def do(self: "World", *args: P.args, **named: P.kwargs) -> R:
        said = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in named.items())])
        self._script.append(f"world.{method.__name__}({said})")
        self.steps += 1
        with patched(self):
            result = method(self, *args, **named)
            self.look()
        return result

    return do


class World:
    """seed None: nothing is left to chance, for stories; first come, first served."""

    def __init__(self, seed: int | None = 0, *, nodes: int = 3, controllers: int = 2, sqlite: bool = False) -> None:
        self._script = [f"World({seed}, nodes={nodes}, controllers={controllers}, sqlite={sqlite})"]
        self.steps = 0
        self.rng = random.Random(seed or 0)
        self.rng_loop = random.Random((seed or 0) + 1) if seed is not None else None
        self.told: list[tuple[float, str, str, dict[str, Any]]] = []
        """What the product logged: when, who, the event and its fields. Kept only when listening is on."""
        self.listening = seed is None
        self.weather = Weather()
        self.people = People(self)
        self._backup: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._cuts: set[tuple[str, str]] = set()
        self._uids = itertools.count(1)
        self._folder = Path(tempfile.mkdtemp(prefix="kakuri-sim-", dir=_memory_disk()))
        self.loop = VirtualLoop(self.rng_loop)
        self.witness = Witness(self)
        with patched(self):
            self.stores: Stores = Files(self, self._folder) if sqlite else Memories(self)
            names = [f"c{n + 1}" for n in range(1 if sqlite else controllers)]
            self.controllers = {name: Controller(self, name) for name in names}
            self.nodes = {n: Node(self, n, self._folder / n) for n in (f"n{i + 1}" for i in range(nodes))}
            for side in (*self.controllers.values(), *self.nodes.values()):
                side.start()
            self.loop.run_until(15.0)
            self.look()

    def close(self) -> None:
        """Nothing is left of it."""
        with patched(self):
            for process in self._processes():
                process.kill()
            self.loop.run_until(self.loop.time())
            self.stores.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def script(self) -> str:
        """A program that plays this run again."""
        lines = "\n".join(f"    {line}" for line in self._script[1:])
        return (
            "# PYTHONHASHSEED=0 PYTHONPATH=.:tests .venv/bin/python THIS_FILE\n"
            f"from sim.world import World\n\nwith {self._script[0]} as world:\n{lines}\n"
        )

    # -- people ----------------------------------------------------------------------------------------------------
    @step
    def put(self, id_: str, **spec: Any) -> str:
        """Somebody applies this workload. What came of it: accepted, refused, or unknown."""
        manifest = a_manifest(id_, **{"memory_mb": 16, "cpu_millicores": 10, "image": "demo:1", **spec})
        return self.people.write(id_, [Put(manifest)])

    @step
    def delete(self, id_: str) -> str:
        return self.people.write(id_, [Delete("Workload", id_)])

    @step
    def cordon(self, node: str, *, on: bool = True) -> str:
        manifest = a_node_manifest(node, schedulable=not on)
        return self.people.ask(
            lambda c: c.store.apply([Put(manifest)], now=c.clock.now()), kick=lambda c: c.driver.nodes()
        )

    @step
    def delete_by_force(self, id_: str) -> str:
        """What may still run of it leaves a tombstone, and the id is free at once: a person takes it upon himself."""
        self.witness.given_up |= {r.id for r in self.witness.rows.values() if r.workload == id_}
        return self.people.write(id_, [Delete("Workload", id_, force=True)])

    @step
    def drain(self, node: str, *, deadline_s: float | None = None) -> str:
        def work(controller: Controller) -> Any:
            now = controller.clock.now()
            deadline = None if deadline_s is None else now + timedelta(seconds=deadline_s)
            return controller.store.drain_node(node, Drain(asked_at=now, deadline_at=deadline), now=now)

        return self.people.ask(work, kick=self._after_drain)

    @step
    def uncordon(self, node: str) -> str:
        """It is drained no more, and takes work."""
        self.people.ask(lambda c: c.store.drain_node(node, None, now=c.clock.now()), kick=self._after_drain)
        manifest = a_node_manifest(node)
        return self.people.ask(
            lambda c: c.store.apply([Put(manifest)], now=c.clock.now()), kick=lambda c: c.driver.nodes()
        )

    def _after_drain(self, controller: Controller) -> None:
        controller.driver.workloads(self.people.answer[1])
        controller.driver.nodes()

    @step
    def forget(self, node: str, *, down_s: float = 60.0) -> str:
        """A person says that the machine is gone, which is true for a while."""
        self.witness.lost_ledgers.add(node)
        self.nodes[node].reboot()
        self.witness.powered()
        self._later(down_s, self.nodes[node].start)
        self.go(min(20.0, down_s / 2))  # until it counts as silent
        self.witness.given_up |= {r.id for r in self.witness.rows.values() if r.node == node}
        return self.people.ask(
            lambda c: c.store.forget_node(node, now=c.clock.now()),
            kick=lambda c: c.driver.workloads(self.people.answer),
        )

    @step
    def back_up(self) -> None:
        """What restore() brings back; in memory alone."""
        if isinstance(self.stores, Memories):
            self._backup = self.stores.copy(), dict(self.people.wants)
        self.go(0.05)

    @step
    def restore(self) -> None:
        """All controllers are ended, the last backup is brought back, and they start again."""
        if self._backup is None or not isinstance(self.stores, Memories):
            self.go(0.05)
            return
        tables, wants = self._backup
        for controller in self.controllers.values():
            controller.kill()
        self.loop.run(self.stores.bring_back(tables, next(iter(self.controllers.values())).clock.now()))
        self.people.wants = dict(wants)
        for controller in self.controllers.values():
            controller.start()
        self.go(1.0)

    @step
    def confirm(self) -> str:
        """A person says that a restored database counts; refused while nodes are unread."""
        return self._confirm()

    def _confirm(self) -> str:
        held, known = self.loop.run(self._hold())
        if held is None:
            return "accepted"
        if known != self.nodes.keys():
            return "refused"  # a person knows of machines that joined after the backup, and waits for them
        return self.people.ask(lambda c: c.store.confirm_restore(now=c.clock.now()), kick=lambda c: c.driver.nodes())

    async def _hold(self) -> tuple[Any, set[str]]:
        """What is held, and the nodes that the database knows."""
        store = await self.stores.eyes()
        return await store.hold(), {a.node for a in await store.agent_addresses()}

    # -- time ------------------------------------------------------------------------------------------------------
    @step
    def wait(self, seconds: float) -> None:
        self.go(seconds)

    def until(self, what: str, holds: Callable[[], bool], *, within_s: float = 300.0) -> None:
        """For stories: it comes true, looked at every tenth of a second."""
        with patched(self):
            end = self.loop.time() + within_s
            while not holds():
                if self.loop.time() >= end:
                    raise Broken(f"{what}: not within {within_s} s")
                self.loop.run_until(self.loop.time() + 0.1)
            self.look()

    # -- faults ----------------------------------------------------------------------------------------------------
    @step
    def weather_is(self, **changes: Any) -> None:
        """Calls go wrong as often as this; what isn't named goes well."""
        self.weather = Weather(**changes)
        self.go(0.1)

    @step
    def crash(self, side: str, *, down_s: float = 1.0) -> None:
        """kill -9 of a controller (c1), of an agent (n1) or of a runtime (runtime n1); it is started again later."""
        self._kill(side)
        self._later(down_s, lambda: self._start(side))
        self.go(0.05)

    @step
    def crash_at(self, side: str, point: int, *, down_s: float = 1.0) -> None:
        """kill -9 just before or just after one of its next calls. Each call has two points."""
        process = self._process(side)
        if process is not None and process.alive:
            process.dies_at = process.points + point
            process.on_death.append(lambda: self._later(down_s, lambda: self._start(side)))
        self.go(0.2)

    @step
    def freeze(self, side: str, *, for_s: float = 15.0) -> None:
        """SIGSTOP, and SIGCONT later."""
        process = self._process(side)
        if process is not None and process.alive:
            process.stop()
            self._later(for_s, process.go_on)
        self.go(0.05)

    @step
    def cut(self, a: str, b: str, *, for_s: float = 30.0) -> None:
        """Nothing passes between the two, either way. b "*": between a and all nodes or controllers; "store"."""
        pairs = [(a, other) for other in (*self.controllers, *self.nodes)] if b == "*" else [(a, b)]
        for x, y in pairs:
            if y == "store":
                self.controllers[x].cut_from_store = True
            else:
                self._cuts |= {(x, y), (y, x)}
        self._later(for_s, lambda: self._heal(pairs))
        self.go(0.05)

    @step
    def reboot(self, node: str, *, down_s: float = 3.0) -> None:
        self.nodes[node].reboot()
        self.witness.powered()
        self._later(down_s, self.nodes[node].start)
        self.go(0.05)

    @step
    def lose_ledger(self, node: str, *, down_s: float = 1.0) -> None:
        self.witness.lost_ledgers.add(node)
        self.nodes[node].lose_ledger()
        self._later(down_s, self.nodes[node].start)
        self.go(0.05)

    @step
    def set_clock(self, side: str, skew_s: float) -> None:
        """Its wall clock is wrong by so much from now on."""
        (self.controllers.get(side) or self.nodes[side]).clock.skew_s = skew_s
        self.go(0.05)

    @step
    def fill_disk(self, node: str, *, for_s: float = 10.0) -> None:
        process = self.nodes[node].agent
        if process is not None:
            process.disk_full = True
            self._later(for_s, lambda: setattr(process, "disk_full", False))
        self.go(0.05)

    @step
    def end_container(self, node: str, which: int, *, exit_code: int = 1, reason: str = "") -> None:
        """One of ours there ends by itself."""
        running = self._running(node)
        if running:
            self.nodes[node].runtime.state.end_container(running[which % len(running)].id, exit_code, reason)
        self.go(0.05)

    @step
    def end_sandbox(self, node: str, which: int) -> None:
        """One of our sandboxes there dies."""
        running = self._running(node)
        if running:
            self.nodes[node].runtime.state.stop_sandbox(running[which % len(running)].pod_sandbox_id)
        self.go(0.05)

    @step
    def wipe_runtime(self, node: str) -> None:
        """Somebody removes all that is ours from the runtime, by its own tools."""
        self.witness.wiped(node)
        state = self.nodes[node].runtime.state
        for sandbox in state.list_sandboxes(pb.PodSandboxFilter()):
            if sandbox.id not in self.nodes[node].runtime.foreign:
                state.remove_sandbox(sandbox.id)
        self.go(0.05)

    # -- the end of a run ------------------------------------------------------------------------------------------
    @step
    def heal(self) -> None:
        """Nothing is wrong any more; everything that was killed runs."""
        self.weather = Weather()
        self._cuts.clear()
        for controller in self.controllers.values():
            controller.cut_from_store = False
        for process in self._processes():
            process.dies_at = 0
            process.disk_full = False
            process.go_on()
        for node in self.nodes.values():
            node.runtime.start()
            node.start()
        for controller in self.controllers.values():
            controller.start()
        self.go(1.0)
        self.people.insist(self._confirm)
        for node in self.nodes:
            self.people.insist(functools.partial(World.uncordon.__wrapped__, self, node))  # type: ignore[attr-defined]

    @step
    def settle(self) -> None:
        """After heal(): all is as people want it, the plan is empty, and the next passes write nothing."""
        settled.settle(self)

    def finish(self) -> None:
        self.heal()
        self.settle()

    @property
    def leader(self) -> str:
        """The controller that has the lease, or had it last; in memory alone."""
        assert isinstance(self.stores, Memories)
        return self.stores.first._lease[0]

    def go(self, seconds: float) -> None:
        """Time passes, until a promise is broken."""
        self.loop.run_until(self.loop.time() + seconds, lambda: bool(self.witness.violations))

    def one_of(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    # -- what sides need -------------------------------------------------------------------------------------------
    def uid(self) -> str:
        return f"uid-{next(self._uids)}"

    def chance(self, p: float) -> bool:
        return p > 0 and self.rng.random() < p

    def note(self, fault: str, what: str) -> None:
        """A fault of the weather's, for those who read along."""
        if self.listening:
            self.told.append((self.loop.time(), "world", fault, {"what": what}))

    async def point(self, process: Process, what: str) -> None:
        """The process is about to call, or has just called: where it may be killed."""
        process.points += 1
        if process.dies_at and process.points >= process.dies_at:
            self.note("killed at", what)
            process.kill()
        if not process.alive:
            await self.loop.create_future()  # the dead go no further

    def is_cut(self, a: str, b: str) -> bool:
        return (a, b) in self._cuts

    def wire_to_agent(self, controller: str, node: str) -> Wire:
        return Wire(self, lambda: self.nodes[node].server, lambda: self.is_cut(controller, node))

    def look(self) -> None:
        """Raises Broken when a promise is."""
        self.loop.run(self.stores.look())
        for error in self.loop.errors:
            self.witness.broken(f"nobody took this exception: {error}")
        self.loop.errors.clear()
        if not self.witness.violations:
            self.people.check()
        if self.witness.violations:
            raise Broken("\n".join([*self.witness.violations[:5], "", self.script()]))

    # -- below -----------------------------------------------------------------------------------------------------
    def _later(self, seconds: float, call: Callable[[], Any]) -> None:
        self.loop.call_later(seconds, call, context=self.loop.world_context)

    def _heal(self, pairs: list[tuple[str, str]]) -> None:
        for a, b in pairs:
            if b == "store":
                self.controllers[a].cut_from_store = False
            else:
                self._cuts -= {(a, b), (b, a)}

    def _side(self, side: str) -> Controller | Node | Runtime:
        kind, _, node = side.partition(" ")
        if kind == "runtime":
            return self.nodes[node].runtime
        return self.controllers.get(side) or self.nodes[side]

    def _process(self, side: str) -> Process | None:
        of = self._side(side)
        return of.agent if isinstance(of, Node) else of.process

    def _kill(self, side: str) -> None:
        self._side(side).kill()

    def _start(self, side: str) -> None:
        of = self._side(side)
        process = self._process(side)
        if process is None or not process.alive:
            of.kill()  # what was killed from within left its marks
            of.start()

    def _processes(self) -> Iterator[Process]:
        for controller in self.controllers.values():
            if controller.process is not None:
                yield controller.process
        for node in self.nodes.values():
            for process in (node.agent, node.runtime.process, node.fencer.process):
                if process is not None:
                    yield process

    def _running(self, node: str) -> list[pb.Container]:
        return self.nodes[node].runtime.running()

    def latency(self) -> float:
        return self.rng.uniform(0.0005, 0.003) if self.rng_loop is not None else 0.001


def _memory_disk() -> str | None:
    """What needs no disk goes to none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
