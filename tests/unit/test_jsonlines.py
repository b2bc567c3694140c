"""agent/jsonlines.py over a real socket on loopback, with calls that the test plays."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from agent import jsonlines
from agent.jsonlines import Answer, Refused, serving
from kakuri.model import WorkloadManifest

WORKLOAD = {
    "id": "wl-123",
    "image": "ghcr.io/example/secure-app:1.0",
    "runtime_class": "edera-zone",
    "memory_mb": 512,
    "cpu_millicores": 500,
}


class PlayedCalls:
    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.started: list[WorkloadManifest] = []
        self.hang: asyncio.Event | None = None

    async def start_by_hand(self, workload: WorkloadManifest) -> Answer:
        self.started.append(workload)
        return Answer(workload.id, self.states.setdefault(workload.id, "Pending"))

    async def stop(self, id_: str) -> Answer:
        self.states[(await self.get_status(id_)).id] = "Terminating"
        return Answer(id_, "Terminating")

    async def get_status(self, id_: str) -> Answer:
        if id_ == "bug":
            raise KeyError(id_)
        if self.hang is not None:
            await self.hang.wait()
        if id_ not in self.states:
            raise Refused("NotFound", f"nothing here has the id {id_}")
        return Answer(id_, self.states[id_])


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def answer(self) -> dict[str, str]:
        async with asyncio.timeout(10):
            return json.loads(await self.reader.readline())

    async def ask(self, message: object) -> dict[str, str]:
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.send(raw + b"\n")
        return await self.answer()

    async def closed_by_server(self) -> bool:
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
def calls() -> PlayedCalls:
    return PlayedCalls()


@pytest.fixture
async def address(calls: PlayedCalls) -> AsyncIterator[tuple[str, int]]:
    async with serving(calls, "127.0.0.1", 0) as address:
        yield address


async def connect(address: tuple[str, int]) -> Client:
    return Client(*await asyncio.open_connection(*address))


@pytest.fixture
async def client(address: tuple[str, int]) -> AsyncIterator[Client]:
    client = await connect(address)
    yield client
    await client.close()


async def test_the_designs_transcript_goes_byte_by_byte(client: Client, calls: PlayedCalls) -> None:
    async def exchange(sent: bytes) -> bytes:
        client.send(sent + b"\n")
        return await client.reader.readline()

    start = json.dumps({"type": "StartWorkload", "workload": WORKLOAD}).encode()
    assert await exchange(start) == b'{"type":"Status","id":"wl-123","state":"Pending"}\n'
    calls.states["wl-123"] = "Running"
    status = b'{"type":"GetStatus","id":"wl-123"}'
    assert await exchange(status) == b'{"type":"Status","id":"wl-123","state":"Running"}\n'
    stop = b'{"type":"StopWorkload","id":"wl-123"}'
    assert await exchange(stop) == b'{"type":"Status","id":"wl-123","state":"Terminating"}\n'
    error = b'{"type":"Error","code":"InvalidArgument","message":"not a JSON object"}\n'
    assert await exchange(b"nonsense") == error
    assert [workload.id for workload in calls.started] == ["wl-123"]


async def test_half_lines_and_several_lines_a_packet_are_both_normal(client: Client, calls: PlayedCalls) -> None:
    calls.states["a"] = "Running"
    line = b'{"type":"GetStatus","id":"a"}\n'
    client.send(line + line + line[:7])
    assert [(await client.answer())["state"] for _ in range(2)] == ["Running", "Running"]
    client.send(line[7:20])
    await asyncio.sleep(0.01)
    client.send(line[20:] + line)
    assert [(await client.answer())["state"] for _ in range(2)] == ["Running", "Running"]


async def test_a_half_line_at_the_end_is_answered_as_if_it_ended(client: Client, calls: PlayedCalls) -> None:
    calls.states["a"] = "Running"
    client.send(b'{"type":"GetStatus","id":"a"}\r\n{"type":"GetStatus","id":"a"}')
    client.writer.write_eof()
    assert [await client.answer() for _ in range(2)] == [{"type": "Status", "id": "a", "state": "Running"}] * 2
    assert await client.closed_by_server()


async def test_answers_come_in_the_order_of_the_lines(client: Client, calls: PlayedCalls) -> None:
    for n in range(200):
        calls.states[f"w-{n}"] = "Running"
        client.send(json.dumps({"type": "GetStatus", "id": f"w-{n}"}).encode() + b"\n")
    assert [(await client.answer())["id"] for _ in range(200)] == [f"w-{n}" for n in range(200)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b"", "not a JSON object", id="an empty line"),
        pytest.param(b"[1]", "not a JSON object", id="a list"),
        pytest.param(b"null", "not a JSON object", id="null"),
        pytest.param(b'{"type":"GetStatus"', "not a JSON object", id="cut off"),
        pytest.param(b'{"type":"GetStatus","id":NaN}', "not a JSON object", id="NaN is no JSON"),
        pytest.param(b'{"type":"GetStatus","id":"a\x00b"}', "not a JSON object", id="a NUL byte"),
        pytest.param(b"\x00\x00\x00", "not a JSON object", id="NUL bytes alone"),
        pytest.param(b'{"id":' + b"9" * 5000 + b"}", "not a JSON object", id="a number that nobody can read"),
        pytest.param(b'{"type":"\xff"}', "not a JSON object: byte 10 is not UTF-8", id="invalid UTF-8"),
        pytest.param(
            b"[" * 500_000, "not a JSON object that anybody means: it nests too deeply", id="deep nesting of lists"
        ),
        pytest.param(
            b'{"a":' * 100_000,
            "not a JSON object that anybody means: it nests too deeply",
            id="deep nesting of objects",
        ),
        pytest.param(b"{}", "type: is missing; use StartWorkload, GetStatus or StopWorkload", id="no type"),
        pytest.param(
            b'{"type":"Reboot"}',
            'type: "Reboot" is unknown; use StartWorkload, GetStatus or StopWorkload',
            id="an unknown type",
        ),
        pytest.param(
            b'{"type":["GetStatus"]}',
            "type: a list is unknown; use StartWorkload, GetStatus or StopWorkload",
            id="a type of the wrong type",
        ),
        pytest.param(b'{"type":"GetStatus"}', "id: is missing", id="no id"),
        pytest.param(
            b'{"type":"GetStatus","id":7}', "id: 7 is neither a workload's id nor an allocation's", id="a number as id"
        ),
        pytest.param(
            b'{"type":"StopWorkload","id":"../x"}',
            "id: \"../x\" is neither a workload's id nor an allocation's",
            id="an id that is a path",
        ),
        pytest.param(
            b'{"type":"GetStatus","id":"\\ud800"}',
            "id: \"\\ud800\" is neither a workload's id nor an allocation's",
            id="a lone surrogate",
        ),
        pytest.param(
            b'{"type":"GetStatus","id":"a","id":"b"}', '"id" is given twice; remove one', id="a duplicate key"
        ),
        pytest.param(
            b'{"type":"StartWorkload","workload":{"env":{"A":"1","A":"2"}}}',
            '"A" is given twice; remove one',
            id="a duplicate key deep inside",
        ),
        pytest.param(
            b'{"type":"GetStatus","id":"a","force":true}',
            '"force" is no field here; use type and id',
            id="an unknown field",
        ),
        pytest.param(b'{"type":"StartWorkload"}', "workload: is missing", id="no workload"),
        pytest.param(
            b'{"type":"StartWorkload","workload":"wl-123"}',
            'workload: "wl-123" is not an object',
            id="a workload that is text",
        ),
    ],
)
async def test_a_bad_line_is_answered_with_what_is_wrong_and_the_connection_lives(
    client: Client, calls: PlayedCalls, line: bytes, message: str
) -> None:
    assert await client.ask(line) == {"type": "Error", "code": "InvalidArgument", "message": message}
    calls.states["a"] = "Running"
    assert (await client.ask({"type": "GetStatus", "id": "a"}))["state"] == "Running"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"memory_mb": "512"}, "workload.memory_mb"),
        ({"memory_mb": -1}, "workload.memory_mb"),
        ({"cpu_millicores": True}, "workload.cpu_millicores"),
        ({"cpu_millicores": 0.5}, "workload.cpu_millicores"),
        ({"id": "No Label"}, "workload.id"),
        ({"image": "Not An Image"}, "workload.image"),
        ({"kind": "Node"}, "workload.kind"),
        ({"colour": "red"}, "workload.colour"),
        ({"ports": [{"port": 8080}, {"port": 0}]}, "workload.ports[1].port"),
        ({"env": {"A": 1}}, "workload.env.A"),
        ({"args": ["a\x00b"]}, "workload.args[0]"),
        ({"replicas": 3}, "workload.replicas"),
        ({"node_selector": {"zone": "a"}}, "workload.node_selector"),
    ],
)
async def test_a_bad_workload_names_the_field(
    client: Client, calls: PlayedCalls, changes: dict[str, object], field: str
) -> None:
    answer = await client.ask({"type": "StartWorkload", "workload": {**WORKLOAD, **changes}})
    assert (answer["code"], answer["message"].split(": ")[0]) == ("InvalidArgument", field)
    assert not calls.started


async def test_a_workload_needs_its_fields_and_may_name_its_kind(client: Client) -> None:
    answer = await client.ask({"type": "StartWorkload", "workload": {"id": "wl-123"}})
    for field in ("image", "runtime_class", "memory_mb", "cpu_millicores"):
        assert f"workload.{field}: is missing" in answer["message"]
    named = {**WORKLOAD, "kind": "Workload", "replicas": 1, "args": ["--port", "1"]}
    assert (await client.ask({"type": "StartWorkload", "workload": named}))["type"] == "Status"


async def test_what_calls_refuse_is_an_error_with_their_code(client: Client) -> None:
    assert await client.ask({"type": "GetStatus", "id": "gone"}) == {
        "type": "Error",
        "code": "NotFound",
        "message": "nothing here has the id gone",
    }


async def test_a_bug_in_a_call_is_one_answer_and_no_more(client: Client, calls: PlayedCalls) -> None:
    assert (await client.ask({"type": "GetStatus", "id": "bug"}))["code"] == "Unavailable"
    calls.states["a"] = "Running"
    assert (await client.ask({"type": "GetStatus", "id": "a"}))["state"] == "Running"


async def test_a_call_that_hangs_is_given_up(
    client: Client, calls: PlayedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonlines, "CALL_DEADLINE_S", 0.02)
    calls.hang = asyncio.Event()
    assert (await client.ask({"type": "GetStatus", "id": "a"}))["code"] == "Unavailable"


async def test_a_line_of_100_mb_is_one_error_and_costs_no_memory(client: Client, calls: PlayedCalls) -> None:
    calls.states["a"] = "Running"

    async def send() -> None:
        client.send(b'{"type":"')
        for _ in range(100):
            client.send(b"x" * 2**20)
            await client.writer.drain()
        client.send(b'"}\n{"type":"GetStatus","id":"a"}\n')

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(send())
        error = await client.answer()
        assert error == {
            "type": "Error",
            "code": "InvalidArgument",
            "message": "the line is longer than 1048576 bytes",
        }
        assert (await client.answer())["state"] == "Running"


def test_the_splitter_never_holds_more_than_a_line_and_a_packet() -> None:
    lines = jsonlines._Lines()
    seen = []
    for _ in range(100):
        seen += lines.feed(b"x" * 65536)
        assert len(lines._begun) <= jsonlines.MAX_LINE_BYTES
    seen += lines.feed(b"\nnext\n")
    assert [type(line) for line in seen] == [jsonlines._TooLong, bytes]


async def test_a_line_at_the_limit_is_read(client: Client) -> None:
    line = json.dumps({"type": "GetStatus", "id": ""}).encode()
    padded = line[:-2] + b"a" * (jsonlines.MAX_LINE_BYTES - len(line)) + line[-2:]
    assert len(padded) == jsonlines.MAX_LINE_BYTES
    assert "is neither a workload's id" in (await client.ask(padded))["message"]


async def test_a_line_full_of_mistakes_keeps_nobody_waiting(client: Client) -> None:
    began = time.monotonic()
    mistakes = {f"field_{n}": n for n in range(40_000)}
    answer = await client.ask({"type": "StartWorkload", "workload": {**WORKLOAD, **mistakes}})
    assert answer["message"].count("workload.") == 10
    assert time.monotonic() - began < 5


async def test_a_client_that_never_reads_is_cut_off_and_the_others_are_served(calls: PlayedCalls) -> None:
    calls.states["a"] = "Running"
    async with serving(calls, "127.0.0.1", 0, write_deadline_s=0.1) as address:
        greedy, polite = await connect(address), await connect(address)
        greedy.reader._transport.pause_reading()  # type: ignore[attr-defined]

        async def send_without_end() -> None:
            try:
                while True:
                    greedy.send(b"nonsense\n" * 5000)
                    await greedy.writer.drain()
            except ConnectionError:
                return

        async with asyncio.timeout(30):
            async with asyncio.TaskGroup() as group:
                group.create_task(send_without_end())
                for _ in range(5):
                    assert (await polite.ask({"type": "GetStatus", "id": "a"}))["state"] == "Running"
        await greedy.close()
        await polite.close()


async def test_connections_are_bounded_and_freed(calls: PlayedCalls) -> None:
    calls.states["a"] = "Running"
    async with serving(calls, "127.0.0.1", 0, max_connections=2) as address:
        first, second = await connect(address), await connect(address)
        for client in (first, second):
            assert (await client.ask({"type": "GetStatus", "id": "a"}))["state"] == "Running"
        third = await connect(address)
        assert (await third.answer())["code"] == "ResourceExhausted"
        assert await third.closed_by_server()
        first.writer.write_eof()
        assert await first.closed_by_server()
        async with asyncio.timeout(10):
            while True:
                fourth = await connect(address)
                answer = await fourth.ask({"type": "GetStatus", "id": "a"})
                await fourth.close()
                if answer.get("state") == "Running":
                    break
        await second.close()
        await third.close()
        await first.close()


async def test_an_idle_client_is_closed(calls: PlayedCalls) -> None:
    async with serving(calls, "127.0.0.1", 0, idle_deadline_s=0.02) as address:
        client = await connect(address)
        assert await client.closed_by_server()
        await client.close()


async def test_a_client_that_vanishes_leaves_nothing(address: tuple[str, int], calls: PlayedCalls) -> None:
    calls.hang = asyncio.Event()
    client = await connect(address)
    client.send(b'{"type":"GetStatus","id":"a"}\n{"type":"Get')
    await asyncio.sleep(0.01)
    await client.close()
    calls.hang.set()
    calls.states["a"] = "Running"
    other = await connect(address)
    assert (await other.ask({"type": "GetStatus", "id": "a"}))["state"] == "Running"
    await other.close()


async def test_the_end_of_the_agent_cuts_clients_off(calls: PlayedCalls) -> None:
    async with serving(calls, "127.0.0.1", 0) as address:
        client = await connect(address)
        await client.ask({"type": "GetStatus", "id": "a"})
    assert await client.closed_by_server()
    await client.close()
    with pytest.raises(ConnectionRefusedError):
        await connect(address)
