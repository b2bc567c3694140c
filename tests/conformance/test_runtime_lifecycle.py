"""What the agent relies on in a CRI runtime: one suite for the fake and for containerd with runc and with runsc."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from agent import logs
from cri.convert import (
    LABEL_ALLOCATION,
    OURS,
    container_config,
    observed_container,
    observed_sandbox,
    of_allocation,
)
from cri.errors import AlreadyExists, ImagePullFailed, NotFound, RuntimeFailed
from cri.v1 import runtime_pb2 as pb
from support.cri_subject import Subject, owner

T = TypeVar("T")
BOUND_S = 60.0


async def eventually(look: Callable[[], Awaitable[T]], right: Callable[[T], bool]) -> T:
    async with asyncio.timeout(BOUND_S):
        while not right(seen := await look()):
            await asyncio.sleep(0.02)
    return seen


async def ended(subject: Subject, container_id: str) -> pb.ContainerStatus:
    return await eventually(
        lambda: subject.client.container_status(container_id), lambda status: status.state == pb.CONTAINER_EXITED
    )


async def test_it_is_ready_and_names_its_handlers_if_it_can(subject: Subject) -> None:
    assert (await subject.client.version()).runtime_api_version == "v1"
    status = await subject.client.status()
    conditions = {c.type: c.status for c in status.status.conditions}
    assert conditions["RuntimeReady"]
    assert conditions["NetworkReady"]
    names = {handler.name for handler in status.runtime_handlers}
    assert not names or subject.handler in names


async def test_a_sandbox_runs_is_found_stops_and_is_gone(subject: Subject) -> None:
    allocation = subject.allocation()
    wished = subject.wish("sleep", "1000")
    sandbox_id = await subject.run(subject.config(allocation, wished))

    seen = observed_sandbox(await subject.client.pod_sandbox_status(sandbox_id))
    assert (seen.ready, seen.handler, seen.allocation_id) == (True, subject.handler, allocation)
    assert seen.owner == owner(allocation)
    assert seen.ip
    assert seen.created_at_ns > 0

    listed = [observed_sandbox(s) for s in await subject.client.list_pod_sandboxes(of_allocation(allocation))]
    assert [(s.id, s.ready, s.owner) for s in listed] == [(sandbox_id, True, owner(allocation))]
    assert sandbox_id in {s.id for s in await subject.client.list_pod_sandboxes(OURS)}
    assert not await subject.client.list_pod_sandboxes({LABEL_ALLOCATION: allocation, "other": "label"})

    await subject.client.stop_pod_sandbox(sandbox_id)
    await subject.client.stop_pod_sandbox(sandbox_id)
    assert not observed_sandbox(await subject.client.pod_sandbox_status(sandbox_id)).ready
    await subject.client.remove_pod_sandbox(sandbox_id)
    await subject.client.remove_pod_sandbox(sandbox_id)
    assert not await subject.client.list_pod_sandboxes(of_allocation(allocation))
    with pytest.raises(NotFound):
        await subject.client.pod_sandbox_status(sandbox_id)


async def test_running_a_sandbox_twice_finds_its_name_reserved_until_it_is_removed(subject: Subject) -> None:
    config = subject.config(subject.allocation(), subject.wish())
    first = await subject.run(config)
    with pytest.raises(AlreadyExists):
        await subject.run(config)
    await subject.client.stop_pod_sandbox(first)
    with pytest.raises(AlreadyExists):
        await subject.run(config)
    await subject.client.remove_pod_sandbox(first)
    assert await subject.run(config) != first


async def test_a_handler_that_is_not_there_is_a_failure_in_words(subject: Subject) -> None:
    config = subject.config(subject.allocation(), subject.wish())
    with pytest.raises(RuntimeFailed, match="no-such-handler"):
        await subject.client.run_pod_sandbox(config, "no-such-handler")
    assert not await subject.client.list_pod_sandboxes(of_allocation(config.metadata.name))


async def test_a_container_is_created_runs_and_ends_with_its_exit_code(subject: Subject) -> None:
    allocation = subject.allocation()
    sandbox_id, container_id = await subject.create(
        subject.wish("sh", "-c", "sleep 0.3; exit 3"), allocation_id=allocation
    )
    created = observed_container(await subject.client.container_status(container_id), sandbox_id=sandbox_id)
    assert (created.state, created.exit_code, created.started_at_ns, created.finished_at_ns) == ("created", None, 0, 0)

    await subject.client.start_container(container_id)
    (entry,) = await subject.client.list_containers(of_allocation(allocation))
    listed = observed_container(entry)
    assert (listed.id, listed.sandbox_id, listed.state) == (container_id, sandbox_id, "running")
    running = observed_container(await subject.client.container_status(container_id))
    assert (running.state, running.exit_code) == ("running", None)
    assert running.started_at_ns >= running.created_at_ns > 0

    over = observed_container(await ended(subject, container_id))
    assert (over.state, over.exit_code, over.reason) == ("exited", 3, "Error")
    assert over.finished_at_ns >= over.started_at_ns
    with pytest.raises(RuntimeFailed):
        await subject.client.start_container(container_id)


async def test_success_says_completed(subject: Subject) -> None:
    _, container_id = await subject.create(subject.wish("true"))
    await subject.client.start_container(container_id)
    status = await ended(subject, container_id)
    assert (status.exit_code, status.reason) == (0, "Completed")


async def test_a_container_that_takes_too_much_memory_says_oom_killed(subject: Subject) -> None:
    _, container_id = await subject.create(subject.wish("tail", "/dev/zero"))
    await subject.client.start_container(container_id)
    status = await ended(subject, container_id)
    assert status.reason == "OOMKilled"
    assert status.exit_code == 137


async def test_a_command_that_is_not_in_the_image_fails_to_start_and_says_which(subject: Subject) -> None:
    _, container_id = await subject.create(subject.wish("/bin/no-such-program"))
    with pytest.raises(RuntimeFailed, match="no-such-program"):
        await subject.client.start_container(container_id)
    over = observed_container(await ended(subject, container_id))
    assert (over.exit_code, over.reason) == (128, "StartError")


async def test_attempts_follow_each_other_in_one_sandbox(subject: Subject) -> None:
    allocation = subject.allocation()
    wished = subject.wish("true")
    sandbox_id, first = await subject.create(wished, allocation_id=allocation)
    config = subject.config(allocation, wished)
    again = container_config(owner(allocation), wished, attempt=0)
    with pytest.raises(AlreadyExists):
        await subject.client.create_container(sandbox_id, again, config)
    await subject.client.start_container(first)
    await ended(subject, first)

    await subject.client.create_container(sandbox_id, container_config(owner(allocation), wished, attempt=1), config)
    seen = [observed_container(c) for c in await subject.client.list_containers(of_allocation(allocation))]
    assert sorted((c.attempt, c.state) for c in seen) == [(0, "exited"), (1, "created")]
    await subject.client.remove_container(first)
    await subject.client.create_container(sandbox_id, again, config)


async def test_a_container_stops_within_its_grace(subject: Subject) -> None:
    _, container_id = await subject.create(subject.wish("sleep", "1000"))
    await subject.client.start_container(container_id)
    async with asyncio.timeout(BOUND_S):
        await subject.client.stop_container(container_id, 1)
    status = await subject.client.container_status(container_id)
    assert status.state == pb.CONTAINER_EXITED
    assert status.exit_code in {137, 143}
    await subject.client.stop_container(container_id, 1)
    await subject.client.remove_container(container_id)
    await subject.client.remove_container(container_id)
    with pytest.raises(NotFound):
        await subject.client.container_status(container_id)


async def test_a_kill_without_grace_is_at_once(subject: Subject) -> None:
    _, container_id = await subject.create(subject.wish("sleep", "1000", env={"KAKURI_FAKE": "stubborn"}))
    await subject.client.start_container(container_id)
    await subject.client.stop_container(container_id, 0)
    assert (await subject.client.container_status(container_id)).exit_code == 137


async def test_removing_a_sandbox_takes_its_running_container_with_it(subject: Subject) -> None:
    allocation = subject.allocation()
    sandbox_id, container_id = await subject.create(subject.wish("sleep", "1000"), allocation_id=allocation)
    await subject.client.start_container(container_id)
    await subject.client.stop_pod_sandbox(sandbox_id)
    assert (await ended(subject, container_id)).exit_code == 137
    await subject.client.remove_pod_sandbox(sandbox_id)
    assert not await subject.client.list_containers(of_allocation(allocation))


async def test_what_is_not_there_is_stopped_and_removed_already(subject: Subject) -> None:
    await subject.client.stop_pod_sandbox("0123456789abcdef")
    await subject.client.remove_pod_sandbox("0123456789abcdef")
    await subject.client.stop_container("0123456789abcdef", 1)
    await subject.client.remove_container("0123456789abcdef")


async def test_what_is_not_there_is_not_found_by_the_rest(subject: Subject) -> None:
    allocation = subject.allocation()
    config = subject.config(allocation, subject.wish())
    container = container_config(owner(allocation), subject.wish(), attempt=0)
    for call in (
        subject.client.pod_sandbox_status("0123456789abcdef"),
        subject.client.container_status("0123456789abcdef"),
        subject.client.start_container("0123456789abcdef"),
        subject.client.reopen_container_log("0123456789abcdef"),
        subject.client.create_container("0123456789abcdef", container, config),
    ):
        with pytest.raises(NotFound):
            await call


async def test_a_container_of_an_image_that_is_not_there_is_not_found(subject: Subject) -> None:
    allocation = subject.allocation()
    wished = subject.wish()
    config = subject.config(allocation, wished)
    sandbox_id = await subject.run(config)
    container = container_config(owner(allocation), wished, attempt=0)
    container.image.image = "kakuri.test/missing:1"
    with pytest.raises(NotFound, match=r"kakuri\.test/missing:1"):
        await subject.client.create_container(sandbox_id, container, config)


async def test_a_stopped_sandbox_takes_no_container(subject: Subject) -> None:
    allocation = subject.allocation()
    wished = subject.wish("true")
    config = subject.config(allocation, wished)
    sandbox_id = await subject.run(config)
    await subject.client.stop_pod_sandbox(sandbox_id)
    with pytest.raises((NotFound, RuntimeFailed)):
        await subject.client.create_container(
            sandbox_id, container_config(owner(allocation), wished, attempt=0), config
        )


async def test_images_are_there_or_not(subject: Subject) -> None:
    assert await subject.client.image_status("kakuri.test/missing:1") is None
    image = await subject.client.image_status(subject.image)
    assert image is not None
    assert subject.image in image.repo_tags


async def test_a_pull_that_fails_tells_why(subject: Subject) -> None:
    with pytest.raises(ImagePullFailed) as failed:
        await subject.client.pull_image("localhost:1/missing:1")
    assert "localhost:1/missing:1" in failed.value.message
    assert failed.value.temporary


async def test_logs_are_written_and_go_on_in_a_new_file_after_a_rotation(subject: Subject) -> None:
    allocation = subject.allocation()
    _, container_id = await subject.create(
        subject.wish("sh", "-c", "while true; do echo tick; sleep 0.05; done"), allocation_id=allocation
    )
    folder = subject.logs(allocation)
    await subject.client.start_container(container_id)
    await eventually(lambda: _text(folder), lambda text: text != "")
    assert await logs.rotate(folder, 0, lambda: subject.client.reopen_container_log(container_id), max_bytes=1)
    assert (folder / "0.log").exists()
    if subject.real:
        await eventually(lambda: _text(folder), lambda text: text.count("tick\n") > 10)
        assert (folder / "0.log").stat().st_size > 0
        assert set((await _text(folder)).splitlines()) == {"tick"}
    assert (folder / "0.log.1").stat().st_size > 0
    assert (await subject.client.container_status(container_id)).log_path == str(folder / "0.log")


async def test_events_hint_at_changes(subject: Subject) -> None:
    seen: asyncio.Queue[pb.ContainerEventResponse] = asyncio.Queue()

    async def listen() -> None:
        async for event in subject.client.events():
            seen.put_nowait(event)

    async def of(container_id: str, kind: pb.ContainerEventType.ValueType) -> None:
        async with asyncio.timeout(BOUND_S):
            while True:
                event = await seen.get()
                if (event.container_id, event.container_event_type) == (container_id, kind):
                    return

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        await asyncio.sleep(0.1)  # until the runtime has heard that we listen, which nothing tells
        _, container_id = await subject.create(subject.wish("true"))
        await subject.client.start_container(container_id)
        for kind in (pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT, pb.CONTAINER_STOPPED_EVENT):
            await of(container_id, kind)
        await subject.client.remove_container(container_id)
        await of(container_id, pb.CONTAINER_DELETED_EVENT)
        listening.cancel()


async def _text(folder: Path) -> str:
    return b"".join([chunk async for chunk in logs.read(folder, 0)]).decode()
