"""RuntimeClass: a kind of isolation, by the name of the CRI handler that gives it."""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from kakuri.model.base import Model
from kakuri.model.fields import Name

_HANDLER = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,62})")


def _check_handler(value: str) -> str:
    if not _HANDLER.fullmatch(value):
        raise PydanticCustomError(
            "handler",
            "{value} is not a CRI handler's name; use the name that the node's runtime has for it, such as runsc",
            {"value": repr(value[:80])},
        )
    return value


class RuntimeClassManifest(Model):
    """A runtime class as a person writes it."""

    kind: Literal["RuntimeClass"] = "RuntimeClass"
    id: Name
    handler: Annotated[StrictStr, AfterValidator(_check_handler)]
    min_memory_mb: Annotated[StrictInt, Field(ge=0, le=16_777_216)] = 0
    """MiB; a workload that asks for less is refused, since the sandbox could not start."""


class RuntimeClass(RuntimeClassManifest):
    """A runtime class as the server shows it."""

    uid: str
    generation: int
    resource_version: int
    created_at: datetime

    @property
    def etag(self) -> str:
        return f"{self.uid}.{self.generation}"


BUILT_IN = (
    # runc's own init needs about 6 MiB inside the limit, and gVisor's kernel about 20; below these the start dies of
    # OOM. A zone of Edera has at least 300 MB, a Kata VM boots in about 128.
    RuntimeClassManifest(id="edera-zone", handler="edera", min_memory_mb=300),
    RuntimeClassManifest(id="gvisor", handler="runsc", min_memory_mb=32),
    RuntimeClassManifest(id="kata", handler="kata", min_memory_mb=128),
    RuntimeClassManifest(id="native", handler="runc", min_memory_mb=6),
)
"""The classes that every new database has; the first migration holds the same rows (a test compares them)."""
