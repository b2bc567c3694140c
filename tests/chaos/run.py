"""The course of a run: all comes up, faults and changes for a while, quiet, measures, verdict.

One rule: a phase's trouble is written down and the next one goes on, as far as it can: a run tells all that it saw.
"""

import asyncio
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos import measures
from chaos.api import Api, Silent
from chaos.cell import AGENTS, Cell
from chaos.faults import Cut, Faults, schedule
from chaos.hosts import Way
from chaos.measures import Figure
from chaos.observer import read_sightings, witnessing
from chaos.programs import keep_up
from chaos.spans import Span, count_handovers
from chaos.verdict import judge_sightings, wait_converged
from chaos.workloads import plans
from chaos.writer import Writer

_NODES_BOUND_S = 90.0
_UP_BOUND_S = 180.0
_CONVERGES_BOUND_S = 180.0
"""After the faults. A replacement that failed to start twice waits for 20 s, one that failed three times for 40."""
_DIRECTED_BEYOND_S = 30.0


@dataclass
class Report:
    """What a run has to tell. wrong is empty when all is well."""

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Run:
    cell: Cell
    report: Report
    seed: int
    minutes: float
    workloads: int
    every_s: float
    change_every_s: float
    rounds: int
    """How often each measure is taken; of losses of a node, there are three kinds."""
    began: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        line = f"{time.monotonic() - self.began:7.1f} {what}"
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        with (self.cell.folder / "run.log").open("a") as log:
            log.write(line + "\n")

    async def whole(self) -> None:
        """The random faults of the seed, then the measures."""
        async with Api(list(self.cell.servers.values())) as api, asyncio.TaskGroup() as tasks:
            upkeep = tasks.create_task(keep_up(self.cell.programs, self.say))
            writer = await self._up(api)
            faults = Faults(self.cell, self.say)
            with witnessing(self.cell) as told:
                await self._make_all(writer, api)
                writing = tasks.create_task(writer.run())
                due = schedule(self.seed, every_s=self.every_s, lost_s=self.cell.waits.lost_s)
                await faults.run(due, self.minutes * 60)
                writing.cancel()
                self.say("the faults are over")
                converged = await self._converged(writer, api)
                if converged:
                    await self._measure(api, faults, writer)
                    await self._converged(writer, api)
            self._tell(faults, writer, read_sightings(told))
            upkeep.cancel()

    async def directed(self) -> None:
        """One fault alone: the node with most that is bound to its lease is cut off for longer than is waited."""
        async with Api(list(self.cell.servers.values())) as api, asyncio.TaskGroup() as tasks:
            upkeep = tasks.create_task(keep_up(self.cell.programs, self.say))
            writer = await self._up(api)
            faults = Faults(self.cell, self.say)
            with witnessing(self.cell) as told:
                await self._make_all(writer, api)
                seconds = self.cell.waits.lost_s + _DIRECTED_BEYOND_S
                lost = await self._most_bound(api)
                cutting = tasks.create_task(faults.do(Cut(lost, Way.BOTH, seconds), seconds))
                while not cutting.done() and not read_sightings(told).get("overlaps"):
                    await asyncio.sleep(0.5)
                cutting.cancel()
            self._tell(faults, writer, read_sightings(told))
            upkeep.cancel()

    async def _up(self, api: Api) -> Writer:
        async with asyncio.timeout(_NODES_BOUND_S):
            while sum(n["status"]["ready"] for n in await api.items("/nodes")) < len(AGENTS):
                await asyncio.sleep(0.2)
        self.say("all nodes are ready")
        chance = random.Random(self.seed + 1)
        servers = list(self.cell.servers.values())
        path = self.cell.folder / "writer.jsonl"
        return Writer(servers, plans(self.workloads), path, chance, self.change_every_s)

    async def _make_all(self, writer: Writer, api: Api) -> None:
        await writer.make_all()
        took_s, wrong = await wait_converged(self.cell, writer, api, _UP_BOUND_S)
        if wrong:
            raise RuntimeError(f"the workloads did not come up: {wrong[:10]}")
        self.say(f"{len(writer.plans)} workloads are up after {took_s:.1f} s")

    async def _converged(self, writer: Writer, api: Api) -> bool:
        took_s, wrong = await wait_converged(self.cell, writer, api, _CONVERGES_BOUND_S)
        if wrong:
            self.report.wrong += [f"NOT CONVERGED after {took_s:.0f} s: {w}" for w in wrong]
        else:
            self.report.lines.append(f"converged {took_s:.1f} s after the end of all faults")
            self.say(f"converged after {took_s:.1f} s")
        return not wrong

    async def _measure(self, api: Api, faults: Faults, writer: Writer) -> None:
        try:
            for _ in range(self.rounds):
                self._note(await measures.measure_takeover(self.cell))
            for _ in range(self.rounds):
                self._note(await measures.measure_return(self.cell, api))
            for way in measures.LOSSES[: self.rounds]:
                self._note(await measures.measure_replacement(self.cell, api, faults, way))
                # What ran there comes to rest before the next loss is measured.
                await wait_converged(self.cell, writer, api, _CONVERGES_BOUND_S)
        except (TimeoutError, Silent) as error:
            self.report.wrong.append(f"NOT MEASURED: {error}")

    def _note(self, figure: Figure) -> None:
        self.say(str(figure))
        self.report.lines.append(f"measured: {figure}")
        if not figure.good:
            self.report.wrong.append(f"TOO SLOW: {figure}")

    async def _most_bound(self, api: Api) -> str:
        bound = [a["node"] for a in await api.items("/allocations") if a["lease_bound"]]
        return max(AGENTS, key=bound.count)

    def _tell(self, faults: Faults, writer: Writer, seen: Mapping[str, Any]) -> None:
        self.report.wrong += judge_sightings(seen, writer.job_nonces)
        self.report.wrong += [f"ACCEPTED AND NOT TRUE: {told}" for told in writer.wrong]
        passed_on = count_handovers(Span(**span) for span in seen["spans"])
        looks = seen["passes"]
        lists = ", ".join(
            f"{name} {one['answered'] / seen['seconds']:.1f}/s answered and {one['unanswered']} not"
            for name, one in seen["lists"].items()
        )
        ended = {p.name: p.unasked_ends for p in self.cell.programs if p.unasked_ends}
        rate = f"{looks['answered'] / seen['seconds']:.1f} looks a second at all cgroups"
        lived = f"{len(seen['spans'])} containers lived, {passed_on.number} followed another in their slot"
        followed = f"{passed_on.to_another_host} of them on another node, the closest after {passed_on.closest_s:.2f} s"
        fenced = sum(len(node.fenced()) for node in self.cell.nodes.values())
        self.report.lines += [
            f"faults: {sum(faults.counts.values())}",
            *(f"  {number:4} {kind}" for kind, number in sorted(faults.counts.items())),
            f"programs that ended by themselves and were started again: {ended or 'none'}",
            f"containers and sandboxes that fencers killed: {fenced}",
            f"writes: {dict(sorted(writer.counts.items()))}",
            f"witness: {rate}, {looks['longest_gap_s']:.2f} s between two at most; lists of runtimes: {lists}",
            f"witness: {sum(seen['events'].values())} events of containerd, {seen['lines']} lines of containers",
            f"witness: {lived}, {followed}; {len(seen['overlaps'])} overlaps",
        ]
        self.report.lines += [f"seen together: {note}" for note in seen["together"][:20]]
