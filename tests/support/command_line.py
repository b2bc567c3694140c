"""The command line as people use it: words in, text and exit code out. It runs in a thread beside a fake server."""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kakuri.cli import main
from support.fakeserver import FakeServer


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FakeServer]:
    monkeypatch.delenv("KAKURI_SERVER", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    async with FakeServer().serving() as running:
        monkeypatch.setenv("KAKURI_SERVER", running.url)
        yield running


async def kakuri(*words: str, stdin: str = "") -> Result:
    return await asyncio.to_thread(_call, *words, stdin=stdin)


def _call(*words: str, stdin: str = "") -> Result:
    out, err, old = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.StringIO(),
        (sys.argv, sys.stdout, sys.stderr, sys.stdin),
    )
    sys.argv, sys.stdout, sys.stderr = ["kakuri", *words], out, err
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
    try:
        with pytest.raises(SystemExit) as end:
            main()
        out.flush()
        code = end.value.code
        assert isinstance(code, int)
        return Result(code, out.buffer.getvalue().decode(), err.getvalue())
    finally:
        sys.argv, sys.stdout, sys.stderr, sys.stdin = old
