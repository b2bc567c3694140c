"""What every handler is given. There is one of it an application."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from controller.api.ports import AgentLogs, AgentReleases, ApiStore, Kick
from controller.api.streams import Streams
from controller.api.watch import WatchHub


@dataclass(frozen=True, slots=True)
class Api:
    store: ApiStore
    kick: Kick
    logs: AgentLogs
    releases: AgentReleases
    hub: WatchHub
    streams: Streams
    version: str
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    """An id for an object that was POSTed without one."""
    served_s: Callable[[], float]
    """For how long agents could register here."""
    bookmark_s: float
    """A watch that has nothing to say for so long says up to where that is."""
    description: Callable[[], bytes]
    """/openapi.json."""
