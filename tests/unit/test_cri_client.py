"""cri/client.py against the fake: deadlines, what an error does to a call, what is logged."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from cri import client as client_module
from cri import instrument
from cri.client import CriClient
from cri.convert import sandbox_config
from cri.errors import (
    CriError,
    DeadlineExceeded,
    ImagePullFailed,
    NotFound,
    RuntimeFailed,
    Unavailable,
    Unimplemented,
)
from cri.fake import FakeRuntime, Fault
from cri.v1 import runtime_pb2 as pb
from support.cri_subject import owner, wish


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime(tmp_path / "cri.sock") as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[CriClient]:
    client = CriClient(runtime.endpoint)
    yield client
    await client.close()


def sandbox(tmp_path: Path) -> pb.PodSandboxConfig:
    return sandbox_config(owner(), wish(), log_directory=str(tmp_path))


async def test_a_runtime_that_is_not_there_is_unavailable_at_once(tmp_path: Path) -> None:
    client = CriClient(f"unix://{tmp_path}/nobody.sock")
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable) as failed:
            await client.version()
    assert failed.value.temporary
    await client.close()


async def test_the_same_client_goes_on_after_the_runtime_was_restarted(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path
) -> None:
    sandbox_id = await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    await runtime.restart()
    async with asyncio.timeout(10):
        while True:
            try:
                assert [s.id for s in await client.list_pod_sandboxes()] == [sandbox_id]
                break
            except Unavailable:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ["CALL_DEADLINE_S", "RUN_DEADLINE_S", "PULL_DEADLINE_S", "STOP_SLACK_S"])
async def test_every_call_has_its_deadline(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(client_module, name, 0.05)
    runtime.faults.add(Fault("*", delay_s=30))
    call = {
        "CALL_DEADLINE_S": client.list_containers,
        "RUN_DEADLINE_S": lambda: client.run_pod_sandbox(sandbox(tmp_path), "runc"),
        "PULL_DEADLINE_S": lambda: client.pull_image("kakuri.test/demo:1"),
        "STOP_SLACK_S": lambda: client.stop_container("0123", 0),
    }[name]
    expected = ImagePullFailed if name == "PULL_DEADLINE_S" else DeadlineExceeded
    async with asyncio.timeout(10):
        with pytest.raises(expected):
            await call()


async def test_a_stops_deadline_counts_from_its_grace(
    runtime: FakeRuntime, client: CriClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STOP_SLACK_S", 0.05)
    runtime.faults.add(Fault("StopContainer", delay_s=0.3))
    await client.stop_container("0123", 5)


async def test_a_pull_is_ended_by_cancelling_it(runtime: FakeRuntime, client: CriClient) -> None:
    runtime.faults.add(Fault("PullImage", delay_s=60))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.pull_image("kakuri.test/demo:1")
    assert await client.image_status("kakuri.test/demo:1") is None


async def test_events_without_the_method_are_unimplemented(runtime: FakeRuntime, client: CriClient) -> None:
    runtime.faults.no_events = True
    with pytest.raises(Unimplemented):
        await anext(client.events())


async def test_events_end_with_the_runtime(runtime: FakeRuntime, client: CriClient) -> None:
    hints = client.events()
    first = asyncio.ensure_future(anext(hints))
    while not runtime._listeners:
        await asyncio.sleep(0.01)
    await runtime.restart()
    with pytest.raises(Unavailable):
        await first


async def test_messages_of_several_megabytes_pass(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    config = sandbox(tmp_path)
    for n in range(6):
        config.metadata.uid = str(n)
        config.annotations["big"] = "x" * 2**20
        await client.run_pod_sandbox(config, "runc")
    assert sum(s.ByteSize() for s in await client.list_pod_sandboxes()) > 6 * 2**20


async def test_the_authority_is_one_that_every_server_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a server in Rust sees it, before it refuses: HTTP/2's own bytes, where gRPC leaves header values readable.
    seen = bytearray()
    empty_settings_frame = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(empty_settings_frame)
        while b":authority" not in seen and (chunk := await reader.read(4096)):
            seen.extend(chunk)
        writer.close()

    server = await asyncio.start_unix_server(serve, f"{tmp_path}/cri.sock")
    client = CriClient(f"unix://{tmp_path}/cri.sock")
    monkeypatch.setattr(client_module, "CALL_DEADLINE_S", 5)
    with pytest.raises(Unavailable):
        await client.version()
    await client.close()
    server.close()
    assert b"localhost" in seen
    assert b"cri.sock" not in seen


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def failing(code: grpc.StatusCode) -> None:
    empty = grpc.aio.Metadata()
    raise grpc.aio.AioRpcError(code, empty, empty, details="told to fail")


async def test_every_call_is_one_debug_line_and_a_lasting_fault_one_warning_a_minute() -> None:
    clock = Clock()
    instrumented = instrument.Instrument("unix:///x", clock)
    with capture_logs() as lines:
        await instrumented("Version", asyncio.sleep(0))
        for now in (0, 1, 59, 60, 61):
            clock.now = now
            with pytest.raises(RuntimeFailed):
                await instrumented("StopContainer", failing(grpc.StatusCode.UNKNOWN))
        with pytest.raises(CriError):
            await instrumented("RunPodSandbox", failing(grpc.StatusCode.UNKNOWN))
        with pytest.raises(NotFound):
            await instrumented("ContainerStatus", failing(grpc.StatusCode.NOT_FOUND))
    assert [(line["method"], line["outcome"], line["log_level"]) for line in lines] == [
        ("Version", "ok", "debug"),
        ("StopContainer", "RuntimeFailed", "warning"),
        ("StopContainer", "RuntimeFailed", "debug"),
        ("StopContainer", "RuntimeFailed", "debug"),
        ("StopContainer", "RuntimeFailed", "warning"),
        ("StopContainer", "RuntimeFailed", "debug"),
        ("RunPodSandbox", "RuntimeFailed", "warning"),
        ("ContainerStatus", "NotFound", "debug"),
    ]
    assert all({"duration_s", "endpoint"} <= line.keys() for line in lines)
