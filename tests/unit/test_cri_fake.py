"""The fake runtime beside what the conformance suite asks of every runtime: scripts, faults, restarts, size."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from cri import client as client_module
from cri.client import CriClient
from cri.convert import OURS, container_config, of_allocation, sandbox_config
from cri.errors import CriError, DeadlineExceeded, NotFound, RuntimeFailed, Unavailable
from cri.fake import HANDLERS, FakeRuntime, Fault
from cri.fake_script import FOREVER, OOM, Script, script_of
from cri.v1 import fake_pb2, fake_pb2_grpc
from cri.v1 import runtime_pb2 as pb
from support.children import Spawn
from support.cri_subject import owner, wish

IMAGE = "kakuri.test/demo:1"


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeRuntime]:
    async with FakeRuntime(tmp_path / "cri.sock", images=[IMAGE]) as runtime:
        yield runtime


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[CriClient]:
    client = CriClient(runtime.endpoint)
    yield client
    await client.close()


def sandbox(tmp_path: Path, allocation: str = "web.0.0123abcd") -> pb.PodSandboxConfig:
    return sandbox_config(owner(allocation), wish(), log_directory=str(tmp_path))


async def start(client: CriClient, folder: Path, *argv: str, **changes: object) -> str:
    config = sandbox(folder)
    sandbox_id = await client.run_pod_sandbox(config, "runc")
    container = container_config(owner(), wish(IMAGE, *argv, **changes), attempt=0)
    container_id = await client.create_container(sandbox_id, container, config)
    await client.start_container(container_id)
    return container_id


async def ended(client: CriClient, container_id: str) -> pb.ContainerStatus:
    async with asyncio.timeout(10):
        while (status := await client.container_status(container_id)).state != pb.CONTAINER_EXITED:
            await asyncio.sleep(0.01)
    return status


def shell(text: str) -> Script:
    return script_of(IMAGE, ["sh", "-c", text], {})


@pytest.mark.parametrize(
    ("script", "does"),
    [
        pytest.param(script_of(IMAGE, [], {}), FOREVER, id="the image's own command runs on"),
        pytest.param(script_of(IMAGE, ["httpd", "-f"], {}), FOREVER, id="a server runs on"),
        pytest.param(script_of(IMAGE, ["sleep", "2.5"], {}), Script(2.5), id="sleep takes its time"),
        pytest.param(script_of(IMAGE, ["/bin/sleep", "infinity"], {}), FOREVER, id="sleep for ever"),
        pytest.param(script_of(IMAGE, ["exit", "3"], {}), Script(0, 3), id="exit"),
        pytest.param(script_of(IMAGE, ["exit", "259"], {}), Script(0, 3), id="exit codes are bytes"),
        pytest.param(script_of(IMAGE, ["/bin/true"], {}), Script(0), id="true"),
        pytest.param(script_of(IMAGE, ["false"], {}), Script(0, 1), id="false"),
        pytest.param(script_of(IMAGE, ["uname", "-r"], {}), Script(0), id="what only says something"),
        pytest.param(script_of(IMAGE, ["tail", "/dev/zero"], {}), OOM, id="a known glutton"),
        pytest.param(shell("echo hello; sleep 1; exit 4"), Script(1, 4), id="a shell's exit after its sleeps"),
        pytest.param(shell("echo a && uname -r"), Script(0), id="a shell that only says things"),
        pytest.param(shell('echo "$(seq 9 | tail -n 1); exit 3"'), Script(0), id="what is quoted is only said"),
        pytest.param(shell('trap "exit 0" TERM; sleep 1000 & wait'), FOREVER, id="a shell that waits runs on"),
        pytest.param(shell("sleep 0.5\nexit"), Script(0.5), id="a bare exit"),
        pytest.param(shell("echo no; false"), Script(0, 1), id="a shell that ends with false"),
        pytest.param(shell("compute-things; exit 7"), Script(0, 7), id="unknown work is believed its exit"),
        pytest.param(shell("compute-things"), FOREVER, id="unknown work without one runs on"),
        pytest.param(shell("while true; do echo x; sleep 1; done"), FOREVER, id="a loop runs on"),
        pytest.param(shell("exec httpd -f"), FOREVER, id="a server behind a shell"),
        pytest.param(shell('x=a; while true; do x="$x$x"; done'), OOM, id="a variable that doubles"),
        pytest.param(shell("tail /dev/zero"), OOM, id="a glutton behind a shell"),
        pytest.param(script_of("kakuri.test/exit-3:1", [], {}), Script(0, 3), id="an image that exits"),
        pytest.param(script_of("kakuri.test/oom", [], {}), OOM, id="an image that is a glutton"),
        pytest.param(script_of("kakuri.test/sleep-forever:1", [], {}), FOREVER, id="an image that sleeps"),
        pytest.param(
            script_of(IMAGE, ["false"], {"KAKURI_FAKE": "exit 2 after 0.1"}), Script(0.1, 2), id="env decides first"
        ),
        pytest.param(
            script_of(IMAGE, [], {"KAKURI_FAKE": "oom after 3"}), Script(3, 137, oom=True), id="env: oom, later"
        ),
        pytest.param(script_of(IMAGE, ["true"], {"KAKURI_FAKE": "run"}), FOREVER, id="env: run"),
        pytest.param(script_of(IMAGE, [], {"KAKURI_FAKE": "stubborn"}), Script(stubborn=True), id="env: stubborn"),
    ],
)
def test_a_container_does_what_its_command_says(script: Script, does: Script) -> None:
    assert script == does


@pytest.mark.parametrize("argv", [["/bin/nosuch"], ["no-such-program", "-x"], ["/does-not-exist"]])
def test_a_program_that_says_so_is_not_in_the_image(argv: list[str]) -> None:
    assert argv[0] in script_of(IMAGE, argv, {}).start_error
    assert argv[0] in script_of(IMAGE, argv, {"KAKURI_FAKE": "no start"}).start_error


async def test_its_log_says_that_nothing_runs(client: CriClient, tmp_path: Path) -> None:
    await start(client, tmp_path, "sleep", "1000")
    stamp, rest = (tmp_path / "0.log").read_text().split(" ", 1)
    assert rest == "stdout F simulated: nothing really runs here\n"
    assert len(stamp) == len("2026-01-02T03:04:05.678901234Z")


async def test_a_log_folder_that_is_not_there_fails_the_start(client: CriClient, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="loggers"):
        await start(client, tmp_path / "nowhere")


async def test_it_has_every_built_in_class_and_says_so(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    assert tuple(h.name for h in (await client.status()).runtime_handlers) == HANDLERS
    for handler in HANDLERS:
        config = sandbox(tmp_path, f"{handler}.0.0123abcd")
        sandbox_id = await client.run_pod_sandbox(config, handler)
        assert (await client.pod_sandbox_status(sandbox_id)).runtime_handler == handler


async def test_a_stubborn_container_takes_its_whole_grace(client: CriClient, tmp_path: Path) -> None:
    container_id = await start(client, tmp_path, env={"KAKURI_FAKE": "stubborn"})
    began = time.monotonic()
    await client.stop_container(container_id, 1)
    assert time.monotonic() - began >= 1
    assert (await client.container_status(container_id)).exit_code == 137


async def test_a_container_can_end_behind_our_back(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    container_id = await start(client, tmp_path, "sleep", "1000")
    runtime.world.end_container(container_id, 9, "Error")
    assert (await ended(client, container_id)).exit_code == 9


async def test_a_sandbox_can_die_with_its_container(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    container_id = await start(client, tmp_path, "sleep", "1000")
    (entry,) = await client.list_pod_sandboxes()
    runtime.world.stop_sandbox(entry.id)
    assert (await client.pod_sandbox_status(entry.id)).state == pb.SANDBOX_NOTREADY
    assert (await client.container_status(container_id)).exit_code == 137


async def test_a_slow_call_that_is_given_up_does_nothing(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RUN_DEADLINE_S", 0.05)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=0.1))
    with pytest.raises(DeadlineExceeded):
        await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    await asyncio.sleep(0.1)
    assert not await client.list_pod_sandboxes()


async def test_a_call_can_be_done_after_its_client_gave_up(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RUN_DEADLINE_S", 0.05)
    runtime.faults.add(Fault("RunPodSandbox", delay_s=0.15, done_anyway=True, times=1))
    with pytest.raises(DeadlineExceeded):
        await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    assert not await client.list_pod_sandboxes()
    async with asyncio.timeout(10):
        while not await client.list_pod_sandboxes(of_allocation("web.0.0123abcd")):
            await asyncio.sleep(0.01)


async def test_a_call_can_be_done_and_said_to_have_failed(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path
) -> None:
    runtime.faults.add(Fault("RunPodSandbox", code=grpc.StatusCode.UNKNOWN, done_anyway=True, times=1))
    with pytest.raises(RuntimeFailed, match="told to fail"):
        await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    assert len(await client.list_pod_sandboxes()) == 1


async def test_a_call_can_be_done_at_once_and_be_answered_late(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RUN_DEADLINE_S", 0.05)
    runtime.faults.add(Fault("RunPodSandbox", done_anyway=True, answer_s=60, times=1))
    with pytest.raises(DeadlineExceeded):
        await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    assert len(await client.list_pod_sandboxes()) == 1
    assert runtime.faults.met == 1


async def test_a_call_can_be_said_to_be_done_when_nothing_was(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path
) -> None:
    id_ = await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    runtime.faults.add(Fault("RemovePodSandbox", unfounded=True, times=1))
    await client.remove_pod_sandbox(id_)
    assert len(await client.list_pod_sandboxes()) == 1
    await client.remove_pod_sandbox(id_)
    assert not await client.list_pod_sandboxes()


async def test_a_call_fails_so_many_times_in_these_words(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path
) -> None:
    runtime.faults.add(Fault("RunPodSandbox", code=grpc.StatusCode.UNKNOWN, message="no network today", times=2))
    for _ in range(2):
        with pytest.raises(RuntimeFailed, match="no network today"):
            await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    assert not await client.list_pod_sandboxes()
    await client.run_pod_sandbox(sandbox(tmp_path), "runc")


async def test_a_fault_for_every_method_holds_until_it_is_cleared(runtime: FakeRuntime, client: CriClient) -> None:
    runtime.faults.add(Fault("*", code=grpc.StatusCode.UNAVAILABLE))
    for call in (client.version, client.list_containers, lambda: client.stop_container("0123", 1)):
        with pytest.raises(Unavailable):
            await call()
    runtime.faults.clear()
    await client.version()


async def test_a_sandbox_can_claim_another_handler(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    runtime.faults.report_handler = "runc"
    sandbox_id = await client.run_pod_sandbox(sandbox(tmp_path), "edera")
    assert (await client.pod_sandbox_status(sandbox_id)).runtime_handler == "runc"


async def test_events_can_be_lost(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    hints = client.events()
    first = asyncio.ensure_future(anext(hints))
    while not runtime._listeners:
        await asyncio.sleep(0.01)
    runtime.faults.lose_events = True
    await client.run_pod_sandbox(sandbox(tmp_path), "runc")
    runtime.faults.lose_events = False
    last = await client.run_pod_sandbox(sandbox(tmp_path, "other.0.0123abcd"), "runc")
    async with asyncio.timeout(10):
        assert (await first).container_id == last
    await hints.aclose()


async def test_a_restart_cuts_calls_off_and_keeps_what_there_is(
    runtime: FakeRuntime, client: CriClient, tmp_path: Path
) -> None:
    container_id = await start(client, tmp_path, "sleep", "1000")
    runtime.faults.add(Fault("Version", delay_s=60))
    hanging = asyncio.ensure_future(client.version())
    await asyncio.sleep(0.05)
    await runtime.restart()
    with pytest.raises(Unavailable):
        await hanging
    other = CriClient(runtime.endpoint)
    assert (await other.container_status(container_id)).state == pb.CONTAINER_RUNNING
    await other.close()


async def test_a_restart_can_lose_everything(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    container_id = await start(client, tmp_path, "sleep", "0.01")
    await runtime.restart(keep_state=False)
    other = CriClient(runtime.endpoint)
    with pytest.raises(NotFound):
        await other.container_status(container_id)
    assert await other.image_status(IMAGE) is None
    assert not await other.list_pod_sandboxes()
    await other.close()


async def test_the_socket_is_gone_when_it_ends(tmp_path: Path) -> None:
    async with FakeRuntime(tmp_path / "cri.sock"):
        assert (tmp_path / "cri.sock").is_socket()
    assert not (tmp_path / "cri.sock").exists()


async def test_thousands_of_sandboxes_are_cheap(runtime: FakeRuntime, client: CriClient, tmp_path: Path) -> None:
    world = runtime.world
    for n in range(5000):
        allocation = f"web-{n}.0.0123abcd"
        sandbox_id = world.run_sandbox(sandbox(tmp_path, allocation), "runc")
        world.create_container(sandbox_id, container_config(owner(allocation), wish(IMAGE), attempt=0))
    began = time.monotonic()
    for n in range(0, 5000, 50):
        assert len(await client.list_pod_sandboxes(of_allocation(f"web-{n}.0.0123abcd"))) == 1
    assert time.monotonic() - began < 5
    assert len(await client.list_pod_sandboxes(OURS)) == 5000
    assert len(await client.list_containers(OURS)) == 5000
    for entry in await client.list_pod_sandboxes():
        world.remove_sandbox(entry.id)
    assert not world._names
    assert not world._by_label._ids


async def test_as_a_process_it_serves_takes_faults_and_ends_on_sigterm(tmp_path: Path, spawn: Spawn) -> None:
    socket = tmp_path / "cri.sock"
    process = await spawn(sys.executable, "-m", "cri.fake", "--socket", str(socket), "--handlers", "runc,runsc")
    client = CriClient(f"unix://{socket}")
    async with asyncio.timeout(20):
        while True:
            try:
                status = await client.status()
                break
            except Unavailable:
                await asyncio.sleep(0.02)
    assert [handler.name for handler in status.runtime_handlers] == ["runc", "runsc"]

    async with grpc.aio.insecure_channel(f"unix://{socket}") as channel:
        control = fake_pb2_grpc.ControlStub(channel)
        fault = fake_pb2.Fault(method="Version", code="UNKNOWN", message="told so", times=1)
        await control.SetFaults(fake_pb2.SetFaultsRequest(faults=[fault]), timeout=10)
        with pytest.raises(CriError, match="told so"):
            await client.version()
        await client.version()
        wrong = fake_pb2.Fault(method="Version", code="NO_SUCH")
        with pytest.raises(grpc.aio.AioRpcError, match="NO_SUCH"):
            await control.SetFaults(fake_pb2.SetFaultsRequest(faults=[wrong]), timeout=10)

        await client.pull_image(IMAGE)
        container_id = await start(client, tmp_path, "sleep", "1000")
        end = fake_pb2.EndContainerRequest(container_id=container_id, exit_code=137, reason="OOMKilled")
        await control.EndContainer(end, timeout=10)
        assert (await ended(client, container_id)).reason == "OOMKilled"
    await client.close()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
    assert not socket.exists()
