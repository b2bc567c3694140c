"""What people call the kinds on the command line, and how they name objects.

One rule: a name without a kind is a workload's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kakuri.cli.failure import Usage

_NAMES: Mapping[str, tuple[str, ...]] = {
    "Workload": ("workload", "workloads", "wl"),
    "Allocation": ("allocation", "allocations", "alloc", "allocs"),
    "Node": ("node", "nodes", "no"),
    "RuntimeClass": ("runtime-class", "runtime-classes", "runtimeclass", "runtimeclasses", "rc"),
    "Event": ("event", "events", "ev"),
}
_KIND_OF = {name: kind for kind, names in _NAMES.items() for name in names}


@dataclass(frozen=True, slots=True)
class Target:
    kind: str
    id: str

    def __str__(self) -> str:
        return f"{singular(self.kind)}/{self.id}"


def singular(kind: str) -> str:
    """The kind's name in kind/name."""
    return _NAMES[kind][0]


def kind_of(word: str) -> str | None:
    """The kind that goes by this word."""
    return _KIND_OF.get(word.lower().replace("_", "-"))


def read_kind(word: str) -> str:
    kind = kind_of(word)
    if kind is None:
        raise Usage(f"there is no kind {word!r}; use {', '.join(names[1] for names in _NAMES.values())}")
    return kind


def read_targets(words: Sequence[str], allowed: Sequence[str]) -> list[Target]:
    """What is named by `web`, `workload web db`, `workload/web node/n1`."""
    if not words:
        return []
    kind = kind_of(words[0])
    if kind and len(words) == 1:
        raise Usage(f"name which {singular(kind)}, or write workload/{words[0]} for a workload of that name")
    targets = [_target(word, kind or "Workload") for word in (words[1:] if kind else words)]
    for target in targets:
        if target.kind not in allowed:
            raise Usage(f"{target}: this works on {', '.join(singular(k) for k in allowed)} only")
        if not target.id:
            raise Usage(f"{singular(target.kind)}/ lacks a name")
    return targets


def _target(word: str, kind: str) -> Target:
    prefix, slash, name = word.partition("/")
    return Target(read_kind(prefix), name) if slash else Target(kind, word)
