"""The private containerd, for real: pods on each handler, killed and adopted, and nothing left behind."""

import asyncio
import contextlib
import os
import platform
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from agent.containerd import PrivateContainerd
from agent.oci import DEMO_ARCHIVE, DEMO_IMAGE
from agent.private_runtime import Runtime, supervise
from cri.client import CriClient
from cri.convert import PortWish
from cri.errors import CriError, ImagePullFailed
from cri.v1 import runtime_pb2 as pb
from support.containerd import RunningContainerd, leftovers, own_containerd, sandbox_leftovers
from support.pods import Pod, clearing_client, run_pod
from support.ports import unused_ports
from support.registry import loopback_registry

pytestmark = pytest.mark.real
HANDLERS = ("runc", "runsc")


@pytest.fixture
async def client(containerd: RunningContainerd) -> AsyncIterator[CriClient]:
    async with clearing_client(containerd.endpoint) as client:
        yield client


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_sees_the_kernel_that_its_handler_promises(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path
) -> None:
    pod = await run_pod(client, handler, DEMO_IMAGE, logs=tmp_path, args=["uname", "-r"])
    assert (await pod.ended()).exit_code == 0
    same_kernel = pod.output().strip() == platform.release()
    assert same_kernel == (handler == "runc")
    sandbox = await client.pod_sandbox_status(pod.sandbox_id)
    assert sandbox.runtime_handler == handler


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_over_its_memory_limit_ends_oom_killed(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path
) -> None:
    hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"]
    pod = await run_pod(
        client, handler, DEMO_IMAGE, logs=tmp_path, command=hog, memory_mb=48, cgroup_parent=containerd.cgroup_parent
    )
    status = await pod.ended()
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_host_port_answers_on_loopback_and_is_free_after(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path, free_port: int
) -> None:
    pod = await run_pod(client, handler, DEMO_IMAGE, logs=tmp_path, ports=[PortWish(8080, free_port)])
    page = await _fetch(f"http://127.0.0.1:{free_port}/")
    assert "kakuri demo" in page
    await pod.remove()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{free_port}/", timeout=5)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_with_an_init_ends_at_once_when_stopped(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path
) -> None:
    says_up = ["sh", "-c", "echo UP; exec sleep 3600"]
    pod = await run_pod(client, handler, DEMO_IMAGE, logs=tmp_path, args=says_up)
    await _until(lambda: "UP" in pod.output())  # before that its init may not listen to signals yet
    async with asyncio.timeout(10):
        await client.stop_container(pod.container_id, 30)
    # A second stop finds it ended, which is success.
    await client.stop_container(pod.container_id, 30)
    assert (await pod.status()).exit_code == 143


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_that_ignores_its_stop_is_killed_after_the_grace(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path
) -> None:
    ignores = ["sh", "-c", "trap '' TERM; echo UP; sleep 3600"]
    pod = await run_pod(client, handler, DEMO_IMAGE, logs=tmp_path, command=ignores)
    await _until(lambda: "UP" in pod.output())
    async with asyncio.timeout(20):
        await client.stop_container(pod.container_id, 1)
    assert (await pod.status()).exit_code == 137


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_command_that_is_not_in_the_image_fails_with_its_name_and_leaves_nothing(
    containerd: RunningContainerd, client: CriClient, handler: str, tmp_path: Path
) -> None:
    with pytest.raises(CriError, match="no-such-program"):
        await run_pod(
            client,
            handler,
            DEMO_IMAGE,
            logs=tmp_path,
            command=["/no-such-program"],
            cgroup_parent=containerd.cgroup_parent,
        )
    await _until(lambda: not sandbox_leftovers(containerd.state_dir))


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("own_parent", [True, False], ids=["under our cgroup", "without a cgroup parent"])
async def test_a_removed_pod_leaves_nothing(
    containerd: RunningContainerd,
    client: CriClient,
    handler: str,
    own_parent: bool,
    tmp_path: Path,
    free_port: int,
) -> None:
    parent = containerd.cgroup_parent if own_parent else ""
    pod = await run_pod(
        client, handler, DEMO_IMAGE, logs=tmp_path, ports=[PortWish(8080, free_port)], cgroup_parent=parent
    )
    assert sandbox_leftovers(containerd.state_dir), "a running pod must show, or this test shows nothing"
    await pod.remove()
    await _until(lambda: not sandbox_leftovers(containerd.state_dir))


async def test_an_image_is_pulled_from_a_plain_registry_on_loopback(
    containerd: RunningContainerd, client: CriClient, tmp_path: Path
) -> None:
    with loopback_registry(tmp_path) as registry:
        image = registry.push(containerd.state_dir / "images" / DEMO_ARCHIVE, "team/demo:2.0")
        assert await client.pull_image(image)
        pod = await run_pod(client, "runc", image, logs=tmp_path / "logs", args=["echo", "pulled"])
        assert (await pod.ended()).exit_code == 0
        assert pod.output() == "pulled\n"
        with pytest.raises(ImagePullFailed, match="not found"):
            await client.pull_image(f"{registry.address}/team/demo:none")
    with pytest.raises(ImagePullFailed, match="refused"):
        await client.pull_image(f"{registry.address}/team/demo:other")


async def test_containers_live_on_when_containerd_is_killed_and_a_new_one_knows_them(tmp_path: Path) -> None:
    async with own_containerd(tmp_path / "agent") as private:
        runtime = await private.start()
        async with clearing_client(runtime.endpoint) as client:
            pods = [await _sleeper(client, handler, runtime, tmp_path) for handler in HANDLERS]
            before = [await pod.status() for pod in pods]
            restarted: asyncio.Queue[Runtime] = asyncio.Queue()
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(supervise(private, restarted.put_nowait))
                os.kill(runtime.pid, signal.SIGKILL)
                async with asyncio.timeout(30):
                    again = await restarted.get()
                watch.cancel()
            assert again.pid != runtime.pid
            assert [await pod.status() for pod in pods] == before
            for pod in pods:
                await client.stop_container(pod.container_id, 5)
                assert (await pod.status()).exit_code == 143


async def test_what_runs_is_adopted_and_restarted_only_when_its_configuration_changed(tmp_path: Path) -> None:
    async with own_containerd(tmp_path / "agent") as private:
        runtime = await private.start()
        async with clearing_client(runtime.endpoint) as client:
            pod = await _sleeper(client, "runc", runtime, tmp_path)
            assert await PrivateContainerd(tmp_path / "agent").start() == runtime
            private.places.pid_file.unlink()
            assert (await PrivateContainerd(tmp_path / "agent").start()).pid == runtime.pid
            private.places.config.write_text(private.places.config.read_text() + "# of an older agent\n")
            changed = await PrivateContainerd(tmp_path / "agent").start()
            assert changed.pid != runtime.pid
            assert (await pod.status()).state == pb.CONTAINER_RUNNING


async def test_stop_leaves_nothing_of_what_still_runs_even_when_containerd_is_dead(tmp_path: Path) -> None:
    async with own_containerd(tmp_path / "agent") as private:
        runtime = await private.start()
        client = CriClient(runtime.endpoint)
        pods = [
            await run_pod(client, handler, DEMO_IMAGE, logs=tmp_path, ports=[PortWish(8080, port)])
            for handler, port in zip(HANDLERS, unused_ports(2), strict=True)
        ]
        await client.close()
        assert len(pods) == 2
        processes = _of_shims(str(private.places.socket))
        assert len(processes) > 4
        os.kill(runtime.pid, signal.SIGKILL)
        await private.wait_end()
        await private.stop()
        assert not leftovers(tmp_path / "agent")
        assert not private.places.volatile.exists()
        assert not [process for process in processes if process.is_running() and process.status() != "zombie"]
        # What was stopped so is known to the next one as ended, and its images are still there.
        runtime = await private.start()
        async with clearing_client(runtime.endpoint) as client:
            assert {s.state for s in await client.list_pod_sandboxes()} == {pb.SANDBOX_NOTREADY}
            await (await _sleeper(client, "runc", runtime, tmp_path)).remove()


async def _sleeper(client: CriClient, handler: str, runtime: Runtime, logs: Path) -> Pod:
    return await run_pod(
        client, handler, DEMO_IMAGE, logs=logs, args=["sleep", "3600"], cgroup_parent=runtime.cgroup_parent
    )


async def _fetch(url: str) -> str:
    async with asyncio.timeout(10):
        while True:
            try:
                with await asyncio.to_thread(urllib.request.urlopen, url, timeout=5) as response:
                    return response.read().decode()
            except OSError:
                await asyncio.sleep(0.05)


async def _until(predicate: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not predicate():
            await asyncio.sleep(0.05)


def _of_shims(socket_: str) -> list[psutil.Process]:
    """The shims of the containerd with this socket, and all that they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if socket_ in process.cmdline():
                found += [process, *process.children(recursive=True)]
    return found
