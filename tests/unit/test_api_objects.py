"""The verbs of workloads, nodes and runtime classes, over a real socket and the in-memory store."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.http_api import RunningApi, registration, running_api, workload

SEED = {
    "id": "wl-123",
    "image": "ghcr.io/example/secure-app:1.0",
    "runtime_class": "edera-zone",
    "memory_mb": 512,
    "cpu_millicores": 500,
}


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


def pointers(body: dict[str, Any]) -> list[str]:
    return [e["pointer"] for e in body["errors"]]


async def test_the_seeds_example_is_created_and_given_back_with_its_state(api: RunningApi) -> None:
    created = await api.post("/workloads", SEED)
    assert created.status == 201
    assert created.headers["Location"] == "/workloads/wl-123"
    got = await api.get("/workloads/wl-123")
    assert got.status == 200
    assert got.body | {"resource_version": 0} == created.body | {"resource_version": 0}
    assert SEED.items() <= got.body.items()
    assert (got.body["kind"], got.body["generation"], got.body["status"]["state"]) == ("Workload", 1, "Pending")
    assert got.headers["ETag"] == f'"{got.body["uid"]}.1"' == created.headers["ETag"]
    assert api.kicks.workloads_ == ["wl-123"]


async def test_an_id_is_made_for_what_is_posted_without_one(api: RunningApi) -> None:
    first, second = [await api.post("/workloads", workload(None)) for _ in range(2)]
    assert first.status == second.status == 201
    assert first.body["id"] != second.body["id"]
    assert (await api.get(first.headers["Location"])).body["id"] == first.body["id"]


async def test_no_id_is_made_for_other_kinds(api: RunningApi) -> None:
    answer = await api.post("/nodes", {})
    assert (answer.status, pointers(answer.body)) == (422, ["/id"])


async def test_an_id_that_exists_is_not_created_again(api: RunningApi) -> None:
    await api.post("/workloads", workload())
    again = await api.post("/workloads", workload(image="other"))
    assert (again.status, again.body["reason"]) == (409, "AlreadyExists")
    assert again.headers["Content-Type"] == "application/problem+json"
    assert (await api.get("/workloads/web")).body["image"] == "ghcr.io/example/app:1.0"


async def test_put_creates_then_replaces_then_changes_nothing(api: RunningApi) -> None:
    assert (await api.put("/workloads/web", workload(None))).status == 201
    api.kicks.workloads_.clear()
    replaced = await api.put("/workloads/web", workload(image="other:2"))
    assert (replaced.status, replaced.body["generation"]) == (200, 2)
    same = await api.put("/workloads/web", workload(image="other:2"))
    assert (same.status, same.body["generation"]) == (200, 2)
    assert api.kicks.workloads_ == ["web"]


async def test_what_the_server_showed_can_be_put_back(api: RunningApi) -> None:
    created = await api.post("/workloads", workload())
    again = await api.put("/workloads/web", created.body)
    assert (again.status, again.body["generation"]) == (200, 1)


async def test_the_id_in_the_body_must_be_the_paths(api: RunningApi) -> None:
    answer = await api.put("/workloads/web", workload("api"))
    assert (answer.status, pointers(answer.body)) == (422, ["/id"])
    assert (await api.get("/workloads/web")).status == 404


async def test_another_kind_is_refused_by_name(api: RunningApi) -> None:
    answer = await api.post("/workloads", {"kind": "Node", "id": "a"})
    assert (answer.status, pointers(answer.body)) == (422, ["/kind"])


async def test_everything_that_is_wrong_is_told_at_once(api: RunningApi) -> None:
    wrong = workload("Web", memory_mb="512", cpu_millicores=-1, image="A b", security_profile={}, ports=[{"port": 0}])
    answer = await api.post("/workloads", wrong)
    assert answer.status == 422
    expected = ["/cpu_millicores", "/id", "/image", "/memory_mb", "/ports/0/port", "/security_profile"]
    assert sorted(pointers(answer.body)) == expected
    assert all(e["detail"] for e in answer.body["errors"])
    assert {"type", "title", "status", "detail", "reason"} <= answer.body.keys()


@pytest.mark.parametrize("body", [[], "text", 1, True])
async def test_a_body_that_is_no_map_is_refused(api: RunningApi, body: Any) -> None:
    answer = await api.post("/workloads", body)
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")


async def test_an_unknown_runtime_class_is_refused_with_its_field(api: RunningApi) -> None:
    answer = await api.post("/workloads", workload(runtime_class="nope"))
    assert (answer.status, pointers(answer.body)) == (422, ["/runtime_class"])


async def test_less_memory_than_the_runtime_class_needs_is_refused_with_its_field(api: RunningApi) -> None:
    answer = await api.post("/workloads", workload(runtime_class="edera-zone", memory_mb=299))
    assert (answer.status, pointers(answer.body)) == (422, ["/memory_mb"])


async def test_delete_answers_with_the_object_on_its_way_out(api: RunningApi) -> None:
    await api.post("/workloads", workload())
    api.kicks.workloads_.clear()
    deleted = await api.delete("/workloads/web")
    assert (deleted.status, deleted.body["status"]["state"]) == (202, "Terminating")
    assert deleted.body["deleted_at"]
    assert api.kicks.workloads_ == ["web"]
    again = await api.post("/workloads", workload())
    assert (again.status, again.body["reason"]) == (409, "Terminating")


@pytest.mark.parametrize("path", ["/workloads/none", "/workloads/NO%00NAME", "/nodes/none", "/runtime-classes/none"])
async def test_what_is_not_there_is_404_for_reads_and_deletes(api: RunningApi, path: str) -> None:
    for answer in (await api.get(path), await api.delete(path)):
        assert (answer.status, answer.body["reason"]) == (404, "NotFound")


@pytest.mark.parametrize("path", ["/allocations/web.0.0123abcd", "/allocations/x", "/events/none", "/events/%00"])
async def test_reads_of_what_was_never_there_are_404(api: RunningApi, path: str) -> None:
    assert (await api.get(path)).status == 404


class TestIfMatch:
    async def test_the_present_etag_lets_a_put_and_a_delete_through(self, api: RunningApi) -> None:
        etag = (await api.post("/workloads", workload())).headers["ETag"]
        changed = await api.put("/workloads/web", workload(replicas=2), {"If-Match": etag})
        assert changed.status == 200
        assert (await api.delete("/workloads/web", {"If-Match": changed.headers["ETag"]})).status == 202

    async def test_a_stale_one_changes_nothing_and_is_told_the_present_one(self, api: RunningApi) -> None:
        old = (await api.post("/workloads", workload())).headers["ETag"]
        new = (await api.put("/workloads/web", workload(replicas=2))).headers["ETag"]
        for answer in (
            await api.put("/workloads/web", workload(replicas=3), {"If-Match": old}),
            await api.delete("/workloads/web", {"If-Match": old}),
        ):
            assert (answer.status, answer.body["reason"]) == (409, "Stale")
            assert answer.headers["ETag"] == new
            assert new.strip('"') in answer.body["detail"]
        assert (await api.get("/workloads/web")).body["replicas"] == 2

    async def test_a_star_wants_any_that_exists(self, api: RunningApi) -> None:
        missing = await api.put("/workloads/web", workload(), {"If-Match": "*"})
        assert missing.status in {404, 409}
        await api.post("/workloads", workload())
        assert (await api.put("/workloads/web", workload(replicas=2), {"If-Match": "*"})).status == 200

    @pytest.mark.parametrize("text", ["abc", 'W/"a.1"', '"a", "b"', '""', ""])
    async def test_what_is_no_single_etag_is_400(self, api: RunningApi, text: str) -> None:
        await api.post("/workloads", workload())
        answer = await api.put("/workloads/web", workload(), {"If-Match": text})
        assert (answer.status, answer.body["reason"]) == (400, "BadRequest")

    async def test_if_none_match_star_creates_only(self, api: RunningApi) -> None:
        only = {"If-None-Match": "*"}
        assert (await api.put("/workloads/web", workload(), only)).status == 201
        answer = await api.put("/workloads/web", workload(replicas=2), only)
        assert (answer.status, answer.body["reason"]) == (409, "AlreadyExists")
        assert (await api.put("/workloads/web", workload(), {"If-None-Match": '"x"'})).status == 400


class TestNodes:
    async def test_a_registration_makes_a_node_and_kicks_once(self, api: RunningApi) -> None:
        first = await api.put("/nodes/n1/registration", registration(labels={"zone": "a"}))
        assert first.status == 200
        assert first.body["status"]["capacity"] == {"memory_mb": 8192, "cpu_millicores": 4000}
        assert api.kicks.nodes_ == 1
        await api.put("/nodes/n1/registration", registration(labels={"zone": "a"}))
        assert api.kicks.nodes_ == 1

    async def test_a_registration_leaves_what_users_own(self, api: RunningApi) -> None:
        await api.put("/nodes/n1", {"labels": {"zone": "b"}, "schedulable": False})
        node = (await api.put("/nodes/n1/registration", registration(labels={"zone": "a"}))).body
        assert (node["labels"], node["schedulable"], node["status"]["labels"]) == ({"zone": "b"}, False, {"zone": "a"})

    async def test_a_bad_registration_is_told_by_field(self, api: RunningApi) -> None:
        answer = await api.put("/nodes/n1/registration", registration(address="nowhere", extra=1))
        assert (answer.status, sorted(pointers(answer.body))) == (422, ["/address", "/extra"])

    async def test_a_name_that_is_none_is_refused(self, api: RunningApi) -> None:
        assert (await api.put("/nodes/Node_1/registration", registration())).status == 422

    async def test_a_cordon_kicks_the_nodes(self, api: RunningApi) -> None:
        await api.put("/nodes/n1/registration", registration())
        cordoned = await api.put("/nodes/n1", {"schedulable": False})
        assert (cordoned.status, cordoned.body["schedulable"], api.kicks.nodes_) == (200, False, 2)

    async def test_a_node_goes_at_once(self, api: RunningApi) -> None:
        await api.put("/nodes/n1", {})
        gone = await api.delete("/nodes/n1")
        assert (gone.status, gone.body) == (200, {"kind": "Node", "id": "n1"})
        assert (await api.get("/nodes/n1")).status == 404


class TestRuntimeClasses:
    async def test_the_built_in_ones_are_there(self, api: RunningApi) -> None:
        page = await api.get("/runtime-classes")
        assert [c["id"] for c in page.body["items"]] == ["edera-zone", "gvisor", "kata", "native"]

    async def test_one_that_is_asked_for_stays(self, api: RunningApi) -> None:
        await api.post("/workloads", workload())
        answer = await api.delete("/runtime-classes/native")
        assert (answer.status, answer.body["reason"]) == (409, "InUse")

    async def test_one_is_created_and_deleted(self, api: RunningApi) -> None:
        assert (await api.post("/runtime-classes", {"id": "crun", "handler": "crun"})).status == 201
        assert (await api.delete("/runtime-classes/crun")).status == 200


async def test_each_nodes_why_is_told(api: RunningApi) -> None:
    await api.post("/workloads", workload(memory_mb=100_000))
    await api.put("/nodes/n1/registration", registration())
    await api.store.set_node_ready("n1", epoch=0, ready=True, reason="Ready", message="", now=api.clock())
    answer = await api.get("/workloads/web/explanation")
    [node] = answer.body["nodes"]
    assert (node["node"], node["fits"]) == ("n1", False)
    assert "100000 MiB asked" in " ".join(node["why"])
    await api.put("/workloads/web", workload())
    assert (await api.get("/workloads/web/explanation")).body == {"nodes": [{"node": "n1", "fits": True, "why": []}]}
    assert (await api.get("/workloads/none/explanation")).status == 404
