"""What is on record of a private containerd's containers apart from it: it forgets some of this when it dies.

    starts/<container id>   empty: a start of it has begun (by the wrappers, agent/noting_wrapper.py and
                            agent/runsc_wrapper.py, before the runtime is called)
    ends/<container id>     how it ended while containerd was down (by agent/shims.py, before the next one starts)

One rule: a note is written before what it stands for can be lost, so that a start without a note has not begun.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NotedEnd:
    exit_code: int
    finished_at_ns: int


@dataclass(frozen=True)
class Notes:
    folder: Path
    noted_handlers: frozenset[str] = frozenset()
    """Those whose every start is noted."""

    @property
    def starts(self) -> Path:
        return self.folder / "starts"

    @property
    def _ends(self) -> Path:
        return self.folder / "ends"

    def prepare(self) -> None:
        """The folders are there. Raises OSError."""
        for folder in (self.starts, self._ends):
            folder.mkdir(parents=True, exist_ok=True)

    def has_begun(self, handler: str, container_id: str) -> bool | None:
        """Whether a start of it has begun. None: starts by this handler are not noted."""
        return (self.starts / container_id).exists() if handler in self.noted_handlers else None

    def end_of(self, container_id: str) -> NotedEnd | None:
        try:
            told = json.loads((self._ends / container_id).read_text())
            return NotedEnd(int(told["exit_code"]), int(told["finished_at_ns"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_end(self, container_id: str, end: NotedEnd) -> None:
        """Raises OSError."""
        text = json.dumps({"exit_code": end.exit_code, "finished_at_ns": end.finished_at_ns})
        (self._ends / container_id).write_text(text)

    @property
    def ids(self) -> frozenset[str]:
        """Of the containers that there are notes of."""
        return frozenset(path.name for folder in (self.starts, self._ends) for path in folder.glob("*"))

    def forget(self, container_id: str) -> None:
        for folder in (self.starts, self._ends):
            (folder / container_id).unlink(missing_ok=True)
