"""Label selectors: what they select, and what is no selector."""

import pytest

from kakuri.selector import SelectorError, parse_selector

LABELS = {"app": "web", "tier": "front", "example.com/canary": "", "v": "1.2"}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        pytest.param("", True, id="nothing asked selects all"),
        pytest.param("  ", True, id="blanks ask nothing"),
        pytest.param("app=web", True, id="equal"),
        pytest.param("app==web", True, id="equal, doubled"),
        pytest.param("app = web", True, id="blanks around the sign"),
        pytest.param("app=db", False, id="another value"),
        pytest.param("none=", False, id="an empty value is not absence"),
        pytest.param("example.com/canary=", True, id="an empty value"),
        pytest.param("app!=db", True, id="not equal"),
        pytest.param("app!=web", False, id="not equal, and it is"),
        pytest.param("none!=web", True, id="what is absent is not equal"),
        pytest.param("app", True, id="present"),
        pytest.param("none", False, id="not present"),
        pytest.param("!none", True, id="absent"),
        pytest.param("! app", False, id="not absent"),
        pytest.param("app in (db, web)", True, id="one of several"),
        pytest.param("app in (db)", False, id="none of several"),
        pytest.param("app notin (db,web)", False, id="not one of several, and it is"),
        pytest.param("none notin (db)", True, id="what is absent is in nothing"),
        pytest.param("app=web,tier=front", True, id="all parts hold"),
        pytest.param("app=web,tier=back", False, id="one part does not"),
        pytest.param("app in (a,web),tier notin (b,c),example.com/canary,!x,v=1.2", True, id="all kinds together"),
        pytest.param("in=1", False, id="a key called in"),
    ],
)
def test_what_a_selector_selects(text: str, *, selected: bool) -> None:
    assert parse_selector(text).matches(LABELS) is selected


@pytest.mark.parametrize(
    "text",
    ["app=web=db", "app in", "app in db", "app in (db", "=web", ",", "app=web,,tier=x", "a b", "!", "app>1", "(a)"],
)
def test_what_is_no_selector_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(SelectorError, match="use parts like app=web"):
        parse_selector(text)


def test_a_selector_that_asks_nothing_is_false() -> None:
    assert not parse_selector("")
    assert parse_selector("app")
