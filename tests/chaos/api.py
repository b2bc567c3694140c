"""The API of whichever controller answers, for reads: by a run's own checks and measures.

One rule: a read is tried at the next controller, and again, until its bound; a write is never tried again here.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

_ANSWER_BOUND_S = 3.0
_PAGE = 200


class Silent(Exception):  # noqa: N818 - says a state
    """No controller answered within the bound."""


class Api:
    def __init__(self, servers: Sequence[str]) -> None:
        self._servers = itertools.cycle(servers)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=_ANSWER_BOUND_S)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def items(self, path: str, *, within_s: float = 30.0) -> list[dict[str, Any]]:
        """All pages of a list. Raises Silent."""
        found: list[dict[str, Any]] = []
        more = ""
        while True:
            page = await self.get(f"{path}?limit={_PAGE}{more}", within_s=within_s)
            found += page["items"]
            if "continue" not in page:
                return found
            more = f"&continue={page['continue']}"

    async def get(self, path: str, *, within_s: float = 30.0) -> dict[str, Any]:
        """Raises Silent."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                async with self._session.get(next(self._servers) + path) as answer:
                    if answer.status == 200:
                        got: dict[str, Any] = await answer.json()
                        return got
                    why = f"{answer.status}: {await answer.text()}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = str(error) or "no answer"
            if time.monotonic() > deadline:
                raise Silent(f"GET {path}: {why[:300]}")
            await asyncio.sleep(0.1)
