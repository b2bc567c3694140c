"""What `kakuri dev` keeps in its folder, and who may look after it.

    kakuri.db  agent/  logs/  dev.json  dev.lock

One rule: one dev a folder, by a lock that ends with its holder.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kakuri.cli.failure import Failure


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def store(self) -> str:
        return f"sqlite:///{self.path / 'kakuri.db'}"

    @property
    def agent(self) -> Path:
        return self.path / "agent"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder exists and is ours alone."""
        lock = self.path / "dev.lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Failure(
                f"the folder {self.path} can't be used: {error.strerror}; choose another with --dir"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
                raise Failure(
                    f"another kakuri dev (pid {holder}) looks after {self.path}; end it, or choose another --dir"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def read_state(self) -> Mapping[str, Any]:
        """dev.json as the last dev left it; empty when there is none."""
        return _read_json(self.path / "dev.json")

    def write_state(self, state: Mapping[str, Any]) -> None:
        """A reader sees the old file or the new one, never a part."""
        temporary = self.path / "dev.json.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / "dev.json")

    def clear_state(self) -> None:
        (self.path / "dev.json").unlink(missing_ok=True)

    def read_agent(self) -> Mapping[str, Any]:
        """What the agent says of itself; empty before it serves."""
        return _read_json(self.agent / "agent.json")

    def agent_stamp(self) -> int:
        """Another one when agent.json is another."""
        with suppress(OSError):
            return (self.agent / "agent.json").stat().st_mtime_ns
        return 0

    def last_words(self, name: str, lines: int = 8) -> str:
        """The end of a child's log; a line that is there again and again is there once."""
        try:
            with self.log(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        distinct = reversed(list(dict.fromkeys(reversed(text.splitlines()))))
        return "\n".join(f"  {line}" for line in list(distinct)[-lines:])


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
