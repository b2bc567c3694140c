"""A world told in words: what people and faults did, what was planned and why, what was told to whom, what ran where.

One rule: it is for a person who reviews a change, so that nothing in it differs from run to run: ids are counted, and
only what is new is told.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sim.world import World

FOLDER = Path(__file__).parent / "stories"
_ALLOCATION = re.compile(r"\b([a-z0-9-]+\.\d+)\.[0-9a-f]{8}\b")


class Story:
    """A world whose steps and words are written down. nodes, controllers: how many there are."""

    def __init__(self, title: str, *, nodes: int = 2, controllers: int = 1) -> None:
        self.world = World(None, nodes=nodes, controllers=controllers)
        self._lines = [title, ""]
        self._ids: dict[str, str] = {}
        self._said: set[str] = set()
        self._read = 0
        self._now = -1.0
        self.world.witness.tell = self._runtime_did  # type: ignore[assignment]
        self.world.told.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    def __getattr__(self, step: str) -> Callable[..., None]:
        """A step of the world's, told as one."""

        def do(*args: Any, **named: Any) -> None:
            words = ", ".join([*map(str, args), *(f"{k} {_plain(v)}" for k, v in named.items())])
            self._tell()
            self._write(
                self.world.loop.time(), f"** {step.replace('_', ' ')}{': ' if words else ''}{words}", apart=True
            )
            getattr(self.world, step)(*args, **named)
            self._tell()

        return do

    def until(self, what: str, holds: Callable[[World], bool], *, within_s: float = 300.0) -> None:
        self.world.until(what, lambda: holds(self.world), within_s=within_s)
        self._tell()
        self._write(self.world.loop.time(), f"-- {what}")

    def text(self) -> str:
        self._tell()
        return "\n".join(self._lines) + "\n"

    def _tell(self) -> None:
        for at, who, event, fields in self.world.told[self._read :]:
            for line in _words(who, event, fields):
                self._write(at, line)
        self._read = len(self.world.told)

    def _runtime_did(self, what: str) -> None:
        self.world.told.append((self.world.loop.time(), "runtime", "did", {"what": what}))

    def _write(self, at: float, line: str, *, apart: bool = False) -> None:
        line = _ALLOCATION.sub(self._name, line)
        if line.startswith("   waits: "):
            if line in self._said:
                return
            self._said.add(line)
        if apart and self._lines[-1]:
            self._lines.append("")
        shown = f"{at:7.1f}  " if round(at, 1) != self._now else " " * 9
        self._now = round(at, 1)
        self._lines.append(shown + line)

    def _name(self, match: re.Match[str]) -> str:
        if match[0] not in self._ids:
            count = sum(name.startswith(match[1] + "#") for name in self._ids.values())
            self._ids[match[0]] = f"{match[1]}#{count + 1}"
        return self._ids[match[0]]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(who: str, event: str, fields: dict[str, Any]) -> list[str]:
    """One event of the product's log, as lines; none when it says nothing to a reader."""
    match event:
        case "did":
            return [f"   == {fields['what']}"]
        case "leading":
            return [f"{who} leads, epoch {fields['epoch']}"]
        case "reconciled":
            return [f"{who} plans: {a}" for a in fields["actions"]] + [f"   waits: {w}" for w in fields["waiting"]]
        case "dispatched":
            more = f", and {fields['orphans']} that no row knows" if fields.get("orphans") else ""
            buried = f", and {fields['buried']} tombstones" if fields.get("buried") else ""
            return [f"{who} tells {fields['node']}: {', '.join(fields['told']) or 'nothing'}{more}{buried}"]
        case "allocation":
            why = f" ({_first(fields['why'])})" if fields["why"] else ""
            reason = f"/{fields['reason']}" if fields["reason"] else ""
            return [f"{who}: {fields['allocation']} is {fields['state']}{reason}{why}"]
        case "node is ready" | "node is not ready":
            error = f": {fields['error']}" if fields["error"] else ""
            return [f"{who}: {event.replace('node', fields['node'])} ({fields['reason']}){error}"]
        case "node is lost":
            lost = ", ".join(fields["workloads"])
            return [f"{who}: {fields['node']} is lost after {fields['silent_s']:g} s: {lost}"]
        case "node lease over":
            return [f"{who}: its lease is over"]
        case "step failed":
            return [
                f"{who}: {fields['step']} of {fields['allocation']} failed ({fields['outcome']}): {fields['error']}"
            ]
        case "no answer of the runtime" | "fencer":
            return [f"   == {event}: {fields['what']}"]
        case _:
            return []


def _first(words: str) -> str:
    """Without the hour: stories count from their own beginning."""
    return re.sub(r" ?since \d{4}-\d\d-\d\dT[\d:]+Z", "", words)
