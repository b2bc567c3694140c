"""PURE: the steps that an allocation can take: a closed union, each one CRI call, one look, or one ledger write.

One rule: an action is so exact that carrying it out leaves nothing to choose.
"""

from dataclasses import dataclass

from agent.entry import Change


@dataclass(frozen=True, slots=True)
class Look:
    """List what bears the allocation's label."""


@dataclass(frozen=True, slots=True)
class EnsureImage:
    image: str


@dataclass(frozen=True, slots=True)
class ProbePorts:
    """Are the host ports free?"""


@dataclass(frozen=True, slots=True)
class RunSandbox:
    pass


@dataclass(frozen=True, slots=True)
class InspectSandbox:
    id: str


@dataclass(frozen=True, slots=True)
class CreateContainer:
    sandbox_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartContainer:
    id: str


@dataclass(frozen=True, slots=True)
class InspectContainer:
    id: str


@dataclass(frozen=True, slots=True)
class StopContainer:
    id: str
    grace_s: int


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    id: str


@dataclass(frozen=True, slots=True)
class StopSandbox:
    id: str


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    id: str


@dataclass(frozen=True, slots=True)
class Record:
    """Make this durable in the ledger."""

    change: Change


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until a kick, or until then (Unix ns)."""

    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left of it in the runtime, and the ledger says so."""


Action = (
    Look
    | EnsureImage
    | ProbePorts
    | RunSandbox
    | InspectSandbox
    | CreateContainer
    | StartContainer
    | InspectContainer
    | StopContainer
    | RemoveContainer
    | StopSandbox
    | RemoveSandbox
    | Record
)
Step = Action | Wait | Done
