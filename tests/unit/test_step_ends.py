"""How an allocation ends or goes on after a container of it has ended. One row a situation; its id says it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.action import CreateContainer, ProbePorts, Record, RunSandbox, StartContainer, Wait
from agent.entry import AttemptOver, Ended, Entry, Exit, InPlace, StopAsked
from agent.progress import SECOND, START_BOUND_S, Outcome, Progress, after_failure
from agent.seen import Seen
from agent.step import step
from kakuri.model import RestartPolicy, State
from support.steps import (
    CLEARED,
    ENTRY,
    NEW,
    NOW,
    RAN,
    READY,
    STOP,
    WITH_PORTS,
    container,
    exited,
    failed,
    has,
    sandbox,
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


def under(policy: RestartPolicy, limit: int = -1, **changes: Any) -> Entry:
    return replace(CLEARED, in_place=InPlace(policy, limit, 7), **changes)


ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER
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


def test_a_start_that_the_agents_own_death_cut_off_is_not_held_against_a_job() -> None:
    cut_off = exited(128, ran_s=0, message="failed to create shim task: context canceled: unknown")
    found = step(under(NEVER, 0), has(sandbox(), cut_off), READY, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    assert (found.change.crashes, found.change.not_before_ns) == (0, NOW)
    again = replace(under(NEVER, 0), attempt=4, last=found.change.exit)
    for_ever = step(again, has(sandbox(), replace(cut_off, id="c4", attempt=4)), READY, NOW)
    assert isinstance(for_ever, Record)
    assert isinstance(for_ever.change, Ended)


CREATED = has(sandbox(), container("created"))
CUT_OFF = failed(StartContainer("c0"), Outcome.CUT_OFF)
BEGUN, UNBEGUN = {"c0": True}, {"c0": False}
NOT_STARTED = "failed to start containerd task: context canceled: unknown"
FILESTORE = "failed to create containerd task: mount source already has a filestore file at x"
BUNDLE = "failed to create containerd task: failed to start shim: mkdir /run/x/v2.task/k8s.io/c0: file exists: unknown"
PIPES = (
    "failed to create shim task: failed to start io pipe copy: unable to copy pipes: containerd-shim: opening file x"
)
REFUSED_AGAIN = "failed to start containerd task: its start had begun before, and it is not started twice"


def died(message: str) -> Seen:
    return has(sandbox(), exited(128, ran_s=0, message=message))


@pytest.mark.parametrize(
    ("seen", "progress", "never_ran"),
    [
        pytest.param(replace(CREATED, begun=UNBEGUN), CUT_OFF, True, id="the runtime died before the start"),
        pytest.param(replace(CREATED, begun=BEGUN), CUT_OFF, False, id="the runtime died after the start"),
        pytest.param(CREATED, CUT_OFF, False, id="the runtime died, and starts are not noted"),
        pytest.param(died("failed to create x: context canceled"), READY, True, id="it was cut off at its creation"),
        pytest.param(
            died("failed to create x: context deadline exceeded"),
            READY,
            True,
            id="our deadline cut off its creation",
        ),
        pytest.param(
            died("failed to start x: context deadline exceeded"), READY, False, id="our deadline cut off its start"
        ),
        pytest.param(
            died("failed to create x: failed to start shim: signal: killed"), READY, True, id="its shim was never there"
        ),
        pytest.param(died(NOT_STARTED), READY, False, id="it was cut off at its start"),
        pytest.param(replace(died(NOT_STARTED), begun=UNBEGUN), READY, True, id="which had not begun"),
        pytest.param(
            replace(died("failed to create x: context canceled"), begun=BEGUN),
            READY,
            False,
            id="a note counts more than words",
        ),
        pytest.param(replace(died(FILESTORE), begun=UNBEGUN), READY, True, id="gVisor was there before, not its start"),
        pytest.param(replace(died(BUNDLE), begun=UNBEGUN), READY, True, id="a shim was being started before"),
        pytest.param(replace(died(PIPES), begun=UNBEGUN), READY, True, id="its pipes went with the runtime before"),
        pytest.param(died(BUNDLE), READY, False, id="a shim was being started before, and starts are not noted"),
        pytest.param(died(FILESTORE), READY, False, id="gVisor was there before, and starts are not noted"),
        pytest.param(replace(died(REFUSED_AGAIN), begun=BEGUN), READY, False, id="the wrapper refused a second start"),
    ],
)
def test_a_start_that_was_cut_off_goes_on_only_when_it_surely_never_ran(
    seen: Seen, progress: Progress, never_ran: bool
) -> None:
    found = step(under(NEVER, 0), seen, progress, NOW)
    assert isinstance(found, Record)
    if never_ran:
        assert isinstance(found.change, AttemptOver)
        assert (found.change.crashes, found.change.exit.cut_off) == (0, True)
        return
    assert isinstance(found.change, Ended)
    end = found.change.end
    assert (end.state, end.reason, end.exit_code) == (State.FAILED, "Error", None)
    assert end.message.startswith("exit code unknown: its start was cut off, and it may have run: ")


def test_a_service_that_may_have_run_as_its_start_was_cut_off_runs_again() -> None:
    found = step(under(ALWAYS), CREATED, CUT_OFF, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    assert found.change.not_before_ns == NOW


def test_a_start_that_is_under_way_is_never_an_error_of_the_workload() -> None:
    tries, progress, now_ns = 0, READY, NOW
    while (wanted := step(under(NEVER, 0), CREATED, progress, now_ns)) == StartContainer("c0"):
        tries += 1
        progress = after_failure(progress, wanted, Outcome.TAKEN, "already in starting state", now_ns)
        waiting = step(under(NEVER, 0), CREATED, progress, now_ns)
        if isinstance(waiting, Wait) and waiting.until_ns is not None:
            now_ns = waiting.until_ns
    assert now_ns - NOW >= START_BOUND_S * SECOND
    assert tries < START_BOUND_S
    assert isinstance(wanted, Record)
    assert isinstance(wanted.change, Ended)
    assert "it may have run" in wanted.change.end.message


def test_an_attempt_that_was_born_into_a_dying_sandbox_is_no_second_crash() -> None:
    gone = "failed to start shim: start failed: failed to create TTRPC connection: dial unix x: no such file"
    entry = replace(under(ALWAYS), attempt=1, crashes=1, last=Exit(137, "Error", "", NOW - SECOND, NOW))
    born = replace(exited(128, ran_s=0, message=gone), id="c1", attempt=1)
    found = step(entry, has(sandbox(), born), READY, NOW)
    assert isinstance(found, Record)
    assert isinstance(found.change, AttemptOver)
    assert (found.change.exit.reason, found.change.crashes, found.change.not_before_ns) == ("SandboxFailed", 1, NOW)
