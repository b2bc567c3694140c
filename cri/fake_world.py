"""The fake runtime's sandboxes, containers and images, with the semantics that containerd has.

One rule: every operation is done when it returns, and time passes only through `later`; the server around it adds
sockets, slowness and faults.

    container:  created ──start──► running ──script, stop, kill──► exited        sandbox:  ready ──stop──► not ready
"""

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import grpc

from cri.fake_labels import LabelIndex
from cri.fake_script import Script, pullable, script_of
from cri.v1 import runtime_pb2 as pb
from kakuri.image import normalize_image

LOG_LINE = "simulated: nothing really runs here"
HISTORY = 1024
"""Fewer, and a test no longer sees all of its story; more only takes memory."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of this program
    """What the call is answered instead, in the words and with the code that containerd has for it."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass
class Sandbox:
    config: pb.PodSandboxConfig
    entry: pb.PodSandbox
    ip: str
    name: str
    containers: dict[str, "Container"] = field(default_factory=dict)


@dataclass
class Container:
    entry: pb.Container
    status: pb.ContainerStatus
    script: Script
    name: str
    timer: Timer | None = None
    on_end: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True)
class Happened:
    """A container began to run, or ended after it had run."""

    what: Literal["began", "ended"]
    container_id: str
    labels: Mapping[str, str]


class World:
    """What the runtime has. Thousands of sandboxes are cheap: no task, no file kept open, lists go by index."""

    def __init__(
        self,
        *,
        handlers: Iterable[str],
        images: Iterable[str] = (),
        later: Callable[[float, Callable[[], None]], Timer],
        now_ns: Callable[[], int],
        hint: Callable[[Callable[[], pb.ContainerEventResponse]], None],
    ) -> None:
        """images: already there. later: call this back after so many seconds.

        hint: told of every change; makes the event only when somebody listens.
        """
        self.handlers = tuple(handlers)
        self._later = later
        self._now_ns = now_ns
        self._hint = hint
        self._images: set[str] = {normalize_image(image) for image in images}
        self._sandboxes: dict[str, Sandbox] = {}
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._by_label = LabelIndex()
        self._addresses = 0
        self.history: deque[Happened] = deque(maxlen=HISTORY)
        """What containers did, whoever was told: the newest last."""

    # sandboxes

    def run_sandbox(self, config: pb.PodSandboxConfig, handler: str, *, reported_handler: str | None = None) -> str:
        if handler not in self.handlers:
            raise _unknown(f'failed to get sandbox runtime: no runtime for "{handler}" is configured')
        meta = config.metadata
        name = f"{meta.name}_{meta.namespace}_{meta.uid}_{meta.attempt}"
        id_ = self._reserve("sandbox", name)
        entry = pb.PodSandbox(
            id=id_,
            metadata=meta,
            state=pb.SANDBOX_READY,
            created_at=self._now_ns(),
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=handler if reported_handler is None else reported_handler,
        )
        self._addresses += 1
        ip = f"10.{128 + self._addresses // 65536 % 64}.{self._addresses // 256 % 256}.{self._addresses % 256}"
        self._sandboxes[id_] = Sandbox(config, entry, ip, name)
        self._by_label.add(id_, entry.labels)
        self._tell_sandbox(id_, pb.CONTAINER_CREATED_EVENT)
        self._tell_sandbox(id_, pb.CONTAINER_STARTED_EVENT)
        return id_

    def stop_sandbox(self, id_: str) -> None:
        """Also what happens when a sandbox dies by itself."""
        sandbox = self._sandboxes.get(id_)
        if sandbox is None or sandbox.entry.state != pb.SANDBOX_READY:
            return
        for container in sandbox.containers.values():
            self._end(container, 137)
        sandbox.entry.state = pb.SANDBOX_NOTREADY
        self._tell_sandbox(id_, pb.CONTAINER_STOPPED_EVENT)

    def remove_sandbox(self, id_: str) -> None:
        sandbox = self._sandboxes.get(id_)
        if sandbox is None:
            return
        self.stop_sandbox(id_)
        for container_id in list(sandbox.containers):
            self.remove_container(container_id)
        self._tell_sandbox(id_, pb.CONTAINER_DELETED_EVENT)
        del self._sandboxes[id_], self._names[sandbox.name]
        self._by_label.discard(id_, sandbox.entry.labels)

    def sandbox_status(self, id_: str) -> pb.PodSandboxStatus:
        sandbox = self._sandboxes.get(id_)
        if sandbox is None:
            raise _not_found("an error occurred when try to find sandbox: not found")
        entry = sandbox.entry
        return pb.PodSandboxStatus(
            id=id_,
            metadata=entry.metadata,
            state=entry.state,
            created_at=entry.created_at,
            network=pb.PodSandboxNetworkStatus(ip=sandbox.ip if entry.state == pb.SANDBOX_READY else ""),
            labels=entry.labels,
            annotations=entry.annotations,
            runtime_handler=entry.runtime_handler,
        )

    def list_sandboxes(self, wanted: pb.PodSandboxFilter) -> list[pb.PodSandbox]:
        return [
            found.entry
            for found in self._candidates(self._sandboxes, wanted.id, wanted.label_selector)
            if not wanted.HasField("state") or found.entry.state == wanted.state.state
        ]

    # containers

    def create_container(self, sandbox_id: str, config: pb.ContainerConfig) -> str:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise _not_found(f'failed to find sandbox id "{sandbox_id}": not found')
        if sandbox.entry.state != pb.SANDBOX_READY:
            raise _not_found(f"failed to get sandbox container task: task {sandbox_id} not found: not found")
        image = _full(config.image.image)
        if image not in self._images:
            raise _not_found(f'failed to resolve image "{config.image.image}": not found')
        pod = sandbox.config.metadata
        name = f"{config.metadata.name}_{pod.name}_{pod.namespace}_{pod.uid}_{config.metadata.attempt}"
        id_ = self._reserve("container", name)
        now = self._now_ns()
        image_ref = _image_id(image)
        entry = pb.Container(
            id=id_,
            pod_sandbox_id=sandbox_id,
            metadata=config.metadata,
            image=config.image,
            image_ref=image_ref,
            state=pb.CONTAINER_CREATED,
            created_at=now,
            labels=config.labels,
            annotations=config.annotations,
        )
        log = str(Path(sandbox.config.log_directory) / config.log_path) if config.log_path else ""
        status = pb.ContainerStatus(
            id=id_,
            metadata=config.metadata,
            created_at=now,
            image=config.image,
            image_ref=image_ref,
            labels=config.labels,
            annotations=config.annotations,
            log_path=log,
        )
        env = {pair.key: pair.value for pair in config.envs}
        script = script_of(config.image.image, [*config.command, *config.args], env)
        container = Container(entry, status, script, name)
        self._containers[id_] = sandbox.containers[id_] = container
        self._by_label.add(id_, entry.labels)
        self._tell_container(container, pb.CONTAINER_CREATED_EVENT)
        return id_

    def start_container(self, id_: str) -> None:
        container = self._container(id_)
        if container.entry.state != pb.CONTAINER_CREATED:
            state = pb.ContainerState.Name(container.entry.state)
            raise _unknown(f'failed to set starting state for container "{id_}": container is in {state} state')
        if container.script.start_error:
            self._end(container, 128, "StartError", container.script.start_error)
            raise _unknown(container.script.start_error)
        self._write_log(container, f"{LOG_LINE}\n")
        container.entry.state = pb.CONTAINER_RUNNING
        container.status.started_at = self._now_ns()
        self.history.append(Happened("began", id_, container.entry.labels))
        self._tell_container(container, pb.CONTAINER_STARTED_EVENT)
        script = container.script
        if script.ends_after_s is not None:
            reason = "OOMKilled" if script.oom else ""
            container.timer = self._later(script.ends_after_s, lambda: self._end(container, script.exit_code, reason))

    def stop_container(self, id_: str, grace_s: float, on_end: Callable[[], None]) -> None:
        """on_end is called when it has ended: before this returns, unless it ignores the stop signal."""
        container = self._containers.get(id_)
        if container is None or container.entry.state != pb.CONTAINER_RUNNING:
            on_end()
            return
        container.on_end.append(on_end)
        if container.script.stubborn and grace_s > 0:
            self._later(grace_s, lambda: self._end(container, 137))
        else:
            self._end(container, 143 if grace_s > 0 else 137)

    def end_container(self, id_: str, exit_code: int, reason: str = "") -> None:
        """What happens when it ends behind the caller's back."""
        self._end(self._container(id_), exit_code, reason)

    def remove_container(self, id_: str) -> None:
        container = self._containers.get(id_)
        if container is None:
            return
        self._end(container, 137)
        self._tell_container(container, pb.CONTAINER_DELETED_EVENT)
        del self._containers[id_], self._names[container.name]
        del self._sandboxes[container.entry.pod_sandbox_id].containers[id_]
        self._by_label.discard(id_, container.entry.labels)

    def container_status(self, id_: str) -> pb.ContainerStatus:
        container = self._container(id_)
        container.status.state = container.entry.state
        return container.status

    def list_containers(self, wanted: pb.ContainerFilter) -> list[pb.Container]:
        return [
            found.entry
            for found in self._candidates(self._containers, wanted.id, wanted.label_selector)
            if (not wanted.HasField("state") or found.entry.state == wanted.state.state)
            and wanted.pod_sandbox_id in {"", found.entry.pod_sandbox_id}
        ]

    def reopen_log(self, id_: str) -> None:
        container = self._container(id_)
        if container.entry.state != pb.CONTAINER_RUNNING:
            raise _unknown("container is not running")
        self._write_log(container, "")

    # images

    def image(self, reference: str) -> pb.Image:
        """An empty one when it isn't there."""
        full = _full(reference)
        if full not in self._images:
            return pb.Image()
        return pb.Image(id=_image_id(full), repo_tags=[full], size=1)

    def pull(self, reference: str) -> str:
        full = _full(reference)
        if not pullable(full):
            raise _not_found(
                f'failed to pull and unpack image "{full}": failed to resolve reference "{full}": {full}: not found'
            )
        self._images.add(full)
        return _image_id(full)

    # all

    def forget_all(self) -> None:
        """As after a reinstall: no sandbox, no container, no image."""
        for container in self._containers.values():
            if container.timer is not None:
                container.timer.cancel()
        for store in (self._sandboxes, self._containers, self._names):
            store.clear()
        self._images.clear()
        self._by_label = LabelIndex()

    def _container(self, id_: str) -> Container:
        container = self._containers.get(id_)
        if container is None:
            raise _not_found(f'an error occurred when try to find container "{id_}": not found')
        return container

    def _reserve(self, kind: str, name: str) -> str:
        holder = self._names.get(name)
        if holder is not None:
            raise _unknown(f'failed to reserve {kind} name "{name}": name "{name}" is reserved for "{holder}"')
        id_ = self._names[name] = secrets.token_hex(32)
        return id_

    def _candidates(self, store: "Mapping[str, _Found]", id_: str, labels: Mapping[str, str]) -> "list[_Found]":
        ids: Iterable[str] = store if not labels else self._by_label.matching(labels)
        if id_:
            ids = [id_] if id_ in ids else []
        return [store[found] for found in ids if found in store]

    def _end(self, container: Container, exit_code: int, reason: str = "", message: str = "") -> None:
        if container.entry.state not in {pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING}:
            return
        if container.timer is not None:
            container.timer.cancel()
        never_ran = container.entry.state == pb.CONTAINER_CREATED
        container.entry.state = pb.CONTAINER_EXITED
        status = container.status
        status.finished_at = self._now_ns()
        status.exit_code = exit_code
        status.reason = reason or ("Error" if exit_code else "Completed")
        status.message = message
        waiting, container.on_end = container.on_end, []
        for call in waiting:
            call()
        if not never_ran:
            self.history.append(Happened("ended", container.entry.id, container.entry.labels))
            self._tell_container(container, pb.CONTAINER_STOPPED_EVENT)

    def _write_log(self, container: Container, text: str) -> None:
        if not container.status.log_path:
            return
        stamp = datetime.fromtimestamp(self._now_ns() / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        try:
            with Path(container.status.log_path).open("a", encoding="utf-8") as log:
                log.write(f"{stamp} stdout F {text}" if text else "")
        except OSError as error:
            raise _unknown(f"failed to create container loggers: {error}") from error

    def _tell_container(self, container: Container, kind: pb.ContainerEventType.ValueType) -> None:
        sandbox_id = container.entry.pod_sandbox_id
        self._hint(
            lambda: pb.ContainerEventResponse(
                container_id=container.entry.id,
                container_event_type=kind,
                created_at=self._now_ns(),
                pod_sandbox_status=self.sandbox_status(sandbox_id),
                containers_statuses=[self.container_status(container.entry.id)],
            )
        )

    def _tell_sandbox(self, id_: str, kind: pb.ContainerEventType.ValueType) -> None:
        self._hint(
            lambda: pb.ContainerEventResponse(
                container_id=id_,
                container_event_type=kind,
                created_at=self._now_ns(),
                pod_sandbox_status=self.sandbox_status(id_),
            )
        )


_Found = TypeVar("_Found", Sandbox, Container)


def _full(reference: str) -> str:
    try:
        return normalize_image(reference)
    except ValueError as error:
        words = f'failed to parse image reference "{reference}": {error}'
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, words) from error


def _image_id(reference: str) -> str:
    return f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}"


def _not_found(words: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, words)


def _unknown(words: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNKNOWN, words)
