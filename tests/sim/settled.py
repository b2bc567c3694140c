"""What a world is like in the end: as people want it, nothing of ours besides, nothing left to plan, nothing written.

One rule: it is judged by what runs and by what is stored, never by a status that says so.
"""

from typing import Any

from controller.plan.reconcile import plan
from cri.v1 import runtime_pb2 as pb
from kakuri.model import Allocation, Desired, Reason, RestartPolicy, State, WorkloadSpec
from kakuri.selector import Selector
from sim.people import Want

WITHIN_S = 2000.0
"""After all is healed. The longest wait of the product is five minutes, and one may follow another."""
QUIET_S = 70.0
"""How long a settled world is watched: two sweeps."""
CLEARS_WITHIN_S = 140.0
"""By then no call is under way any more that something went wrong with before all was healed, and another was made in
its place: a listing of a runtime has the longest deadline, 120 s."""
LOOK_S = 15.0


def settle(world: Any) -> None:
    """It is as it should be, and stays so; else the witness says what is not."""
    end = world.loop.time() + WITHIN_S
    world.go(CLEARS_WITHIN_S)
    while wrong := _wrong_now(world):
        if world.witness.violations:
            return
        if world.loop.time() >= end:
            world.witness.broken(f"it does not settle: {'; '.join(wrong[:8])}")
            return
        world.go(LOOK_S)
    world.witness.check_jobs()
    before = world.loop.run(_resource_version(world))
    world.go(QUIET_S)
    if written := world.loop.run(_changes(world, before)):
        world.witness.broken(f"a settled world is written to within {QUIET_S:g} s: {', '.join(written[:8])}")
    if wrong := _wrong_now(world):
        world.witness.broken(f"it does not stay settled: {'; '.join(wrong[:8])}")


def _wrong_now(world: Any) -> list[str]:
    world.loop.run(world.stores.look())
    wrong: list[str] = world.loop.run(find_wrong(world))
    return wrong


async def _resource_version(world: Any) -> int:
    version: int = await (await world.stores.eyes()).resource_version()
    return version


async def _changes(world: Any, since: int) -> list[str]:
    return [f"{c.kind} {c.id}" for c in await (await world.stores.eyes()).changes_since(since)]


async def find_wrong(world: Any) -> list[str]:
    """What is not as it should be in the end."""
    store = await world.stores.eyes()
    stored = {w.id: w for w in (await store.list_workloads(selector=Selector(), limit=10_000)).items}
    wrong = []
    for node in (await store.list_nodes(selector=Selector(), limit=100)).items:
        if not node.status.ready:
            wrong.append(f"node {node.id} is not ready ({node.status.reason})")
        if node.status.instance != world.nodes[node.id].instance:
            wrong.append(f"node {node.id} has not registered")
    for id_, want in world.people.wants.items():
        if want.spec is None:
            wrong += [f"{id_} is deleted and still there"] if id_ in stored and stored[id_].uid == want.uid else []
        else:
            wrong += _wrong_slots(world, id_, want)
    wrong += _left_over(world)
    clock = next(iter(world.controllers.values())).clock
    ids = await store.page_workload_ids(limit=10_000)
    decided = plan(await store.load_snapshot(ids, now=clock.now(), seed="witness"))
    if not decided.empty:
        wrong.append(f"the plan is not empty: {decided.log_fields()['actions'] or 'status'}")
    return wrong


def _wrong_slots(world: Any, id_: str, want: Want) -> list[str]:
    assert want.spec is not None
    wrong = []
    rows = [r for r in world.witness.rows.values() if r.workload_uid == want.uid]
    for number in range(want.spec.replicas):
        run = world.witness.live.get((id_, number))
        mine = [r for r in rows if r.slot == number]
        newest = max(mine, key=lambda r: (r.created_at, r.id), default=None)
        if newest is None:
            wrong.append(f"{id_}.{number} has no allocation")
        elif newest.spec_hash != want.spec.replacing_hash():
            failed = any(r.spec_hash == want.spec.replacing_hash() and r.state is State.FAILED for r in rows)
            if failed and (newest.desired is Desired.RUN or _is_over(newest, want.spec)):
                continue  # a change whose first slots came to nothing pauses
            wrong.append(f"{newest.id} has an earlier spec")
        elif run is None and newest.released and want.uid in world.people.jobs and _ended_as_a_job(world, newest):
            continue
        elif run is None and want.spec.restart_policy is RestartPolicy.ALWAYS:
            wrong.append(f"{id_}.{number} does not run ({newest.id} {newest.state}/{newest.reason})")
        elif run is None and not (newest.state.ended and newest.released):
            wrong.append(f"{newest.id} does not run and has not ended ({newest.state}/{newest.reason})")
        elif run is not None and want.spec.restart_policy is not RestartPolicy.ALWAYS:
            wrong.append(f"{run} is still at it")
        elif run is not None and (run.allocation != newest.id or not newest.ready):
            wrong.append(f"{run} runs, and {newest.id} is {newest.state}/{newest.reason}")
    wrong += [f"{r.id} is beyond {want.spec.replicas} replicas" for r in rows if r.slot >= want.spec.replicas]
    wrong += [f"{r.id} has ended, and something of it is left" for r in rows if r.state.ended and not r.released]
    wrong += [f"{r.id} has not accepted {r.desired}" for r in rows if r.accepted_revision < r.revision]
    return wrong


def _ended_as_a_job(world: Any, row: Allocation) -> bool:
    """Of itself before its workload was changed to go on always, or under a spec that a restored database has lost."""
    return row.id in world.witness.brought_back or (row.desired is Desired.RUN and row.started_once)


def _is_over(row: Allocation, spec: WorkloadSpec) -> bool:
    """It was stopped, but no change did it: it may have run, and what runs once is not made up for."""
    no_change = Reason.NODE_LOST in {row.reason, row.desired_reason} or row.desired_reason == Reason.DRAINED
    return no_change and row.state.ended and row.released and spec.restart_policy is RestartPolicy.NEVER


def _left_over(world: Any) -> list[str]:
    """In runtimes and ledgers, of what nobody wants."""
    wrong = []
    for node in world.nodes.values():
        here = {r.id for r in world.witness.rows.values() if r.node == node.name}
        living = {r.id for r in world.witness.rows.values() if r.node == node.name and r.live}
        sandboxes = node.runtime.state.list_sandboxes(pb.PodSandboxFilter())
        ours = [s.metadata.name for s in sandboxes if s.id not in node.runtime.foreign]
        wrong += [f"{node.name} has a sandbox of {i}" for i in ours if i not in living]
        if node.ledger is not None:
            wrong += [f"the ledger of {node.name} has {i}" for i in node.ledger.entries if i not in here]
    return wrong
