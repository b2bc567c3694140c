"""A private containerd's configuration as text. PURE: the same machine and places give the same text, so that a
difference means that a running containerd must be started again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.handlers import RuntimeHandler
from agent.oci import PAUSE_IMAGE
from agent.places import Places
from agent.prerequisites import Kernel

# Ours alone needs no host-wide sockets, other snapshotters, or tracing; each would cost start-up time or clash with a
# containerd that the machine has already.
_DISABLED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)
_CRI_PLUGIN = "io.containerd.grpc.v1.cri"
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024


def containerd_config(places: Places, kernel: Kernel, handlers: Sequence[RuntimeHandler], *, cni_folder: Path) -> str:
    """The TOML that containerd reads (version 2 of its format, which 1.6 to 2.x know)."""
    cri = {
        "sandbox_image": PAUSE_IMAGE,
        # AppArmor is used wherever containerd could load its profile.
        "disable_apparmor": not kernel.apparmor,
        "restrict_oom_score_adj": not kernel.lowers_oom_scores,
        # Under state, so that no other containerd's namespaces can be mistaken for ours.
        "netns_mounts_under_state_dir": True,
        "stream_server_address": "127.0.0.1",
        "cni": {"bin_dir": str(cni_folder), "conf_dir": str(places.cni)},
        "registry": {"config_path": str(places.registries)},
        "containerd": {
            "snapshotter": "overlayfs" if kernel.overlay else "native",
            "default_runtime_name": "runc",
            "runtimes": {handler.name: _runtime(handler) for handler in handlers},
        },
    }
    config = {
        "version": 2,
        "root": str(places.root),
        "state": str(places.state),
        "disabled_plugins": list(_DISABLED),
        "grpc": {
            "address": str(places.socket),
            "max_recv_message_size": _MAX_MESSAGE_BYTES,
            "max_send_message_size": _MAX_MESSAGE_BYTES,
        },
        "ttrpc": {"address": f"{places.socket}.ttrpc"},
        "debug": {"level": "warn"},
        "plugins": {_CRI_PLUGIN: cri},
    }
    return to_toml(config)


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of nested tables of strings, numbers, booleans and lists of these. Every key is quoted."""
    return "\n".join(_lines(table, ())) + "\n"


def _runtime(handler: RuntimeHandler) -> dict[str, Any]:
    runtime: dict[str, Any] = {"runtime_type": handler.runtime_type}
    if handler.privileged_without_host_devices:
        runtime["privileged_without_host_devices"] = True
    if handler.options:
        runtime["options"] = dict(handler.options)
    return runtime


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    # A table's own values must stand before its sub-tables.
    lines = [f"{json.dumps(key)} = {json.dumps(v)}" for key, v in table.items() if not isinstance(v, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, key)
            lines += ["", f"[{'.'.join(json.dumps(part) for part in inner)}]", *_lines(value, inner)]
    return lines
