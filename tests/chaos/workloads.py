"""What the cell runs: services and jobs that say when they start and end, by the machine's own clock.

One rule: each spec carries the nonce of the write that it came with, so that what runs tells which write it is of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chaos.cell import IMAGES

Kind = Literal["service", "job"]
Spec = Mapping[str, Any]

_AT = 'at() { read up _ < /proc/uptime; echo "$1 $2 $up"; }; '
_AT_IN_GVISOR = 'at() { echo "$1 $2 -"; }; '
"""Its clock begins with the sandbox."""
_SERVICE = 'trap "at end $2; sleep $3; at gone $2; exit 0" TERM; at start "$2"; sleep 1000000 & wait'
"""Takes a while to end, as services do: a replacement that comes too early meets it."""
_JOB = 'at start "$2"; sleep "$3"; at end "$2"; exit 0'


@dataclass(frozen=True)
class Plan:
    """A workload that the run has, and whether the writer goes on changing it."""

    id: str
    kind: Kind
    on_disconnect: str = "keep"
    runtime_class: str = "native"
    changing: bool = False


def plans(count: int) -> list[Plan]:
    """A third of them keep changing; of all, half follow their node's lease, and one in five is a job."""
    made = []
    for number in range(count):
        changing = number % 3 == 0
        if number % 5 == 4:
            made.append(Plan(f"job-{number:02}", "job", changing=changing))
        elif number % 30 == 1:
            made.append(Plan(f"gvisor-{number:02}", "service", runtime_class="gvisor", changing=changing))
        else:
            how = "replace" if number % 2 else "keep"
            made.append(Plan(f"{how}-{number:02}", "service", on_disconnect=how, changing=changing))
    return made


def spec(plan: Plan, nonce: str, *, version: int = 0, replicas: int = 1) -> dict[str, Any]:
    """What is sent for it. version: another one is another image, and with the nonce another environment."""
    service = plan.kind == "service"
    at = _AT_IN_GVISOR if plan.runtime_class == "gvisor" else _AT
    how_long = f"{0.2 + version % 3 * 0.6:g}" if service else str(version % 7)
    return {
        "id": plan.id,
        "image": IMAGES[version % len(IMAGES)],
        "runtime_class": plan.runtime_class,
        "memory_mb": 48,
        "cpu_millicores": 20,
        "replicas": replicas if service else 1,
        "command": ["sh", "-c", at + (_SERVICE if service else _JOB), "sh"],
        "args": [plan.kind, nonce, how_long],
        "env": {"VERSION": str(version)},
        "restart_policy": "Always" if service else "Never",
        "termination_grace_s": 4,
        "on_disconnect": plan.on_disconnect,
    }


def nonce_of(workload: Mapping[str, Any]) -> str:
    return str(workload["args"][1])
