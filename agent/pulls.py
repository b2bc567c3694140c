"""Images being pulled: one pull at a time for each image of a runtime, however many wait for it.

One rule: nobody waits here. Whoever asked is called back, so a stop is not held up by a slow registry.
"""

import asyncio
from collections.abc import Callable

from cri.client import CriClient
from cri.errors import CriError

Done = Callable[[CriError | None], None]


class Pulls:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        """tasks: pulls run in there, and end with it."""
        self._tasks = tasks
        self._waiting: dict[tuple[str, str], list[Done]] = {}

    def begin(self, client: CriClient, image: str, done: Done) -> None:
        """The image is being pulled; done is called with how it failed, or with None."""
        key = (client.endpoint, image)
        if key in self._waiting:
            self._waiting[key].append(done)
            return
        self._waiting[key] = [done]
        self._tasks.create_task(self._pull(client, image, key))

    async def _pull(self, client: CriClient, image: str, key: tuple[str, str]) -> None:
        failed: CriError | None = None
        try:
            await client.pull_image(image)
        except CriError as error:
            failed = error
        for done in self._waiting.pop(key):
            done(failed)
