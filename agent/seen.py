"""PURE: what the runtime has of one allocation, as far as we have looked.

One rule: a list is whole but says little, a status says all of one thing; what a status told is kept only while a
later list still agrees with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cri.convert import ObservedContainer, ObservedSandbox


@dataclass(frozen=True, slots=True)
class Seen:
    """The default is: not looked yet."""

    looked_at_ns: int = 0
    """When the last list was asked for; 0: look first."""
    sandboxes: tuple[ObservedSandbox, ...] = ()
    containers: tuple[ObservedContainer, ...] = ()
    inspected: frozenset[str] = frozenset()
    """Ids whose status was asked for in the state that they are in."""
    stopped: frozenset[str] = frozenset()
    """Sandboxes that were stopped, so that they may be removed."""
    begun: Mapping[str, bool] = field(default_factory=dict)
    """Container → whether a start of it has begun, where this is on record apart from the runtime."""

    @property
    def looked(self) -> bool:
        return self.looked_at_ns > 0

    @property
    def empty(self) -> bool:
        return not self.sandboxes and not self.containers

    @property
    def ids(self) -> frozenset[str]:
        """Of all that is there."""
        return frozenset(s.id for s in self.sandboxes) | {c.id for c in self.containers}

    def container(self, attempt: int) -> ObservedContainer | None:
        return next((c for c in self.containers if c.attempt == attempt), None)

    def sandbox(self, id_: str) -> ObservedSandbox | None:
        return next((s for s in self.sandboxes if s.id == id_), None)

    def same_as(self, other: "Seen") -> bool:
        """Whether both show the same things in the same states."""
        return self.outline == other.outline

    @property
    def outline(self) -> tuple[frozenset[tuple[str, bool]], frozenset[tuple[str, str]]]:
        """What is there, in which states."""
        return (
            frozenset((s.id, s.ready) for s in self.sandboxes),
            frozenset((c.id, c.state) for c in self.containers),
        )

    def doubted(self) -> "Seen":
        """Look again before anything else is done. What statuses told is kept for where the list agrees."""
        return replace(self, looked_at_ns=0)

    def suspected(self, id_: str) -> "Seen":
        """Ask for the status of this container or sandbox again. What isn't known means to look at all."""
        if self.sandbox(id_) is None and all(c.id != id_ for c in self.containers):
            return self.doubted()
        return replace(self, inspected=self.inspected - {id_})

    def listed(
        self, sandboxes: Sequence[ObservedSandbox], containers: Sequence[ObservedContainer], at_ns: int
    ) -> "Seen":
        """After a list of all that is there."""
        old_sandboxes = {s.id: s for s in self.sandboxes}
        old_containers = {c.id: c for c in self.containers}
        kept: set[str] = set()
        new_sandboxes = []
        for s in sandboxes:
            old = old_sandboxes.get(s.id)
            if old is not None and s.id in self.inspected and old.ready == s.ready:
                kept.add(s.id)
                s = replace(s, handler=old.handler, ip=old.ip)  # noqa: PLW2901 - the same thing, known better
            new_sandboxes.append(s)
        new_containers = []
        for c in containers:
            known = old_containers.get(c.id)
            if known is not None and c.id in self.inspected and known.state == c.state:
                kept.add(c.id)
                c = known  # noqa: PLW2901 - the same thing, known better
            new_containers.append(c)
        return Seen(
            looked_at_ns=at_ns,
            sandboxes=tuple(sorted(new_sandboxes, key=lambda s: (s.created_at_ns, s.id))),
            containers=tuple(sorted(new_containers, key=lambda c: (c.attempt, c.created_at_ns, c.id))),
            inspected=frozenset(kept),
            stopped=self.stopped & {s.id for s in sandboxes},
        )

    def with_sandbox(self, sandbox: ObservedSandbox, *, inspected: bool) -> "Seen":
        rest = tuple(s for s in self.sandboxes if s.id != sandbox.id)
        return replace(self, sandboxes=(*rest, sandbox), inspected=self._marked(sandbox.id, inspected))

    def with_container(self, container: ObservedContainer, *, inspected: bool) -> "Seen":
        rest = tuple(c for c in self.containers if c.id != container.id)
        return replace(self, containers=(*rest, container), inspected=self._marked(container.id, inspected))

    def with_started(self, container_id: str) -> "Seen":
        """After StartContainer; since when, its status will tell."""
        return replace(
            self,
            containers=tuple(replace(c, state="running") if c.id == container_id else c for c in self.containers),
            inspected=self.inspected - {container_id},
        )

    def with_stopped(self, sandbox_id: str) -> "Seen":
        """After StopPodSandbox: its containers have ended too, but how is not known."""
        ended = {c.id for c in self.containers if c.sandbox_id == sandbox_id and c.state != "exited"}
        return replace(
            self,
            sandboxes=tuple(replace(s, ready=False) if s.id == sandbox_id else s for s in self.sandboxes),
            containers=tuple(replace(c, state="exited") if c.id in ended else c for c in self.containers),
            inspected=self.inspected - ended,
            stopped=self.stopped | {sandbox_id},
        )

    def without(self, id_: str) -> "Seen":
        """After the sandbox (with all its containers) or the container was removed."""
        return replace(
            self,
            sandboxes=tuple(s for s in self.sandboxes if s.id != id_),
            containers=tuple(c for c in self.containers if id_ not in {c.id, c.sandbox_id}),
            inspected=self.inspected - {id_},
            stopped=self.stopped - {id_},
        )

    def _marked(self, id_: str, inspected: bool) -> frozenset[str]:
        return self.inspected | {id_} if inspected else self.inspected - {id_}
