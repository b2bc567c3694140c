"""Whether a cell is as it should be, once nothing is done to it any more; and whether what was seen may have been.

One rule: a judgment is a list of what is wrong, in words that name it; empty is good.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from chaos import cgroups
from chaos.api import Api, Silent
from chaos.cell import Cell
from chaos.writer import Writer
from cri.client import CriClient
from cri.convert import OURS
from cri.errors import CriError

_AGAIN_S = 0.5
LEAST_LOOKS_PER_S = 10.0


async def wait_converged(cell: Cell, writer: Writer, api: Api, bound_s: float) -> tuple[float, list[str]]:
    """(seconds it took, what is still wrong when the time is over)."""
    began = time.monotonic()
    while True:
        try:
            wrong = await find_unconverged(cell, writer, api)
        except (Silent, CriError) as error:
            wrong = [str(error)]
        took_s = time.monotonic() - began
        if not wrong or took_s > bound_s:
            return took_s, wrong
        await asyncio.sleep(_AGAIN_S)


async def find_unconverged(cell: Cell, writer: Writer, api: Api) -> list[str]:
    """What is not as was accepted: in the API, or on the machine."""
    wrong = [f"node {n['id']}: {n['status']['reason']}" for n in await api.items("/nodes") if not n["status"]["ready"]]
    await writer.look_at_all()
    workloads = {w["id"]: w for w in await api.items("/workloads")}
    allocations = await api.items("/allocations")
    wrong += [w for workload in workloads.values() for w in _unfinished(workload)]
    wrong += [f"{id_} is in the API, and was never written" for id_ in workloads.keys() - writer.records.keys()]
    slots: dict[tuple[str, int], list[str]] = defaultdict(list)
    for allocation in allocations:
        live = slots[allocation["workload"], allocation["slot"]]
        if not allocation["released"]:  # of an earlier one, its end may be kept for people
            live.append(allocation["id"])
        if allocation["revision"] != allocation["accepted_revision"]:
            wrong.append(f"{allocation['id']}: its node has not accepted revision {allocation['revision']}")
    wanted = {(w["id"], slot) for w in workloads.values() for slot in range(w["replicas"])}
    wrong += [f"slot {w}.{n} has no allocation" for w, n in wanted - slots.keys()]
    wrong += [f"slot {w}.{n} has allocations, and nobody wants it" for w, n in slots.keys() - wanted]
    wrong += [f"slot {w}.{n} has several live ones: {ids}" for (w, n), ids in slots.items() if len(ids) > 1]
    return wrong + await _strangers(cell, allocations)


def _unfinished(workload: Mapping[str, Any]) -> list[str]:
    status = workload["status"]
    if workload.get("deleted_at"):
        return [f"{workload['id']} is being deleted: {status['message']}"]
    ended = status["succeeded"] + status["failed"]
    as_due = status["ready"] if workload["restart_policy"] == "Always" else ended
    if status["observed_generation"] == workload["generation"] and as_due == status["desired"] == workload["replicas"]:
        return []
    told = {k: status[k] for k in ("state", "reason", "message", "desired", "ready", "observed_generation")}
    return [f"{workload['id']} generation {workload['generation']}: {told}"]


async def _strangers(cell: Cell, allocations: list[dict[str, Any]]) -> list[str]:
    """What the machine has and should not have, and the other way round; by the kernel and by the runtimes."""
    running = {a["id"]: a["node"] for a in allocations if a["state"] == "Running"}
    known = {a["id"] for a in allocations}
    wrong: list[str] = []
    live: Counter[tuple[str, str]] = Counter()
    for name, node in cell.nodes.items():
        for container, pids in cgroups.container_pids(node.places):
            if pids and cgroups.is_started(pids):
                try:
                    identity = cgroups.identify(node.places, container)
                except (OSError, ValueError):
                    wrong.append(f"{container} on {name} has processes and no bundle: {cgroups.describe(pids)}")
                    continue
                if identity is not None:
                    live[identity.allocation, name] += 1
        client = CriClient(node.places.endpoint)
        try:
            sandboxes = await client.list_pod_sandboxes(OURS)
        finally:
            await client.close()
        left = {s.metadata.name for s in sandboxes} - known
        wrong += [f"sandbox of {id_} on {name}, which the API does not have" for id_ in left]
    wrong += [f"{a} has {n} live containers on {name}" for (a, name), n in live.items() if n != 1]
    wrong += [f"{a} lives on {name} and should not" for a, name in live if running.get(a) != name]
    return wrong + [f"{a} should live on {name} and does not" for a, name in running.items() if not live[a, name]]


def judge_sightings(seen: Mapping[str, Any], job_nonces: Mapping[str, str]) -> list[str]:
    """What the witness saw and may not be. job_nonces: those of the Never jobs' specs → the job."""
    wrong = [f"OVERLAP: {told}" for told in seen["overlaps"]]
    for nonce, job in job_nonces.items():
        runs = max(seen["starts"].get(nonce, 0), len(seen["job_runs"].get(nonce, [])))
        if runs > 1:
            wrong.append(f"RAN TWICE: {job} as written by {nonce}: {seen['job_runs'].get(nonce)}")
    rate = seen["passes"]["answered"] / seen["seconds"]
    if rate < LEAST_LOOKS_PER_S:
        wrong.append(f"the witness looked {rate:.1f} times a second; {LEAST_LOOKS_PER_S:g} were promised")
    return wrong
