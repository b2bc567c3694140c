"""How an allocation ends or goes on after a container of it has ended. One row a situation; its id says it."""

from dataclasses import dataclass, replace

import pytest

from agent.action import CreateContainer, ProbePorts, Record, RunSandbox, StartContainer
from agent.entry import AttemptOver, Ended, Entry, Exit, StopAsked
from agent.progress import SECOND, Progress
from agent.seen import Seen
from agent.step import step
from kakuri.model import State
from support.steps import (
    ALWAYS,
    CLEARED,
    ENTRY,
    NEVER,
    NEW,
    NOW,
    ON_FAILURE,
    RAN,
    READY,
    STOP,
    WITH_PORTS,
    container,
    exited,
    failed,
    has,
    sandbox,
    under,
)


@dataclass
class EndRow:
    id: str
    state: State | None
    reason: str
    seen: Seen
    entry: Entry = CLEARED
    code: int | None = None
    progress: Progress = READY


STOPPING = replace(CLEARED, stop=STOP)
END_ROWS = [
    EndRow("Never and 0 is Completed", State.SUCCEEDED, "Completed", has(sandbox(), exited(0)), under(NEVER, 0), 0),
    EndRow("Never and 3 is Error", State.FAILED, "Error", has(sandbox(), exited(3)), under(NEVER, 0), 3),
    EndRow(
        "OnFailure and 0 is Completed", State.SUCCEEDED, "Completed", has(sandbox(), exited(0)), under(ON_FAILURE, 6), 0
    ),
    EndRow("OnFailure and 3 starts again", None, "Error", has(sandbox(), exited(3)), under(ON_FAILURE, 6), 3),
    EndRow(
        "OnFailure ends after its limit",
        State.FAILED,
        "BackoffLimitExceeded",
        has(sandbox(), exited(3, attempt=6)),
        under(ON_FAILURE, 6, attempt=6),
        3,
    ),
    EndRow(
        "a limit of none ends at once",
        State.FAILED,
        "BackoffLimitExceeded",
        has(sandbox(), exited(3)),
        under(ON_FAILURE, 0),
        3,
    ),
    EndRow("Always starts again after 0", None, "Completed", has(sandbox(), exited(0)), under(ALWAYS), 0),
    EndRow(
        "Always ends after a limit that was given",
        State.FAILED,
        "BackoffLimitExceeded",
        has(sandbox(), exited(0, attempt=2)),
        under(ALWAYS, 2, attempt=2),
        0,
    ),
    EndRow(
        "out of memory says so",
        State.FAILED,
        "OOMKilled",
        has(sandbox(), exited(137, reason="OOMKilled")),
        under(NEVER, 0),
        137,
    ),
    EndRow(
        "a command that isn't there is a StartError",
        State.FAILED,
        "StartError",
        has(sandbox(), exited(128, ran_s=0)),
        under(NEVER, 0),
        128,
    ),
    EndRow(
        "a start that the runtime refuses is a StartError",
        State.FAILED,
        "StartError",
        has(sandbox(), container("created")),
        under(NEVER, 0),
        128,
        failed(StartContainer("c0"), times=4),
    ),
    EndRow(
        "a creation that the runtime refuses is a StartError",
        State.FAILED,
        "StartError",
        has(sandbox()),
        under(NEVER, 0, cleared=False),
        128,
        failed(CreateContainer("s1", 0)),
    ),
    EndRow(
        "a container that somebody removed is never run again under Never",
        State.FAILED,
        "Error",
        has(sandbox()),
        under(NEVER, 0),
        None,
    ),
    EndRow("and counts as a crash under OnFailure", None, "Error", has(sandbox()), under(ON_FAILURE, 6), None),
    EndRow(
        "an end that the runtime can't tell is a failure",
        State.FAILED,
        "Error",
        has(sandbox(), container("exited", started_at_ns=1)),
        under(NEVER, 0),
        None,
    ),
    EndRow(
        "255 of a runtime that was down is an unknown end",
        State.FAILED,
        "Error",
        has(sandbox(), exited(255, reason="Unknown")),
        under(NEVER, 0),
        None,
    ),
    EndRow(
        "and counts as a failure under OnFailure",
        None,
        "Error",
        has(sandbox(), exited(255, reason="Unknown")),
        under(ON_FAILURE, 6),
        None,
    ),
    EndRow("255 of a program is its own", State.FAILED, "Error", has(sandbox(), exited(255)), under(NEVER, 0), 255),
    EndRow(
        "a dead sandbox ends the attempt",
        None,
        "SandboxFailed",
        has(sandbox(ready=False), exited(143)),
        under(ALWAYS),
        143,
    ),
    EndRow(
        "a dead sandbox ends a job that must not restart",
        State.FAILED,
        "SandboxFailed",
        has(sandbox(ready=False), exited(143)),
        under(NEVER, 0),
        143,
    ),
    EndRow(
        "but what had ended well before has ended well",
        State.SUCCEEDED,
        "Completed",
        has(sandbox(ready=False), exited(0)),
        under(NEVER, 0),
        0,
    ),
    EndRow(
        "another handler than asked for is not run on",
        State.FAILED,
        "SandboxFailed",
        has(sandbox(handler="crun")),
        replace(CLEARED, cleared=False),
        None,
    ),
    EndRow(
        "nor is it left running there",
        State.FAILED,
        "SandboxFailed",
        has(sandbox(handler="crun"), container("running")),
        CLEARED,
        None,
    ),
    EndRow(
        "four failed sandboxes are enough",
        State.FAILED,
        "SandboxFailed",
        NEW,
        ENTRY,
        None,
        failed(RunSandbox(), times=4),
    ),
    EndRow(
        "three looks at a taken port are enough",
        State.FAILED,
        "HostPortInUse",
        NEW,
        WITH_PORTS,
        None,
        failed(ProbePorts(), times=3),
    ),
    EndRow("stopped with 143 is a good end", State.SUCCEEDED, "Stopped", has(sandbox(), exited(143)), STOPPING, 143),
    EndRow("stopped with 137 too", State.SUCCEEDED, "Stopped", has(sandbox(), exited(137)), STOPPING, 137),
    EndRow("stopped with another code is a bad one", State.FAILED, "Stopped", has(sandbox(), exited(3)), STOPPING, 3),
    EndRow(
        "a job that was done when the stop came is Completed",
        State.SUCCEEDED,
        "Completed",
        has(sandbox(), exited(0)),
        under(NEVER, 0, stop=STOP),
        0,
    ),
    EndRow(
        "a job that was out of memory when the stop came is OOMKilled",
        State.FAILED,
        "OOMKilled",
        has(sandbox(), exited(137, reason="OOMKilled")),
        under(NEVER, 0, stop=STOP),
        137,
    ),
    EndRow(
        "out of memory while it is stopped is Stopped where it would have been started again",
        State.FAILED,
        "Stopped",
        has(sandbox(), exited(137, reason="OOMKilled")),
        STOPPING,
        137,
    ),
    EndRow("stopped before it ran is no success", State.FAILED, "Stopped", NEW, replace(ENTRY, stop=STOP), None),
    EndRow(
        "stopped between two attempts ends as the last one did",
        State.FAILED,
        "Stopped",
        has(sandbox()),
        replace(RAN, stop=STOP),
        1,
    ),
    EndRow(
        "lost is NodeLost, however it ended",
        State.FAILED,
        "NodeLost",
        has(sandbox(), exited(0)),
        replace(CLEARED, stop=StopAsked(2, "NodeLost", 3)),
        0,
    ),
    EndRow(
        "unknown ends for the reason of its stop",
        State.FAILED,
        "NodeLost",
        NEW,
        replace(ENTRY, wish=None, stop=StopAsked(2, "NodeLost", 3)),
        None,
    ),
]


@pytest.mark.parametrize("row", [pytest.param(r, id=r.id) for r in END_ROWS])
def test_how_it_ends(row: EndRow) -> None:
    found = step(row.entry, row.seen, row.progress, NOW)
    assert isinstance(found, Record)
    if row.state is None:
        assert isinstance(found.change, AttemptOver)
        assert found.change.exit.reason == row.reason
        assert found.change.exit.exit_code == row.code
        assert found.change.attempt == row.entry.attempt
    else:
        assert isinstance(found.change, Ended)
        end = found.change.end
        assert (end.state, end.reason, end.exit_code) == (row.state, row.reason, row.code), end.message


def crash(entry: Entry, ran_s: float) -> AttemptOver:
    found = step(entry, has(sandbox(), exited(1, ran_s=ran_s, attempt=entry.attempt)), READY, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    return found.change


def test_the_first_restart_is_at_once_and_the_next_wait_twice_as_long_each_up_to_five_minutes() -> None:
    waits = [(crash(replace(CLEARED, crashes=n), 5).not_before_ns - NOW) // SECOND for n in range(9)]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]


def test_ten_good_minutes_forget_the_crashes_before() -> None:
    change = crash(replace(CLEARED, crashes=7), 601)
    assert change.not_before_ns == NOW
    assert change.crashes == 1


def test_an_attempt_born_into_a_dying_sandbox_is_no_second_crash() -> None:
    entry = replace(RAN, cleared=True, crashes=1)
    seen = has(sandbox(ready=False), exited(128, ran_s=0, attempt=1))
    found = step(entry, seen, READY, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    assert (found.change.crashes, found.change.not_before_ns) == (1, NOW)
    twice = step(replace(entry, last=found.change.exit), seen, READY, NOW)
    assert isinstance(twice, Record)
    assert isinstance(twice.change, AttemptOver)
    assert (twice.change.crashes, twice.change.not_before_ns) == (2, NOW + 10 * SECOND)


def test_nor_is_one_whose_sandbox_lost_its_shim_just_then() -> None:
    gone = "failed to start shim: start failed: failed to create TTRPC connection: dial unix x: no such file"
    entry = replace(under(ALWAYS), attempt=1, crashes=1, last=Exit(137, "Error", "", NOW - SECOND, NOW))
    born = replace(exited(128, ran_s=0, message=gone), id="c1", attempt=1)
    found = step(entry, has(sandbox(), born), READY, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    assert (found.change.exit.reason, found.change.crashes, found.change.not_before_ns) == ("SandboxFailed", 1, NOW)
