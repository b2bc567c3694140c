"""A runtime in a session of its own: found again by whoever comes next, restarted when it dies, its log bounded."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agent import private_runtime
from agent.fake_runtime import PrivateFake
from agent.private_runtime import DetachedProgram, Runtime, RuntimeUnavailable, supervise, wait_ready


def program_of(folder: Path, code: str = "import time; time.sleep(60)") -> DetachedProgram:
    return DetachedProgram(
        [sys.executable, "-c", code, str(folder)], log=folder / "x.log", pid_file=folder / "sub" / "x.pid"
    )


@contextlib.asynccontextmanager
async def ended(program: DetachedProgram) -> AsyncIterator[DetachedProgram]:
    try:
        yield program
    finally:
        await program.end(0)


async def test_a_program_leads_a_session_of_its_own_and_hears_signals_that_we_ignore(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with ended(program_of(tmp_path)) as program:
            pid = program.spawn()
            assert os.getsid(pid) == pid
            await _until_loaded(pid)
            os.kill(pid, signal.SIGINT)
            async with asyncio.timeout(5):
                await program.wait_end()
    finally:
        signal.signal(signal.SIGINT, old)


async def test_it_is_found_by_another_with_the_pid_file_or_without(tmp_path: Path) -> None:
    async with ended(program_of(tmp_path)) as program:
        pid = program.spawn()
        await _until_loaded(pid)
        assert program_of(tmp_path).find() == pid
        (tmp_path / "sub" / "x.pid").unlink()
        assert program_of(tmp_path).find() == pid
        assert (tmp_path / "sub" / "x.pid").read_text() == f"{pid}\n"


async def test_a_pid_that_became_anothers_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for noted in (f"{os.getpid()}\n", "1\n", "-1\n", "0\n", "nonsense", ""):
        (tmp_path / "sub" / "x.pid").write_text(noted)
        assert program_of(tmp_path).find() is None


async def test_one_that_ignores_its_end_is_killed(tmp_path: Path) -> None:
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    program = program_of(tmp_path, code)
    pid = program.spawn()
    async with asyncio.timeout(10):
        while program.last_words() != "up":
            await asyncio.sleep(0.01)
    await program.end(0.1)
    assert program.find() is None
    assert not psutil.pid_exists(pid)
    assert not (tmp_path / "sub" / "x.pid").exists()


async def test_a_log_over_its_bound_is_kept_once_beside_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_runtime, "_MAX_LOG_BYTES", 100)
    program = program_of(tmp_path)
    program.bound_log()
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as held:
        held.write(b"a" * 101)
        program.bound_log()
        held.write(b"b")
    assert log.read_bytes() == b"b"
    assert (tmp_path / "x.log.1").read_bytes() == b"a" * 101


async def test_one_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = program_of(tmp_path, "raise SystemExit('no such option')")
    program.spawn()
    with pytest.raises(RuntimeUnavailable, match="no such option"):
        await wait_ready(f"unix://{tmp_path}/x.sock", program)


async def test_the_fake_is_adopted_restarted_when_killed_and_gone_when_stopped(tmp_path: Path) -> None:
    fake = PrivateFake(tmp_path / ("deep" * 30), handlers=["runc", "edera"])
    try:
        runtime = await fake.start()
        assert (runtime.kind, runtime.handlers) == ("fake", ("runc", "edera"))
        assert await PrivateFake(tmp_path / ("deep" * 30), handlers=["runc", "edera"]).start() == runtime
        restarted: asyncio.Queue[Runtime] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(supervise(fake, restarted.put_nowait))
            os.kill(runtime.pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                again = await restarted.get()
            watch.cancel()
        assert again.endpoint == runtime.endpoint
        assert again.pid != runtime.pid
    finally:
        await fake.stop()
    assert not psutil.pid_exists(again.pid)
    assert not Path(runtime.endpoint.removeprefix("unix://")).parent.exists()
    await fake.stop()


async def _until_loaded(pid: int) -> None:
    """Another process can tell it only once its own program is loaded."""
    async with asyncio.timeout(5):
        while "-c" not in psutil.Process(pid).cmdline()[:2] or "exec" in " ".join(psutil.Process(pid).cmdline()):
            await asyncio.sleep(0.01)
