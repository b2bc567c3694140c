"""The program that stands between runc's shim and a runsc that has no shim of its own, as Debian's.

The shim speaks runc's command line; runsc nearly does. One rule: the wrapper runs on every call of the shim, so it is
plain sh and starts next to nothing. What it does, and why:

- A pod's first container only holds the namespaces and runs no user's code: runc runs it, so that a pod is one gVisor
  sandbox and not two. The bundle says which it is on create; later runc's own state file does.
- --network=host is the pod's own network namespace. This runsc takes every namespace of a new kernel for the machine's
  own, and refuses to run its own network stack there.
- On create, the two annotations that make runsc look for a sandbox to join are renamed, so that each container is a
  sandbox of its own: runc's shim can't watch two containers in one. containerd writes the bundle's config.json without
  spaces, and a quote inside a value is escaped there, so only real keys match.
- On start, it is noted first that this container's start has begun, and what has begun is not started again: a
  containerd that dies in the middle of a start takes the container for one that was only created.
- On start, the output goes to a file till it is over: the gofer inherits it, and the shim reads a pipe to its end.
- On kill, "sandbox is not running" is said in the words that the shim takes for done. And a container that was created
  but did not start, which runsc won't signal, is killed by the pid that the shim keeps in the bundle: it has run
  nothing yet, and could never be removed otherwise.
"""

import shlex
from pathlib import Path
from typing import Final

from agent.noting_wrapper import SAID_OF_A_SECOND_START

_SCRIPT: Final = r"""#!/bin/sh
# Made by kakuri, again at each start of its agent; agent/runsc_wrapper.py tells why it does what it does.
runc=@runc@
runsc=@runsc@
platform=@platform@
starts=@starts@

root= log= bundle= command= id=
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --root) root=$2; shift ;;
            --log) log=$2; shift ;;
            --log-format) shift ;;
            -*) ;;
            *) break ;;
        esac
        shift
    done
    command=$1
    [ $# -gt 0 ] && shift
    if [ "$command" = kill ]; then
        [ "$1" = --all ] && shift
        id=$1
        return
    fi
    while [ $# -gt 1 ]; do
        [ "$1" = --bundle ] && bundle=$2
        shift
    done
    id=$1
}
run_gvisor() { "$runsc" --network=host --platform="$platform" "$@"; }

read_arguments "$@"
if [ "$command" = create ]; then
    config=$bundle/config.json
    grep -q '"io\.kubernetes\.cri\.container-type":"sandbox"' "$config" && exec "$runc" "$@"
    sed -i -e 's/"io\.kubernetes\.cri\.container-type":/"dev.kakuri.cri.container-type":/' \
        -e 's/"io\.kubernetes\.cri\.sandbox-id":/"dev.kakuri.cri.sandbox-id":/' "$config" || exit
elif [ -n "$id" ] && [ -e "$root/$id/state.json" ]; then
    exec "$runc" "$@"
fi
case $command in
    start)
        if [ -e "$starts/$id" ]; then
            echo '@said@' >&2
            exit 1
        fi
        : >"$starts/$id" || exit
        said=${log:-/run/kakuri-$$}.start
        run_gvisor "$@" >"$said" 2>&1
        code=$?
        [ "$code" = 0 ] || cat "$said" >&2
        rm -f "$said"
        exit "$code"
        ;;
    kill)
        said=$(run_gvisor "$@" 2>&1) && exit
        code=$?
        case $said in
            *'sandbox is not running'*) said='container not running' ;;
            *'in state created'*) kill -9 "$(cat "${log%/*}/init.pid")" && exit ;;
        esac
        printf '%s\n' "$said" >&2
        exit "$code"
        ;;
esac
exec "$runsc" --network=host --platform="$platform" "$@"
"""


def wrapper_script(*, runc: str, runsc: str, platform: str, starts: Path) -> str:
    """The wrapper's text. Both programs by absolute path; platform: one of runsc's own names, such as systrap; starts:
    a folder for one empty file a container whose start has begun."""
    script = _SCRIPT.replace("@said@", SAID_OF_A_SECOND_START)
    for name, value in (("runc", runc), ("runsc", runsc), ("platform", platform), ("starts", str(starts))):
        script = script.replace(f"@{name}@", shlex.quote(value))
    return script
