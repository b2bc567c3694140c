"""PURE: what the ledger knows of one allocation, and the changes that it can take.

    Accepted ──► Cleared ──► AttemptOver ──► Cleared ──► … ──► Ended ──► Released ──► forgotten
                    StopAsked at any time before Ended

One rule: what an entry says stays true. An end never changes, a released entry holds nothing in the runtime, and an
attempt that was cleared to start is never started a second time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cri.convert import ContainerWish, SandboxOwner
from kakuri.model import BY_HAND, OnDisconnect, RestartPolicy, State


@dataclass(frozen=True, slots=True)
class InPlace:
    """What can change while it runs."""

    restart_policy: RestartPolicy = RestartPolicy.ALWAYS
    restart_limit: int = -1
    """-1: no limit."""
    grace_s: int = 10
    labels: Mapping[str, str] | None = None
    generation: int = 0
    on_disconnect: OnDisconnect = OnDisconnect.KEEP


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants it to end."""

    revision: int
    reason: str
    grace_s: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How one attempt's container ended."""

    exit_code: int | None
    """None: the runtime can't tell."""
    reason: str
    message: str
    started_at_ns: int
    """0: it never ran."""
    finished_at_ns: int
    cut_off: bool = False
    """Its start was cut off before it ran, by the end of who asked or of the runtime: the workload is not to blame."""

    @property
    def ran(self) -> bool:
        return self.started_at_ns > 0


@dataclass(frozen=True, slots=True)
class End:
    """How the allocation ended, for good."""

    state: Literal[State.SUCCEEDED, State.FAILED]
    reason: str
    message: str
    exit_code: int | None
    finished_at_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One allocation as the ledger has it."""

    id: str
    workload_id: str
    origin: str
    """The cluster's id, or BY_HAND."""
    revision: int
    """The newest that was accepted."""
    accepted_at_ns: int
    workload_uid: str = ""
    slot: int = 0
    spec_hash: str = ""
    epoch: int = 0
    wish: ContainerWish | None = None
    """None: a stop came for an id that this ledger doesn't know; its start must never be carried out."""
    in_place: InPlace = InPlace()
    stop: StopAsked | None = None
    attempt: int = 0
    """CRI's counter: the container that is there, or the next one."""
    cleared: bool = False
    """This attempt's container was created and may have been started. From now on it is never created again."""
    crashes: int = 0
    """Attempts in a row that ended within the ten good minutes."""
    not_before_ns: int = 0
    """When the next attempt may start."""
    started_once: bool = False
    """A container of it has run."""
    last: Exit | None = None
    """Of the newest attempt that is over."""
    end: End | None = None
    released: bool = False
    """Ended, and nothing of it is left in the runtime."""

    @property
    def restarts(self) -> int:
        """Containers that were started after the first."""
        return self.attempt if self.cleared else max(self.attempt - 1, 0)

    @property
    def leased(self) -> bool:
        """It may run only while the node's lease is held."""
        return self.in_place.on_disconnect is OnDisconnect.REPLACE and self.origin != BY_HAND and self.wish is not None

    @property
    def owner(self) -> SandboxOwner:
        return SandboxOwner(
            cluster_id="" if self.origin == BY_HAND else self.origin,
            workload_id=self.workload_id,
            workload_uid=self.workload_uid,
            allocation_id=self.id,
            slot=self.slot,
            generation=self.in_place.generation,
            spec_hash=self.spec_hash,
            epoch=self.epoch,
            origin=self.origin,
        )


@dataclass(frozen=True, slots=True)
class Updated:
    """Its in-place fields follow a newer revision."""

    revision: int
    in_place: InPlace


@dataclass(frozen=True, slots=True)
class Cleared:
    """The attempt's container exists; from here on it counts as begun."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptOver:
    """The attempt's container has ended, and another one follows."""

    attempt: int
    exit: Exit
    crashes: int
    not_before_ns: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The allocation has ended. exit: of the attempt that ended it, when one did."""

    end: End
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """Nothing of it is left in the runtime."""


Change = Updated | StopAsked | Cleared | AttemptOver | Ended | Released


def apply_change(entry: Entry, change: Change) -> Entry:
    """The entry after the change. A change that no longer fits (its attempt is over, it has ended) alters nothing."""
    match change:
        case Updated():
            if change.revision <= entry.revision:
                return entry
            return replace(entry, revision=change.revision, in_place=change.in_place)
        case StopAsked():
            stop = _stop_after(entry, change)
            if stop is entry.stop and change.revision <= entry.revision:
                return entry
            return replace(entry, revision=max(entry.revision, change.revision), stop=stop)
        case Cleared():
            if entry.end is not None or change.attempt != entry.attempt:
                return entry
            return replace(entry, cleared=True)
        case AttemptOver():
            if entry.end is not None or change.attempt != entry.attempt:
                return entry
            return replace(
                entry,
                attempt=entry.attempt + 1,
                cleared=False,
                crashes=change.crashes,
                not_before_ns=change.not_before_ns,
                started_once=entry.started_once or change.exit.ran,
                last=change.exit,
            )
        case Ended():
            if entry.end is not None:
                return entry
            ran = change.exit is not None and change.exit.ran
            return replace(
                entry, end=change.end, last=change.exit or entry.last, started_once=entry.started_once or ran
            )
        case Released():
            return entry if entry.end is None else replace(entry, released=True)


def _stop_after(entry: Entry, asked: StopAsked) -> StopAsked | None:
    """The first stop stays; a later one, or one of the node itself (revision 0), may only shorten its grace."""
    if entry.stop is None and entry.end is None:
        return asked
    if entry.stop is None or entry.end is not None or 0 < asked.revision <= entry.revision:
        return entry.stop
    if asked.grace_s >= entry.stop.grace_s:
        return entry.stop
    return replace(entry.stop, grace_s=asked.grace_s)
