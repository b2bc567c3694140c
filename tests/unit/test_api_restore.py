"""A held database over HTTP and by `kakuri db confirm`: the difference is shown, and a person's word ends the hold."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from builders import NOW
from support.command_line import kakuri
from support.http_api import RunningApi, running_api
from support.store_script import StoreScript


class Served:
    """For how long agents could register."""

    seconds = 3600.0


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch, served: Served) -> AsyncIterator[RunningApi]:
    async with running_api(served_s=lambda: served.seconds) as running:
        monkeypatch.setenv("KAKURI_SERVER", running.url)
        yield running


@pytest.fixture
async def held(api: RunningApi) -> RunningApi:
    """n1 was read: it lacks web.0 and has other.0 besides. n2 was not."""
    script = StoreScript(api.store)
    await script.node("n1")
    await script.node("n2")
    await script.put()
    await script.running()
    await api.store.adopt_restored(epoch=10, resource_version=1000, now=NOW)
    script.epoch = (await api.store.acquire_lease("c", ttl_s=60)).epoch
    await script.report(script.seen("other.0.99999999"), full=True)
    return api


async def test_nothing_is_held_unless_it_was_restored(api: RunningApi) -> None:
    assert (await api.get("/restore")).status == 404
    answer = await api.post("/restore/confirm", {})
    assert (answer.status, answer.body["reason"]) == (404, "NotFound")
    result = await kakuri("db", "confirm")
    assert (result.code, result.err) == (0, "no restored database waits to be confirmed\n")


async def test_what_is_held_is_shown_with_the_difference(held: RunningApi) -> None:
    answer = await held.get("/restore")
    assert answer.status == 200
    assert answer.body == {
        "restored_at": NOW.isoformat(),
        "wait_s": 0,
        "unread": ["n2"],
        "unknown": [{"id": "other.0.99999999", "workload": "other", "slot": 0, "node": "n1"}],
        "missing": [{"id": "web.0.00000000", "workload": "web", "slot": 0, "node": "n1"}],
    }


async def test_it_is_confirmed_only_when_every_node_was_read_or_is_named(held: RunningApi) -> None:
    answer = await held.post("/restore/confirm", {})
    assert (answer.status, answer.body["reason"]) == (409, "Held")
    assert "n2" in answer.body["detail"]
    assert (await held.post("/restore/confirm", {"without": "n2"})).status == 422
    assert (await held.post("/restore/confirm", {"without": ["n2"]})).status == 200
    assert (await held.get("/restore")).status == 404


async def test_it_is_not_confirmed_before_agents_could_register_unless_a_person_knows_better(
    held: RunningApi, served: Served
) -> None:
    served.seconds = 17.2
    assert (await held.get("/restore")).body["wait_s"] == 43
    answer = await held.post("/restore/confirm", {"without": ["n2"]})
    assert (answer.status, answer.body["reason"]) == (409, "Held")
    assert "wait 43 s" in answer.body["detail"]
    assert (await held.post("/restore/confirm", {"without": ["n2"], "now": True})).status == 200
    assert (await held.get("/restore")).status == 404


async def test_a_controller_that_has_just_started_waits() -> None:
    async with running_api() as running:
        await running.store.adopt_restored(epoch=10, resource_version=1000, now=NOW)
        assert (await running.get("/restore")).body["wait_s"] > 50
        assert (await running.post("/restore/confirm", {})).status == 409


async def test_confirm_waits_for_agents_to_register_and_says_so(held: RunningApi, served: Served) -> None:
    served.seconds = 59.5
    confirming = asyncio.create_task(kakuri("db", "confirm", "--yes", "--without", "n2"))
    await asyncio.sleep(0.5)
    served.seconds = 60.0
    result = await confirming
    assert (result.code, result.out.splitlines()[-1]) == (0, "confirmed")
    assert result.err == "waiting 1 s for agents that joined after the backup to register; --now does not wait\n"


async def test_confirm_now_does_not_wait(held: RunningApi, served: Served) -> None:
    served.seconds = 0.0
    result = await kakuri("db", "confirm", "--yes", "--now", "--without", "n2")
    assert (result.code, result.err) == (0, "")


async def test_confirm_shows_what_it_does_and_asks(held: RunningApi) -> None:
    result = await kakuri("db", "confirm")
    assert result.code == 2
    assert "say --yes" in result.err
    shown = [line for line in result.out.splitlines() if line.startswith(("node/", "allocation/"))]
    assert shown == [
        "node/n2: not heard of since; start its agent, or leave it out with --without",
        "allocation/other.0.99999999: not in the backup; it is ended on n1",
        "allocation/web.0.00000000: no more on n1; it is lost, and replaced if it should run",
    ]
    assert (await kakuri("db", "confirm", "--yes")).code == 1, "n2 is not read"
    result = await kakuri("db", "confirm", "--yes", "--without", "n2")
    assert (result.code, result.out.splitlines()[-1]) == (0, "confirmed")
    assert await held.store.hold() is None
