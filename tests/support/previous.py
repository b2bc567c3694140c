"""What one version back is: kakuri before the wire's newest change, from this repository's own history."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CAME_WITH_THE_NEWEST_CHANGE = "migrations/versions/0002_expand_leases_of_nodes.py"
"""The tree before the commit that brought this file is the version before. Name a newer one when the wire changes."""
_PACKAGES = ("agent", "controller", "cri", "kakuri", "migrations")


@pytest.fixture(scope="session")
def previous_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the version before. Skips where the history is not at hand (a source archive, a shallow clone)."""
    log = _git("log", "--diff-filter=A", "--format=%H", "--", _CAME_WITH_THE_NEWEST_CHANGE)
    commit = log.decode().split()[-1:] if log else []
    archive = _git("archive", f"{commit[0]}^", *_PACKAGES) if commit else None
    if not archive:
        pytest.skip("the history that has the version before is not at hand: clone with it")
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
