"""The lines that containers write of themselves: `start|end|gone NONCE UPTIME`, in the logs on their node.

One rule: a log is opened as soon as it is there and read to its end through that, for the agent removes it when the
container's end is on record.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

CLOCK_STEP_S = 0.01
"""What /proc/uptime is cut to."""
_LINE = re.compile(rb"\S+ stdout F (start|end|gone) (\S+) ([0-9.]+|-)\n")


@dataclass(frozen=True)
class Line:
    allocation: str
    attempt: int
    word: str
    nonce: str
    at: float | None
    """CLOCK_BOOTTIME when it was written, cut to the clock's step. None: by a clock of the sandbox's own."""


@dataclass
class _Log:
    allocation: str
    attempt: int
    file: BinaryIO
    rest: bytes = b""


@dataclass
class Lines:
    """What the containers of one node wrote."""

    folder: Path
    found: list[Line] = field(default_factory=list)
    _logs: dict[Path, _Log] = field(default_factory=dict)

    def read(self) -> None:
        """All that is there by now is found."""
        for folder in _children(self.folder):
            for path in _children(folder):
                attempt = path.name.removesuffix(".log")
                if path not in self._logs and attempt.isdigit():
                    try:
                        self._logs[path] = _Log(folder.name, int(attempt), path.open("rb"))
                    except OSError:
                        continue
        for path, log in list(self._logs.items()):
            self._read(log)
            if not path.exists():
                self._read(log)
                log.file.close()
                del self._logs[path]

    def _read(self, log: _Log) -> None:
        text = log.rest + log.file.read()
        whole, newline, log.rest = text.rpartition(b"\n")
        for match in _LINE.finditer(whole + newline):
            word, nonce, at = (part.decode() for part in match.groups())
            self.found.append(Line(log.allocation, log.attempt, word, nonce, None if at == "-" else float(at)))


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
