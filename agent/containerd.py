"""A containerd of our own, for nodes that bring no CRI runtime: its own root, sockets, network, cgroup and images.

One rule: nothing of the machine's own containerd is read or touched, and stop leaves nothing behind but what lies in
the state dir. Containers are the shims' children, not containerd's, so they live on while it is restarted.
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from agent.cni import NetworkError, write_network
from agent.containerd_config import containerd_config
from agent.handlers import FoundHandlers, GvisorPlatform, find_handlers, write_runsc_config, write_wrappers
from agent.notes import Notes
from agent.oci import PAUSE_ARCHIVE, ImageError, archive_images, build_demo, build_pause
from agent.orphans import Orphans
from agent.places import NAMESPACE, Places
from agent.prerequisites import can_run, cni_folder, find_program, read_kernel, search_path
from agent.private_runtime import DetachedProgram, Runtime, RuntimeUnavailable, wait_ready
from agent.remains import clear_remains
from agent.shims import note_ends
from cri.client import CriClient
from cri.errors import CriError, RuntimeFailed
from kakuri.log import get_logger

_STOP_GRACE_S = 10.0
_CLEAN_DEADLINE_S = 60.0
_IMPORT_DEADLINE_S = 120.0
_SEEN_DEADLINE_S = 10.0
_RETRY_S = 0.01
_REMOVED_AT_ONCE = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# systemd's sockets and notifications are meant for the agent.
_NOT_INHERITED = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_log = get_logger("containerd")


class PrivateContainerd:
    """The containerd of one state dir."""

    def __init__(
        self, state_dir: Path, *, gvisor_platform: GvisorPlatform = "systrap", archives: Sequence[Path] = ()
    ) -> None:
        """archives: OCI archives to import besides those in <state dir>/images."""
        self.places = Places.of(state_dir)
        self._platform = gvisor_platform
        self._archives = tuple(archives)
        self._program = DetachedProgram(
            [find_program("containerd") or "containerd", "--config", str(self.places.config)],
            log=self.places.log,
            pid_file=self.places.pid_file,
            env=_environment(),
        )
        self._notes = Notes(self.places.notes)
        self._orphans = Orphans(self.places, self._notes)

    async def start(self) -> Runtime:
        """It runs as configured, with its images: adopted if it ran already, restarted if its configuration changed."""
        why = can_run()
        if why is not None:
            raise RuntimeUnavailable(why)
        try:
            found, changed = self._prepare()
        except (ImageError, NetworkError) as error:
            raise RuntimeUnavailable(str(error)) from error
        pid = self._program.find()
        if pid is not None and not changed:
            try:
                await wait_ready(self.places.endpoint, self._program)
            except RuntimeUnavailable as error:
                _log.warning("containerd not adopted", pid=pid, error=str(error))
                pid = None
        if pid is None or changed:
            await self._program.end(_STOP_GRACE_S)
            await asyncio.to_thread(note_ends, self.places, self._notes)
            pid = self._program.spawn()
            await wait_ready(self.places.endpoint, self._program)
        await self._import_images()
        handlers = tuple(handler.name for handler in found.handlers)
        return Runtime(
            kind="containerd",
            endpoint=self.places.endpoint,
            pid=pid,
            handlers=handlers,
            unavailable=found.unavailable,
            cgroup_parent=self.places.cgroup,
            notes=Notes(self.places.notes, frozenset(h.name for h in found.handlers if h.is_wrapped(self.places))),
            end_task=self._end_task,
        )

    async def stop(self) -> None:
        """It has ended, and so has all that it ran, at once; give workloads their grace before. Images are kept."""
        if self._program.find() is not None:
            try:
                async with asyncio.timeout(_CLEAN_DEADLINE_S):
                    await self._remove_sandboxes()
            except (TimeoutError, CriError) as error:
                _log.warning("sandboxes not removed", error=str(error) or "no end in time")
            await self._program.end(_STOP_GRACE_S)
        await asyncio.to_thread(clear_remains, self.places)

    async def wait_end(self) -> None:
        """Returns when its process is no more."""
        await self._program.wait_end()

    async def keep_up(self) -> None:
        """Its log is bounded, and what it forgot of containers is cleared away."""
        self._program.bound_log()
        found = self._orphans.find()
        if not found:
            return
        client = CriClient(self.places.endpoint)
        try:
            containers, sandboxes = await client.list_containers(), await client.list_pod_sandboxes()
        except CriError:
            return  # it is away; what it has can't be told from what it forgot
        finally:
            await client.close()
        self._orphans.clear(found - {c.id for c in containers} - {s.id for s in sandboxes})

    def _prepare(self) -> tuple[FoundHandlers, bool]:
        """All files that containerd reads are written. Returns the handlers, and whether its configuration changed."""
        places = self.places
        places.folder.mkdir(parents=True, exist_ok=True)
        self._forget_earlier_boot()
        for folder in (places.root, places.registries, places.images, places.volatile):
            folder.mkdir(parents=True, exist_ok=True)
        places.volatile.chmod(0o700)
        self._notes.prepare()
        write_network(places)
        write_wrappers(places, self._platform)
        write_runsc_config(places, self._platform)
        build_pause(places.images)
        try:
            build_demo(places.images)
        except ImageError as error:
            _log.info("demo image left out", why=str(error))
        found = find_handlers(places, self._platform)
        plugins = cni_folder()
        assert plugins is not None, "can_run has looked"
        text = containerd_config(places, read_kernel(places.root), found.handlers, cni_folder=plugins)
        changed = not places.config.exists() or places.config.read_text() != text
        if changed:
            places.config.write_text(text)
        return found, changed

    def _forget_earlier_boot(self) -> None:
        """Where /run outlives a reboot, what it says of processes and mounts is no longer so."""
        boot_id = _BOOT_ID.read_text()
        noted = self.places.volatile / "boot_id"
        if noted.exists() and noted.read_text() != boot_id:
            shutil.rmtree(self.places.volatile)
        self.places.volatile.mkdir(parents=True, exist_ok=True)
        noted.write_text(boot_id)

    async def _import_images(self) -> None:
        client = CriClient(self.places.endpoint)
        try:
            for archive in dict.fromkeys([*sorted(self.places.images.glob("*.tar")), *self._archives]):
                await self._import_archive(client, archive)
        finally:
            await client.close()

    async def _import_archive(self, client: CriClient, archive: Path) -> None:
        try:
            images = archive_images(archive)
            if images and all([await _has_image(client, name, id_) for name, id_ in images.items()]):
                return
            await self._run_ctr("images", "import", "--snapshotter", self._snapshotter(), str(archive))
            async with asyncio.timeout(_SEEN_DEADLINE_S):
                for name, id_ in images.items():
                    await _until_seen(client, name, id_)
        except (ImageError, CriError, TimeoutError) as error:
            why = str(error) or "no end in time"
            if archive == self.places.images / PAUSE_ARCHIVE:
                raise RuntimeUnavailable(f"{archive}: the pause image can't be imported: {why}") from error
            _log.error("image not imported", archive=str(archive), error=why)

    async def _end_task(self, container_id: str) -> None:
        """Containerd 1.7 may give up a start in its middle and leave the task, which CRI then knows nothing of."""
        try:
            await self._run_ctr("tasks", "delete", "--force", container_id)
        except (ImageError, TimeoutError, OSError) as error:
            raise RuntimeFailed(f"what is left of a start can't be ended: {error}") from error
        _log.info("task left by a start ended", container=container_id)

    async def _run_ctr(self, *arguments: str) -> None:
        ctr = find_program("ctr")
        assert ctr is not None, "can_run has looked"
        process = await asyncio.create_subprocess_exec(
            ctr, "--address", str(self.places.socket), "--namespace", NAMESPACE, *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_IMPORT_DEADLINE_S):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise ImageError(f"ctr {arguments[0]} {arguments[1]}: {said.decode(errors='replace').strip()}")

    def _snapshotter(self) -> str:
        return "overlayfs" if read_kernel(self.places.root).overlay else "native"

    async def _remove_sandboxes(self) -> None:
        client = CriClient(self.places.endpoint)
        limit = asyncio.Semaphore(_REMOVED_AT_ONCE)

        async def remove(id_: str) -> None:
            async with limit:
                try:
                    await client.stop_pod_sandbox(id_)
                    await client.remove_pod_sandbox(id_)
                except CriError as error:
                    _log.warning("sandbox not removed", sandbox=id_, error=error.message)

        try:
            async with asyncio.TaskGroup() as tasks:
                for sandbox in await client.list_pod_sandboxes():
                    tasks.create_task(remove(sandbox.id))
        finally:
            await client.close()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    # The network plugins and shims look for iptables and runtimes by it.
    return kept | {"PATH": search_path()}


async def _until_seen(client: CriClient, name: str, id_: str) -> None:
    # containerd's CRI hears of a new image by an event; until then it would try to pull it.
    while not await _has_image(client, name, id_):  # noqa: ASYNC110 - another process's state; it tells nobody
        await asyncio.sleep(_RETRY_S)


async def _has_image(client: CriClient, name: str, id_: str) -> bool:
    image = await client.image_status(name)
    return image is not None and id_ in {"", image.id}
