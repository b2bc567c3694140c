"""What containerd forgets of containers: the notes that are kept of them, what shims say, and what is cleared away."""

import asyncio
import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import app, orphans, shims
from agent.announcing import Announcing
from agent.notes import NotedEnd, Notes
from agent.orphans import EMPTY_S, IN_USE_BY_SANDBOX_S, IN_USE_S, Orphans
from agent.places import Places
from agent.settings import parse

ID = "0" * 63 + "a"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of(tmp_path / "agent", volatile_root=tmp_path / "run")


@pytest.fixture
def notes(places: Places) -> Notes:
    made = Notes(places.notes, frozenset({"runsc"}))
    made.prepare()
    return made


def test_a_start_has_begun_when_it_is_noted_and_only_where_starts_are_noted(notes: Notes) -> None:
    assert notes.has_begun("runsc", ID) is False
    (notes.starts / ID).touch()
    assert notes.has_begun("runsc", ID) is True
    assert notes.has_begun("runc", ID) is None


def test_an_end_is_told_as_it_was_noted_and_forgotten_with_its_container(notes: Notes) -> None:
    assert notes.end_of(ID) is None
    notes.keep_end(ID, NotedEnd(7, 99))
    assert notes.end_of(ID) == NotedEnd(7, 99)
    assert notes.ids == {ID}
    notes.forget(ID)
    assert (notes.end_of(ID), notes.ids) == (None, frozenset())


class Machine:
    """Cgroups as folders, and a clock that the test sets."""

    def __init__(self, root: Path, places: Places, notes: Notes) -> None:
        self.now = 100.0
        self.folders = [root / hierarchy / places.cgroup.lstrip("/") / ID for hierarchy in ("memory", "pids")]
        for folder in self.folders:
            (folder / "inner").mkdir(parents=True)
        self.orphans = Orphans(places, notes, lambda: self.now)

    def clear(self, after_s: float) -> None:
        self.now += after_s
        self.orphans.clear([ID])

    @property
    def left(self) -> bool:
        return any(folder.exists() for folder in self.folders)


@pytest.fixture
def machine(tmp_path: Path, places: Places, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(orphans, "_ROOT", tmp_path / "cgroup")
    return Machine(tmp_path / "cgroup", places, notes)


def test_an_empty_cgroup_that_containerd_does_not_know_goes_with_its_notes_after_a_while(
    machine: Machine, notes: Notes
) -> None:
    (notes.starts / ID).touch()
    assert machine.orphans.find() == {ID}
    machine.clear(0)
    machine.clear(EMPTY_S - 1)
    assert machine.left
    machine.clear(1)
    assert not machine.left
    assert machine.orphans.find() == frozenset()


def test_what_is_listed_once_more_starts_its_time_anew(machine: Machine) -> None:
    machine.clear(0)
    machine.now += EMPTY_S
    machine.orphans.clear([])
    machine.clear(0)
    assert machine.left


@pytest.mark.parametrize(
    ("kind", "bound_s"), [("container", IN_USE_S), ("sandbox", IN_USE_BY_SANDBOX_S), ("", IN_USE_BY_SANDBOX_S)]
)
def test_processes_of_what_containerd_does_not_know_are_killed_after_a_start_could_take(
    machine: Machine, places: Places, kind: str, bound_s: float
) -> None:
    if kind:
        bundle = places.bundles / ID
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(f'{{"annotations":{{"dev.kakuri.cri.container-type":"{kind}"}}}}')
    with subprocess.Popen(["sleep", "60"]) as process:
        (machine.folders[0] / "cgroup.procs").write_text(f"{process.pid}\n")
        machine.clear(0)
        machine.clear(bound_s - 1)
        assert process.poll() is None
        machine.clear(1)
        assert process.wait(5) == -9


@contextlib.contextmanager
def shim_that_says(places: Places, answer: bytes) -> Iterator[None]:
    bundle = places.bundles / ID
    bundle.mkdir(parents=True)
    address = places.volatile / "s"
    (bundle / "address").write_text(f"unix://{address}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()

        def serve() -> None:
            calling, _ = listening.accept()
            with calling:
                calling.recv(4096)
                calling.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(5)


# ttrpc: 10 bytes of header, then Response{payload: StateResponse{status, exit_status: 7, exited_at: {2 s, 3 ns}}}.
STOPPED, RUNNING = (b"\x12\x0a\x20%c\x48\x07\x52\x04\x08\x02\x10\x03" % status for status in (3, 2))


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        pytest.param(b"\0\0\0\x0c\0\0\0\x01\x02\0" + STOPPED, NotedEnd(7, 2_000_000_003), id="it has ended"),
        pytest.param(b"\0\0\0\x0c\0\0\0\x01\x02\0" + RUNNING, None, id="it runs"),
        pytest.param(b"\0\0\0\x06\0\0\0\x01\x02\0" + STOPPED[:6], None, id="half an answer"),
        pytest.param(b"\0\0\0\x03\0\0\0\x01\x02\0\xff\xff\xff", None, id="no protobuf"),
        pytest.param(b"\xff\0\0\0\0\0\0\x01\x02\0", None, id="too long an answer"),
        pytest.param(b"HTTP/1.1 400 Bad", None, id="another protocol"),
        pytest.param(b"", None, id="it hangs up"),
    ],
)
def test_only_what_a_shim_clearly_says_is_noted(
    places: Places, notes: Notes, answer: bytes, end: NotedEnd | None
) -> None:
    with shim_that_says(places, answer):
        shims.note_ends(places, notes)
    assert notes.end_of(ID) == end


def test_a_shim_that_is_gone_is_passed_over(places: Places, notes: Notes) -> None:
    (places.bundles / ID).mkdir(parents=True)
    shims.note_ends(places, notes)
    assert notes.end_of(ID) is None


async def test_where_it_listens_is_written_as_soon_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.announcing.AGAIN_S", 0.01)
    path = tmp_path / "later" / "agent.json"
    announcing = asyncio.create_task(Announcing(path, {"grpc": "127.0.0.1:1"}, 5).run())
    try:
        await asyncio.sleep(0.03)
        path.parent.mkdir()
        async with asyncio.timeout(5):
            while not path.exists():
                await asyncio.sleep(0.01)
    finally:
        announcing.cancel()
    assert '"runtime_pid": 5' in path.read_text()


async def test_a_full_disk_is_told_in_words_however_deep_the_fault_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(*_: object) -> None:
        inner = ExceptionGroup("tasks", [OSError(28, "No space left on device", "/full/proved")])
        raise ExceptionGroup("tasks", [inner])

    monkeypatch.setattr(app, "_serve", serve)
    monkeypatch.setattr(app, "configure", lambda _level: None)  # it holds for the whole process
    settings, _ = parse(["--state-dir", str(tmp_path / "agent")])
    with pytest.raises(app.AgentError, match="/full/proved: No space left on device"):
        await app.run(settings, shutdown=False)
