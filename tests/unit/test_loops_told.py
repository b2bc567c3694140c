"""What a full answer may lack without its being lost."""

import pytest

from controller.loops.told import Told


def test_what_was_being_told_when_the_question_was_put_is_spared_and_what_was_told_before_is_not() -> None:
    told = Told()
    with told.telling(["before"]):
        pass
    with told.telling(["under way"]):
        told.ask()
    with told.telling(["since"]):
        pass
    assert told.spared() == {"under way", "since"}
    told.ask()
    assert told.spared() == frozenset()


def test_telling_that_fails_is_over_too() -> None:
    told = Told()
    with pytest.raises(OSError, match="no answer"), told.telling(["a"]):
        raise OSError("no answer")
    told.ask()
    assert told.spared() == frozenset()
