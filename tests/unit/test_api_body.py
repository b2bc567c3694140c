"""What is a body, and what is not, before any model sees it."""

import json

import pytest

from controller.api.body import MAX_DEPTH, parse_json
from controller.api.problem import Problem


def refused(raw: bytes) -> str:
    with pytest.raises(Problem) as caught:
        parse_json(raw)
    assert (caught.value.status, caught.value.reason) == (400, "Unreadable")
    return caught.value.detail


def test_json_is_read_as_it_is() -> None:
    assert parse_json('{"a": [1, 2.5, "ü", null, true]}'.encode()) == {"a": [1, 2.5, "ü", None, True]}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"  \n", "empty", id="only blanks"),
        pytest.param(b"{", "line 1 column 2", id="cut off"),
        pytest.param(b"id: web", "not JSON", id="YAML"),
        pytest.param(b'{"a": 1}{"a": 2}', "not JSON", id="two values"),
        pytest.param(b'{"id": "a", "id": "b"}', "'id' is given twice", id="a key twice"),
        pytest.param(b'{"env": {"A": "1", "A": "1"}}', "'A' is given twice", id="a key twice inside, even if equal"),
        pytest.param(b'{"a": NaN}', "NaN is not JSON", id="NaN"),
        pytest.param(b'{"a": -Infinity}', "-Infinity is not JSON", id="Infinity"),
        pytest.param(b'{"a": 1e999}', "too large to hold", id="a float that becomes infinity"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits", id="an int of 5,000 digits"),
        pytest.param(b'{"a": "\xff"}', "byte 7", id="not UTF-8"),
        pytest.param("{}".encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "not JSON", id="a byte order mark"),
        pytest.param(b'{"a": "\\ud800"}', "surrogate", id="half of a surrogate pair"),
        pytest.param(b'{"\\udfff": 1}', "surrogate", id="half of a surrogate pair in a key"),
        pytest.param(b'{"a": ["x\\u0000"]}', "NUL", id="NUL"),
        pytest.param(b"[" * 100_000, "deeper", id="100,000 lists"),
        pytest.param(b"[" * 50 + b"]" * 50, "deeper", id="50 lists"),
        pytest.param(b'{"a":' * 40 + b"1" + b"}" * 40, "deeper", id="40 maps"),
    ],
)
def test_is_refused_in_words(raw: bytes, words: str) -> None:
    assert words in refused(raw)


def test_nesting_up_to_the_bound_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


@pytest.mark.parametrize("text", ["\U0001f600", "\\u0000 as six characters", "\\ud800 as six characters"])
def test_what_only_looks_suspect_is_read(text: str) -> None:
    assert parse_json(json.dumps([text]).encode()) == [text]
