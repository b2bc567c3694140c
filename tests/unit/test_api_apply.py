"""POST /apply: all or nothing, and everything that is wrong at once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.http_api import RunningApi, running_api, workload


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


async def ids(api: RunningApi) -> list[str]:
    return [o["id"] for o in (await api.get("/workloads")).body["items"]]


async def test_objects_and_deletes_each_have_their_outcome(api: RunningApi) -> None:
    await api.post("/workloads", workload("old"))
    await api.post("/workloads", workload("same"))
    api.kicks.workloads_.clear()
    body = {
        "objects": [workload("new"), workload("same"), {"kind": "Node", "id": "n1"}],
        "deletes": [{"kind": "Workload", "id": "old"}],
    }
    answer = await api.post("/apply", body)
    assert answer.status == 200
    told = [(o["kind"], o["id"], o["result"]) for o in answer.body["outcomes"]]
    assert told == [
        ("Workload", "new", "created"),
        ("Workload", "same", "unchanged"),
        ("Node", "n1", "created"),
        ("Workload", "old", "deleting"),
    ]
    assert answer.body["outcomes"][0]["object"]["uid"]
    assert (api.kicks.workloads_, api.kicks.nodes_) == (["new", "old"], 1)


async def test_a_dry_run_says_the_same_and_writes_nothing(api: RunningApi) -> None:
    answer = await api.post("/apply?dry_run=1", {"objects": [workload()]})
    assert (answer.status, answer.body["outcomes"][0]["result"]) == (200, "created")
    assert await ids(api) == []
    assert api.kicks.workloads_ == []


async def test_what_is_deleted_at_once_has_no_object(api: RunningApi) -> None:
    await api.put("/nodes/n1", {})
    answer = await api.post("/apply", {"deletes": [{"kind": "Node", "id": "n1"}]})
    assert answer.body["outcomes"] == [{"kind": "Node", "id": "n1", "result": "deleted", "object": None}]


async def test_all_that_is_wrong_is_told_and_nothing_is_applied(api: RunningApi) -> None:
    body = {
        "objects": [
            workload("good"),
            workload("a", memory_mb=-1, what=1),
            workload(None),
            {"id": "b"},
            7,
            workload("good"),
        ],
        "deletes": [{"kind": "Event", "id": "x"}, {"kind": "Workload"}, {"kind": "Workload", "id": "good"}, 1],
    }
    answer = await api.post("/apply", body)
    assert answer.status == 422
    told = {e["pointer"] for e in answer.body["errors"]}
    assert told == {
        "/objects/1/memory_mb",
        "/objects/1/what",
        "/objects/2/id",
        "/objects/3/kind",
        "/objects/4",
        "/objects/5/id",
        "/deletes/0/kind",
        "/deletes/1/id",
        "/deletes/2/id",
        "/deletes/3",
    }
    assert await ids(api) == []


async def test_what_the_store_refuses_is_told_by_its_place_and_nothing_is_applied(api: RunningApi) -> None:
    body = {"objects": [workload("good"), workload("bad", runtime_class="nope")]}
    answer = await api.post("/apply", body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/objects/1/runtime_class")
    missing = await api.post("/apply", {"objects": [workload("good")], "deletes": [{"kind": "Workload", "id": "none"}]})
    assert (missing.status, missing.body["errors"][0]["pointer"]) == (404, "/deletes/0")
    assert await ids(api) == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        pytest.param([], "", id="a list"),
        pytest.param({}, "", id="an empty map"),
        pytest.param({"object": []}, "/object", id="an unknown field"),
        pytest.param({"objects": {}}, "/objects", id="objects that are a map"),
        pytest.param({"deletes": "web"}, "/deletes", id="deletes that are text"),
        pytest.param({"objects": [{}] * 5001}, "", id="5,001 objects"),
    ],
)
async def test_the_envelope_is_judged_too(api: RunningApi, body: Any, pointer: str) -> None:
    answer = await api.post("/apply", body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, pointer)


async def test_nothing_to_do_is_done(api: RunningApi) -> None:
    assert (await api.post("/apply", {"objects": []})).body == {"outcomes": []}


async def test_five_thousand_objects_are_one_apply(api: RunningApi) -> None:
    answer = await api.post("/apply", {"objects": [workload(f"w{i}") for i in range(5000)]})
    assert (answer.status, len(answer.body["outcomes"])) == (200, 5000)
    assert len(api.kicks.workloads_) == 5000


async def test_of_thousands_of_errors_the_first_hundred_are_told(api: RunningApi) -> None:
    answer = await api.post("/apply", {"objects": [{}] * 5000})
    assert (answer.status, len(answer.body["errors"])) == (422, 100)
    assert "5000 fields" in answer.body["detail"]
