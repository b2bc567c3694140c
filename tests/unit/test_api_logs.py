"""GET /allocations/{id}/logs: bytes as they come, and errors that can't be taken for the end of a log."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from controller.api import allocations
from controller.api.ports import AgentUnreachable, LogsNotFound
from controller.plan.reconcile import plan
from support.http_api import BOUND_S, RunningApi, registration, running_api, workload


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api() as running:
        yield running


@pytest.fixture
async def path(api: RunningApi) -> str:
    now = api.clock()
    await api.put("/nodes/n1/registration", registration())
    await api.store.set_node_ready("n1", epoch=0, ready=True, reason="Ready", message="", now=now)
    await api.post("/workloads", workload())
    lease = await api.store.acquire_lease("test", ttl_s=60)
    snapshot = await api.store.load_snapshot(["web"], now=now, seed="s")
    await api.store.apply_plan(plan(snapshot), epoch=lease.epoch, now=now)
    [allocation] = (await api.get("/allocations?workload=web")).body["items"]
    return f"/allocations/{allocation['id']}/logs"


async def test_the_log_comes_as_it_was_written(api: RunningApi, path: str) -> None:
    api.logs.chunks = [b"one\n", b"two \xff\n"]
    async with api.session.get(f"{api.url}{path}?tail=5&previous=1") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert await response.read() == b"one\ntwo \xff\n"
    [(_, follow, tail, previous)] = api.logs.asked
    assert (follow, tail, previous) == (False, 5, True)


async def test_an_empty_log_is_an_empty_answer(api: RunningApi, path: str) -> None:
    answer = await api.get(path)
    assert (answer.status, answer.body) == (200, "")


@pytest.mark.parametrize("query", ["", "?follow=1"])
async def test_an_agent_that_does_not_answer_is_503(api: RunningApi, path: str, query: str) -> None:
    api.logs.error = AgentUnreachable("node n1 does not answer")
    answer = await api.get(path + query)
    assert (answer.status, answer.body["reason"]) == (503, "AgentUnreachable")


async def test_a_log_that_is_not_there_is_404(api: RunningApi, path: str) -> None:
    api.logs.error = LogsNotFound("it has not started yet")
    answer = await api.get(path)
    assert (answer.status, answer.body["reason"]) == (404, "LogsNotFound")


async def test_an_allocation_that_is_not_there_is_404(api: RunningApi) -> None:
    assert (await api.get("/allocations/web.0.0123abcd/logs")).status == 404


async def test_an_error_after_the_first_bytes_breaks_the_answer_off(api: RunningApi, path: str) -> None:
    api.logs.chunks = [b"one\n"]
    api.logs.error = AgentUnreachable("gone")
    with pytest.raises(aiohttp.ClientError):
        await api.get(path)


async def test_a_silent_followed_log_begins_its_answer(
    api: RunningApi, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocations, "BEGIN_S", 0.02)
    api.logs.hang = True
    async with asyncio.timeout(BOUND_S), api.session.get(f"{api.url}{path}?follow=1") as response:
        assert response.status == 200


async def test_a_reader_that_hangs_up_ends_the_agents_stream(
    api: RunningApi, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocations, "LOOK_S", 0.02)
    api.logs.chunks, api.logs.hang = [b"one\n"], True
    async with api.session.get(f"{api.url}{path}?follow=1") as response:
        assert await response.content.readline() == b"one\n"
    async with asyncio.timeout(BOUND_S):
        await api.logs.ended.wait()


async def test_a_followed_log_ends_in_order_with_the_server(path: str, api: RunningApi) -> None:
    api.logs.chunks, api.logs.hang = [b"one\n"], True
    async with api.session.get(f"{api.url}{path}?follow=1") as response:
        assert await response.content.readline() == b"one\n"
        await api.stop()
        assert await response.content.read() == b""
    await api.logs.ended.wait()


@pytest.mark.parametrize("query", ["tail=-2", "tail=x", "follow=maybe", "since=1"])
async def test_bad_parameters_are_400(api: RunningApi, path: str, query: str) -> None:
    assert (await api.get(f"{path}?{query}")).status == 400
