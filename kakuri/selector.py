"""Label selectors: `app=web,tier!=db,canary,!old`. All parts must hold.

Syntax: the equality and existence part of Kubernetes' selectors, and `key in (a,b)` / `key notin (a,b)`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_PART = re.compile(r"\s*(?:[^,(]|\([^)]*\))+")
_EQUAL = re.compile(r"(?P<key>[\w./-]+)\s*(?P<op>==|=|!=)\s*(?P<value>[\w.-]*)", re.ASCII)
_EXISTS = re.compile(r"(?P<op>!?)\s*(?P<key>[\w./-]+)", re.ASCII)
_IN = re.compile(r"(?P<key>[\w./-]+)\s+(?P<op>in|notin)\s*\((?P<values>[\w.,\s-]*)\)", re.ASCII)


class SelectorError(ValueError):
    """The text is no selector; the message says which part and what would be right."""


class Operator(StrEnum):
    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.ABSENT:
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)


def parse_selector(text: str) -> Selector:
    """The selector that the text says; empty text selects everything. Raises SelectorError."""
    if not text.strip():
        return Selector()
    parts = _PART.findall(text)
    if not parts or ",".join(parts) != text.rstrip(","):
        raise SelectorError(f"{text!r} is not a selector; use parts like app=web, tier!=db, canary or !old")
    return Selector(tuple(_parse_part(p.strip(), text) for p in parts))


def _parse_part(part: str, text: str) -> Requirement:
    if match := _EQUAL.fullmatch(part):
        operator = Operator.NOT_IN if match["op"] == "!=" else Operator.IN
        return Requirement(match["key"], operator, frozenset({match["value"]}))
    if match := _IN.fullmatch(part):
        values = frozenset(v.strip() for v in match["values"].split(","))
        return Requirement(match["key"], Operator(match["op"]), values)
    if match := _EXISTS.fullmatch(part):
        return Requirement(match["key"], Operator.ABSENT if match["op"] else Operator.EXISTS)
    raise SelectorError(f"{part!r} in {text!r} is not a selector; use parts like app=web, tier!=db, canary or !old")
