"""A copy of the tree in which one promise is broken, to see that the run would tell.

One rule: each change names the text that it replaces. When the code has moved on and the text is not there exactly
once, that is an error, not a mutation that quietly changes nothing.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PARTS = ("agent", "controller", "cri", "kakuri", "migrations")


@dataclass(frozen=True)
class Change:
    file: str
    old: str
    new: str


MUTATIONS: Mapping[str, Sequence[Change]] = {
    # A node that hears of no controller takes its lease for held: neither its agent nor its fencer ends anything.
    "fence-off": (
        Change(
            "agent/lease.py",
            "return self.heard_ns + self.lease_ns if self.granted else 0",
            "return self.heard_ns + self.lease_ns + 3600 * SECOND if self.granted else 0",
        ),
    ),
}


class NoSuchText(Exception):  # noqa: N818 - says what is so
    """The mutation does not fit the tree any more."""


def mutated_copy(tree: Path, folder: Path, name: str) -> Path:
    """The tree's programs, so changed, are in the folder. Raises NoSuchText."""
    for part in _PARTS:
        shutil.copytree(tree / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tree / "alembic.ini", folder)
    for change in MUTATIONS[name]:
        path = folder / change.file
        text = path.read_text()
        if text.count(change.old) != 1:
            raise NoSuchText(f"{change.file} has {change.old!r} {text.count(change.old)} times; {name} needs it once")
        path.write_text(text.replace(change.old, change.new))
    return folder
