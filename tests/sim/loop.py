"""An event loop on the world's own time, and the processes that live in it.

One rule: nothing happens by the machine's clock or by chance: the same seed runs the same steps in the same order. Time
jumps to the next timer when nothing is left to do, and what blocks (an executor's work) is done in place.

A process is all that was begun in one context: killed, none of its code runs again, not even a `finally`, as with
kill -9; stopped (SIGSTOP), it runs on when it is continued, and its timers have gone off meanwhile.
"""

import asyncio
import contextlib
import heapq
import inspect
import itertools
import os
import random
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

MAX_TURNS_AT_ONCE = 300_000
"""Turns without time passing: more is a loop that spins."""


class Spinning(Exception):  # noqa: N818 - a finding
    """Something runs without end and without waiting."""


class Process:
    """Tasks that live and die together. on_death: called once, when it is killed, in the world's own context."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.points = 0
        """Calls across its border so far, each counted before and after."""
        self.dies_at = 0
        """It is killed when it has come to this point; 0: not by itself."""
        self.on_death: list[Callable[[], None]] = []
        self.disk_full = False
        self.machine: Any = None
        """The node it runs on."""
        self.write_dying: Callable[[Callable[[], Any]], None] = lambda write: write()
        """Carries out a write of its threads in the middle of which it is killed."""
        self._loop = loop
        self._context: Context = copy_context()
        self._context.run(HERE.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = 64
        self.ready: deque[tuple[int, asyncio.Handle]] = deque()
        self.writing: list[Callable[[], Any]] = []
        """What its threads are at: file writes."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """The work runs as a part of this process."""
        task = self._context.run(lambda: self._loop.create_task(work))
        task.add_done_callback(self._loop.note_error, context=self._loop.world_context)
        return task

    def run(self, call: Callable[[], Any]) -> Any:
        return self._context.run(call)

    def kill(self) -> None:
        """None of its code runs from now on. May be called by one of its own tasks, which must then wait for ever."""
        if not self.alive:
            return
        self.alive = False
        self._loop.forget(self)
        for call in self.on_death:
            call()
        self._loop.call_soon(self._bury, context=self._loop.world_context)

    def stop(self) -> None:
        self.stopped = True
        self._loop.pause(self)

    def go_on(self) -> None:
        self.stopped = False
        self._loop.wake(self)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [t for t in self._tasks if not t.done()]
            self._prune_at = max(64, 2 * len(self._tasks))

    def _bury(self) -> None:
        """What is left of it is unwound. Its ports are dead, so whatever a `finally` does has no effect outside."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the dead do not get to is no fault of theirs
            while self._tasks:
                task = self._tasks.pop(0)
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    self._context.run(_unwind, task.get_coro())
                elif not task.cancelled():
                    task.exception()  # whoever was to take it is dead, too


class _Dead(BaseException):
    """Thrown into what a killed process was at, so that it lies about no longer."""


def _unwind(coroutine: Any) -> None:
    if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()
        return
    for _ in range(100):
        try:
            coroutine.throw(_Dead())
        except BaseException:  # noqa: BLE001 - the dead may say what they like
            return


HERE: ContextVar[Process] = ContextVar("HERE")
"""Whose code is running."""


def here() -> Process:
    return HERE.get()


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order in which these were made, not in that of their addresses."""

    numbers = itertools.count(1)

    def __init__(self, *args: Any, **named: Any) -> None:
        self._number = next(_Task.numbers)  # first: it is put into a set as it is made
        super().__init__(*args, **named)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.AbstractEventLoop):
    """rng: in which order processes take turns, and how long disks take. None: first come, first served."""

    def __init__(self, rng: random.Random | None) -> None:
        self.errors: list[str] = []
        """Exceptions that nobody took."""
        self.turns = 0
        self._rng = rng
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._runnable: list[Process] = []
        _Task.numbers = itertools.count(1)
        self.world = Process(self, "world")
        self.world_context = self.world._context

    # -- time and turns --------------------------------------------------------------------------------------------
    def time(self) -> float:
        return self._now

    def run_until(self, at: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Everything due until then has run, or done() has come true before: whether it has."""
        with _running(self):
            while not done():
                turns_at_once = 0
                while self._runnable:
                    self._turn()
                    turns_at_once += 1
                    if turns_at_once > MAX_TURNS_AT_ONCE:
                        raise Spinning(f"at {self._now:.3f} s: {[p.name for p in self._runnable]}")
                    if done():
                        return True
                while self._timers and self._timers[0][2].cancelled():
                    heapq.heappop(self._timers)
                if not self._timers or self._timers[0][0] > at:
                    self._now = max(self._now, at)
                    return False
                self._now = max(self._now, self._timers[0][0])
                while self._timers and self._timers[0][0] <= self._now:
                    _, _, timer = heapq.heappop(self._timers)
                    if not timer.cancelled():
                        self._queue(timer)
        return True

    def run(self, work: Coroutine[Any, Any, Any], *, bound_s: float = 3600.0) -> Any:
        """What the work returns; time passes as far as it needs."""
        with _running(self):
            task = self.world.spawn(work)
        self.run_until(self._now + bound_s, task.done)
        return task.result()

    def _turn(self) -> None:
        runnable = self._runnable
        if len(runnable) == 1:
            process = runnable[0]
        elif self._rng is not None:
            process = runnable[int(self._rng.random() * len(runnable))]
        else:
            process = min(runnable, key=lambda p: p.ready[0][0])
        _, handle = process.ready.popleft()
        if not process.ready:
            runnable.remove(process)
        if not handle.cancelled():
            self.turns += 1
            handle._run()

    def _queue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(HERE, self.world)  # type: ignore[attr-defined]
        if not process.alive:
            return
        process.ready.append((next(self._numbers), handle))
        if len(process.ready) == 1 and not process.stopped:
            self._runnable.append(process)

    def wake(self, process: Process) -> None:
        if process.alive and process.ready and process not in self._runnable:
            self._runnable.append(process)

    def pause(self, process: Process) -> None:
        if process in self._runnable:
            self._runnable.remove(process)

    def forget(self, process: Process) -> None:
        """Its code does not run any more. What its threads were writing is written, in part or whole, or not."""
        process.ready.clear()
        if process in self._runnable:
            self._runnable.remove(process)
        for write in process.writing:
            if self._rng is not None and self._rng.random() < 0.5:
                process.write_dying(write)
        process.writing.clear()

    # -- what asyncio asks of a loop -------------------------------------------------------------------------------
    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._queue(handle)
        return handle

    call_soon_threadsafe = call_soon  # there are no threads

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task = (
            _Task(coro, loop=self, name=name) if context is None else _Task(coro, loop=self, name=name, context=context)
        )
        HERE.get(self.world).keep(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        process = HERE.get(self.world)
        future = self.create_future()

        def work() -> Any:
            return func(*args)

        def do() -> None:
            process.writing.remove(work)
            if process.disk_full and executor is not None:
                outcome, failed = None, OSError(28, os.strerror(28))
            else:
                outcome, failed = _outcome(work)
            if future.cancelled():
                return
            if failed is not None:
                future.set_exception(failed)
            else:
                future.set_result(outcome)

        process.writing.append(work)
        self.call_later(self._rng.random() * 0.02 if self._rng is not None else 0.001, do)
        return future

    def note_error(self, task: "asyncio.Task[Any]") -> None:
        """What ended with an exception is told at once, not when somebody sweeps it up."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append("".join(traceback.format_exception(error)))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {error!r}")


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - it is passed on
        return None, error


@contextlib.contextmanager
def _running(loop: VirtualLoop) -> Any:
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(before)
