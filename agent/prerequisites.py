"""What a private containerd needs of the machine, and what of it this machine has. Asks, and changes nothing.

Packages are named as in Debian; elsewhere the program's own name will do.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")

_CGROUPS = Path("/sys/fs/cgroup")
_PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "catatonit": "catatonit",
    "iptables": "iptables",
    "ip": "iproute2",
}
_CAP_NET_ADMIN, _CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 12, 21, 24
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class Kernel:
    """How this machine's kernel is set up, as far as containerd's configuration depends on it."""

    cgroup_v2: bool
    apparmor: bool
    lowers_oom_scores: bool
    """Whether we may make a process less likely to be killed than we are."""
    overlay: bool
    """Whether an overlay can be mounted over the folder that was asked about."""


def can_run() -> str | None:
    """Why a private containerd can't run here and what would help; None when it can."""
    if sys.platform != "linux":
        return f"containerd needs Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "containerd needs root, and this process is not root's"
    missing = sorted({package for program, package in _PROGRAMS.items() if find_program(program) is None})
    if cni_folder() is None:
        missing.append("containernetworking-plugins")
    if missing:
        return f"not installed: {', '.join(missing)}; install with: apt-get install {' '.join(missing)}"
    for capability, name in ((_CAP_SYS_ADMIN, "CAP_SYS_ADMIN"), (_CAP_NET_ADMIN, "CAP_NET_ADMIN")):
        if not _has_capability(capability):
            return f"containerd needs {name}, which this root doesn't have (a container without --privileged?)"
    return _cgroup_obstacle()


def find_program(name: str) -> str | None:
    """The absolute path of a program, also where only root's PATH would have it."""
    return shutil.which(name, path=search_path())


def search_path() -> str:
    """PATH, and after it the folders of system programs, which a person's PATH may lack."""
    own = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, own), *_SYSTEM_FOLDERS]))


def cni_folder() -> Path | None:
    """The folder with every CNI plugin that a pod's network takes."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).is_file() for plugin in CNI_PLUGINS):
            return folder
    return None


def read_kernel(folder: Path) -> Kernel:
    """folder: where the snapshots will lie; it must exist."""
    return Kernel(
        cgroup_v2=is_cgroup_v2(),
        apparmor=_has_apparmor(),
        lowers_oom_scores=_has_capability(_CAP_SYS_RESOURCE),
        overlay=_mounts_overlay(folder),
    )


def is_cgroup_v2() -> bool:
    return (_CGROUPS / "cgroup.controllers").is_file()


def _cgroup_obstacle() -> str | None:
    if not _CGROUPS.is_dir() or not any(_CGROUPS.iterdir()):
        return f"{_CGROUPS}: cgroups are not mounted"
    probed = _CGROUPS if is_cgroup_v2() else _CGROUPS / "memory"
    if not probed.is_dir():
        return f"{probed}: the memory controller is not mounted, so memory limits can't be kept"
    if os.statvfs(probed).f_flag & os.ST_RDONLY:
        return f"{probed}: cgroups are mounted read-only (a container without --privileged?)"
    if is_cgroup_v2():
        return _controllers_obstacle()
    return None


def _controllers_obstacle() -> str | None:
    """In a cgroup namespace, controllers can't be handed down from a group that has processes of its own."""
    handed_down = set((_CGROUPS / "cgroup.subtree_control").read_text().split())
    lacking = {"cpu", "memory", "pids"} - handed_down
    is_real_root = not (_CGROUPS / "cgroup.type").exists()
    if not lacking or is_real_root or not (_CGROUPS / "cgroup.procs").read_text().strip():
        return None
    return (
        f"{_CGROUPS}: the controllers {', '.join(sorted(lacking))} can't be handed down while processes are in this "
        "group; move them to a child group first"
    )


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _has_apparmor() -> bool:
    # containerd asks the same three things before it loads its profile.
    try:
        enabled = Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False
    return enabled and Path("/sys/kernel/security/apparmor").is_dir() and find_program("apparmor_parser") is not None


@functools.cache
def _mounts_overlay(folder: Path) -> bool:
    # Trying is the only sure way: it depends on kernel, file system and, inside a container, on what that lies on.
    mount, umount = find_program("mount"), find_program("umount")
    if not mount or not umount:
        return False
    with tempfile.TemporaryDirectory(dir=folder, prefix=".overlay-") as probe:
        for name in ("lower", "upper", "work", "merged"):
            (Path(probe) / name).mkdir()
        options = ",".join(
            f"{kind}dir={name}" for kind, name in (("lower", "lower"), ("upper", "upper"), ("work", "work"))
        )
        if not _succeeds([mount, "-t", "overlay", "overlay", "-o", options, "merged"], Path(probe)):
            return False
        return _succeeds([umount, "merged"], Path(probe))


def _succeeds(argv: list[str], folder: Path) -> bool:
    # mount and umount by their absolute paths, on a folder made a moment ago.
    done = subprocess.run(argv, cwd=folder, capture_output=True, timeout=10, check=False)  # noqa: S603
    return done.returncode == 0
