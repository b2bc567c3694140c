"""Where an allocation goes, and the words for why it goes nowhere."""

import pytest

from builders import a_node_view, a_port, a_snapshot, a_spec
from controller.plan.place import Room, why_not
from controller.plan.snapshot import HostPort, NodeView
from kakuri.model import OnDisconnect, Protocol, WorkloadSpec


def places(spec: WorkloadSpec, nodes: list[NodeView], count: int = 1, *, avoid: str = "", **taken: int) -> list[str]:
    """The nodes that so many placements of the same pass choose, in order."""
    search = Room(a_snapshot(nodes=nodes)).search(spec, taken)
    found = [search.take(avoid=avoid) for _ in range(count)]
    return [f.node.id if f else "nowhere" for f in found]


def nowhere(spec: WorkloadSpec, nodes: list[NodeView]) -> str:
    return Room(a_snapshot(nodes=nodes)).why_nowhere(spec)


@pytest.mark.parametrize(
    ("node", "spec", "lack"),
    [
        pytest.param(
            a_node_view(ready=False, message="no answer for 20 s"),
            a_spec(),
            "it is not ready (no answer for 20 s)",
            id="a silent node",
        ),
        pytest.param(a_node_view(schedulable=False), a_spec(), "it is cordoned", id="a cordoned node"),
        pytest.param(
            a_node_view(),
            a_spec(runtime_class="edera-zone", memory_mb=300),
            "it lacks runtime class edera-zone (no handler edera)",
            id="a runtime class that the node knows nothing of",
        ),
        pytest.param(
            a_node_view(unproved={"edera": "no Edera runtime was found"}),
            a_spec(runtime_class="edera-zone", memory_mb=300),
            "it lacks runtime class edera-zone (no Edera runtime was found)",
            id="a runtime class whose handler was tried in vain",
        ),
        pytest.param(
            a_node_view(labels={"zone": "b"}),
            a_spec(node_selector={"zone": "a", "disk": "ssd"}),
            "it lacks the label disk=ssd and zone=a of node_selector",
            id="labels that the node has not",
        ),
        pytest.param(
            a_node_view(used_memory_mb=4000),
            a_spec(memory_mb=97),
            "97 MiB asked, 96 of 4096 free",
            id="memory that is taken",
        ),
        pytest.param(
            a_node_view(used_memory_mb=5000), a_spec(), "64 MiB asked, 0 of 4096 free", id="memory that is overtaken"
        ),
        pytest.param(
            a_node_view(used_cpu_millicores=3950),
            a_spec(),
            "100 millicores asked, 50 of 4000 free",
            id="CPU that is taken",
        ),
        pytest.param(
            a_node_view(features=frozenset()),
            a_spec(on_disconnect=OnDisconnect.REPLACE),
            "its agent lacks node-lease; upgrade it",
            id="an older agent, which would not end what is bound to its lease",
        ),
        pytest.param(
            a_node_view(host_ports=frozenset({HostPort("127.0.0.1", 8080, "tcp")})),
            a_spec(ports=(a_port(8080),)),
            "host_port 127.0.0.1:8080/tcp is taken there",
            id="a host port that is taken",
        ),
        pytest.param(
            a_node_view(host_ports=frozenset({HostPort("127.0.0.1", 8080, "tcp")})),
            a_spec(ports=(a_port(8080, host_ip="0.0.0.0"),)),
            "host_port 0.0.0.0:8080/tcp is taken there",
            id="a host port that is taken on one of all addresses",
        ),
        pytest.param(
            NodeView("n1", {}, False, True, frozenset(), 0, 0, message="no agent yet"),
            a_spec(),
            "no agent has registered for it (no agent yet)",
            id="a node that never had an agent",
        ),
    ],
)
def test_a_node_that_lacks_something_says_so_and_is_never_chosen(node: NodeView, spec: WorkloadSpec, lack: str) -> None:
    assert why_not(spec, node, a_snapshot().runtime_classes) == [lack]
    assert places(spec, [node]) == ["nowhere"]


@pytest.mark.parametrize(
    ("node", "spec"),
    [
        pytest.param(
            a_node_view(used_memory_mb=4032, used_cpu_millicores=3900), a_spec(), id="what fills it to the brim"
        ),
        pytest.param(a_node_view(features=frozenset()), a_spec(), id="an older agent that need not end anything"),
        pytest.param(
            a_node_view(labels={"zone": "a", "more": "x"}),
            a_spec(node_selector={"zone": "a"}),
            id="a label among others",
        ),
        pytest.param(
            a_node_view(host_ports=frozenset({HostPort("127.0.0.1", 8080, "tcp")})),
            a_spec(ports=(a_port(8080, protocol=Protocol.UDP), a_port(8081), a_port(None, port=8080))),
            id="the same port of another protocol",
        ),
        pytest.param(
            a_node_view(host_ports=frozenset({HostPort("127.0.0.1", 8080, "tcp")})),
            a_spec(ports=(a_port(8080, host_ip="127.0.0.2"),)),
            id="the same port of another address",
        ),
    ],
)
def test_a_node_that_lacks_nothing_is_chosen(node: NodeView, spec: WorkloadSpec) -> None:
    assert why_not(spec, node, a_snapshot().runtime_classes) == []
    assert places(spec, [node]) == ["n1"]


def test_a_node_tells_all_that_it_lacks() -> None:
    node = a_node_view(ready=False, message="gone", schedulable=False, used_memory_mb=4096)
    assert len(why_not(a_spec(runtime_class="kata", memory_mb=128), node, a_snapshot().runtime_classes)) == 4


def test_replicas_are_spread_over_the_nodes() -> None:
    nodes = [a_node_view("n2"), a_node_view("n3"), a_node_view("n1")]
    assert places(a_spec(), nodes, 6) == ["n1", "n2", "n3", "n1", "n2", "n3"]


def test_spreading_counts_what_the_workload_has_already() -> None:
    assert places(a_spec(), [a_node_view("n1"), a_node_view("n2")], 3, n1=2) == ["n2", "n2", "n1"]


def test_among_equals_the_node_with_the_largest_share_of_free_memory_is_chosen() -> None:
    full = a_node_view("n1", memory_mb=8192, used_memory_mb=6000)
    assert places(a_spec(), [full, a_node_view("n2", memory_mb=1024)]) == ["n2"]


def test_placements_of_one_pass_do_not_share_memory_cpu_or_ports() -> None:
    small = a_node_view("n1", memory_mb=150)
    slow = a_node_view("n2", cpu_millicores=100)
    assert places(a_spec(), [small, slow], 4) == ["n1", "n2", "n1", "nowhere"]
    served = a_spec(ports=(a_port(8080),))
    assert places(served, [a_node_view("n1"), a_node_view("n2")], 3) == ["n1", "n2", "nowhere"]


def test_placements_of_different_workloads_in_one_pass_do_not_share_room() -> None:
    room = Room(a_snapshot(nodes=a_node_view(memory_mb=100)))
    assert room.search(a_spec(), {}).take() is not None
    assert room.search(a_spec(image="localhost/other"), {}).take() is None


def test_the_node_to_avoid_is_chosen_only_for_want_of_any_other() -> None:
    both = [a_node_view("n1"), a_node_view("n2", memory_mb=100)]
    assert places(a_spec(), both, 3, avoid="n1") == ["n2", "n1", "n1"]


def test_a_placement_says_why_this_node() -> None:
    alone = Room(a_snapshot()).search(a_spec(), {}).take()
    assert alone is not None
    assert alone.why == "n1 alone fits"
    best = Room(a_snapshot(nodes=[a_node_view("n1"), a_node_view("n2")])).search(a_spec(), {"n1": 1}).take()
    assert best is not None
    assert best.why == "n2 has the fewest of its allocations (0), then most memory free"


@pytest.mark.parametrize(
    ("nodes", "spec", "message"),
    [
        pytest.param(
            [], a_spec(), "no node has registered yet; next: start an agent (kakuri agent) on a machine", id="no nodes"
        ),
        pytest.param(
            [a_node_view()],
            a_spec(runtime_class="edera-zone", memory_mb=300),
            "0 of 1 nodes fit: 1 lacks runtime class edera-zone (no handler edera); next: give a node a runtime with "
            "the handler edera, or use a runtime_class that nodes offer (gvisor, native)",
            id="an Edera zone on a node with runc and gVisor",
        ),
        pytest.param(
            [
                a_node_view("n1", unproved={"edera": "no Edera runtime was found"}),
                a_node_view("n2", unproved={"edera": "no Edera runtime was found"}),
                a_node_view("n3", runtime_classes=frozenset({"edera-zone"}), schedulable=False),
            ],
            a_spec(runtime_class="edera-zone", memory_mb=300),
            "0 of 3 nodes fit: 2 lack runtime class edera-zone (no Edera runtime was found), 1 is cordoned; next: "
            "give a node a runtime with the handler edera, or use a runtime_class that nodes offer (edera-zone, "
            "gvisor, native)",
            id="reasons are counted over nodes",
        ),
        pytest.param(
            [a_node_view("n1", memory_mb=60), a_node_view("n2", memory_mb=60)],
            a_spec(),
            "0 of 2 nodes fit: 2 have too little memory free (64 MiB asked); next: lower memory_mb, remove what is "
            "needed less, or add a node",
            id="full nodes",
        ),
        pytest.param(
            [a_node_view(ready=False, message="no answer")],
            a_spec(),
            "0 of 1 nodes fit: 1 is not ready (no answer); next: see why the agent there does not answer, or "
            "add a node",
            id="a silent node",
        ),
        pytest.param(
            [a_node_view()],
            a_spec(node_selector={"zone": "a"}),
            "0 of 1 nodes fit: 1 lacks the labels of node_selector (zone=a); next: give a node the labels zone=a, or "
            "change node_selector",
            id="labels",
        ),
        pytest.param(
            [a_node_view(host_ports=frozenset({HostPort("0.0.0.0", 8080, "tcp")}))],
            a_spec(ports=(a_port(8080),)),
            "0 of 1 nodes fit: 1 has the host_port taken (127.0.0.1:8080/tcp); next: use another host_port, or "
            "add a node",
            id="a taken port",
        ),
        pytest.param(
            [a_node_view(cpu_millicores=50)],
            a_spec(),
            "0 of 1 nodes fit: 1 has too little CPU free (100 millicores asked); next: lower cpu_millicores, remove "
            "what is needed less, or add a node",
            id="no CPU",
        ),
        pytest.param(
            [a_node_view(schedulable=False)],
            a_spec(),
            "0 of 1 nodes fit: 1 is cordoned; next: make a node schedulable again, or add one",
            id="all cordoned",
        ),
        pytest.param(
            [NodeView("n1", {}, False, True, frozenset(), 0, 0)],
            a_spec(),
            "0 of 1 nodes fit: 1 never had an agent; next: start an agent (kakuri agent) there",
            id="a node made by hand",
        ),
    ],
)
def test_why_there_is_no_place_is_told_with_what_to_do(nodes: list[NodeView], spec: WorkloadSpec, message: str) -> None:
    assert nowhere(spec, nodes) == message


def test_why_there_is_no_place_does_not_change_with_what_others_take() -> None:
    spec = a_spec(memory_mb=4000)
    assert nowhere(spec, [a_node_view(used_memory_mb=100)]) == nowhere(spec, [a_node_view(used_memory_mb=200)])


def test_a_thousand_replicas_are_placed_in_little_time() -> None:
    """Work follows nodes + placements, not nodes x placements."""
    nodes = [a_node_view(f"n{n:04}", memory_mb=64) for n in range(1000)]
    found = places(a_spec(), nodes, 1001)
    assert len(set(found)) == 1001
    assert found[-1] == "nowhere"
