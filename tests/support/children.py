"""Child processes of async tests: ended with the test and their pipes closed, also when it fails.

A pipe that is left open is complained of when it is collected, and that fails whichever test runs by then.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

Spawn = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """asyncio.create_subprocess_exec, and what it starts does not outlive the test."""
    children: list[asyncio.subprocess.Process] = []

    async def start(*command: Any, **how: Any) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(*command, **how)
        children.append(child)
        return child

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]  # nothing public closes the pipes
    await asyncio.sleep(0)  # they are closed in the loop's next turn
