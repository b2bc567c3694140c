"""Which CRI handlers a private containerd is given on this machine, and for each other known one, why not.

One rule: a handler is named only when all that it needs is there; whether it works, a canary sandbox must show.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.files import put_file
from agent.notes import Notes
from agent.noting_wrapper import noting_script
from agent.places import Places
from agent.prerequisites import find_program, is_cgroup_v2
from agent.runsc_wrapper import wrapper_script

GvisorPlatform = Literal["systrap", "ptrace"]
"""How gVisor catches a workload's system calls. systrap, gVisor's own choice: 8 µs a call, and about 5% of a core for
each sandbox that is idle. ptrace: 84 µs a call, 0.2% idle. So ptrace suits many that mostly wait."""
EDERA_SOCKET = Path("/var/lib/edera/protect/cri.socket")

_RUNC_SHIM = "io.containerd.runc.v2"
_NOTED = ("runc", "crun")
"""Whose starts a wrapper notes, and changes nothing."""
_KVM = Path("/dev/kvm")


@dataclass(frozen=True)
class RuntimeHandler:
    """One entry of containerd's list of runtimes."""

    name: str
    runtime_type: str
    options: Mapping[str, str | bool] = field(default_factory=dict)
    privileged_without_host_devices: bool = False

    def is_wrapped(self, places: Places) -> bool:
        """Whether all that its shim asks goes through a wrapper of ours."""
        return self.options.get("BinaryName") == str(places.wrapper(self.name))


@dataclass(frozen=True)
class FoundHandlers:
    handlers: tuple[RuntimeHandler, ...]
    unavailable: Mapping[str, str]
    """Handler → why it isn't there, in a sentence that begins with its name."""


def find_handlers(places: Places, platform: GvisorPlatform = "systrap") -> FoundHandlers:
    """Every known handler, found or not. Changes nothing; write_wrappers makes what some need."""
    found: list[RuntimeHandler] = []
    unavailable: dict[str, str] = {}
    for name, outcome in (
        ("runc", _runc(places)),
        ("runsc", _runsc(places, platform)),
        ("kata", _kata()),
        ("crun", _crun(places)),
        ("edera", _edera()),
    ):
        match outcome:
            case str(why):
                unavailable[name] = f"{name}: {why}"
            case handler:
                found.append(handler)
    return FoundHandlers(tuple(found), unavailable)


def write_wrappers(places: Places, platform: GvisorPlatform) -> None:
    """The programs between runc's shim and what is installed of runc, crun and runsc are in their places."""
    starts = Notes(places.notes).starts
    found = {name: program for name in (*_NOTED, "runsc") if (program := find_program(name)) is not None}
    scripts = {name: noting_script(program=found[name], starts=starts) for name in _NOTED if name in found}
    if {"runc", "runsc"} <= found.keys():
        scripts["runsc"] = wrapper_script(runc=found["runc"], runsc=found["runsc"], platform=platform, starts=starts)
    for name, script in scripts.items():
        places.wrapper(name).parent.mkdir(parents=True, exist_ok=True)
        # By rename, for a shim may be starting it right now.
        put_file(places.wrapper(name), script.encode(), mode=0o755)


def write_runsc_config(places: Places, platform: GvisorPlatform) -> None:
    """The configuration that runsc's own shim reads is in its place."""
    places.runsc_config.parent.mkdir(parents=True, exist_ok=True)
    places.runsc_config.write_text(f'[runsc_config]\nplatform = "{platform}"\n')


def _runc(places: Places) -> RuntimeHandler | str:
    if find_program("runc") is None:
        return "not installed; install it with: apt-get install runc"
    return _under_runc_shim("runc", places)


def _runsc(places: Places, platform: GvisorPlatform) -> RuntimeHandler | str:
    if find_program("runsc") is None:
        return "gVisor is not installed; install it with: apt-get install runsc"
    if platform == "systrap" and not _has_seccomp():
        return "its platform systrap needs a kernel with seccomp filters; set the gVisor platform to ptrace"
    if find_program("containerd-shim-runsc-v1") is not None:
        options = {"TypeUrl": "io.containerd.runsc.v1.options", "ConfigPath": str(places.runsc_config)}
        return RuntimeHandler("runsc", "io.containerd.runsc.v1", options)
    return _under_runc_shim("runsc", places)


def _kata() -> RuntimeHandler | str:
    if find_program("containerd-shim-kata-v2") is None:
        return "containerd-shim-kata-v2 is not installed; see https://katacontainers.io"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return f"{_KVM} is not there, so no virtual machine can be started; turn on (nested) virtualization"
    return RuntimeHandler("kata", "io.containerd.kata.v2", privileged_without_host_devices=True)


def _crun(places: Places) -> RuntimeHandler | str:
    if find_program("crun") is None:
        return "not installed; install it with: apt-get install crun"
    if not is_cgroup_v2():
        return "it needs cgroup v2, and this machine's /sys/fs/cgroup is v1 or both; boot it with the unified hierarchy"
    return _under_runc_shim("crun", places)


def _edera() -> str:
    if EDERA_SOCKET.exists():
        return f"Edera has a CRI of its own; start the agent with --cri-endpoint unix://{EDERA_SOCKET}=edera"
    return f"no Edera runtime found at {EDERA_SOCKET}"


def _under_runc_shim(name: str, places: Places) -> RuntimeHandler:
    program = str(places.wrapper(name))
    options: dict[str, str | bool] = {"BinaryName": program, "Root": str(places.runc_root), "SystemdCgroup": False}
    return RuntimeHandler(name, _RUNC_SHIM, options)


def _has_seccomp() -> bool:
    return Path("/proc/sys/kernel/seccomp/actions_avail").exists()
