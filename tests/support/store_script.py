"""What happens to a store, told in a few words: people put, planners place, agents report."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from builders import NOW, a_manifest, a_registration
from controller.exchange import ObservedAllocation, Report, Sent
from controller.plan.action import Action, Place, Plan, Waiting, WorkloadPlan
from controller.plan.snapshot import WorkloadView
from controller.store.contract import Applied, Delete, EventFilter, Outcome, Put, Recorded, Store
from kakuri.model import Event, EventDraft, WorkloadStatus


@dataclass
class StoreScript:
    store: Store
    now: datetime = NOW
    epoch: int = 0

    # -- people ------------------------------------------------------------------------------------------------------
    async def put(
        self, id_: str = "web", *, mode: Any = "upsert", if_match: str | None = None, **fields: Any
    ) -> Outcome:
        (outcome,) = await self.store.apply([Put(a_manifest(id_, **fields), mode, if_match)], now=self.now)
        return outcome

    async def delete(self, id_: str = "web", kind: Any = "Workload", if_match: str | None = None) -> Outcome:
        (outcome,) = await self.store.apply([Delete(kind, id_, if_match)], now=self.now)
        return outcome

    # -- the planner -------------------------------------------------------------------------------------------------
    async def view(self, id_: str = "web") -> WorkloadView:
        snapshot = await self.store.load_snapshot([id_], now=self.now, seed="s")
        (view,) = snapshot.workloads
        return view

    async def act(
        self,
        *actions: Action,
        id_: str = "web",
        version: int | None = None,
        status: WorkloadStatus | None = None,
        events: tuple[EventDraft, ...] = (),
        waiting: tuple[Waiting, ...] = (),
    ) -> Applied:
        """These actions, as a plan made for the workload's present version unless another is given."""
        view = await self.view(id_)
        step = WorkloadPlan(
            workload_id=id_,
            version=view.version if version is None else version,
            actions=actions,
            status=status or view.status,
            status_changed=status is not None,
            events=events,
            waiting=waiting,
        )
        return await self.store.apply_plan(Plan((step,)), epoch=self.epoch, now=self.now)

    async def place(self, id_: str = "web", slot: int = 0, *, node: str = "n1", suffix: str = "00000000") -> str:
        """A new allocation's id, its row written."""
        place = await self.a_place(id_, slot, node=node, suffix=suffix)
        applied = await self.act(place, id_=id_)
        assert applied.written == {id_}
        return place.allocation_id

    async def a_place(
        self, id_: str = "web", slot: int = 0, *, node: str = "n1", suffix: str = "00000000", ledger_uid: str = ""
    ) -> Place:
        view = await self.view(id_)
        return Place(
            allocation_id=f"{id_}.{slot}.{suffix}",
            workload_id=id_,
            workload_uid=view.uid,
            slot=slot,
            node=node,
            generation=view.generation,
            spec=view.spec,
            spec_hash=view.spec.replacing_hash(),
            failures=0,
            ledger_uid=ledger_uid or f"ledger-{node}",
            simulated=False,
            reason="new",
        )

    # -- agents ------------------------------------------------------------------------------------------------------
    async def node(self, id_: str = "n1", *, ready: bool = True, **fields: Any) -> None:
        registration = a_registration(**{"ledger_uid": f"ledger-{id_}", **fields})
        await self.store.register_node(id_, registration, now=self.now)
        await self.store.set_node_ready(
            id_,
            epoch=self.epoch,
            ready=ready,
            reason="Ready" if ready else "NodeSilent",
            message="",
            now=self.now,
        )

    async def sent(self, *answers: Sent, node: str = "n1", ledger_uid: str = "ledger-n1") -> frozenset[str]:
        return await self.store.record_sent(node, ledger_uid, answers, epoch=self.epoch, now=self.now)

    async def accept(self, *ids: str, node: str = "n1") -> frozenset[str]:
        """The node's agent accepted the newest of each."""
        revisions = {a: (await self.store.get_allocation(a)).revision for a in ids}
        answers = [Sent(a, revision, "accepted") for a, revision in revisions.items()]
        return await self.store.record_sent(node, f"ledger-{node}", answers, epoch=self.epoch, now=self.now)

    def seen(self, id_: str, state: str = "Running", **fields: Any) -> ObservedAllocation:
        workload, slot, _ = id_.split(".")
        usual: dict[str, Any] = {
            "origin": self.store.cluster_id,
            "revision": 1,
            "started_once": state == "Running",
            "handler": "runc",
            "sandbox_id": "sandbox",
        }
        return ObservedAllocation(id=id_, workload=workload, slot=int(slot), state=state, **{**usual, **fields})

    async def report(
        self,
        *allocations: ObservedAllocation,
        node: str = "n1",
        full: bool = False,
        gone: Sequence[str] = (),
        spared: Sequence[str] = (),
        ledger_uid: str | None = None,
    ) -> Recorded:
        report = Report(
            node=node,
            instance="instance-1",
            revision=1,
            ledger_uid=ledger_uid or f"ledger-{node}",
            full=full,
            allocations=allocations,
            gone=tuple(gone),
            spared=frozenset(spared),
        )
        return await self.store.record_report(report, epoch=self.epoch, now=self.now)

    async def running(self, id_: str = "web", slot: int = 0, *, node: str = "n1", suffix: str = "00000000") -> str:
        """An allocation that its node accepted and runs."""
        allocation = await self.place(id_, slot, node=node, suffix=suffix)
        await self.accept(allocation, node=node)
        await self.report(self.seen(allocation), node=node)
        return allocation


async def events_of(script: StoreScript, id_: str = "web") -> list[Event]:
    return list((await script.store.list_events(EventFilter(object_id=id_))).items)


async def told(script: StoreScript, id_: str = "web") -> dict[str, str]:
    return {e.reason: e.message for e in await events_of(script, id_)}
