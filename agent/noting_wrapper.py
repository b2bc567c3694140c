"""The program that stands between a shim and a runtime that speaks runc's command line, and notes each start.

containerd may die in the middle of a start, and then takes the container for one that was only created. One rule: it
is noted first that a container's start has begun, and what has begun is not started again. The wrapper runs on every
call of the shim, so it is plain sh, starts nothing, and becomes the runtime itself.
"""

import shlex
from pathlib import Path
from typing import Final

SAID_OF_A_SECOND_START: Final = "its start had begun before, and it is not started twice"
_SCRIPT: Final = r"""#!/bin/sh
# Made by kakuri, again at each start of its agent; agent/noting_wrapper.py tells why it does what it does.
program=@program@
starts=@starts@

find_command() {
    while [ $# -gt 0 ]; do
        case $1 in
            --root | --log | --log-format | --rootless | --criu) shift ;;
            -*) ;;
            *) break ;;
        esac
        shift
    done
    command=$1
    while [ $# -gt 1 ]; do shift; done
    id=$1
}

find_command "$@"
if [ "$command" = start ]; then
    if [ -e "$starts/$id" ]; then
        echo '@said@' >&2
        exit 1
    fi
    : >"$starts/$id" || exit
fi
exec "$program" "$@"
"""


def noting_script(*, program: str, starts: Path) -> str:
    """The wrapper's text. program: the runtime's absolute path. starts: a folder for one empty file a container."""
    script = _SCRIPT.replace("@said@", SAID_OF_A_SECOND_START)
    for name, value in (("program", program), ("starts", str(starts))):
        script = script.replace(f"@{name}@", shlex.quote(value))
    return script
