"""Where a new allocation goes: which nodes have what it needs, which of those is best, and why the others are not.

One rule: a node is chosen only if it lacks nothing, counting what earlier placements of the same pass took. Spread
first (fewest allocations of the workload), then the most free memory, then the node's name.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from controller.plan.snapshot import NodeView, Snapshot, features_of, host_ports_of
from kakuri.model import RuntimeClass, WorkloadSpec, ips_overlap


class Lack(StrEnum):
    """What a node may lack, in the order in which it is told: first what no waiting cures."""

    NEVER_SEEN = "never seen"
    RUNTIME_CLASS = "runtime class"
    FEATURE = "feature"
    SELECTOR = "selector"
    NOT_READY = "not ready"
    DRAINING = "draining"
    CORDONED = "cordoned"
    MEMORY = "memory"
    CPU = "cpu"
    HOST_PORT = "host port"


@dataclass(frozen=True, slots=True)
class Misfit:
    """One thing that a node lacks. `detail` is for this node; `note` is fit to be counted over nodes, so it has no
    numbers that change with every placement elsewhere."""

    lack: Lack
    detail: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A place, and why this node of all."""

    node: NodeView
    why: str


class Room:
    """What is left on each node while one plan is made: the only thing in a pass that changes."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._nodes = {n.id: n for n in sorted(snapshot.nodes, key=lambda n: n.id)}
        self._classes = snapshot.runtime_classes

    def copy(self) -> "Room":
        """The same room, to try something in."""
        twin = object.__new__(Room)
        twin._nodes, twin._classes = dict(self._nodes), self._classes
        return twin

    def search(self, spec: WorkloadSpec, taken: Mapping[str, int]) -> "Search":
        """A search for places for one workload. taken: how many allocations of it each node has already."""
        return Search(self._nodes, spec, taken)

    def why_nowhere(self, spec: WorkloadSpec) -> str:
        """Why no node has room for one more of this, in a sentence with what a person can do."""
        return why_nowhere(spec, self._nodes.values(), self._classes)


class Search:
    """Places for the allocations of one workload, the best first. While it is used nothing else takes room."""

    def __init__(self, nodes: dict[str, NodeView], spec: WorkloadSpec, taken: Mapping[str, int]) -> None:
        self._nodes = nodes
        self._spec = spec
        self._count = Counter(taken)
        self._best: list[tuple[int, float, str]] | None = None

    def take(self, *, avoid: str = "") -> Found | None:
        """The best place, with its room taken; None when no node fits. The node to avoid is taken only for want of any
        other."""
        if self._best is None:
            self._best = [self._rank(n) for n in self._nodes.values() if _fits(self._spec, n)]
            heapq.heapify(self._best)
        avoided: list[tuple[int, float, str]] = []
        while self._best:
            rank = heapq.heappop(self._best)
            node = self._nodes[rank[2]]
            if not _fits(self._spec, node):
                continue  # Room only shrinks in a pass, so this node is out for good.
            if node.id == avoid:
                avoided.append(rank)
                continue
            for other in avoided:
                heapq.heappush(self._best, other)
            return self._occupy(node)
        return self._occupy(self._nodes[avoided[0][2]]) if avoided else None

    def _occupy(self, node: NodeView) -> Found:
        assert self._best is not None
        before = self._count[node.id]
        why = f"has the fewest of its allocations ({before}), then most memory free" if self._best else "alone fits"
        self._nodes[node.id] = after = replace(
            node,
            used_memory_mb=node.used_memory_mb + self._spec.memory_mb,
            used_cpu_millicores=node.used_cpu_millicores + self._spec.cpu_millicores,
            host_ports=node.host_ports.union(host_ports_of(self._spec)),
        )
        self._count[node.id] += 1
        heapq.heappush(self._best, self._rank(after))
        return Found(after, f"{node.id} {why}")

    def _rank(self, node: NodeView) -> tuple[int, float, str]:
        free = (node.memory_mb - node.used_memory_mb) / max(node.memory_mb, 1)
        return self._count[node.id], -free, node.id


def why_not(spec: WorkloadSpec, node: NodeView, classes: Mapping[str, RuntimeClass]) -> list[str]:
    """All that this node lacks for one more allocation of this, in words; empty when it fits."""
    return [m.detail for m in _misfits(spec, node, classes)]


def why_nowhere(spec: WorkloadSpec, nodes: Iterable[NodeView], classes: Mapping[str, RuntimeClass]) -> str:
    """Counts of nodes by the first thing that each lacks, and what a person can do about the commonest."""
    machines = sorted(nodes, key=lambda n: n.id)
    if not machines:
        return "no node has registered yet; next: start an agent (kakuri agent) on a machine"
    firsts: dict[Lack, list[str]] = {}
    for node in machines:
        for misfit in _misfits(spec, node, classes)[:1]:
            firsts.setdefault(misfit.lack, []).append(misfit.note)
    counted = [_counted(lack, firsts[lack], spec) for lack in Lack if lack in firsts]
    commonest = max(firsts, key=lambda lack: (len(firsts[lack]), -list(Lack).index(lack)))
    advice = _advice(commonest, spec, machines, classes)
    return f"0 of {len(machines)} nodes fit: {', '.join(counted)}; next: {advice}"


def _fits(spec: WorkloadSpec, node: NodeView) -> bool:
    """The same as having no misfit, without the words: this runs for every node and every placement."""
    return (
        node.ready
        and node.schedulable
        and node.drain is None
        and spec.runtime_class in node.runtime_classes
        and node.features.issuperset(features_of(spec))
        and spec.memory_mb <= node.memory_mb - node.used_memory_mb
        and spec.cpu_millicores <= node.cpu_millicores - node.used_cpu_millicores
        and all(node.labels.get(key) == value for key, value in spec.node_selector.items())
        and not _taken_ports(spec, node)
    )


def _misfits(spec: WorkloadSpec, node: NodeView, classes: Mapping[str, RuntimeClass]) -> list[Misfit]:
    """What the node lacks, in the order of Lack."""
    silence = node.message or "its agent does not answer"
    if not node.ready and not node.runtime_classes and node.memory_mb == 0:
        return [Misfit(Lack.NEVER_SEEN, f"no agent has registered for it ({silence})")]
    found: list[Misfit] = []
    if spec.runtime_class not in node.runtime_classes:
        cause = _why_class_is_not_offered(spec.runtime_class, node, classes)
        found.append(Misfit(Lack.RUNTIME_CLASS, f"it lacks runtime class {spec.runtime_class} ({cause})", cause))
    if unknown := _unknown_features(spec, node):
        found.append(Misfit(Lack.FEATURE, f"its agent lacks {unknown}; upgrade it", unknown))
    wrong = [f"{key}={value}" for key, value in sorted(spec.node_selector.items()) if node.labels.get(key) != value]
    if wrong:
        found.append(Misfit(Lack.SELECTOR, f"it lacks the label {' and '.join(wrong)} of node_selector"))
    if not node.ready:
        found.append(Misfit(Lack.NOT_READY, f"it is not ready ({silence})", silence))
    if node.drain is not None:
        found.append(Misfit(Lack.DRAINING, "it is being drained"))
    elif not node.schedulable:
        found.append(Misfit(Lack.CORDONED, "it is cordoned"))
    free_mb = node.memory_mb - node.used_memory_mb
    if spec.memory_mb > free_mb:
        found.append(Misfit(Lack.MEMORY, f"{spec.memory_mb} MiB asked, {max(free_mb, 0)} of {node.memory_mb} free"))
    free_cpu = node.cpu_millicores - node.used_cpu_millicores
    if spec.cpu_millicores > free_cpu:
        asked = f"{spec.cpu_millicores} millicores asked"
        found.append(Misfit(Lack.CPU, f"{asked}, {max(free_cpu, 0)} of {node.cpu_millicores} free"))
    if taken := _taken_ports(spec, node):
        ports = ", ".join(taken)
        found.append(Misfit(Lack.HOST_PORT, f"host_port {ports} is taken there", ports))
    return found


def _unknown_features(spec: WorkloadSpec, node: NodeView) -> str:
    return ", ".join(f for f in features_of(spec) if f not in node.features)


def _why_class_is_not_offered(name: str, node: NodeView, classes: Mapping[str, RuntimeClass]) -> str:
    handler = _handler(name, classes)
    return node.unproved.get(handler) or f"no handler {handler}"


def _handler(name: str, classes: Mapping[str, RuntimeClass]) -> str:
    return classes[name].handler if name in classes else name


def _taken_ports(spec: WorkloadSpec, node: NodeView) -> list[str]:
    return [
        f"{p.ip}:{p.port}/{p.protocol}"
        for p in host_ports_of(spec)
        if any(t.port == p.port and t.protocol == p.protocol and ips_overlap(t.ip, p.ip) for t in node.host_ports)
    ]


def _counted(lack: Lack, notes: list[str], spec: WorkloadSpec) -> str:
    """One lack over all nodes, as in: 2 lack runtime class kata (no handler kata)."""
    n = len(notes)
    is_, has, lacks = ("is", "has", "lacks") if n == 1 else ("are", "have", "lack")
    # Two different causes tell enough; every node's own stands in its explanation.
    causes = "; ".join(sorted({note for note in notes if note})[:2])
    match lack:
        case Lack.NEVER_SEEN:
            return f"{n} never had an agent"
        case Lack.RUNTIME_CLASS:
            return f"{n} {lacks} runtime class {spec.runtime_class} ({causes})"
        case Lack.FEATURE:
            return f"{n} {has} an agent without {causes}"
        case Lack.SELECTOR:
            return f"{n} {lacks} the labels of node_selector ({_selector(spec)})"
        case Lack.NOT_READY:
            return f"{n} {is_} not ready ({causes})"
        case Lack.DRAINING:
            return f"{n} {is_} being drained"
        case Lack.CORDONED:
            return f"{n} {is_} cordoned"
        case Lack.MEMORY:
            return f"{n} {has} too little memory free ({spec.memory_mb} MiB asked)"
        case Lack.CPU:
            return f"{n} {has} too little CPU free ({spec.cpu_millicores} millicores asked)"
        case Lack.HOST_PORT:
            return f"{n} {has} the host_port taken ({causes})"


def _advice(lack: Lack, spec: WorkloadSpec, nodes: list[NodeView], classes: Mapping[str, RuntimeClass]) -> str:
    match lack:
        case Lack.NEVER_SEEN:
            return "start an agent (kakuri agent) there"
        case Lack.RUNTIME_CLASS:
            offered = ", ".join(sorted({c for n in nodes for c in n.runtime_classes}))
            other = f", or use a runtime_class that nodes offer ({offered})" if offered else ""
            return f"give a node a runtime with the handler {_handler(spec.runtime_class, classes)}{other}"
        case Lack.FEATURE:
            return "upgrade the agent there, or set on_disconnect to keep"
        case Lack.SELECTOR:
            return f"give a node the labels {_selector(spec)}, or change node_selector"
        case Lack.NOT_READY:
            return "see why the agent there does not answer, or add a node"
        case Lack.DRAINING | Lack.CORDONED:
            return "make a node schedulable again, or add one"
        case Lack.MEMORY:
            return "lower memory_mb, remove what is needed less, or add a node"
        case Lack.CPU:
            return "lower cpu_millicores, remove what is needed less, or add a node"
        case Lack.HOST_PORT:
            return "use another host_port, or add a node"


def _selector(spec: WorkloadSpec) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(spec.node_selector.items()))
