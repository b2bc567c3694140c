"""PURE: what a container of the fake runtime does, told from what it was asked to run.

One rule: what isn't recognised runs until it is stopped. The first of these that fits decides:

1. the environment variable KAKURI_FAKE: `exit 3`, `exit 3 after 0.5` (seconds), `oom`, `oom after 2`, `run` (until
   stopped), `stubborn` (until stopped, and it ignores the stop signal), `no start`;
2. the command with its arguments:
   `sleep N`, `exit N`, `true`, `false`, `oom`; `tail /dev/zero` is an oom;
   a program whose path has `nosuch`, `no-such`, `does-not-exist` or `missing` in it isn't in the image;
   `sh -c TEXT`: an oom when it does one of those, or doubles a variable; else it takes as long as its `sleep`s and ends
   with its last `exit N`, or with 0 when there is none and it only says things (echo, uname, date, …);
3. the image's name without tag: `exit-3`, `oom`, `sleep-forever`; one with `missing` in it can't be pulled.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

ENV = "KAKURI_FAKE"


@dataclass(frozen=True)
class Script:
    ends_after_s: float | None = None
    """None: runs until it is stopped."""
    exit_code: int = 0
    oom: bool = False
    stubborn: bool = False
    """Ignores the stop signal, so that it takes the kill after the grace."""
    start_error: str = ""
    """Why it can't be started, in a runtime's words; empty when it can."""


FOREVER = Script()
OOM = Script(ends_after_s=0, exit_code=137, oom=True)


def script_of(image: str, argv: Sequence[str], env: Mapping[str, str]) -> Script:
    """What a container of this image does with this command line."""
    if env.get(ENV):
        return _told(env[ENV], argv)
    return _of_command(argv) or _of_image(image) or FOREVER


def pullable(image: str) -> bool:
    return "missing" not in image


def _told(text: str, argv: Sequence[str]) -> Script:
    if match := re.fullmatch(r"(?:exit (\d{1,3})|(oom))(?: after (\d+(?:\.\d+)?))?", text.strip()):
        ends_after_s = float(match[3] or 0)
        return replace(OOM, ends_after_s=ends_after_s) if match[2] else Script(ends_after_s, int(match[1]))
    match text.strip():
        case "stubborn":
            return Script(stubborn=True)
        case "no start":
            return _not_in_image(argv[0] if argv else "")
        case _:
            return FOREVER


def _of_command(argv: Sequence[str]) -> Script | None:
    if not argv:
        return None
    program = PurePosixPath(argv[0]).name
    if re.search(r"no-?such|does-not-exist|missing", argv[0]):
        return _not_in_image(argv[0])
    match [program, *argv[1:]]:
        case ["sleep", seconds] if _SECONDS.fullmatch(seconds):
            return Script(ends_after_s=float(seconds))
        case ["exit", code] if code.isdigit():
            return Script(ends_after_s=0, exit_code=int(code) % 256)
        case ["true"]:
            return Script(ends_after_s=0)
        case ["false"]:
            return Script(ends_after_s=0, exit_code=1)
        case ["oom"] | ["tail", "/dev/zero"]:
            return OOM
        case ["sh" | "ash" | "bash", "-c", text, *_]:
            return _of_shell(text)
        case [name, *_] if name in _SAYINGS:
            return Script(ends_after_s=0)
        case _:
            return None


_SECONDS = re.compile(r"\d+(?:\.\d+)?")
_SAYINGS = {
    "[", ":", "cat", "date", "echo", "env", "export", "grep", "head", "hostname", "id", "ls", "printf", "seq", "set",
    "test", "true", "uname", "wc",
}  # fmt: skip
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\$\([^()]*\)")
_DOUBLES = re.compile(r"\b(\w+)=\"?\$\{?\1\}?\$\{?\1\}?")


def _of_shell(text: str) -> Script | None:
    if "tail /dev/zero" in text or _DOUBLES.search(text) or re.fullmatch(r"\s*oom\s*", text):
        return OOM
    bare = _QUOTED.sub("_", text)
    statements = [part.strip() for part in re.split(r";|\n|&&|\|\|?", bare) if part.strip()]
    seconds = 0.0
    for statement in statements:
        words = statement.split()
        match words:
            case ["sleep", length] if _SECONDS.fullmatch(length):
                seconds += float(length)
            case ["exit"]:
                return Script(ends_after_s=seconds)
            case ["exit", code] if code.isdigit():
                return Script(ends_after_s=seconds, exit_code=int(code) % 256)
            case ["false"] if statement is statements[-1]:
                return Script(ends_after_s=seconds, exit_code=1)
            case [name, *_] if name in _SAYINGS or name == "false" or re.match(r"\w+=", name):
                continue
            case _:
                return _of_unknown_shell(bare, seconds)
    return Script(ends_after_s=seconds)


def _of_unknown_shell(text: str, seconds: float) -> Script | None:
    # Loops and servers; what says how it ends is believed, unless it loops for ever.
    if re.search(r"\bwhile\b|\buntil\b", text):
        return None
    match = re.search(r"\bexit (\d{1,3})\s*;?\s*$", text)
    return Script(ends_after_s=seconds, exit_code=int(match[1]) % 256) if match else None


def _of_image(image: str) -> Script | None:
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if match := re.fullmatch(r"exit-(\d{1,3})", name):
        return Script(ends_after_s=0, exit_code=int(match[1]) % 256)
    return OOM if name == "oom" else None


def _not_in_image(program: str) -> Script:
    return Script(
        start_error="failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        f'unable to start container process: exec: "{program}": stat {program}: no such file or directory: unknown'
    )
