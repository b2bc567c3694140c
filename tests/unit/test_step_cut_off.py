"""A start that was cut off, by the end of who asked or of the runtime: whether it may have run, and what follows."""

from dataclasses import replace

import pytest

from agent.action import Record, StartContainer, Wait
from agent.entry import AttemptOver, Ended
from agent.progress import SECOND, START_BOUND_S, Outcome, Progress, after_failure
from agent.seen import Seen
from agent.step import step
from kakuri.model import State
from support.steps import (
    ALWAYS,
    NEVER,
    NOW,
    READY,
    container,
    exited,
    failed,
    has,
    sandbox,
    under,
)


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
