from builders import NOW, later
from controller.exchange import ObservedAllocation, Report
from controller.loops.agenda import Agenda, Kick
from controller.loops.reap import Orphans, orphans
from controller.store.contract import Recorded


async def test_a_kick_before_the_wait_counts_and_many_are_one() -> None:
    kick = Kick()
    kick()
    kick()

    await kick.wait()
    await kick.wait(0)  # returns by its timeout: nothing was left of the second kick


async def test_what_was_marked_is_taken_once_and_in_the_order_of_marking() -> None:
    agenda = Agenda()
    agenda.add(["b", "a"])
    agenda.add(["b"])

    assert agenda.take(10, NOW) == ["b", "a"]
    assert agenda.take(10, NOW) == []


async def test_a_pass_takes_no_more_than_it_may_and_the_rest_stays() -> None:
    agenda = Agenda()
    agenda.add(["a", "b", "c"])

    assert agenda.take(2, NOW) == ["a", "b"]
    await agenda.wait(NOW)
    assert agenda.take(2, NOW) == ["c"]


async def test_what_is_due_later_is_not_taken_before() -> None:
    agenda = Agenda()
    agenda.add_at(later(10), "a")

    assert agenda.take(10, later(9)) == []
    await agenda.wait(later(10))
    assert agenda.take(10, later(10)) == ["a"]


def observed(id_: str, *, released: bool) -> ObservedAllocation:
    return ObservedAllocation(id=id_, workload="w", slot=0, origin="c", revision=1, state="Running", released=released)


def test_an_orphan_is_stopped_while_it_lives_and_removed_once_nothing_is_left_of_it() -> None:
    report = Report(
        node="n",
        instance="i",
        revision=1,
        ledger_uid="l",
        full=True,
        allocations=(observed("w.0.a", released=False), observed("w.1.b", released=True)),
    )

    assert orphans(report, Recorded(orphans=("w.0.a", "w.1.b"))) == Orphans(stops=("w.0.a",), removals=("w.1.b",))


def test_a_removal_is_the_later_word_about_an_orphan() -> None:
    assert Orphans(stops=("a", "b")) | Orphans(removals=("a",)) == Orphans(stops=("b",), removals=("a",))
