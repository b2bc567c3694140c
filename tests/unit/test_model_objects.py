"""Allocations, nodes, runtime classes and states: what they may be and what they say of themselves."""

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from builders import a_node, a_node_manifest, a_registration, a_runtime_class, an_allocation, an_end
from kakuri.model import (
    BUILT_IN,
    Allocation,
    Node,
    NodeManifest,
    NodeRegistration,
    NodeStatus,
    Reason,
    RuntimeClassManifest,
    State,
    allocation_id,
    workload_of,
)

STORED = (State.PENDING, State.RUNNING, State.TERMINATING, State.SUCCEEDED, State.FAILED)
FORWARD = {
    (State.PENDING, State.RUNNING),
    (State.PENDING, State.TERMINATING),
    (State.PENDING, State.SUCCEEDED),
    (State.PENDING, State.FAILED),
    (State.RUNNING, State.TERMINATING),
    (State.RUNNING, State.SUCCEEDED),
    (State.RUNNING, State.FAILED),
    (State.TERMINATING, State.SUCCEEDED),
    (State.TERMINATING, State.FAILED),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STORED, STORED)))
def test_a_stored_state_only_goes_forward_and_an_end_stays(before: State, after: State) -> None:
    assert before.may_become(after) is (before is after or (before, after) in FORWARD)


def test_unknown_is_never_stored() -> None:
    assert not any(state.may_become(State.UNKNOWN) for state in STORED)


def test_states_are_spelled_as_in_the_seed() -> None:
    assert [str(s) for s in STORED] == ["Pending", "Running", "Terminating", "Succeeded", "Failed"]
    assert [s.ended for s in STORED] == [False, False, False, True, True]


def test_reasons_are_camel_case_and_spelled_once() -> None:
    values = [r.value for r in Reason if r]
    assert len(values) == len(set(values))
    assert all(v[0].isupper() and v.isalpha() for v in values)


@pytest.mark.parametrize(
    ("allocation", "live", "ready"),
    [
        pytest.param(an_allocation(), True, True, id="one that runs"),
        pytest.param(an_allocation(reason="CrashLoopBackOff"), True, False, id="one between two attempts"),
        pytest.param(an_allocation(state=State.PENDING), True, False, id="one that comes up"),
        pytest.param(an_end(released=False), True, False, id="one that ended and still holds its room"),
        pytest.param(an_end(), False, False, id="one of which nothing is left"),
    ],
)
def test_live_and_ready_are_different_things(allocation: Allocation, *, live: bool, ready: bool) -> None:
    assert (allocation.live, allocation.ready) == (live, ready)


def test_an_allocations_id_leads_back_to_its_workload() -> None:
    assert allocation_id("web-1", 3, "0123abcd") == "web-1.3.0123abcd"
    assert workload_of("web-1.3.0123abcd") == "web-1"
    assert workload_of("web-1") == "web-1"


def test_a_built_allocation_is_a_valid_one() -> None:
    assert Allocation.model_validate_json(an_end().model_dump_json()) == an_end()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"schedulable": "no"}, id="a word for a boolean"),
        pytest.param({"schedulable": 0}, id="a number for a boolean"),
        pytest.param({"taints": []}, id="a field of no issue yet"),
        pytest.param({"status": {}}, id="what its agent owns"),
        pytest.param({"id": "Node 1"}, id="a bad name"),
        pytest.param({"labels": {"a b": ""}}, id="a bad label"),
    ],
)
def test_a_bad_node_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NodeManifest.model_validate({"id": "n1"} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"address": "127.0.0.1"}, id="an address without a port"),
        pytest.param({"address": "127.0.0.1:http"}, id="a port in letters"),
        pytest.param({"capacity": {"memory_mb": 0, "cpu_millicores": 1}}, id="no memory"),
        pytest.param({"schedulable": True}, id="what users own"),
        pytest.param({"simulated": "yes"}, id="a word for a boolean"),
        pytest.param({"instance": "i" * 65}, id="a name too long"),
        pytest.param({"runtime_classes": [{"id": "native"}]}, id="a class without its handler"),
    ],
)
def test_a_bad_registration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NodeRegistration.model_validate(a_registration().model_dump() | fields)


def test_a_users_label_wins_over_the_agents() -> None:
    node = a_node(labels={"zone": "a"}, status=NodeStatus(labels={"zone": "b", "arch": "x"}))
    assert node.all_labels == {"zone": "a", "arch": "x"}


def test_a_node_survives_the_way_through_json() -> None:
    assert Node.model_validate_json(a_node().model_dump_json()) == a_node()
    assert a_node_manifest("n2").id == "n2"
    assert a_node().etag == "uid-n1.1"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"handler": ""}, id="no handler"),
        pytest.param({"handler": "../runc"}, id="a handler that is a path"),
        pytest.param({"handler": "a" * 64}, id="a handler too long"),
        pytest.param({"min_memory_mb": -1}, id="a negative minimum"),
        pytest.param({"tier": 3}, id="a field of no issue yet"),
        pytest.param({"id": "gVisor"}, id="a bad name"),
    ],
)
def test_a_bad_runtime_class_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RuntimeClassManifest.model_validate({"id": "x", "handler": "x"} | fields)


def test_the_built_in_classes_are_those_of_the_design() -> None:
    assert {c.id: c.handler for c in BUILT_IN} == {
        "edera-zone": "edera",
        "kata": "kata",
        "gvisor": "runsc",
        "native": "runc",
    }
    assert a_runtime_class("edera-zone").min_memory_mb == 300
