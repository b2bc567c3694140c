"""What a test needs of the machine. Elsewhere it skips and says why; in CI nothing real may be missing."""

import os

import pytest


def need(there: bool, why: str) -> None:
    """Goes on when it is there; else skips the test, or fails it when KAKURI_REQUIRE_REAL is set."""
    if there:
        return
    if os.environ.get("KAKURI_REQUIRE_REAL"):
        pytest.fail(f"KAKURI_REQUIRE_REAL is set, but {why}")
    pytest.skip(why)
