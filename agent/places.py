"""Where a private containerd keeps what it has. One rule: what a reboot ends is under /run, the rest in the state dir.

A socket's path has at most 107 bytes, and a state dir may be anywhere; so /run/kakuri/<hash of the state dir> stands
for it there, and the same hash names its bridge, network and cgroup. Two state dirs never share anything.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

VOLATILE = Path("/run/kakuri")
NAMESPACE = "k8s.io"  # the containerd namespace that CRI uses

_MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class Places:
    """The paths and names of one private containerd."""

    state_dir: Path
    volatile: Path
    key: str

    @classmethod
    def of(cls, state_dir: Path, volatile_root: Path = VOLATILE) -> "Places":
        whole = state_dir.resolve()
        key = short_hash(whole)
        return cls(whole, volatile_root / key, key)

    @property
    def folder(self) -> Path:
        return self.state_dir / "containerd"

    @property
    def images(self) -> Path:
        """Archives put here are imported when the runtime starts or is adopted."""
        return self.state_dir / "images"

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def pid_file(self) -> Path:
        return self.folder / "containerd.pid"

    @property
    def log(self) -> Path:
        return self.folder / "containerd.log"

    @property
    def root(self) -> Path:
        """Images, snapshots and the metadata of what runs."""
        return self.folder / "root"

    @property
    def registries(self) -> Path:
        """A person may put <host>/hosts.toml here."""
        return self.folder / "certs.d"

    @property
    def cni(self) -> Path:
        return self.folder / "net.d"

    @property
    def runsc(self) -> Path:
        """The wrapper; not under /run, which many machines mount noexec."""
        return self.wrapper("runsc")

    def wrapper(self, name: str) -> Path:
        """What stands before the program of this name."""
        return self.folder / "bin" / name

    @property
    def runsc_config(self) -> Path:
        """What a runsc that has a shim of its own is told."""
        return self.folder / "runsc.toml"

    @property
    def socket(self) -> Path:
        return self.volatile / "containerd.sock"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket}"

    @property
    def state(self) -> Path:
        return self.volatile / "state"

    @property
    def bundles(self) -> Path:
        """Containerd's folder for each container that runs, and for what is left of one."""
        return self.state / "io.containerd.runtime.v2.task" / NAMESPACE

    @property
    def runc_root(self) -> Path:
        return self.volatile / "runc"

    @property
    def notes(self) -> Path:
        """What is on record of containers apart from containerd; agent/notes.py knows of what."""
        return self.volatile / "notes"

    @property
    def addresses(self) -> Path:
        return self.volatile / "ipam"

    @property
    def network(self) -> str:
        """Name of the CNI network and of its bridge; a network interface has at most 15 characters."""
        return f"kakuri-{self.key}"

    @property
    def cgroup(self) -> str:
        """The parent of every pod's cgroup, if the pod's config asks for it."""
        return f"/kakuri-{self.key}"


def short_hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]


def socket_path(wanted: Path, fallback_root: Path) -> Path:
    """The path itself when a Unix socket can have it, else a short one that stands for it under the fallback."""
    if len(str(wanted).encode()) <= _MAX_SOCKET_PATH:
        return wanted
    return fallback_root / short_hash(wanted) / wanted.name
