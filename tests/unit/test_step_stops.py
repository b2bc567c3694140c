"""How a stop climbs when the runtime does not carry it out, and what people are told meanwhile."""

from dataclasses import replace

import pytest

from agent.action import (
    Action,
    Record,
    RemoveContainer,
    RemoveSandbox,
    RunSandbox,
    Step,
    StopContainer,
    StopSandbox,
    Wait,
)
from agent.entry import AttemptOver, End, Ended, Entry, InPlace, StopAsked, apply_change
from agent.ladder import TRIES_A_RUNG
from agent.progress import SECOND, Outcome, after_failure, beginning, settled
from agent.seen import Seen
from agent.status import status_of
from agent.step import step
from kakuri.model import State
from support.steps import CLEARED, ENTRY, NOW, RAN, READY, STOP, container, exited, failed, has, sandbox

STOPPING = replace(CLEARED, stop=STOP)
RUNNING = has(sandbox(), container("running"))
ENDED = replace(CLEARED, end=End(State.SUCCEEDED, "Completed", "", 0, NOW))
SANDBOXES = frozenset({"s1"})


class Story:
    """One allocation whose actions all fail as a test says, on a clock that goes from one wait to the next."""

    def __init__(self, entry: Entry, seen: Seen, *, takes_s: float = 0) -> None:
        self.entry, self.seen, self.takes_ns = entry, seen, int(takes_s * SECOND)
        self.progress, self.now_ns = READY, NOW

    def next(self) -> Action:
        """The next action, begun; what is waited for has come."""
        self.progress = settled(self.progress, self.seen)
        found = step(self.entry, self.seen, self.progress, self.now_ns)
        while isinstance(found, Wait):
            assert found.until_ns is not None
            self.now_ns = found.until_ns
            found = step(self.entry, self.seen, self.progress, self.now_ns)
        assert isinstance(found, Action)
        self.progress = beginning(self.progress, found, self.now_ns)
        return found

    def fail(self, outcome: Outcome = Outcome.TIMED_OUT, message: str = "no answer") -> Action:
        """The next action, which fails."""
        found = self.next()
        self.now_ns += self.takes_ns
        self.progress = after_failure(self.progress, found, outcome, message, self.now_ns)
        return found

    @property
    def message(self) -> str:
        return status_of(self.entry, self.seen, self.progress, ran=True, simulated=False).message


GRACE: list[Step] = [StopContainer("c0", 3), StopContainer("c0", 2)]
"""The second with what is left of it a second later; then it is used up."""
KILL: list[Step] = [StopContainer("c0", 0)]
SANDBOX: list[Step] = [StopSandbox("s1")]
REMOVE: list[Step] = [RemoveSandbox("s1")]


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.REFUSED, Outcome.TAKEN])
def test_a_stop_climbs_from_grace_over_kill_and_sandbox_to_removal_and_then_goes_round_for_ever(
    outcome: Outcome,
) -> None:
    story = Story(STOPPING, RUNNING)
    climb = GRACE + KILL * TRIES_A_RUNG + SANDBOX * TRIES_A_RUNG + REMOVE * TRIES_A_RUNG
    tried = [story.fail(outcome) for _ in range(len(climb) + 30)]
    assert tried[: len(climb)] == climb
    assert tried[len(climb) :] == (KILL + SANDBOX + REMOVE) * 10
    before = story.now_ns
    story.fail(outcome)
    assert story.now_ns - before <= 60 * SECOND


def test_a_stop_without_grace_begins_at_the_kill() -> None:
    story = Story(replace(STOPPING, stop=replace(STOP, grace_s=0)), RUNNING)
    assert [story.fail() for _ in range(TRIES_A_RUNG + 1)] == KILL * TRIES_A_RUNG + SANDBOX


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.CUT_OFF, Outcome.GONE])
def test_a_runtime_that_is_away_has_refused_nothing_so_the_stop_does_not_climb(outcome: Outcome) -> None:
    story = Story(replace(STOPPING, stop=replace(STOP, grace_s=0)), RUNNING)
    assert [story.fail(outcome) for _ in range(20)] == KILL * 20


def test_a_grace_that_was_refused_is_asked_for_again_but_not_for_ever() -> None:
    story = Story(replace(STOPPING, stop=replace(STOP, grace_s=3600)), RUNNING)
    graces = [action.grace_s for _ in range(4) if isinstance(action := story.fail(Outcome.REFUSED), StopContainer)]
    assert graces[0] == 3600
    assert all(3590 < grace < 3600 for grace in graces[1:TRIES_A_RUNG])
    assert graces[TRIES_A_RUNG:] == [0]


def test_the_grace_is_given_once_however_often_the_call_is_cut_off() -> None:
    story = Story(replace(STOPPING, stop=replace(STOP, grace_s=30)), RUNNING, takes_s=8)
    graces = [action.grace_s for _ in range(5) if isinstance(action := story.fail(Outcome.CUT_OFF), StopContainer)]
    assert graces[0] == 30
    assert graces == sorted(graces, reverse=True)
    assert graces[-1] == 0


def test_a_grace_that_no_runtime_heard_of_is_not_used_up() -> None:
    story = Story(STOPPING, RUNNING, takes_s=2)
    assert [story.fail(Outcome.UNREACHABLE) for _ in range(5)] == GRACE[:1] * 5


def test_no_end_is_recorded_while_it_runs_and_the_first_look_that_shows_none_records_it() -> None:
    story = Story(STOPPING, RUNNING)
    for _ in range(40):
        assert not isinstance(story.fail(), Record)
    story.seen = has(sandbox(ready=False), exited(137))
    recorded = story.next()
    assert isinstance(recorded, Record)
    assert isinstance(recorded.change, Ended)
    assert (recorded.change.end.state, recorded.change.end.exit_code) == (State.SUCCEEDED, 137)
    story.seen = has()
    gone = story.next()
    assert isinstance(gone, Record)
    assert isinstance(gone.change, Ended)
    assert (gone.change.end.state, gone.change.end.exit_code) == (State.FAILED, None)


def test_another_container_climbs_from_the_start() -> None:
    story = Story(STOPPING, RUNNING)
    for _ in range(8):
        story.fail()
    story.seen = has(sandbox(), container("running", id="c9"))
    assert story.next() == StopContainer("c9", 3)


def test_a_container_whose_sandbox_is_not_there_is_removed_by_force_instead() -> None:
    story = Story(STOPPING, has(container("running")))
    tried = [story.fail() for _ in range(len(GRACE) + 3 * TRIES_A_RUNG)]
    assert tried[len(GRACE) + TRIES_A_RUNG :] == [RemoveContainer("c0")] * (2 * TRIES_A_RUNG)


@pytest.mark.parametrize(
    ("entry", "seen", "first"),
    [
        pytest.param(ENDED, RUNNING, StopContainer("c0", 7), id="what runs after the end"),
        pytest.param(CLEARED, has(sandbox(ready=False), container("running")), StopContainer("c0", 7), id="dead one"),
        pytest.param(RAN, RUNNING, StopContainer("c0", 7), id="the attempt before"),
        pytest.param(CLEARED, has(sandbox(), container("unknown")), StopContainer("c0", 0), id="one lost track of"),
    ],
)
def test_whatever_has_to_go_climbs(entry: Entry, seen: Seen, first: Step) -> None:
    story = Story(entry, seen)
    tried = [story.fail() for _ in range(3 * TRIES_A_RUNG + 1)]
    assert tried[0] == first
    assert REMOVE[0] in tried


def test_an_ended_container_that_is_not_removed_goes_with_its_sandbox() -> None:
    story = Story(ENDED, has(sandbox(), exited(0)))
    tried = [story.fail(Outcome.REFUSED) for _ in range(3 * TRIES_A_RUNG + 3)]
    remove: list[Step] = [RemoveContainer("c0")]
    assert tried == remove * 3 + SANDBOX * 3 + REMOVE * 3 + remove + SANDBOX + REMOVE


def test_but_not_while_another_container_runs_in_there() -> None:
    story = Story(RAN, has(sandbox(), exited(0), container("running", attempt=1)))
    assert [story.fail(Outcome.REFUSED) for _ in range(9)] == [RemoveContainer("c0")] * 9


def test_a_sandbox_that_is_not_stopped_is_removed() -> None:
    story = Story(ENDED, has(sandbox()))
    tried = [story.fail(Outcome.REFUSED) for _ in range(2 * TRIES_A_RUNG + 2)]
    assert tried == SANDBOX * 3 + REMOVE * 3 + SANDBOX + REMOVE


def test_a_sandbox_that_was_told_to_end_gets_no_container_any_more() -> None:
    story = Story(ENTRY, has(sandbox()))
    story.progress = replace(READY, doomed=SANDBOXES)
    assert story.next() == StopSandbox("s1")
    story.seen = has()
    assert story.next() == RunSandbox()


@pytest.mark.parametrize("entry", [STOPPING, replace(STOPPING, stop=replace(STOP, reason="NodeLost"))])
def test_a_cleared_container_is_removed_before_a_stop_says_that_it_never_ran(entry: Entry) -> None:
    story = Story(entry, has(sandbox(), container("created")))
    assert story.next() == RemoveContainer("c0")
    story.seen = has(sandbox())
    recorded = story.next()
    assert isinstance(recorded, Record)
    assert isinstance(recorded.change, Ended)
    assert recorded.change.end.state is State.FAILED
    assert "before it ran" not in recorded.change.end.message


def test_a_container_that_was_not_cleared_never_ran() -> None:
    recorded = Story(replace(ENTRY, stop=STOP), has(sandbox(), container("created"))).next()
    assert isinstance(recorded, Record)
    assert isinstance(recorded.change, Ended)
    assert "before it ran" in recorded.change.end.message


# what is told


def test_a_stop_says_its_step_since_when_how_often_it_was_tried_and_the_last_error() -> None:
    story = Story(STOPPING, RUNNING)
    assert story.message == ""
    story.next()
    assert story.message == "stop is at grace (3 s) since 2027-01-15T08:00:00Z"
    story.fail(message="first")
    assert story.message == "stop is at grace (3 s) since 2027-01-15T08:00:00Z (1 try); last error: first"
    story.fail(message="second")
    story.fail(message="third")
    assert story.message == "stop is at kill since 2027-01-15T08:00:03Z (1 try); last error: third"
    story.fail(message="fourth")
    story.fail(message="fifth")
    assert story.message.startswith("stop is at sandbox since 2027-01-15T08:00:")
    assert story.message.endswith("Z; last error: fifth")


def test_a_stop_that_goes_round_is_no_news_each_time() -> None:
    story = Story(STOPPING, RUNNING)
    told = []
    for n in range(200):
        tried = story.fail(message=f"{type(story.next()).__name__} failed")
        told.append(story.message)
        assert n < 12 or "last error: RemoveSandbox failed" in story.message, tried
    assert len(set(told[20:])) <= 5
    assert "more than 160 tries" in told[-1]


def test_what_its_node_was_stopped_for_is_said_too() -> None:
    story = Story(replace(STOPPING, stop=StopAsked(0, "NodeLost", 3, "the node was shut down")), RUNNING)
    assert story.message == "the node was shut down"
    story.next()
    assert story.message.startswith("the node was shut down; stop is at grace")


def test_an_old_trouble_of_its_start_is_not_told_of_a_stop() -> None:
    story = Story(STOPPING, RUNNING)
    story.progress = failed(RunSandbox())
    assert story.message == ""


# a later stop


def test_a_later_stop_shortens_the_grace_and_never_lengthens_it() -> None:
    long = replace(CLEARED, stop=StopAsked(2, "Deleted", 3600))
    shorter = apply_change(long, StopAsked(3, "ForceDeleted", 0))
    assert (shorter.revision, shorter.stop) == (3, StopAsked(2, "Deleted", 0))
    longer = apply_change(shorter, StopAsked(4, "Deleted", 60))
    assert (longer.revision, longer.stop) == (4, shorter.stop)


def test_a_stop_that_was_delayed_on_its_way_shortens_nothing_but_the_nodes_own_does() -> None:
    long = replace(CLEARED, revision=5, stop=StopAsked(5, "Deleted", 3600))
    assert apply_change(long, StopAsked(4, "Deleted", 0)) is long
    own = apply_change(long, StopAsked(0, "NodeLost", 5))
    assert (own.revision, own.stop) == (5, StopAsked(5, "Deleted", 5))


def test_a_stop_after_the_end_changes_nothing_but_the_revision() -> None:
    after = apply_change(replace(ENDED, stop=STOP), StopAsked(9, "Deleted", 0))
    assert (after.revision, after.stop) == (9, STOP)


def test_a_shortened_grace_counts_from_when_the_stop_began() -> None:
    story = Story(replace(STOPPING, stop=StopAsked(2, "Deleted", 100)), RUNNING)
    assert story.next() == StopContainer("c0", 100)
    story.now_ns += 10 * SECOND
    story.entry = apply_change(story.entry, StopAsked(3, "Deleted", 30))
    assert story.next() == StopContainer("c0", 20)
    story.now_ns += 25 * SECOND
    assert story.next() == StopContainer("c0", 0)
    assert story.message == "stop is at kill since 2027-01-15T08:00:35Z"


def test_a_clock_that_jumps_gives_no_more_than_the_grace() -> None:
    story = Story(STOPPING, RUNNING)
    story.next()
    story.now_ns -= 9999 * SECOND
    assert story.next() == StopContainer("c0", 3)


def test_an_attempt_whose_container_climbed_to_its_end_goes_on_under_its_policy() -> None:
    story = Story(replace(CLEARED, in_place=InPlace(grace_s=7)), has(sandbox(ready=False), container("running")))
    for _ in range(6):
        story.fail()
    story.seen = has(sandbox(ready=False), exited(137))
    over = story.next()
    assert isinstance(over, Record)
    assert isinstance(over.change, AttemptOver)
    assert story.progress.climb is None
