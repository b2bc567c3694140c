"""Images made on this machine: a pause image from catatonit and a demo image from the static busybox, as OCI archives.

Nothing is fetched and nothing is committed: the programs are copied from the machine's own packages. One rule: the same
inputs give the same bytes, so that an image's digest says whether it must be imported again.

    python -m agent.oci --out DIR
"""

import argparse
import hashlib
import io
import json
import os
import platform
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAUSE_IMAGE = "kakuri.local/pause:1.0"
DEMO_IMAGE = "kakuri.local/demo:1.0"
PAUSE_ARCHIVE = "pause.tar"
DEMO_ARCHIVE = "demo.tar"
BUSYBOX = Path("/bin/busybox")
CATATONIT = Path("/usr/bin/catatonit")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_PT_INTERP = 3
_DEMO_PAGE = "<!doctype html>\n<title>kakuri</title>\n<p>kakuri demo: it works.\n"
_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS = "root:x:0:\nnobody:x:65534:\n"


class ImageError(Exception):
    """An image can't be built or read here; the message says what to do."""


@dataclass(frozen=True)
class Entry:
    """One path of a layer. A folder has neither content nor target; a link has a target."""

    path: str
    mode: int = 0o755
    content: bytes | None = None
    target: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """What a container of the image does when its workload doesn't say."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"


def build_images(folder: Path, *, busybox: Path = BUSYBOX, catatonit: Path = CATATONIT) -> list[Path]:
    """Both archives are in the folder. Returns their paths, pause first."""
    return [build_pause(folder, catatonit=catatonit), build_demo(folder, busybox=busybox, catatonit=catatonit)]


def build_pause(folder: Path, *, catatonit: Path = CATATONIT) -> Path:
    """The image of the container that only holds a pod's namespaces is in the folder."""
    program = read_static(catatonit, package="catatonit")
    path = folder / PAUSE_ARCHIVE
    write_archive(path, PAUSE_IMAGE, [Entry("catatonit", content=program)], RunConfig(["/catatonit", "-P"]))
    return path


def build_demo(folder: Path, *, busybox: Path = BUSYBOX, catatonit: Path = CATATONIT) -> Path:
    """The image of the examples is in the folder: busybox with all its applets. It serves /www on port 8080 unless told
    otherwise. Its entrypoint is catatonit, so that a command given as args alone ends at once when it is stopped: the
    kernel drops a SIGTERM for a first process that has not asked for it.
    """
    program = read_static(busybox, package="busybox-static")
    init = read_static(catatonit, package="catatonit")
    entries = [
        *(Entry(name) for name in ("bin", "dev", "etc", "proc", "root", "sys", "www")),
        Entry("tmp", mode=0o1777),
        Entry("bin/busybox", content=program),
        Entry("bin/catatonit", content=init),
        *(Entry(f"bin/{name}", target="busybox") for name in _applets(busybox) if name != "busybox"),
        Entry("etc/group", mode=0o644, content=_GROUPS.encode()),
        Entry("etc/passwd", mode=0o644, content=_ACCOUNTS.encode()),
        Entry("www/index.html", mode=0o644, content=_DEMO_PAGE.encode()),
    ]
    config = RunConfig(
        entrypoint=["/bin/catatonit", "--"],
        command=["/bin/httpd", "-f", "-p", "8080", "-h", "/www"],
        env={"PATH": "/bin"},
    )
    path = folder / DEMO_ARCHIVE
    write_archive(path, DEMO_IMAGE, entries, config)
    return path


def read_static(path: Path, *, package: str) -> bytes:
    """The program's bytes. ImageError when it isn't there, or would need a loader that the image doesn't hold."""
    try:
        program = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; install it with: apt-get install {package}") from error
    if not is_static(program):
        raise ImageError(f"{path}: not a static program; install one with: apt-get install {package}")
    return program


def is_static(program: bytes) -> bool:
    """Whether these are the bytes of an ELF program that asks for no loader (has no PT_INTERP header)."""
    if program[:4] != b"\x7fELF" or len(program) < 64:
        return False
    order = "<" if program[5] == 1 else ">"
    if program[4] == 2:
        (table,), (size, count) = (struct.unpack_from(f"{order}{f}", program, at) for f, at in (("Q", 32), ("HH", 54)))
    else:
        (table,), (size, count) = (struct.unpack_from(f"{order}{f}", program, at) for f, at in (("I", 28), ("HH", 42)))
    if table + size * count > len(program):
        return False
    return all(struct.unpack_from(f"{order}I", program, table + size * i)[0] != _PT_INTERP for i in range(count))


def write_archive(path: Path, name: str, entries: Iterable[Entry], config: RunConfig) -> None:
    """The archive is at the path, whole or not at all, its one image named so."""
    layer = _layer(entries)
    layer_descriptor = _descriptor(_LAYER_TYPE, layer)
    config_blob = _json(_image_config(config, layer_descriptor["digest"]))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(_CONFIG_TYPE, config_blob),
            "layers": [layer_descriptor],
        }
    )
    named = _descriptor(_MANIFEST_TYPE, manifest) | {
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        },
    }
    index = _json({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [named]})
    blobs = [Entry(f"blobs/sha256/{_sha256(blob)}", 0o644, blob) for blob in (config_blob, layer, manifest)]
    archive = _layer(
        [
            Entry("oci-layout", 0o644, _json({"imageLayoutVersion": "1.0.0"})),
            Entry("index.json", 0o644, index),
            Entry("blobs"),
            Entry("blobs/sha256"),
            *sorted(blobs, key=lambda blob: blob.path),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_bytes(archive)
    half.replace(path)


def archive_images(path: Path) -> dict[str, str]:
    """Name → id of each image that the archive names: its config's digest, as CRI tells it.

    The id is empty when it depends on the machine (an image for several). Archives of other makers may name none.
    """
    try:
        with tarfile.open(path) as archive:
            return dict(_named(archive)) if "index.json" in archive.getnames() else {}
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise ImageError(f"{path}: not an OCI image archive: {error}") from error


def _named(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    for descriptor in _read_json(archive, "index.json").get("manifests", []):
        name = descriptor.get("annotations", {}).get("io.containerd.image.name")
        if name:
            manifest = _read_json(archive, f"blobs/{descriptor['digest'].replace(':', '/')}")
            yield name, manifest.get("config", {}).get("digest", "")


def _read_json(archive: tarfile.TarFile, name: str) -> Any:
    stream = archive.extractfile(name)
    return json.load(stream) if stream else {}


def _applets(busybox: Path) -> list[str]:
    # The program was just checked to be a static ELF file that root installed.
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    if listed.returncode:
        raise ImageError(f"{busybox} --list: {listed.stderr.strip() or f'exit code {listed.returncode}'}")
    return sorted(set(listed.stdout.split()))


def _layer(entries: Iterable[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            member.mode = entry.mode
            if entry.target is not None:
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
            elif entry.content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(entry.content)
            archive.addfile(member, io.BytesIO(entry.content or b""))
    return buffer.getvalue()


def _image_config(config: RunConfig, layer_digest: str) -> dict[str, Any]:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ImageError(f"images can't be built for the machine type {machine!r}; known: {known}")
    return {
        "architecture": _ARCHITECTURES[machine],
        "os": "linux",
        "config": {
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.command),
            "Env": [f"{key}={value}" for key, value in sorted(config.env.items())],
            "WorkingDir": config.working_dir,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{_sha256(blob)}", "size": len(blob)}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.oci", description="Build the pause and demo images.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to put pause.tar and demo.tar in")
    folder: Path = parser.parse_args(argv).out
    try:
        paths = build_images(folder)
    except (ImageError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.writelines(f"{path} {' '.join(archive_images(path))}\n" for path in paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
