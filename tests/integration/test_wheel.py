"""The wheel, as pipx would unpack it: complete, and it works where no checkout is."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.dev import Dev

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("kakuri", "controller", "agent", "cri", "migrations")
MANIFEST = """
kind: Workload
id: web
image: kakuri.local/demo:1.0
runtime_class: native
memory_mb: 64
cpu_millicores: 50
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves its own files beside the sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, source],
        check=True, timeout=60,
    )  # fmt: skip
    (made,) = built.glob("*.whl")
    return made


def test_the_wheel_holds_all_that_the_packages_need_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    kept = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert held == {str(p.relative_to(ROOT)) for p in kept if "__pycache__" not in p.parts}


def test_outside_the_checkout_kakuri_dev_works_from_the_wheel_alone(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    for package in PACKAGES:
        where = subprocess.check_output(
            [sys.executable, "-c", f"import {package}; print({package}.__file__)"], text=True
        )
        assert where.strip() == str(installed / package / "__init__.py")

    dev = Dev(tmp_path / "dev", "fake")
    try:
        dev.start()
        dev.apply(MANIFEST, "--wait")
        assert "Running (simulated)" in dev.cli("get", "workloads")
    finally:
        dev.stop()
