"""The witness as the run has it: its process, and what it has left in its file so far."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos.cell import Cell

_END_BOUND_S = 15.0


@contextmanager
def witnessing(cell: Cell) -> Iterator[Path]:
    """The witness looks, and writes what it sees into the file; it has written the last of it when this ends."""
    told = cell.folder / "witness.json"
    nodes = [f"{name}={node.state_dir}" for name, node in cell.nodes.items()]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    with (cell.folder / "witness.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.witness", str(told), *nodes],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # a Ctrl-C is for us, who end it in its turn
        )
    try:
        yield told
        if process.poll() is not None:
            raise RuntimeError(f"the witness ended with {process.returncode}; see {log.name}")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_BOUND_S)
        process.kill()
        process.wait()


def read_sightings(told: Path) -> Mapping[str, Any]:
    """What it has seen so far; nothing before its first words."""
    try:
        seen: Mapping[str, Any] = json.loads(told.read_text())
    except FileNotFoundError:
        return {}
    return seen
