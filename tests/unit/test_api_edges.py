"""What is no request, or no good one, and what is wrong with the server itself: always a problem, never a surprise."""

import asyncio
import io
import json
from collections.abc import AsyncIterator

import pytest

from controller.store.contract import Unavailable
from kakuri import metrics
from support.http_api import BOUND_S, RunningApi, running_api, workload


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


async def test_an_unknown_path_is_404_in_our_shape(api: RunningApi) -> None:
    answer = await api.get("/nope")
    assert (answer.status, answer.body["reason"]) == (404, "NotFound")
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/workloads", "GET, HEAD, POST"),
        ("POST", "/workloads/web", "DELETE, GET, HEAD, PUT"),
        ("POST", "/allocations", "GET, HEAD"),
        ("DELETE", "/events/x", "GET, HEAD"),
        ("GET", "/apply", "POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(api: RunningApi, method: str, path: str, allowed: str) -> None:
    answer = await api.send(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert answer.body["reason"] == "MethodNotAllowed"


async def test_head_is_get_without_its_body(api: RunningApi) -> None:
    for path in ("/healthz", "/workloads", "/workloads?watch=1"):
        answer = await api.send("HEAD", path)
        assert (answer.status, answer.body) == (200, "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/yaml"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ],
)
async def test_another_type_of_body_is_415(api: RunningApi, headers: dict[str, str]) -> None:
    body = json.dumps(workload()).encode()
    answer = await api.send("POST", "/workloads", data=body, headers=headers, skip_auto_headers=["Content-Type"])
    assert (answer.status, answer.body["reason"]) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_413(api: RunningApi, *, chunked: bool) -> None:
    big = json.dumps(workload(env={"A": "x" * 1024 * 1024})).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 65_536):
            yield big[start : start + 65_536]

    answer = await api.send(
        "POST",
        "/workloads",
        data=pieces() if chunked else io.BytesIO(big),
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status, answer.body["reason"]) == (413, "TooLarge")
    assert "1 MiB" in answer.body["detail"]


async def test_apply_takes_more_than_one_object_may_have(api: RunningApi) -> None:
    objects = [workload(f"w{i}", env={"A": "x" * 100_000}) for i in range(20)]
    assert (await api.post("/apply", {"objects": objects})).status == 200


@pytest.mark.parametrize("head", ["Content-Length: 10000", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_cut_off_applies_nothing(api: RunningApi, head: str) -> None:
    port = int(api.url.rpartition(":")[2])
    body = json.dumps({"objects": [workload()]}).encode()
    if "chunked" in head:
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    before = metrics.HTTP_REQUESTS.labels("POST", "/apply", "400")._value.get()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(BOUND_S):
        while metrics.HTTP_REQUESTS.labels("POST", "/apply", "400")._value.get() == before:
            await asyncio.sleep(0.005)
    assert (await api.get("/workloads")).body["items"] == []


async def test_an_error_of_our_own_is_500_without_its_words(
    api: RunningApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("secret of the inside")

    monkeypatch.setattr(api.store, "get_workload", broken)
    answer = await api.get("/workloads/web")
    assert (answer.status, answer.body["reason"]) == (500, "InternalError")
    assert "secret" not in json.dumps(answer.body)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("KeyError: 'secret of the inside'") == 1


class TestWhenTheStoreIsAway:
    async def test_requests_are_503_and_recover(self, api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
        async def full(*_: object, **__: object) -> None:
            raise Unavailable("the database can't be written: disk full")

        with monkeypatch.context() as broken:
            for name in ("apply", "ping"):
                broken.setattr(api.store, name, full)
            broken.setattr(api.store, "resource_version", full)
            for answer in (
                await api.post("/workloads", workload()),
                await api.get("/workloads?watch=1"),
                await api.get("/readyz"),
            ):
                assert (answer.status, answer.body["reason"]) == (503, "Unavailable")
                assert answer.headers["Retry-After"] == "1"
                assert "disk full" in answer.body["detail"]
            assert (await api.get("/healthz")).status == 200
        assert (await api.post("/workloads", workload())).status == 201
        assert (await api.get("/readyz")).status == 200
        assert api.kicks.workloads_ == ["web"]


async def test_the_version_and_the_cluster_are_told(api: RunningApi) -> None:
    answer = await api.get("/version")
    assert answer.body == {"version": "1.2.3", "cluster_id": api.store.cluster_id}


async def test_requests_are_counted_by_route_and_never_by_id(api: RunningApi) -> None:
    await api.get("/workloads/some-very-own-id")
    await api.get("/no/such/path")
    text = (await api.get("/metrics")).body
    assert 'kakuri_http_requests_total{method="GET",route="/workloads/{id}",status="404"}' in text
    assert 'route="unmatched",status="404"' in text
    assert 'kakuri_http_request_seconds_count{route="/workloads/{id}"}' in text
    assert "some-very-own-id" not in text
    assert "/no/such/path" not in text
