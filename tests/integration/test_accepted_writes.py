"""What was answered with 201 is there for the next controller, also when the answering one is killed at once."""

from pathlib import Path

import pytest

from chaos.accepted import kill_after_each_answer

KILLS = 20
"""`make chaos` makes a thousand."""


def test_an_accepted_post_survives_the_kill_of_its_controller_on_sqlite(tmp_path: Path) -> None:
    outcome = kill_after_each_answer(f"sqlite:///{tmp_path}/kakuri.db", KILLS)

    assert outcome.lost == ()


@pytest.mark.real
def test_an_accepted_post_survives_the_kill_of_its_controller_on_postgresql(postgres_url: str) -> None:
    outcome = kill_after_each_answer(postgres_url, KILLS)

    assert outcome.lost == ()
