"""The client against a server of its own: what it asks, what it makes of the answers, and how it fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kakuri.client import ApiError, Client, FieldError, ServerUnreachable
from kakuri.model import Capacity, NodeRegistration
from support.fakeserver import FakeServer, workload
from support.ports import unused_port


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer().serving() as running:
        yield running


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with Client(server.url) as open_client:
        yield open_client


async def test_all_pages_of_a_list_are_read(server: FakeServer, client: Client) -> None:
    server.page = 2
    for index in range(5):
        server.put(workload(f"w{index}", labels={"app": "web"}))
    server.put(workload("other"))
    listing = await client.list("Workload", selector="app=web")
    assert [o["id"] for o in listing.items] == ["w0", "w1", "w2", "w3", "w4"]
    assert listing.resource_version == "1"


async def test_an_object_is_read_and_deleted(server: FakeServer, client: Client) -> None:
    server.put({"kind": "Node", "id": "n1"}, "Node")
    assert (await client.get("Node", "n1"))["id"] == "n1"
    await client.delete("Node", "n1")
    with pytest.raises(ApiError) as caught:
        await client.get("Node", "n1")
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")


async def test_an_id_can_not_leave_its_place_in_the_path(server: FakeServer, client: Client) -> None:
    with pytest.raises(ApiError):
        await client.get("Workload", "../nodes?x=1")
    assert server.requests == [("GET", "/workloads/..%2Fnodes%3Fx=1", None)] or server.requests[0][1].startswith(
        "/workloads/..%2F"
    )


async def test_apply_sends_all_and_gives_the_outcomes(server: FakeServer, client: Client) -> None:
    (outcome,) = await client.apply([{"kind": "Node", "id": "n"}], dry_run=True)
    assert (outcome.kind, outcome.id, outcome.result) == ("Node", "n", "created")
    assert server.requests == [("POST", "/apply?dry_run=1", {"objects": [{"kind": "Node", "id": "n"}]})]


async def test_the_servers_own_words_and_fields_come_through(server: FakeServer, client: Client) -> None:
    errors = [{"pointer": "/objects/0/id", "detail": "is no name"}]
    server.refusals = [(422, {"reason": "Invalid", "detail": "1 field is invalid", "errors": errors})]
    with pytest.raises(ApiError, match="1 field is invalid") as caught:
        await client.apply([])
    assert caught.value.errors == (FieldError("/objects/0/id", "is no name"),)


async def test_an_answer_that_is_not_kakuris_is_told(server: FakeServer) -> None:
    async with Client(f"{server.url}/html/") as client:
        with pytest.raises(ApiError, match=r"answered 404 with text/plain; is that a kakuri server\?"):
            await client.ready()


async def test_a_watch_gives_changes_until_it_is_too_old(server: FakeServer, client: Client) -> None:
    server.change("MODIFIED", workload("a"))
    async for change in client.watch("Workload", "1"):
        if change.type != "BOOKMARK":
            assert (change.type, change.object["id"], change.resource_version) == ("MODIFIED", "a", "2")
            break
    server.expire_watches = 1
    with pytest.raises(ApiError) as caught:
        await anext(client.watch("Workload", "1"))
    assert caught.value.status == 410


async def test_a_mirror_shows_what_is_and_follows_it(server: FakeServer, client: Client) -> None:
    server.put(workload("a"))
    server.expire_watches = 1
    views = client.mirror("Workload")
    first = await anext(views)
    assert (list(first.objects), first.complete) == (["a"], True)
    again = await anext(views)  # the watch had expired: all is read anew
    assert again.complete
    server.change("ADDED", workload("b"))
    assert sorted((await anext(views)).objects) == ["a", "b"]
    server.change("DELETED", workload("a"))
    gone = await anext(views)
    assert (list(gone.objects), gone.changed, gone.complete) == (["b"], frozenset({"a"}), False)


async def test_a_mirror_says_when_the_connection_is_lost(server: FakeServer, client: Client) -> None:
    views = client.mirror("Workload")
    await anext(views)
    server.changes.put_nowait({"type": "CUT"})
    with pytest.raises(ServerUnreachable, match="it closed the connection"):
        await anext(views)


async def test_logs_come_as_bytes(server: FakeServer, client: Client) -> None:
    server.logs["web.0.1", True] = b"\xff line\n"
    chunks = [chunk async for chunk in client.logs("web.0.1", tail=3, previous=True)]
    assert b"".join(chunks) == b"\xff line\n"
    assert server.requests[0][1] == "/allocations/web.0.1/logs?previous=1&tail=3"


async def test_an_agent_registers_its_node(server: FakeServer, client: Client) -> None:
    registration = NodeRegistration(
        address="127.0.0.1:9001",
        capacity=Capacity(memory_mb=1024, cpu_millicores=2000),
        instance="i",
        ledger_uid="l",
    )
    node = await client.register_node("n1", registration)
    assert node["told"]["address"] == "127.0.0.1:9001"


async def test_a_server_that_is_down_is_told_with_where_and_why() -> None:
    async with Client(f"127.0.0.1:{unused_port()}") as client:
        with pytest.raises(
            ServerUnreachable, match=r"no kakuri server answers at http://127.0.0.1:\d+: connection ref"
        ):
            await client.list("Workload")


async def test_a_refused_connection_is_tried_again_for_a_bounded_time(server: FakeServer) -> None:
    port = unused_port()
    began = asyncio.get_running_loop().time()
    async with Client(f"127.0.0.1:{port}", retry_s=0.3) as client:
        with pytest.raises(ServerUnreachable):
            await client.ready()
    assert 0.1 < asyncio.get_running_loop().time() - began < 2


@pytest.mark.parametrize("address", ["http://::", "ftp://127.0.0.1"])
async def test_an_address_that_is_none_is_told(address: str) -> None:
    async with Client(address) as client:
        with pytest.raises(ServerUnreachable, match="that is no address; write http://host:port"):
            await client.ready()
