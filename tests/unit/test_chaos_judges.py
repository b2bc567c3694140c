"""What `make chaos` goes by: when two containers count as one too many, and what a read may say after a write."""

from pathlib import Path

import pytest

from chaos.faults import schedule
from chaos.mutation import MUTATIONS, mutated_copy
from chaos.spans import Span, count_handovers, find_overlaps
from chaos.verdict import judge_sightings
from chaos.workloads import Plan, spec
from chaos.writer import Record, Unanswered, Written

ROOT = Path(__file__).resolve().parent.parent.parent


def span(container: str, alive_from: float, alive_to: float, *, slot: str = "web.0") -> Span:
    return Span("n0", f"{slot}.0000000{container}", container, alive_from, alive_to)


@pytest.mark.parametrize(
    ("spans", "overlaps"),
    [
        ([span("a", 1, 2), span("b", 2, 3)], 0),
        ([span("a", 1, 2.5), span("b", 2, 3)], 1),
        ([span("a", 1, 9), span("b", 2, 3), span("c", 4, 5)], 2),
        ([span("a", 1, 2.5), span("b", 2, 3, slot="web.1")], 0),
        ([span("a", 1, 4), span("b", 2.01, 2.0)], 1),
        ([span("a", 2.01, 2.0), span("b", 2.01, 2.0)], 0),
    ],
    ids=[
        "one after the other",
        "the next before the end of the first",
        "one beside two",
        "two slots",
        "one that was seen for a moment beside a long one",
        "two that were seen for one moment, which may be two",
    ],
)
def test_containers_of_one_slot_that_surely_lived_together_are_found(spans: list[Span], overlaps: int) -> None:
    assert len(find_overlaps(spans)) == overlaps


def test_the_count_handovers_is_measured_from_the_last_of_those_before() -> None:
    spans = [span("a", 1, 2), span("b", 2.5, 3), span("c", 3.1, 4)]

    seen = count_handovers(spans)

    assert (seen.number, seen.to_another_host, round(seen.closest_s, 3)) == (2, 0, 0.1)


PLAN = Plan("web", "service")


def found(nonce: str, *, uid: str = "u1", generation: int = 1, **more: object) -> dict[str, object]:
    return {**spec(PLAN, nonce), "uid": uid, "generation": generation, **more}


@pytest.mark.parametrize(
    ("unanswered", "read", "can_be"),
    [
        ([], found("a"), True),
        ([], None, False),
        ([], found("b"), False),
        ([], found("b", generation=2), False),
        ([], found("a", deleted_at="now"), False),
        ([Unanswered("u1.1", "b")], found("b", generation=2), True),
        ([Unanswered("u1.1", "b")], found("a"), True),
        ([Unanswered("u1.1", "b")], None, False),
        ([Unanswered("u1.1", "")], None, True),
        ([Unanswered("u1.1", "")], found("a", deleted_at="now"), True),
    ],
    ids=[
        "what was accepted",
        "nothing",
        "another spec under the same ETag",
        "a change that nobody asked for",
        "a deletion that nobody asked for",
        "a change whose answer was lost",
        "not yet the change whose answer was lost",
        "nothing, when a change was asked for",
        "nothing, when a deletion was asked for",
        "the deletion that was asked for",
    ],
)
def test_after_an_accepted_write_a_read_says_it_or_what_was_asked_for_since(
    unanswered: list[Unanswered], read: dict[str, object] | None, can_be: bool
) -> None:
    record = Record(PLAN, Written("u1", "u1.1", "a"), unanswered)

    assert record.explains(read) is can_be


def test_what_was_deleted_comes_back_only_by_a_creation_whose_answer_was_lost() -> None:
    record = Record(PLAN, Written("u1"))
    assert record.explains(None)
    assert record.explains(found("a", deleted_at="now"))
    assert not record.explains(found("b", uid="u2"))

    record.unanswered.append(Unanswered("", "b"))

    assert record.explains(found("b", uid="u2"))


def test_an_accepted_change_rules_out_earlier_ones_that_are_still_under_way() -> None:
    record = Record(PLAN, Written("u1", "u1.1", "a"), [Unanswered("u1.1", "b"), Unanswered("", "c")])

    record.accept(Written("u1", "u1.2", "d"))

    assert record.unanswered == [Unanswered("", "c")]


SEEN = {
    "overlaps": [],
    "starts": {"a": 1},
    "job_runs": {"a": ["n0 job.0.1 c1"]},
    "passes": {"answered": 200},
    "seconds": 10,
}


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        ({}, []),
        ({"overlaps": ["slot web.0: …"]}, ["OVERLAP"]),
        ({"starts": {"a": 2}}, ["RAN TWICE"]),
        ({"job_runs": {"a": ["n0 job.0.1 c1", "n1 job.0.2 c2"]}}, ["RAN TWICE"]),
        ({"starts": {"a": 1, "service": 2}}, []),
        ({"passes": {"answered": 99}}, ["the witness looked 9.9 times a second"]),
    ],
    ids=[
        "all is well",
        "an overlap",
        "a job that said twice that it starts",
        "a job that was seen in two containers",
        "a service that was restarted",
        "a witness that looked too seldom",
    ],
)
def test_what_the_witness_saw_is_judged(seen: dict[str, object], wrong: list[str]) -> None:
    judged = judge_sightings({**SEEN, **seen}, {"a": "job"})

    assert [j.startswith(w) for j, w in zip(judged, wrong, strict=True)] == [True] * len(wrong)


def test_a_seed_names_a_schedule() -> None:
    def begin(seed: int) -> list[object]:
        due = schedule(seed, every_s=1, lost_s=20)
        return [next(due) for _ in range(50)]

    assert begin(1) == begin(1)
    assert begin(1) != begin(2)


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_each_mutation_fits_the_tree(name: str, tmp_path: Path) -> None:
    changed = mutated_copy(ROOT, tmp_path, name)

    assert all(change.new in (changed / change.file).read_text() for change in MUTATIONS[name])
