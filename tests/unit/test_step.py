"""What comes next, for everything that an allocation can be in. One row a situation; its id says it."""

from dataclasses import dataclass, field, replace

import pytest

from agent.action import (
    CreateContainer,
    Done,
    EnsureImage,
    InspectContainer,
    InspectSandbox,
    Look,
    ProbePorts,
    Record,
    RemoveContainer,
    RemoveSandbox,
    RunSandbox,
    StartContainer,
    Step,
    StopContainer,
    StopSandbox,
    Wait,
)
from agent.entry import Cleared, End, Entry, Released
from agent.progress import SECOND, Outcome, Progress, after_failure, after_success
from agent.seen import Seen
from agent.step import step
from kakuri.model import State
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
class Row:
    id: str
    expected: Step | type[Step]
    seen: Seen = field(default_factory=lambda: NEW)
    entry: Entry = ENTRY
    progress: Progress = READY


ENDED = replace(CLEARED, end=End(State.SUCCEEDED, "Completed", "", 0, NOW))
SOON = NOW + SECOND

ROWS = [
    # towards a container that runs
    Row("what was not looked at is looked at", Look(), seen=Seen()),
    Row("an image is made sure of first", EnsureImage("demo:1"), progress=Progress()),
    Row("an image being pulled is waited for", Wait(), progress=Progress(pulling=True)),
    Row("with its image there, a sandbox is run", RunSandbox()),
    Row("host ports are probed before the sandbox", ProbePorts(), entry=WITH_PORTS),
    Row(
        "with its ports free, the sandbox is run",
        RunSandbox(),
        entry=WITH_PORTS,
        progress=replace(READY, ports_free=True),
    ),
    Row("a new sandbox is asked for its handler", InspectSandbox("s1"), seen=has(sandbox(), inspected=False)),
    Row("a good sandbox gets a container", CreateContainer("s1", 0), seen=has(sandbox())),
    Row(
        "a created container is cleared before it starts",
        Record(Cleared(0)),
        seen=has(sandbox(), container("created")),
        progress=replace(READY, created="c0"),
    ),
    Row(
        "one whose creation got no answer is removed and made anew",
        RemoveContainer("c0"),
        seen=has(sandbox(), container("created")),
        progress=failed(CreateContainer("s1", 0), Outcome.TIMED_OUT),
    ),
    Row(
        "and so is one that an agent before us may have got no answer for",
        RemoveContainer("c0"),
        seen=has(sandbox(), container("created")),
    ),
    Row(
        "a cleared container is started", StartContainer("c0"), entry=CLEARED, seen=has(sandbox(), container("created"))
    ),
    Row(
        "a started container is asked since when",
        InspectContainer("c0"),
        entry=CLEARED,
        seen=Seen(NOW, (sandbox(),), (container("running"),), frozenset({"s1"})),
    ),
    Row("what runs is left alone", Wait(), entry=CLEARED, seen=has(sandbox(), container("running"))),
    Row(
        "an adopted sandbox is asked for its handler too",
        InspectSandbox("s1"),
        entry=CLEARED,
        seen=Seen(NOW, (sandbox(),), (container("running"),), frozenset({"c0"})),
    ),
    Row(
        "a container that ended is asked how",
        InspectContainer("c0"),
        entry=CLEARED,
        seen=has(sandbox(), exited(1), inspected=False),
    ),
    # what is in the way
    Row("a dead sandbox without a container is stopped", StopSandbox("s1"), seen=has(sandbox(ready=False))),
    Row("a stopped sandbox is removed", RemoveSandbox("s1"), seen=has(sandbox(ready=False), stopped=("s1",))),
    Row("of two live sandboxes the older goes", StopSandbox("s0"), seen=has(sandbox(id_="s0"), sandbox())),
    Row(
        "the container of an earlier attempt is removed",
        RemoveContainer("c0"),
        entry=RAN,
        seen=has(sandbox(), exited(1)),
    ),
    Row(
        "one that still runs is stopped before",
        StopContainer("c0", 7),
        entry=RAN,
        seen=has(sandbox(), container("running")),
    ),
    Row(
        "what runs in a dead sandbox is stopped",
        StopContainer("c0", 7),
        entry=CLEARED,
        seen=has(sandbox(ready=False), container("running")),
    ),
    Row(
        "what the runtime lost track of is killed",
        StopContainer("c0", 0),
        entry=CLEARED,
        seen=has(sandbox(), container("unknown")),
    ),
    Row(
        "a container created in a dead sandbox is removed",
        RemoveContainer("c0"),
        seen=has(sandbox(ready=False), container("created")),
    ),
    # waiting
    Row("the next attempt waits for its time", Wait(NOW + 10 * SECOND), entry=RAN, seen=has(sandbox())),
    Row(
        "but not for one that a clock set before it jumped back",
        CreateContainer("s1", 1),
        entry=replace(RAN, not_before_ns=NOW + 9999 * SECOND),
        seen=has(sandbox()),
    ),
    Row(
        "when its time has come, it is created",
        CreateContainer("s1", 1),
        entry=replace(RAN, not_before_ns=NOW),
        seen=has(sandbox()),
    ),
    Row(
        "what failed a moment ago is tried later",
        Wait(NOW + 5 * SECOND),
        progress=failed(RunSandbox(), ago_s=0),
    ),
    Row("and then it is tried again", RunSandbox(), progress=failed(RunSandbox())),
    Row(
        "a failed pull is tried later",
        Wait(NOW + 10 * SECOND),
        progress=replace(failed(EnsureImage("demo:1"), ago_s=0), image_ready=False),
    ),
    Row(
        "an unanswered look is tried later",
        Wait(NOW + SECOND // 2),
        seen=Seen(),
        progress=failed(Look(), Outcome.UNREACHABLE, ago_s=0),
    ),
    Row(
        "what failed at starting does not hold up a stop",
        StopContainer("c0", 3),
        entry=replace(CLEARED, stop=STOP),
        seen=has(sandbox(), container("running")),
        progress=failed(StartContainer("c0"), ago_s=0),
    ),
    Row(
        "a reserved name is never counted against it",
        RunSandbox(),
        progress=failed(RunSandbox(), Outcome.TAKEN, times=20),
    ),
    Row(
        "nor is a runtime that is away",
        RunSandbox(),
        progress=failed(RunSandbox(), Outcome.UNREACHABLE, times=20),
    ),
    # stopping
    Row(
        "a stop ends what runs",
        StopContainer("c0", 3),
        entry=replace(CLEARED, stop=STOP),
        seen=has(sandbox(), container("running")),
    ),
    Row(
        "a stop asks how it ended",
        InspectContainer("c0"),
        entry=replace(CLEARED, stop=STOP),
        seen=has(sandbox(), exited(0), inspected=False),
    ),
    Row(
        "a stop of an id that nobody knows looks first", Look(), entry=replace(ENTRY, wish=None, stop=STOP), seen=Seen()
    ),
    Row(
        "and ends what bears the id",
        StopContainer("c4", 3),
        entry=replace(ENTRY, wish=None, stop=STOP),
        seen=has(sandbox(), container("running", attempt=4)),
    ),
    # the end
    Row("after the end the container is removed", RemoveContainer("c0"), entry=ENDED, seen=has(sandbox(), exited(0))),
    Row("then the sandbox is stopped", StopSandbox("s1"), entry=ENDED, seen=has(sandbox())),
    Row(
        "then the sandbox is removed", RemoveSandbox("s1"), entry=ENDED, seen=has(sandbox(ready=False), stopped=("s1",))
    ),
    Row("then it is released", Record(Released()), entry=ENDED),
    Row("what is released is done", Done(), entry=replace(ENDED, released=True)),
    Row("unless something of it turns up", StopSandbox("s1"), entry=replace(ENDED, released=True), seen=has(sandbox())),
    Row(
        "what runs after the end is stopped",
        StopContainer("c0", 7),
        entry=ENDED,
        seen=has(sandbox(), container("running")),
    ),
    Row(
        "a sandbox that may still come up is waited for",
        Wait(SOON),
        entry=ENDED,
        progress=replace(READY, settle_at_ns=SOON),
    ),
    Row(
        "then looked for",
        Look(),
        entry=ENDED,
        seen=Seen(looked_at_ns=NOW - 2 * SECOND),
        progress=replace(READY, settle_at_ns=NOW - SECOND),
    ),
    Row(
        "and when nothing came, it is released",
        Record(Released()),
        entry=ENDED,
        progress=replace(READY, settle_at_ns=NOW - SECOND),
    ),
    Row(
        "an ended one never starts again",
        Record(Released()),
        entry=replace(ENDED, not_before_ns=0),
        progress=Progress(),
    ),
]


@pytest.mark.parametrize("row", [pytest.param(r, id=r.id) for r in ROWS])
def test_next_step(row: Row) -> None:
    assert step(row.entry, row.seen, row.progress, NOW) == row.expected


def test_what_has_run_once_is_kept_at_although_its_sandbox_fails() -> None:
    entry = replace(RAN, not_before_ns=0)
    assert step(entry, NEW, failed(RunSandbox(), times=9), NOW) == RunSandbox()


def test_an_attempt_that_is_over_clears_the_way_for_the_next() -> None:
    progress = failed(StartContainer("c0"), times=4)
    change = step(CLEARED, has(sandbox(), container("created")), progress, NOW)
    assert isinstance(change, Record)
    after = after_success(progress, change)
    entry = replace(CLEARED, attempt=1)
    assert step(entry, has(sandbox(), container("created", attempt=1)), after, NOW) == StartContainer("c1")


def test_a_refused_start_may_only_mean_that_it_is_starting_already() -> None:
    seen = has(sandbox(), container("created"))
    assert step(CLEARED, seen, failed(StartContainer("c0"), ago_s=0), NOW) == Wait(NOW + SECOND // 5)
    assert step(CLEARED, seen, failed(StartContainer("c0"), times=3), NOW) == StartContainer("c0")


def test_an_image_that_vanished_is_made_sure_of_again() -> None:
    progress = after_failure(READY, CreateContainer("s1", 0), Outcome.GONE, "no such image", NOW - 9 * SECOND)
    assert step(ENTRY, has(sandbox()), progress, NOW) == EnsureImage("demo:1")


def test_a_sandbox_whose_start_got_no_answer_keeps_a_stopped_one_from_being_released() -> None:
    for outcome in (Outcome.TIMED_OUT, Outcome.UNREACHABLE, Outcome.TAKEN):
        progress = after_failure(READY, RunSandbox(), outcome, "?", NOW)
        assert isinstance(step(ENDED, NEW, progress, NOW), Wait)
    assert step(ENDED, NEW, after_failure(READY, RunSandbox(), Outcome.REFUSED, "no", NOW), NOW) == Record(Released())
