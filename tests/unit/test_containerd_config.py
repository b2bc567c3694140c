"""What a private containerd is told, the network it gets, and the wrapper that makes Debian's runsc speak as runc."""

import json
import os
import signal
import subprocess
import tomllib
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from agent import cni, handlers
from agent.cni import NetworkError, choose_block, conflist, routes, write_network
from agent.containerd_config import containerd_config, to_toml
from agent.handlers import RuntimeHandler, find_handlers
from agent.noting_wrapper import noting_script
from agent.places import Places, socket_path
from agent.prerequisites import Kernel
from agent.runsc_wrapper import wrapper_script

KERNEL = Kernel(cgroup_v2=True, apparmor=True, lowers_oom_scores=True, overlay=True)
RUNC = RuntimeHandler("runc", "io.containerd.runc.v2", {"BinaryName": "/usr/sbin/runc", "SystemdCgroup": False})
KATA = RuntimeHandler("kata", "io.containerd.kata.v2", privileged_without_host_devices=True)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places.of(tmp_path / "state", volatile_root=tmp_path / "run")


def cri_of(text: str) -> dict[str, Any]:
    cri: dict[str, Any] = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    return cri


def test_everything_of_a_containerd_lies_in_its_own_places(places: Places) -> None:
    config = tomllib.loads(containerd_config(places, KERNEL, [RUNC], cni_folder=Path("/usr/lib/cni")))
    assert config["version"] == 2
    assert config["root"] == str(places.root)
    assert config["state"] == str(places.state)
    assert config["grpc"]["address"] == str(places.socket)
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["cni"] == {"bin_dir": "/usr/lib/cni", "conf_dir": str(places.cni)}
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["sandbox_image"] == "kakuri.local/pause:1.0"


@pytest.mark.parametrize(
    ("kernel", "key", "value"),
    [
        pytest.param(KERNEL, "disable_apparmor", False, id="AppArmor is used where it is there"),
        pytest.param(Kernel(True, False, True, True), "disable_apparmor", True, id="and left where it isn't"),
        pytest.param(KERNEL, "restrict_oom_score_adj", False, id="scores are lowered where we may"),
        pytest.param(Kernel(True, True, False, True), "restrict_oom_score_adj", True, id="and not where we may not"),
    ],
)
def test_the_config_follows_the_kernel(places: Places, kernel: Kernel, key: str, value: bool) -> None:
    assert cri_of(containerd_config(places, kernel, [RUNC], cni_folder=Path("/x")))[key] is value


def test_without_overlays_snapshots_are_copies(places: Places) -> None:
    for overlay, snapshotter in ((True, "overlayfs"), (False, "native")):
        text = containerd_config(places, Kernel(True, True, True, overlay), [RUNC], cni_folder=Path("/x"))
        assert cri_of(text)["containerd"]["snapshotter"] == snapshotter


def test_each_handler_is_a_runtime_of_its_name(places: Places) -> None:
    runtimes = cri_of(containerd_config(places, KERNEL, [RUNC, KATA], cni_folder=Path("/x")))["containerd"]["runtimes"]
    assert runtimes == {
        "runc": {
            "runtime_type": "io.containerd.runc.v2",
            "options": {"BinaryName": "/usr/sbin/runc", "SystemdCgroup": False},
        },
        "kata": {"runtime_type": "io.containerd.kata.v2", "privileged_without_host_devices": True},
    }


def test_toml_survives_quotes_and_backslashes_in_keys_and_values() -> None:
    table = {'a "key".x': 'C:\\dir "q" ü\n', "list": ["a", "b"], "sub": {"deep": {"n": 1, "yes": True}, "z": 2}}
    assert tomllib.loads(to_toml(table)) == table


def test_two_state_dirs_share_no_path_name_or_bridge(tmp_path: Path) -> None:
    one, two = Places.of(tmp_path / "one"), Places.of(tmp_path / "two")
    assert one.volatile != two.volatile
    assert one.network != two.network
    assert one.cgroup != two.cgroup
    assert len(one.network) <= 15


def test_a_socket_path_is_short_however_deep_the_state_dir_lies(tmp_path: Path) -> None:
    assert len(str(Places.of(tmp_path / ("deep/" * 100)).socket)) <= 107
    wanted = Path("/srv") / ("x" * 90) / "fake" / "cri.sock"
    assert socket_path(wanted, Path("/tmp/k")) != wanted
    assert socket_path(Path("/srv/cri.sock"), Path("/tmp/k")) == Path("/srv/cri.sock")
    assert socket_path(wanted, Path("/tmp/k")) != socket_path(wanted.parent.parent / "other/cri.sock", Path("/tmp/k"))


def test_the_network_masquerades_and_maps_ports_on_a_bridge_of_its_own(places: Places) -> None:
    network = json.loads(conflist(places, IPv4Network("10.176.4.0/22")))
    bridge, portmap = network["plugins"]
    assert network["name"] == bridge["bridge"] == places.network
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.176.4.0/22"}]]
    assert bridge["ipam"]["dataDir"] == str(places.addresses)
    assert bridge["ipMasq"] is True
    assert portmap["capabilities"] == {"portMappings": True}


def test_the_block_is_the_keys_own_unless_something_has_it() -> None:
    own = choose_block("00000007", [])
    assert own == IPv4Network("10.176.28.0/22")
    assert choose_block("00000007", [IPv4Network("10.176.30.0/24")]) == IPv4Network("10.176.32.0/22")
    assert choose_block("ffffffff", [IPv4Network("10.191.252.0/22")]) == IPv4Network("10.176.0.0/22")


def test_no_free_block_is_an_error_that_names_the_range() -> None:
    with pytest.raises(NetworkError, match=r"10\.176\.0\.0/12"):
        choose_block("00000000", [IPv4Network("10.0.0.0/8")])


def test_routes_are_read_without_the_default_one_and_our_own() -> None:
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "kakuri-1\t0000B00A\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0\n"
    )
    assert routes(table, but="kakuri-1") == [IPv4Network("192.0.2.0/24")]
    assert routes(table, but="") == [IPv4Network("192.0.2.0/24"), IPv4Network("10.176.0.0/22")]


def test_a_block_is_kept_while_pods_may_hold_its_addresses(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    block = write_network(places)
    monkeypatch.setattr(cni, "routes", lambda text, *, but: [block])
    assert write_network(places) == block
    # After a reboot nothing runs: a route that came to have it since gets its way.
    (places.volatile / "subnet").unlink()
    assert write_network(places) != block


def test_a_block_that_another_state_dir_claims_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Places.of(tmp_path / name, volatile_root=tmp_path / "run") for name in ("one", "two"))
    monkeypatch.setattr(cni, "choose_block", lambda key, taken: choose_block("00000001", taken))
    assert not write_network(one).overlaps(write_network(two))


def test_what_isnt_installed_is_unavailable_with_what_to_do(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "find_program", lambda name: None)
    monkeypatch.setattr(handlers, "EDERA_SOCKET", Path("/nowhere/cri.socket"))
    found = find_handlers(places)
    assert found.handlers == ()
    assert found.unavailable == {
        "runc": "runc: not installed; install it with: apt-get install runc",
        "runsc": "runsc: gVisor is not installed; install it with: apt-get install runsc",
        "kata": "kata: containerd-shim-kata-v2 is not installed; see https://katacontainers.io",
        "crun": "crun: not installed; install it with: apt-get install crun",
        "edera": "edera: no Edera runtime found at /nowhere/cri.socket",
    }


def test_runsc_runs_under_its_own_shim_where_there_is_one(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(handlers, "is_cgroup_v2", lambda: True)
    by_name = {handler.name: handler for handler in find_handlers(places, "ptrace").handlers}
    assert by_name["runsc"].runtime_type == "io.containerd.runsc.v1"
    assert by_name["runsc"].options["ConfigPath"] == str(places.runsc_config)
    assert by_name["crun"].options["BinaryName"] == str(places.wrapper("crun"))
    assert [by_name[name].is_wrapped(places) for name in ("runc", "crun", "runsc")] == [True, True, False]


def test_runsc_without_a_shim_runs_under_runcs_by_the_wrapper(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"runc", "runsc", "crun"}
    monkeypatch.setattr(handlers, "find_program", lambda name: f"/usr/bin/{name}" if name in there else None)
    monkeypatch.setattr(handlers, "is_cgroup_v2", lambda: False)
    found = find_handlers(places)
    by_name = {handler.name: handler for handler in found.handlers}
    assert by_name["runsc"].runtime_type == "io.containerd.runc.v2"
    assert by_name["runsc"].options["BinaryName"] == str(places.runsc)
    assert "cgroup v2" in found.unavailable["crun"]


class Wrapped:
    """The wrapper with programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.bundle = folder / "bundle with blank"
        self.starts = folder / "starts with blank"
        for path in (self.root, self.bundle, self.starts):
            path.mkdir()
        for name in ("runc", "runsc"):
            self.program(name, "")
        self.wrapper = folder / "wrapper"
        self.wrapper.write_text(
            wrapper_script(
                runc=str(folder / "runc"), runsc=str(folder / "runsc"), platform="systrap", starts=self.starts
            )
        )
        self.wrapper.chmod(0o755)

    def program(self, name: str, then: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\nfor word do echo "$word"; done >"{self.folder}/{name}.called"\n{then}\n')
        path.chmod(0o755)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        flags = ["--root", str(self.root), "--log", str(self.bundle / "log.json"), "--log-format", "json"]
        return subprocess.run(
            [self.wrapper, *flags, *arguments], capture_output=True, text=True, timeout=10, check=False
        )

    def called(self, name: str) -> list[str] | None:
        path = self.folder / f"{name}.called"
        return path.read_text().splitlines() if path.exists() else None

    def write_bundle(self, annotations: dict[str, str]) -> None:
        config = {
            "annotations": annotations,
            "process": {"args": ["sh"], "env": ['X="io.kubernetes.cri.sandbox-id":"x"']},
        }
        (self.bundle / "config.json").write_text(json.dumps(config, separators=(",", ":")))


@pytest.fixture
def wrapped(tmp_path: Path) -> Wrapped:
    return Wrapped(tmp_path)


def test_a_pods_first_container_is_created_by_runc(wrapped: Wrapped) -> None:
    wrapped.write_bundle({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"})
    assert wrapped("create", "--bundle", str(wrapped.bundle), "s").returncode == 0
    assert wrapped.called("runc") is not None
    assert wrapped.called("runsc") is None


def test_a_container_is_created_by_runsc_as_a_sandbox_of_its_own(wrapped: Wrapped) -> None:
    wrapped.write_bundle(
        {
            "io.kubernetes.cri.container-name": "main",
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "s",
            "io.kubernetes.cri.sandbox-uid": "u",
        }
    )
    assert wrapped("create", "--bundle", str(wrapped.bundle), "--pid-file", "p", "c").returncode == 0
    called = wrapped.called("runsc")
    assert called is not None
    assert called[:2] == ["--network=host", "--platform=systrap"]
    assert called[-1] == "c"
    config = json.loads((wrapped.bundle / "config.json").read_text())
    assert config["annotations"] == {
        "io.kubernetes.cri.container-name": "main",
        "dev.kakuri.cri.container-type": "container",
        "dev.kakuri.cri.sandbox-id": "s",
        "io.kubernetes.cri.sandbox-uid": "u",
    }
    assert config["process"]["env"] == ['X="io.kubernetes.cri.sandbox-id":"x"']


@pytest.mark.parametrize(
    "arguments", [["start", "x"], ["kill", "--all", "x", "9"], ["kill", "x", "15"], ["delete", "--force", "x"]]
)
def test_what_runc_created_stays_with_runc(wrapped: Wrapped, arguments: list[str]) -> None:
    assert wrapped(*arguments).returncode == 0
    assert wrapped.called("runc") is None
    (wrapped.root / "x").mkdir()
    (wrapped.root / "x" / "state.json").touch()
    wrapped(*arguments)
    assert wrapped.called("runc") is not None


def test_start_returns_though_a_child_keeps_the_output_open(wrapped: Wrapped) -> None:
    wrapped.program("runsc", f"sleep 60 & echo $! >{wrapped.folder}/pid")
    # The call's own deadline is far shorter than the child's life.
    assert wrapped("start", "c").returncode == 0
    assert not (wrapped.bundle / "log.json.start").exists()
    os.kill(int((wrapped.folder / "pid").read_text()), signal.SIGKILL)


def test_a_failed_start_says_why(wrapped: Wrapped) -> None:
    wrapped.program("runsc", "echo no such file >&2; exit 128")
    done = wrapped("start", "c")
    assert (done.returncode, done.stderr) == (128, "no such file\n")


def test_a_start_is_noted_before_it_begins_and_never_made_twice(wrapped: Wrapped) -> None:
    wrapped.program("runsc", f"ls '{wrapped.starts}'; exit 1")
    assert wrapped("start", "c").stderr == "c\n"
    (wrapped.folder / "runsc.called").unlink()
    again = wrapped("start", "c")
    assert (again.returncode, again.stderr) == (1, "its start had begun before, and it is not started twice\n")
    assert wrapped.called("runsc") is None


def test_a_start_that_can_not_be_noted_is_not_made(wrapped: Wrapped) -> None:
    wrapped.starts.rmdir()
    assert wrapped("start", "c").returncode != 0
    assert wrapped.called("runsc") is None


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("sandbox is not running", "container not running\n"),
        ("something else", "something else\n"),
    ],
)
def test_kill_says_that_it_ended_in_the_shims_words(wrapped: Wrapped, said: str, heard: str) -> None:
    wrapped.program("runsc", f"echo {said!r} >&2; exit 128")
    done = wrapped("kill", "c", "9")
    assert (done.returncode, done.stderr) == (128, heard)


def test_kill_ends_what_was_created_and_never_started(wrapped: Wrapped) -> None:
    wrapped.program("runsc", "echo 'cannot signal container \"c\" in state created' >&2; exit 128")
    with subprocess.Popen(["sleep", "60"]) as sandbox:
        (wrapped.bundle / "init.pid").write_text(str(sandbox.pid))
        assert wrapped("kill", "--all", "c", "9").returncode == 0
        assert sandbox.wait(5) == -9


@pytest.fixture
def noting(wrapped: Wrapped) -> Wrapped:
    """The wrapper before runc, which only notes starts."""
    wrapped.wrapper.write_text(noting_script(program=str(wrapped.folder / "runc"), starts=wrapped.starts))
    return wrapped


def test_runc_is_called_as_the_shim_calls_it_and_only_starts_are_noted(noting: Wrapped) -> None:
    for arguments in (
        ["create", "--bundle", "a bundle", "--pid-file", "p", "c"],
        ["exec", "--process", "start", "--detach", "c"],
        ["kill", "--all", "c", "9"],
        ["delete", "--force", "c"],
    ):
        assert noting(*arguments).returncode == 0
        called = noting.called("runc")
        assert called is not None
        assert called[:2] == ["--root", str(noting.root)]
        assert called[-len(arguments) :] == arguments
    assert not list(noting.starts.iterdir())


def test_a_start_by_runc_is_noted_before_it_begins_and_never_made_twice(noting: Wrapped) -> None:
    noting.program("runc", f"ls '{noting.starts}' >&2; exit 7")
    first = noting("start", "c")
    assert (first.returncode, first.stderr) == (7, "c\n")
    (noting.folder / "runc.called").unlink()
    again = noting("start", "c")
    assert (again.returncode, again.stderr) == (1, "its start had begun before, and it is not started twice\n")
    assert noting.called("runc") is None


def test_a_start_by_runc_that_can_not_be_noted_is_not_made(noting: Wrapped) -> None:
    noting.starts.rmdir()
    assert noting("start", "c").returncode != 0
    assert noting.called("runc") is None
