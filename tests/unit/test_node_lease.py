"""The node's lease at work: what is on the disk of it, what starts and what ends with it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from agent import fencer
from agent.entry import End, Ended, Entry, InPlace, Released, StopAsked
from agent.files import put_file
from agent.lease import FENCE_FILE, SECOND, Fence, decode
from agent.ledger import Ledger, LedgerDamaged, _entry_record, _header, _line, open_ledger
from agent.node_lease import NodeLease, Unleased
from kakuri.model import BY_HAND, OnDisconnect, State
from support.agents import SkippingClock
from support.steps import ENTRY, NOW

REPLACE = InPlace(on_disconnect=OnDisconnect.REPLACE, grace_s=60)
BOUND = replace(ENTRY, in_place=REPLACE)
IDS = frozenset({"s" * 64, "c" * 64})


class Node:
    """A lease at work, with the workers and the fencer played."""

    def __init__(self, folder: Path, clock: SkippingClock) -> None:
        self.folder = folder
        self.clock = clock
        self.ledger: Ledger = open_ledger(folder / "ledger")
        self.ids: dict[str, frozenset[str] | None] = {}
        self.kicked: list[str] = []
        self.fencer_says = ""
        self.writes = 0
        self.disk_full = False
        self.lease = self.made()

    def made(self, boot: str = "this boot") -> NodeLease:
        return NodeLease(self.ledger, self.clock, self.folder, fencer_program=self, boot=boot, put=self._put)

    def _put(self, path: Path, content: bytes) -> None:
        if self.disk_full:
            raise OSError(28, "No space left on device")
        self.writes += 1
        put_file(path, content)

    def kick(self, id_: str) -> None:
        self.kicked.append(id_)

    def ids_of(self, id_: str) -> frozenset[str] | None:
        return self.ids.get(id_, frozenset())

    async def keep_up(self) -> str:
        return self.fencer_says

    def is_left(self) -> bool:
        return False

    def renew(self, ago_s: float = 0) -> None:
        self.lease.renew(self.clock.boot_ns() - int(ago_s * SECOND), 30, 10)

    @property
    def fence(self) -> Fence | None:
        file = self.folder / FENCE_FILE
        return decode(file.read_bytes()) if file.exists() else None

    def stop_of(self, entry: Entry = BOUND) -> StopAsked | None:
        return self.ledger.entries[entry.id].stop

    async def look(self) -> None:
        """One round of the loop."""
        await self.lease._go_on(self)


@pytest.fixture
async def node(tmp_path: Path, clock: SkippingClock) -> AsyncIterator[Node]:
    made = Node(tmp_path, clock)
    yield made
    made.lease.close()
    made.ledger.close()


async def bound(node: Node, entry: Entry = BOUND) -> None:
    """It is accepted as calls do it."""
    await node.look()
    node.lease._asked[entry.id] = frozenset()
    await node.look()
    await node.ledger.accept(entry)
    await node.look()


async def test_an_idle_node_writes_nothing(node: Node) -> None:
    await node.ledger.accept(ENTRY)
    for _ in range(5):
        node.renew()
        await node.look()
        node.clock.skip(10)
    assert node.writes == 0
    assert node.fence is None
    assert node.lease._next_ns() is None


async def test_what_is_accepted_is_on_the_disk_before_it_is_in_the_ledger_and_starts_when_the_lease_is_there(
    node: Node,
) -> None:
    await bound(node)
    assert node.fence is not None
    assert node.fence.bound == {BOUND.id: frozenset()}
    assert "no controller has granted one yet" in node.lease.why_not(BOUND)
    assert not node.lease.why_not(ENTRY)
    node.renew()
    await node.look()
    assert not node.lease.why_not(BOUND)
    assert BOUND.id in node.kicked
    assert node.fence.lease.deadline_ns > node.clock.boot_ns()
    node.clock.skip(31)
    assert "which is over: no controller was heard of since 20" in node.lease.why_not(BOUND)


async def test_a_chatty_controller_costs_no_write_for_each_answer(node: Node) -> None:
    await bound(node)
    node.renew()
    await node.look()
    before = node.writes
    for _ in range(30):
        node.clock.skip(1)
        node.renew()
        await node.look()
    assert 9 <= node.writes - before <= 10
    assert node.fence is not None
    assert node.fence.lease.deadline_ns == node.lease._fence.lease.deadline_ns


async def test_when_it_is_over_exactly_what_is_bound_is_stopped_in_time(node: Node) -> None:
    keep = replace(ENTRY, id="keep.0.0000000b")
    by_hand = replace(BOUND, id="hand.0.0000000c", origin=BY_HAND)
    await bound(node)
    for other in (keep, by_hand):
        await node.ledger.accept(other)
    node.renew()
    await node.look()
    node.clock.skip(29)
    await node.look()
    assert node.stop_of() is None
    node.clock.skip(1)
    await node.look()
    asked = node.stop_of()
    assert asked is not None
    assert (asked.revision, asked.reason, asked.grace_s) == (0, "NodeLost", 5)
    assert "no controller was heard of since 20" in asked.message
    assert (node.stop_of(keep), node.stop_of(by_hand)) == (None, None)


async def test_a_renewal_that_comes_after_the_end_saves_nothing(node: Node) -> None:
    await bound(node)
    node.renew()
    await node.look()
    node.clock.skip(31)  # nobody looked meanwhile: the process was held up
    node.renew()
    assert node.lease.why_not(BOUND)
    await node.look()
    asked = node.stop_of()
    assert asked is not None
    assert asked.reason == "NodeLost"
    assert not node.lease.why_not(replace(BOUND, id="api.0.0000000b"))  # what comes now is under the new lease


async def test_what_comes_after_the_end_waits_for_the_next_lease(node: Node) -> None:
    await bound(node)
    node.renew()
    await node.look()
    node.clock.skip(31)
    await node.look()
    late = replace(BOUND, id="late.0.0000000d")
    await bound(node, late)
    await node.look()
    assert node.stop_of(late) is None
    assert node.lease.why_not(late)
    node.renew()
    await node.look()
    assert not node.lease.why_not(late)
    assert late.id in node.kicked


async def test_a_stop_with_a_long_grace_is_cut_short_by_the_end_of_the_lease(node: Node) -> None:
    await bound(node)
    await node.ledger.record(BOUND.id, StopAsked(2, "Deleted", 3600))
    node.renew()
    await node.look()
    node.clock.skip(30)
    await node.look()
    asked = node.stop_of()
    assert asked is not None
    assert (asked.reason, asked.grace_s) == ("Deleted", 5)


async def test_the_grace_that_the_end_of_the_lease_leaves_is_given_whole_and_then_nothing_is_left_of_it(
    node: Node,
) -> None:
    await bound(node, replace(BOUND, cleared=True))
    node.renew()
    await node.look()
    node.clock.skip(30)
    graces = []
    for _ in range(8):
        await node.look()
        asked = node.stop_of()
        assert asked is not None
        graces.append(asked.grace_s)
        node.clock.skip(1)
    assert graces[:5] == [5] * 5  # each of them may have begun then, and its seconds count from there
    assert graces[-1] == 0  # for a container that comes up late


async def test_a_lease_whose_end_could_not_be_recorded_is_not_renewed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bound(node, replace(BOUND, cleared=True))
    node.renew()
    await node.look()
    node.clock.skip(31)

    def full(line: bytes) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(node.ledger._file, "append", full)
        disk.setattr(node.ledger._file, "rewrite", full)
        for _ in range(2):
            node.renew()
            await node.look()
            assert node.stop_of() is not None
            assert node.fence is not None
            assert node.fence.lease.is_over(node.clock.boot_ns())
    await node.look()
    node.renew()
    await node.look()
    assert node.fence.lease.is_held(node.clock.boot_ns())
    again = open_ledger(node.folder / "ledger")
    assert again.entries[BOUND.id].stop is not None
    again.close()


async def test_what_a_lost_ledger_left_stays_bound_until_none_of_it_is_there(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = node.folder / "cgroups" / f"cri-containerd-{'c' * 64}.scope"
    cgroup.mkdir(parents=True)
    monkeypatch.setattr(fencer, "CGROUPS", cgroup.parent)
    await bound(node)
    node.ids[BOUND.id] = IDS
    node.renew()
    await node.look()
    (node.folder / "ledger").unlink()
    node.lease.close()
    node.ledger.close()
    node.ledger = open_ledger(node.folder / "ledger")
    node.lease = node.made()
    await node.ledger.accept(replace(BOUND, wish=None, in_place=InPlace(), stop=StopAsked(3, "NodeLost", 3600)))
    node.renew()
    await node.look()
    assert node.fence is not None
    assert node.fence.bound == {BOUND.id: IDS}
    cgroup.rmdir()
    await node.look()
    await node.look()
    assert node.fence is None


async def test_a_fence_file_that_was_removed_is_put_again(node: Node) -> None:
    await bound(node)
    (node.folder / FENCE_FILE).unlink()
    await node.look()
    assert node.fence is not None
    assert node.fence.bound == {BOUND.id: frozenset()}


async def test_a_restart_of_the_agent_neither_loses_nor_prolongs_it(node: Node) -> None:
    await bound(node)
    node.renew()
    await node.look()
    deadline = node.lease._fence.lease.deadline_ns
    node.clock.skip(20)
    node.lease.close()
    node.lease = node.made()
    await node.look()
    assert node.lease._fence.lease.deadline_ns == deadline
    assert node.stop_of() is None
    assert not node.lease.why_not(BOUND)
    node.clock.skip(11)
    await node.look()
    assert node.stop_of() is not None


@pytest.mark.parametrize("how", ["another boot", "no file", "an unreadable file"])
async def test_what_was_bound_to_a_lease_that_nobody_knows_any_more_has_ended(node: Node, how: str) -> None:
    await bound(node)
    node.renew()
    await node.look()
    node.lease.close()
    if how == "no file":
        (node.folder / FENCE_FILE).unlink()
    if how == "an unreadable file":
        (node.folder / FENCE_FILE).write_text("{")
    node.lease = node.made("that boot" if how == "another boot" else "this boot")
    await node.look()
    asked = node.stop_of()
    assert asked is not None
    assert "no record of it" in asked.message


async def test_on_a_full_disk_no_renewal_counts_and_nothing_starts(node: Node) -> None:
    await bound(node)
    node.renew()
    await node.look()
    deadline = node.lease._fence.lease.deadline_ns
    node.disk_full = True
    node.clock.skip(20)
    node.renew()
    await node.look()
    assert node.lease._fence.lease.deadline_ns == deadline
    assert "No space left" in node.lease.why_not(BOUND)
    node.disk_full = False
    await node.look()
    assert node.lease._fence.lease.deadline_ns > deadline
    assert not node.lease.why_not(BOUND)


async def test_nothing_starts_without_a_fencer(node: Node) -> None:
    node.fencer_says = "the fencer ended at once"
    await bound(node)
    node.renew()
    await node.look()
    assert node.lease.why_not(BOUND) == "the fencer ended at once"
    node.fencer_says = ""
    await node.look()
    assert not node.lease.why_not(BOUND)


async def test_a_container_is_listed_before_it_starts_or_does_not_start(node: Node) -> None:
    await bound(node)
    node.renew()
    running = asyncio.ensure_future(node.lease.run(node))
    try:
        node.ids[BOUND.id] = None  # its worker is looking
        await asyncio.wait_for(node.lease.bind(BOUND.id, IDS), 5)
        assert node.fence is not None
        assert node.fence.ids == IDS
        node.disk_full = True
        with pytest.raises(Unleased, match="No space left"):
            await asyncio.wait_for(node.lease.bind(BOUND.id, IDS | {"d" * 64}), 5)
    finally:
        running.cancel()


async def test_when_nothing_is_bound_any_more_there_is_no_file(node: Node) -> None:
    await bound(node)
    node.ids[BOUND.id] = IDS
    await node.look()
    await node.ledger.record(BOUND.id, Ended(End(State.FAILED, "NodeLost", "", None, NOW)))
    await node.look()
    assert node.fence is not None
    assert node.fence.ids == IDS
    await node.ledger.record(BOUND.id, Released())
    await node.look()
    assert node.fence is not None
    assert node.fence.bound == {}  # a file that is gone tells a fencer nothing
    await node.look()
    assert node.fence is None
    assert node.lease._next_ns() is None


async def test_an_agent_that_knows_of_no_lease_refuses_a_ledger_with_what_is_bound_to_one(node: Node) -> None:
    await node.ledger.accept(ENTRY)
    text = (node.folder / "ledger").read_text()
    assert '"leased"' not in text
    await node.ledger.accept(replace(BOUND, id="api.0.0000000b"))
    text = (node.folder / "ledger").read_text()
    assert '{"leased":' in text  # an unknown record, to a version that reads only "entry"
    again = open_ledger(node.folder / "ledger")
    assert again.entries["api.0.0000000b"].leased
    again.close()


def test_a_ledger_from_before_leases_is_read_as_keep(tmp_path: Path) -> None:
    record = _entry_record(ENTRY)
    del record["entry"]["in_place"]["on_disconnect"]
    (tmp_path / "ledger").write_bytes(_header("u") + _line([record]))
    ledger = open_ledger(tmp_path / "ledger")
    assert ledger.entries[ENTRY.id] == ENTRY
    ledger.close()
    (tmp_path / "ledger").write_bytes(_header("u") + _line([{"newer": {}}]))
    with pytest.raises(LedgerDamaged, match="unknown record"):
        open_ledger(tmp_path / "ledger")
