"""Pages, filters and parameters."""

import base64
from collections.abc import AsyncIterator

import pytest

from support.http_api import RunningApi, running_api, workload


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


async def test_pages_follow_each_other_and_miss_nothing(api: RunningApi) -> None:
    for i in range(5):
        await api.post("/workloads", workload(f"w{i}"))
    seen, path = [], "/workloads?limit=2"
    versions = set()
    while path:
        page = (await api.get(path)).body
        seen += [o["id"] for o in page["items"]]
        versions.add(page["resource_version"])
        path = f"/workloads?limit=2&continue={page['continue']}" if "continue" in page else ""
        await api.post("/workloads", workload(f"v{len(seen)}"))
    assert seen == [f"w{i}" for i in range(5)]
    assert len(versions) == 1, "a watch from any page's version must miss nothing of the pages before it"


async def test_a_selector_chooses(api: RunningApi) -> None:
    await api.post("/workloads", workload("a", labels={"app": "web"}))
    await api.post("/workloads", workload("b", labels={"app": "db"}))
    page = await api.get("/workloads?selector=app%3Dweb")
    assert [o["id"] for o in page.body["items"]] == ["a"]


async def test_an_empty_list_is_a_list(api: RunningApi) -> None:
    for path in ("/workloads", "/allocations", "/nodes", "/events?object_kind=Node&object_id=x&type=Normal"):
        page = await api.get(path)
        assert (page.status, page.body["items"]) == (200, [])
        assert page.body["resource_version"].isdigit()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/workloads?limit=0", "1 to 1000"),
        ("/workloads?limit=1001", "1 to 1000"),
        ("/workloads?limit=ten", "1 to 1000"),
        ("/workloads?limit=", "1 to 1000"),
        ("/workloads?limit=%D9%A1", "1 to 1000"),
        ("/workloads?limit=1&limit=2", "given twice"),
        ("/workloads?selector=a%3D%3D%3Db", "not a selector"),
        ("/workloads?selectr=a", "use continue, limit, resource_version, selector, watch"),
        ("/workloads?watch=yes", "use 1 or 0"),
        ("/workloads?resource_version=5", "?watch=1"),
        ("/workloads?watch=1&limit=5", "pages"),
        ("/workloads?watch=1&resource_version=-1", "whole number"),
        ("/workloads?watch=1&resource_version=99999999999999999999", "whole number"),
        ("/workloads/web?limit=1", "there are none here"),
        ("/allocations?workload=%00", "workload"),
        ("/allocations?node=", "node"),
        ("/runtime-classes?selector=a", "use continue"),
        ("/workloads?continue=x", "no token"),
        ("/workloads?continue=%C3%BC", "no token"),
        ("/workloads?continue=" + "W" * 4000, "no token"),
        ("/workloads?continue=" + base64.b64encode(b"[" * 3000).decode(), "no token"),
        ("/workloads?continue=" + base64.b64encode(b'["a",1,"b"]').decode(), "no token"),
        ("/healthz?x=1", "there are none here"),
    ],
)
async def test_what_is_not_understood_is_400_with_what_would_be_right(api: RunningApi, path: str, words: str) -> None:
    answer = await api.get(path)
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    assert words in answer.body["detail"]


async def test_a_token_is_good_for_its_own_list_only(api: RunningApi) -> None:
    for i in range(3):
        await api.post("/workloads", workload(f"w{i}", labels={"a": "b"}))
    token = (await api.get("/workloads?limit=1&selector=a")).body["continue"]
    assert (await api.get(f"/workloads?limit=2&selector=a&continue={token}")).status == 200
    assert (await api.get(f"/workloads?continue={token}")).status == 400
    assert (await api.get(f"/nodes?selector=a&continue={token}")).status == 400
