"""The fencer: what it kills, when, and when it ends."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.boot import boot_id, boot_ns
from agent.fencer import IDLE_S, KILL_S, LOST_S, Fencer, find_cgroups, kill_cgroup
from agent.fencer_program import DetachedFencer
from agent.lease import FENCE_FILE, FENCE_LOCK, SECOND, Fence, Lease, encode

ID, OTHER = "c" * 64, "d" * 64
LEASE = Lease(1_000 * SECOND, 30 * SECOND, 10 * SECOND)


class Host:
    """A tree of cgroups with real processes in it, and a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.cgroups = folder / "cgroup"
        self.cgroups.mkdir()
        self.file = folder / FENCE_FILE
        self.now_ns = LEASE.heard_ns
        self.slept: list[float] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.fencer = Fencer(
            self.file, cgroups=self.cgroups, boot="b", now_ns=lambda: self.now_ns, sleep=self.slept.append
        )

    def process(self, *cgroups: str) -> "subprocess.Popen[bytes]":
        """In these cgroups, as far as their files tell."""
        child = subprocess.Popen(["sleep", "100"])
        self.children.append(child)
        for cgroup in cgroups:
            folder = self.cgroups / cgroup
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "cgroup.procs").open("a") as procs:
                procs.write(f"{child.pid}\n")
        return child

    def put(self, lease: Lease = LEASE, boot: str = "b", **bound: set[str]) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_bytes(encode(Fence(boot, lease, {k: frozenset(v) for k, v in bound.items()})))
        fresh.replace(self.file)

    def look(self) -> float:
        assert self.fencer.is_needed()
        return self.fencer.look()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def test_it_kills_what_is_listed_and_nothing_else_and_only_when_the_lease_is_over(host: Host) -> None:
    v1 = host.process(f"pids/kakuri/{ID}")
    v2 = host.process(f"kubepods.slice/cri-containerd-{ID}.scope/inner")
    other = host.process(f"pids/kakuri/{OTHER}", "pids/kakuri")
    host.put(web={ID, ""})
    host.now_ns = LEASE.kill_at_ns - SECOND // 2
    assert host.look() == 0.5
    assert (v1.poll(), v2.poll()) == (None, None)
    host.now_ns = LEASE.kill_at_ns
    assert host.look() == KILL_S
    assert (v1.wait(5), v2.wait(5)) == (-9, -9)
    assert other.poll() is None


def test_what_it_has_killed_once_is_barred_from_being_started_however_late(host: Host, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.mkdir()
    fence = Fence("b", LEASE, {"web": frozenset({ID})}, str(starts))
    host.file.write_bytes(encode(fence))
    host.now_ns = LEASE.kill_at_ns - 1
    host.look()
    assert not list(starts.iterdir())
    host.now_ns = LEASE.kill_at_ns
    host.look()
    assert [path.name for path in starts.iterdir()] == [ID]


def test_what_comes_up_later_is_killed_too(host: Host) -> None:
    host.put(web={ID})
    host.now_ns = LEASE.kill_at_ns
    assert host.look() == KILL_S
    late = host.process(f"pids/{ID}")
    host.now_ns += 3600 * SECOND
    assert host.look() == KILL_S
    assert late.wait(5) == -9


def test_a_renewal_is_seen(host: Host) -> None:
    running = host.process(f"pids/{ID}")
    host.put(web={ID})
    host.look()
    host.put(Lease(LEASE.heard_ns + 20 * SECOND, LEASE.lease_ns, LEASE.stop_bound_ns), web={ID})
    host.now_ns = LEASE.kill_at_ns
    assert host.look() == IDLE_S
    assert running.poll() is None


@pytest.mark.parametrize("how", ["nothing listed", "another boot", "no file"])
def test_it_ends_when_nothing_is_listed(host: Host, how: str) -> None:
    if how == "nothing listed":
        host.put()
    if how == "another boot":
        host.put(boot="a", web={ID})
    host.fencer.watch()
    assert host.slept == []


def test_a_file_that_is_gone_is_no_word_of_the_agent(host: Host) -> None:
    running, fresh = host.process(f"pids/{ID}"), host.process(f"pids/{OTHER}")
    host.put(web={ID})
    host.look()
    host.file.unlink()
    assert host.look() == IDLE_S
    # An agent that lost its ledger too lists only what it started since, under a lease of its own.
    host.put(Lease(LEASE.heard_ns + 3600 * SECOND, LEASE.lease_ns, LEASE.stop_bound_ns), api={OTHER})
    host.now_ns = LEASE.kill_at_ns
    assert host.look() == KILL_S
    assert running.wait(5) == -9
    assert fresh.poll() is None


def test_what_a_lost_file_listed_is_guarded_until_nothing_of_it_can_come_up(host: Host) -> None:
    host.put(web={ID})
    host.look()
    host.file.unlink()
    host.now_ns = LEASE.kill_at_ns + int((LOST_S - 1) * SECOND)
    host.look()
    assert host.fencer.is_needed()
    host.now_ns += 2 * SECOND
    late = host.process(f"pids/{ID}")
    host.look()
    assert late.wait(5) == -9
    assert host.fencer.is_needed()
    (host.cgroups / "pids" / ID / "cgroup.procs").unlink()
    (host.cgroups / "pids" / ID).rmdir()
    host.look()
    assert not host.fencer.is_needed()


def test_what_is_listed_again_is_held_to_the_lease_of_now(host: Host) -> None:
    running = host.process(f"pids/{ID}")
    host.put(web={ID})
    host.look()
    host.file.unlink()
    host.look()
    host.put(Lease(LEASE.heard_ns + 20 * SECOND, LEASE.lease_ns, LEASE.stop_bound_ns), web={ID})
    host.now_ns = LEASE.kill_at_ns
    host.look()
    assert running.poll() is None


def test_a_file_that_cannot_be_read_is_taken_for_what_it_was(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.put(web={ID})
    host.look()
    host.file.write_text("{")
    host.now_ns = LEASE.kill_at_ns
    running = host.process(f"pids/{ID}")
    assert host.look() == KILL_S
    assert running.wait(5) == -9
    host.look()
    assert capsys.readouterr().err.count("can't be read") == 1


def test_the_kernels_own_kill_is_used_where_there_is_one_and_a_freezer_is_let_go(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "100"])
    for name, text in (("cgroup.procs", f"0\n1\n{child.pid}\n"), ("cgroup.kill", ""), ("freezer.state", "FROZEN")):
        (tmp_path / name).write_text(text)
    assert kill_cgroup(tmp_path) == [child.pid]
    assert child.wait(5) == -9
    assert ((tmp_path / "cgroup.kill").read_text(), (tmp_path / "freezer.state").read_text()) == ("1", "THAWED")


def test_without_an_id_no_cgroup_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert list(find_cgroups(tmp_path, ())) == []


async def test_as_a_program_it_runs_once_and_ends_by_itself(tmp_path: Path) -> None:
    now_ns = boot_ns()
    program = DetachedFencer(tmp_path)
    (tmp_path / FENCE_FILE).write_bytes(
        encode(Fence(boot_id(), Lease(now_ns, 60 * SECOND, 60 * SECOND), {"web": frozenset()}))
    )
    try:
        assert await program.keep_up() == ""
        pid = (tmp_path / "fencer.pid").read_text()
        assert await DetachedFencer(tmp_path).keep_up() == ""
        second = subprocess.run([sys.executable, "-m", "agent.fencer", str(tmp_path)], timeout=20, check=False)
        assert second.returncode == 0
        assert (tmp_path / "fencer.pid").read_text() == pid
        assert program.is_left()
        (tmp_path / FENCE_LOCK).unlink()
        assert await program.keep_up() == ""  # it takes the new one
        (tmp_path / FENCE_FILE).write_bytes(encode(Fence(boot_id(), Lease(now_ns, 60 * SECOND, 60 * SECOND), {})))
        deadline = time.monotonic() + 10
        while program.is_left():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "nothing is bound to the lease any more" in (tmp_path / "fencer.log").read_text()
    finally:
        await program.end()


async def test_a_fencer_that_cannot_start_says_why(tmp_path: Path) -> None:
    program = DetachedFencer(tmp_path)  # without a file, there is nothing to watch
    try:
        assert "the fencer ended at once" in await program.keep_up()
    finally:
        await program.end()
