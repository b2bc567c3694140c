"""Why a private containerd can't run here, in words that say what to do."""

from pathlib import Path

import pytest

from agent import prerequisites
from agent.prerequisites import can_run


@pytest.fixture(autouse=True)
def _fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where it can run; each test takes one thing away."""
    monkeypatch.setattr(prerequisites.sys, "platform", "linux")
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 0)
    monkeypatch.setattr(prerequisites, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(prerequisites, "cni_folder", lambda: Path("/usr/lib/cni"))
    monkeypatch.setattr(prerequisites, "_has_capability", lambda number: True)
    monkeypatch.setattr(prerequisites, "_CGROUPS", tmp_path)
    (tmp_path / "memory").mkdir()


def test_it_can_where_all_is_there() -> None:
    assert can_run() is None


def test_it_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.sys, "platform", "darwin")
    assert can_run() == "containerd needs Linux, and this is darwin"


def test_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 1000)
    assert can_run() == "containerd needs root, and this process is not root's"


def test_every_missing_package_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "find_program", lambda name: None if "c" in name else f"/usr/bin/{name}")
    monkeypatch.setattr(prerequisites, "cni_folder", lambda: None)
    assert can_run() == (
        "not installed: catatonit, containerd, runc, containernetworking-plugins; "
        "install with: apt-get install catatonit containerd runc containernetworking-plugins"
    )


def test_a_root_without_powers_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "_has_capability", lambda number: False)
    assert (
        can_run() == "containerd needs CAP_SYS_ADMIN, which this root doesn't have (a container without --privileged?)"
    )


def test_memory_limits_must_be_kept(tmp_path: Path) -> None:
    (tmp_path / "memory").rmdir()
    (tmp_path / "cpu").mkdir()
    assert can_run() == f"{tmp_path}/memory: the memory controller is not mounted, so memory limits can't be kept"
    (tmp_path / "cpu").rmdir()
    assert can_run() == f"{tmp_path}: cgroups are not mounted"


@pytest.mark.parametrize(
    ("handed_down", "processes", "namespaced", "fits"),
    [
        pytest.param("cpu memory pids", "1\n", True, True, id="handed down already"),
        pytest.param("", "", True, True, id="no process in the way"),
        pytest.param("", "1\n", False, True, id="the machine's own root may have processes"),
        pytest.param("pids", "1\n", True, False, id="processes in the way inside a namespace"),
    ],
)
def test_controllers_can_be_handed_down(
    tmp_path: Path, handed_down: str, processes: str, namespaced: bool, fits: bool
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.subtree_control").write_text(handed_down)
    (tmp_path / "cgroup.procs").write_text(processes)
    if namespaced:
        (tmp_path / "cgroup.type").write_text("domain")
    why = can_run()
    assert (why is None) is fits
    assert fits or "the controllers cpu, memory can't be handed down" in str(why)
