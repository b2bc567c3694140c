"""The node's lease as a value: until when it holds, what the fence file says, and what step() makes of it."""

import json
import math
from dataclasses import replace

import pytest

from agent.action import CreateContainer, Record, RunSandbox, StartContainer, Wait
from agent.entry import Ended, Entry, InPlace, StopAsked
from agent.lease import SECOND, Fence, Lease, decode, encode, granted, is_worth_writing
from agent.progress import Progress
from agent.seen import Seen
from agent.step import step
from kakuri.model import BY_HAND, OnDisconnect, RestartPolicy
from support.steps import CLEARED, ENTRY, NEW, NOW, READY, container, exited, has, sandbox

REPLACE = InPlace(on_disconnect=OnDisconnect.REPLACE, grace_s=60)
BOUND = replace(ENTRY, in_place=REPLACE)
IDS = frozenset({"s" * 64, "c" * 64})
T = 1_000 * SECOND


@pytest.mark.parametrize(
    ("heard", "lease_s", "bound_s", "deadline"),
    [
        (T - 4 * SECOND, 30, 10, T + 26 * SECOND),
        (T + 1, 30, 10, T + 20 * SECOND),
        (T - 11 * SECOND, 30, 10, T + 20 * SECOND),
        (T - 4 * SECOND, 0, 10, T + 20 * SECOND),
        (T - 4 * SECOND, 30, 0, T + 20 * SECOND),
        (T - 4 * SECOND, math.nan, 10, T + 20 * SECOND),
        (T - 4 * SECOND, 30, math.inf, T + 20 * SECOND),
        (T - 4 * SECOND, 10, 10, T + 6 * SECOND),
    ],
    ids=[
        "it is counted from when the node sent what was heard",
        "what was not sent yet is not heard",
        "what was delayed adds nothing",
        "an older controller grants none",
        "none is granted whose stops have no time",
        "no number",
        "no end",
        "the newest word counts, also when it is a shorter one",
    ],
)
def test_a_word_of_the_controller(heard: int, lease_s: float, bound_s: float, deadline: int) -> None:
    before = Lease(T - 10 * SECOND, 30 * SECOND, 10 * SECOND)
    after = granted(before, heard_ns=heard, lease_s=lease_s, stop_bound_s=bound_s, now_ns=T)
    assert after.deadline_ns == deadline
    assert after.is_held(deadline - 1)
    assert not after.is_held(deadline)


def test_what_was_never_granted_is_neither_held_nor_over() -> None:
    assert not Lease().is_held(1)
    assert not Lease().is_over(1)


@pytest.mark.parametrize("bound_s", [1, 4, 10, 60])
def test_a_grace_ends_before_the_fencer_kills_and_the_fencer_before_the_bound(bound_s: int) -> None:
    lease = Lease(T, 30 * SECOND, bound_s * SECOND)
    for late_s in range(bound_s + 2):
        now = lease.deadline_ns + late_s * SECOND
        grace_s = lease.grace_s(3600, now)
        assert grace_s == 0 or now + grace_s * SECOND < lease.kill_at_ns
    assert lease.deadline_ns < lease.kill_at_ns < lease.deadline_ns + bound_s * SECOND
    assert lease.grace_s(1, lease.deadline_ns) <= 1


def test_only_a_renewal_that_adds_something_is_written() -> None:
    present = Lease(T, 30 * SECOND, 10 * SECOND)
    assert not is_worth_writing(present, replace(present, heard_ns=T + 2 * SECOND))
    assert is_worth_writing(present, replace(present, heard_ns=T + 3 * SECOND))
    assert is_worth_writing(present, replace(present, stop_bound_ns=20 * SECOND))
    assert is_worth_writing(Lease(), present)


def test_the_fence_file_says_what_was_put_into_it() -> None:
    fence = Fence("boot", Lease(T, 30 * SECOND, 10 * SECOND), {BOUND.id: IDS, "api.0.0000000b": frozenset()})
    assert decode(encode(fence)) == fence
    assert json.loads(encode(fence))["kill_at_ns"] == fence.lease.kill_at_ns
    no_list = b'{"boot_id": "", "heard_ns": 0, "lease_ns": 0, "stop_bound_ns": 0, "bound": {"web": 1}}'
    for bad in (b"", b"[]", b"{}", no_list, encode(fence).replace(b'"boot"', b"1")):
        with pytest.raises(ValueError, match=r".*"):
            decode(bad)


def test_an_id_that_could_be_part_of_anything_is_none() -> None:
    assert not Fence("boot", Lease(), {"web": frozenset({"", "a", "cpu"})}).ids


@pytest.mark.parametrize(
    ("entry", "seen"),
    [
        (BOUND, NEW),
        (BOUND, has(sandbox())),
        (replace(CLEARED, in_place=REPLACE), has(sandbox(), container(state="created"))),
    ],
    ids=["no sandbox", "no container", "a container that was created"],
)
def test_without_a_lease_nothing_starts(entry: Entry, seen: Seen) -> None:
    ready = Progress(image_ready=True, ports_free=True)
    assert isinstance(step(entry, seen, ready, NOW), RunSandbox | CreateContainer | StartContainer)
    assert step(entry, seen, ready, NOW, may_start=False) == Wait()


def test_what_ended_for_lack_of_the_lease_is_not_told_as_its_own_end() -> None:
    once = replace(CLEARED, in_place=replace(REPLACE, restart_policy=RestartPolicy.NEVER))
    for entry in (once, replace(CLEARED, in_place=REPLACE)):
        seen = has(sandbox(), exited(137))
        assert isinstance(step(entry, seen, READY, NOW), Record)
        assert step(entry, seen, READY, NOW, lapsed=True) == Wait()
        stopped = replace(entry, stop=StopAsked(0, "NodeLost", 0))
        ended = step(stopped, seen, READY, NOW)
        assert isinstance(ended, Record)
        assert isinstance(ended.change, Ended)
        assert (ended.change.end.state, ended.change.end.reason) == ("Failed", "NodeLost")


def test_only_what_a_controller_started_to_be_replaced_is_bound() -> None:
    assert BOUND.leased
    assert not ENTRY.leased
    assert not replace(BOUND, origin=BY_HAND).leased
    assert not replace(BOUND, wish=None).leased
