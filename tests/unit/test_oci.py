"""OCI archives: the same bytes each time, with what containerd looks for, and only from programs that can run alone."""

import hashlib
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.oci import (
    DEMO_IMAGE,
    PAUSE_IMAGE,
    Entry,
    ImageError,
    RunConfig,
    archive_images,
    build_demo,
    build_pause,
    is_static,
    main,
    read_static,
    write_archive,
)


def elf(*header_types: int, bits: int = 64) -> bytes:
    """An ELF file with these program headers and nothing else."""
    if bits == 64:
        start = struct.pack(
            "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 62, 1, 0, 64, 0, 0, 64, 56, len(header_types), 0, 0, 0
        )
        return start + b"".join(struct.pack("<I52x", type_) for type_ in header_types)
    start = struct.pack(
        "<4sBBB9xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 2, 3, 1, 0, 52, 0, 0, 52, 32, len(header_types), 0, 0, 0
    )
    return start + b"".join(struct.pack("<I28x", type_) for type_ in header_types)


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A script would do for --list, but the image takes static programs alone: the machine's own, or none."""
    path = Path("/bin/busybox")
    if not path.exists() or not is_static(path.read_bytes()):
        pytest.skip("no static busybox here: apt-get install busybox-static")
    return path


@pytest.fixture
def catatonit(tmp_path: Path) -> Path:
    path = tmp_path / "catatonit"
    path.write_bytes(elf(1))
    return path


def read(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: stream.read() for m in tar if (stream := tar.extractfile(m)) is not None}


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    content = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    assert hashlib.sha256(content).hexdigest() == descriptor["digest"].removeprefix("sha256:")
    assert len(content) == descriptor["size"]
    return content


def opened(archive: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Manifest, config and layer, each checked against its digest and size."""
    files = read(archive)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [described] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blob(files, described))
    config = json.loads(blob(files, manifest["config"]))
    return manifest, config, blob(files, manifest["layers"][0])


@pytest.mark.parametrize(
    ("program", "static"),
    [
        pytest.param(elf(1, 1), True, id="64 bits, no loader"),
        pytest.param(elf(1, 3, 1), False, id="64 bits, asks for a loader"),
        pytest.param(elf(1, 1, bits=32), True, id="32 bits, no loader"),
        pytest.param(elf(3, bits=32) + bytes(64), False, id="32 bits, asks for a loader"),
        pytest.param(elf(1, 1)[:100], False, id="cut off"),
        pytest.param(b"#!/bin/sh\n" + b"x" * 100, False, id="a script"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_a_program_is_static_when_it_asks_for_no_loader(program: bytes, static: bool) -> None:
    assert is_static(program) is static


def test_a_missing_program_is_told_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere: No such file.*apt-get install busybox-static"):
        read_static(tmp_path / "nowhere", package="busybox-static")


def test_a_dynamic_program_is_refused_with_the_package_of_a_static_one(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(elf(3))
    with pytest.raises(ImageError, match=r"not a static program.*apt-get install busybox-static"):
        read_static(tmp_path / "busybox", package="busybox-static")


def test_the_pause_image_holds_one_program_and_starts_it_as_pause(tmp_path: Path, catatonit: Path) -> None:
    manifest, config, layer = opened(build_pause(tmp_path / "out", catatonit=catatonit))
    assert config["config"]["Entrypoint"] == ["/catatonit", "-P"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    assert config["os"] == "linux"
    assert catatonit.read_bytes() in layer


def test_an_archive_is_the_same_bytes_each_time(tmp_path: Path, catatonit: Path) -> None:
    first = build_pause(tmp_path / "one", catatonit=catatonit).read_bytes()
    os.utime(catatonit, (1, 1))
    assert build_pause(tmp_path / "two", catatonit=catatonit).read_bytes() == first


def test_the_demo_image_has_every_applet_and_serves_its_page(tmp_path: Path, busybox: Path, catatonit: Path) -> None:
    _, config, layer = opened(build_demo(tmp_path, busybox=busybox, catatonit=catatonit))
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        members = {m.name: m for m in tar}
    assert members["bin/sh"].linkname == "busybox"
    assert members["bin/httpd"].issym()
    assert members["tmp"].mode == 0o1777
    assert {"etc/passwd", "www/index.html", "proc", "sys"} <= members.keys()
    assert {(m.mtime, m.uid, m.gid) for m in members.values()} == {(0, 0, 0)}
    assert config["config"]["Entrypoint"] == ["/bin/catatonit", "--"]
    assert config["config"]["Cmd"][0] == "/bin/httpd"
    assert config["config"]["Env"] == ["PATH=/bin"]


def test_an_archive_tells_the_ids_of_its_images(tmp_path: Path, catatonit: Path) -> None:
    archive = build_pause(tmp_path, catatonit=catatonit)
    manifest, _, _ = opened(archive)
    assert archive_images(archive) == {PAUSE_IMAGE: manifest["config"]["digest"]}


def test_another_content_is_another_id(tmp_path: Path) -> None:
    for name, content in (("a.tar", b"a"), ("b.tar", b"b")):
        write_archive(tmp_path / name, DEMO_IMAGE, [Entry("file", 0o644, content)], RunConfig())
    assert archive_images(tmp_path / "a.tar") != archive_images(tmp_path / "b.tar")


def test_an_archive_that_names_no_image_has_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w"):
        pass
    assert archive_images(tmp_path / "other.tar") == {}


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_a_file_that_is_no_archive_is_an_error_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.tar: not an OCI image archive"):
        archive_images(tmp_path / "bad.tar")


def test_a_failed_write_leaves_the_old_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "a.tar", DEMO_IMAGE, [], RunConfig())
    before = (tmp_path / "a.tar").read_bytes()
    monkeypatch.setattr("agent.oci.platform.machine", lambda: "mips")
    with pytest.raises(ImageError, match="machine type 'mips'"):
        write_archive(tmp_path / "a.tar", DEMO_IMAGE, [Entry("new")], RunConfig())
    assert (tmp_path / "a.tar").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_the_command_says_what_it_built_or_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("agent.oci.build_images", lambda folder: [_archive(folder)])
    assert main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/demo.tar {DEMO_IMAGE}\n"

    def missing(folder: Path) -> list[Path]:
        raise ImageError("install it")

    monkeypatch.setattr("agent.oci.build_images", missing)
    assert main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "install it\n"


def _archive(folder: Path) -> Path:
    write_archive(folder / "demo.tar", DEMO_IMAGE, [], RunConfig())
    return folder / "demo.tar"
