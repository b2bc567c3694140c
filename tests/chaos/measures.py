"""How long it takes: a takeover, a killed agent's return, a lost node's replacement. One after the other, with nothing
else done to the cell, so that each figure is of what its name says.

One rule: a figure is what was measured, also when it is over its bound; the caller judges.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chaos import cgroups
from chaos.api import Api
from chaos.cell import Cell
from chaos.faults import Cut, Fault, Faults, Kill, Stop, describe
from chaos.hosts import Way

TAKEOVER_BOUND_S = 10.0
RETURN_BOUND_S = 10.0
REPLACE_BOUND_S = 15.0
LOSSES: tuple[Callable[[str], Fault], ...] = (
    lambda node: Kill(node, ("agent",), _GIVE_UP_S),
    lambda node: Cut(node, Way.BOTH, _GIVE_UP_S),
    lambda node: Stop(node, "agent", _GIVE_UP_S),
)
"""How a node is lost. In the first and the last the fencer alone is there to end what is bound to the lease."""
_GIVE_UP_S = 90.0
_LOOK_S = 0.2
_SILENT_S = 11.0
"""So long an agent is away that its node is shown as silent."""


@dataclass(frozen=True)
class Figure:
    what: str
    seconds: float
    bound_s: float

    def __str__(self) -> str:
        return f"{self.what}: {self.seconds:.1f} s (at most {self.bound_s:g} s)"

    @property
    def good(self) -> bool:
        return self.seconds <= self.bound_s


async def measure_takeover(cell: Cell) -> Figure:
    """The leader is killed; until another one says that it leads."""
    leader, epoch = await _until(lambda: _now(find_leader(cell)), "a leader")
    killed_at = time.time()
    cell.controllers[leader].kill()
    try:

        async def another() -> tuple[str, float] | None:
            return next(((h, at) for h, e, at in leaders(cell) if e > epoch), None)

        holder, at = await _until(another, f"another leader than {leader}")
    finally:
        cell.controllers[leader].start()
    return Figure(f"takeover from {leader} by {holder} after kill -9", at - killed_at, TAKEOVER_BOUND_S)


async def measure_return(cell: Cell, api: Api) -> Figure:
    """An agent is killed, and while it is away one of its containers dies; until the API says what is."""
    [allocation, *_] = [a for a in await api.items("/allocations") if _is_native_service(a)]
    node = cell.nodes[allocation["node"]]
    node.program.kill()
    _kill_container(cell, allocation)
    await asyncio.sleep(_SILENT_S)
    node.program.start()
    began = time.monotonic()

    async def is_true() -> bool:
        status = (await api.get(f"/nodes/{allocation['node']}"))["status"]
        there = [a for a in await api.items("/allocations") if a["node"] == allocation["node"]]
        [one] = [a for a in there if a["id"] == allocation["id"]]
        known = one["restarts"] > allocation["restarts"] or one["reason"] == "CrashLoopBackOff"
        return bool(status["ready"]) and known and all(a["state"] != "Unknown" for a in there)

    await _until(is_true, f"the true states of {allocation['node']}")
    return Figure(f"{allocation['node']} back to true states after its agent's kill -9 and restart",
                  time.monotonic() - began, RETURN_BOUND_S)  # fmt: skip


async def measure_replacement(cell: Cell, api: Api, faults: Faults, way: Callable[[str], Fault]) -> Figure:
    """A node with bound workloads is lost in this way; from the end of what is waited until all of them run elsewhere.

    Below 0: its last word, from which the wait counts, came before the fault.
    """
    bound = [a for a in await api.items("/allocations") if a["lease_bound"] and a["state"] == "Running"]
    lost = bound[0]["node"]
    slots = {(a["workload"], a["slot"]) for a in bound if a["node"] == lost}
    fault = way(lost)
    began = time.monotonic()
    lasting = asyncio.create_task(faults.do(fault, _GIVE_UP_S))
    try:

        async def all_elsewhere() -> bool:
            run = [a for a in await api.items("/allocations") if a["state"] == "Running" and a["node"] != lost]
            return slots <= {(a["workload"], a["slot"]) for a in run}

        await _until(all_elsewhere, f"what was bound to {lost} runs elsewhere")
        took_s = time.monotonic() - began - cell.waits.lost_s
    finally:
        lasting.cancel()
        await asyncio.wait([lasting])
    what = (
        f"{len(slots)} slots elsewhere after the {cell.waits.lost_s:g} s that are waited for a node ({describe(fault)})"
    )
    return Figure(what, took_s, REPLACE_BOUND_S)


def find_leader(cell: Cell) -> tuple[str, int] | None:
    """(controller, epoch) of the newest leader that still runs."""
    newest = max(leaders(cell), key=lambda one: one[1], default=None)
    return (newest[0], newest[1]) if newest is not None and cell.controllers[newest[0]].alive else None


def leaders(cell: Cell) -> list[tuple[str, int, float]]:
    """(controller, epoch, when it said so) of all that ever led."""
    found = []
    for name, program in cell.controllers.items():
        for line in program.log.read_text().splitlines():
            if '"event": "leading"' in line:
                told = json.loads(line)
                found.append((name, int(told["epoch"]), datetime.fromisoformat(told["timestamp"]).timestamp()))
    return found


def _is_native_service(allocation: dict[str, Any]) -> bool:
    spec = allocation["spec"]
    running = allocation["state"] == "Running" and not allocation["reason"]
    return bool(running and spec["restart_policy"] == "Always" and allocation["runtime_class"] == "native")


def _kill_container(cell: Cell, allocation: dict[str, Any]) -> None:
    for pid in cgroups.read_pids(cell.nodes[allocation["node"]].places, allocation["container_id"]):
        with contextlib.suppress(ProcessLookupError):  # its init takes the others with it
            os.kill(pid, signal.SIGKILL)


async def _now(value: Any) -> Any:
    return value


async def _until(holds: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What it gave, once that is true. Raises TimeoutError with what was waited for."""
    deadline = time.monotonic() + _GIVE_UP_S
    while not (value := await holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_GIVE_UP_S:g} s: {what}")
        await asyncio.sleep(_LOOK_S)
    return value
