#!/bin/sh
# Installs the Debian packages that kakuri runs with (run), and those that its tests use besides (test), when they are
# missing. Says which and why. Where it can't install (no root, no apt) it says what is missing and goes on: kakuri then
# uses its simulated runtime, and tests that need the real thing are skipped.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
python=${PYTHON:-python3}
missing=

program() { command -v "$1" >/dev/null; }

# want PACKAGE "WHY" CHECK...: the package is missing when the check fails. A program counts wherever it came from:
# Debian's containerd would displace Docker's.
want() {
    package=$1 why=$2
    shift 2
    "$@" && return
    [ -n "$missing" ] || echo "Debian packages that are missing:"
    printf '  %-28s %s\n' "$package" "$why"
    missing="$missing $package"
}
cni_plugins() { [ -x /usr/lib/cni/portmap ] || [ -x /opt/cni/bin/portmap ] || [ -x /usr/libexec/cni/portmap ]; }
static_busybox() { [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; }
postgresql() { program initdb || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }
venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

want python3-venv "makes .venv, where kakuri and what it imports are installed" venv
if [ "$(uname -s)" = Linux ]; then
    want containerd "the CRI runtime that a node without one gets" program containerd
    want runc "runs native containers" program runc
    want runsc "gVisor: runs containers on a kernel of their own, in user space" program runsc
    want containernetworking-plugins "the pods' network and their host ports (CNI)" cni_plugins
    want iptables "CNI forwards host ports with it" program iptables
    want iproute2 "takes the pods' bridge away again" program ip
    want catatonit "the pause image is made of it; nothing is pulled" test -x /usr/bin/catatonit
    want busybox-static "the demo image is made of it; nothing is pulled" static_busybox
fi
if [ "${1:-run}" = test ]; then
    want postgresql "the store's tests run on it too" postgresql
    want sqlite3 "a test reads the database as a person does" program sqlite3
    want curl "the README's tour uses it, and a test follows the tour" program curl
    want netcat-openbsd "a test talks to the agent as a person does" program nc
    want docker-registry "the pull path is tested against it, on loopback" program docker-registry
    want skopeo "puts the demo image into that registry" program skopeo
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! program apt-get; then
    echo "They are not installed now: that takes root and apt-get. As root: apt-get install$missing"
    exit 0
fi
echo "Installing them with apt-get."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || echo "apt-get update failed; trying with the package lists that are here." >&2
# shellcheck disable=SC2086 # a list of words
if ! apt-get install -qq -y --no-install-recommends $missing >/dev/null; then
    # One name that this release doesn't have must not keep the others away.
    for package in $missing; do
        apt-get install -qq -y --no-install-recommends "$package" >/dev/null || echo "$package: not installed" >&2
    done
fi
