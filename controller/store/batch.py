"""What one transaction writes, collected before anything is written.

One rule: a transaction decides on what it read, fills a batch, and the store writes the batch last and at once: few
statements, and nothing half done when a decision raises.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from controller.store.contract import Kind
from controller.store.records import NodeRecord, WorkloadRecord
from kakuri.model import Allocation, EventDraft, RuntimeClass, Tombstone


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_HasId)


@dataclass
class Rows(Generic[R]):
    """The rows of one kind. touched: shown otherwise than before, though the row is the same."""

    inserted: dict[str, R] = field(default_factory=dict)
    updated: dict[str, R] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)

    def insert(self, record: R) -> None:
        """The row will be there. Deleted before in the same batch, it is replaced."""
        if record.id in self.deleted:
            self.deleted.discard(record.id)
            self.updated[record.id] = record
        else:
            self.inserted[record.id] = record

    def update(self, record: R) -> None:
        (self.inserted if record.id in self.inserted else self.updated)[record.id] = record

    def delete(self, id_: str) -> None:
        if self.inserted.pop(id_, None) is None:
            self.updated.pop(id_, None)
            self.deleted.add(id_)

    def touch(self, id_: str) -> None:
        self.touched.add(id_)

    def present(self) -> list[str]:
        """The ids to be stamped with their resource_version, in order."""
        return sorted({*self.inserted, *self.updated, *self.touched} - self.deleted)


@dataclass(frozen=True, slots=True)
class Adopt:
    """The database becomes a restored one, at this epoch and resource_version; nothing else is in such a batch."""

    epoch: int
    resource_version: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """A restored database is held no more, and another epoch begins."""


@dataclass
class Batch:
    now: datetime
    workloads: Rows[WorkloadRecord] = field(default_factory=Rows)
    allocations: Rows[Allocation] = field(default_factory=Rows)
    nodes: Rows[NodeRecord] = field(default_factory=Rows)
    runtime_classes: Rows[RuntimeClass] = field(default_factory=Rows)
    tombstones: Rows[Tombstone] = field(default_factory=Rows)
    """Shown with their nodes alone: whoever writes one touches its node."""
    restore: Adopt | Confirm | None = None
    forgotten: dict[str, str] = field(default_factory=dict)
    """Nodes that are gone for people and planners, and how they went; their rows stay for the allocations that refer
    to them."""
    events: dict[str, tuple[EventDraft, int]] = field(default_factory=dict)
    """By event id: the draft, and how often it was said."""
    _owners: set[str] = field(default_factory=set)

    def insert_node(self, record: NodeRecord, *, forgotten: bool) -> None:
        """forgotten: a row of it is there, which nobody sees."""
        if forgotten:
            self.nodes.update(record)
        else:
            self.nodes.insert(record)

    def insert_allocation(self, allocation: Allocation) -> None:
        self.allocations.insert(allocation)
        self._owners.add(allocation.workload)

    def update_allocation(self, allocation: Allocation) -> None:
        self.allocations.update(allocation)
        self._owners.add(allocation.workload)

    def delete_allocation(self, allocation: Allocation) -> None:
        self.allocations.delete(allocation.id)
        self._owners.add(allocation.workload)

    def tell(self, draft: EventDraft) -> None:
        id_ = event_id(draft)
        _, count = self.events.get(id_, (draft, 0))
        self.events[id_] = (draft, count + 1)

    @property
    def bumped(self) -> list[str]:
        """Workloads whose version goes up for an allocation's sake alone."""
        own = self.workloads
        return sorted(self._owners - own.inserted.keys() - own.updated.keys() - own.deleted)

    def changes(self) -> list[tuple[Kind, str, bool]]:
        """(kind, id, deleted) of all that will look different, in the order of their resource_versions."""
        found: list[tuple[Kind, str, bool]] = []
        kinds: tuple[tuple[Kind, Rows[RuntimeClass] | Rows[NodeRecord] | Rows[Allocation] | Rows[WorkloadRecord]], ...]
        kinds = (
            ("RuntimeClass", self.runtime_classes),
            ("Node", self.nodes),
            ("Allocation", self.allocations),
            ("Workload", self.workloads),
        )
        for kind, rows in kinds:
            found += [(kind, id_, False) for id_ in rows.present()]
            gone = rows.deleted | self.forgotten.keys() if kind == "Node" else rows.deleted
            found += [(kind, id_, True) for id_ in sorted(gone)]
        found += [("Event", id_, False) for id_ in sorted(self.events)]
        return found


def event_id(draft: EventDraft) -> str:
    """The same for the same thing said again: what makes events count up instead of filling the table."""
    said = (
        draft.object_kind,
        draft.object_id,
        draft.type.value,
        draft.reason,
        draft.message,
        draft.allocation,
        draft.node,
    )
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
