"""Event: deduplicated history. The same thing said again counts up instead of filling the table."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from kakuri.model.base import Model


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


class EventDraft(Model):
    """Something worth telling; the store adds count and times."""

    object_kind: Literal["Workload", "Node", "RuntimeClass"]
    object_id: str
    type: EventType
    reason: str
    message: str
    allocation: str = ""
    node: str = ""


class Event(EventDraft):
    kind: Literal["Event"] = "Event"
    id: str
    count: int
    first_seen: datetime
    last_seen: datetime
    resource_version: int
