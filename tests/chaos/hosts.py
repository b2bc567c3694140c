"""Hosts that are network namespaces of this machine: a loopback and one cable each, all cables in one switch.

The switch is a bridge in a namespace of its own, where no firewall of the machine's has a say; this machine has a
cable in it too.

One rule: a host is told by its namespace alone. What is started in it keeps the machine's files, processes and cgroups,
so that a witness outside of it sees everything.
"""

import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path

_RANGE = IPv4Network("198.18.0.0/15")
"""For tests of networks; no pod's block (agent/cni.py) is in it."""
_COMMAND_BOUND_S = 15
_RULE = "kakuri-chaos"


class Way(StrEnum):
    """What a cut holds back, seen from the host."""

    BOTH = "both ways"
    IN = "inwards"
    OUT = "outwards"


@dataclass(frozen=True)
class Host:
    """A network namespace with one address. Without a namespace: this machine itself."""

    name: str
    namespace: str
    address: str

    def inside(self, *argv: str) -> list[str]:
        """The command, so that it runs here."""
        return _inside(self.namespace, *argv) if self.namespace else list(argv)

    def run(self, *argv: str) -> None:
        run(*self.inside(*argv))


HERE = Host("here", "", "127.0.0.1")


@dataclass
class Network:
    """The switch and its hosts. open() makes them, close() leaves nothing."""

    key: str
    """A few characters that no other run has."""
    hosts: dict[str, Host] = field(default_factory=dict)
    cuts: dict[tuple[str, str], Way] = field(default_factory=dict)
    """(host, the address that it can't reach, or "" for all) → how."""
    _block: IPv4Network | None = None

    @property
    def own(self) -> str:
        """This machine's end of its cable; all names of namespaces begin with it too."""
        return f"kkc{self.key}"

    @property
    def switch(self) -> str:
        return f"{self.own}-switch"

    def open(self, names: Sequence[str]) -> None:
        self._block = _free_block()
        own, *addresses = (str(a) for _, a in zip(range(len(names) + 1), self._block.hosts(), strict=False))
        run("ip", "netns", "add", self.switch)
        run(*_inside(self.switch, "ip", "link", "add", "switch", "type", "bridge"))
        run(*_inside(self.switch, "ip", "link", "set", "switch", "up"))
        run("ip", "link", "add", self.own, "type", "veth", "peer", "name", "here", "netns", self.switch)
        self._plug_in("here")
        run("ip", "address", "add", f"{own}/{self._block.prefixlen}", "dev", self.own)
        run("ip", "link", "set", self.own, "up")
        for name, address in zip(names, addresses, strict=True):
            self._add(Host(name, f"{self.own}-{name}", address))

    def close(self) -> None:
        """Also what an open() that failed has made."""
        # The cable first: a namespace that is deleted takes its own along only a moment later.
        if self.own in _links():
            run("ip", "link", "delete", self.own, check=False)
        for namespace in self._namespaces():
            run("ip", "netns", "delete", namespace, check=False)

    def leftovers(self) -> list[str]:
        found = [f"network namespace {name}" for name in self._namespaces()]
        return [*found, *(f"interface {name}" for name in _links() if name == self.own)]

    def cut(self, name: str, way: Way, peer: str = "") -> None:
        """What the host sends or gets is dropped, silently, as by a broken cable; with a peer, only to and from it."""
        host = self.hosts[name]
        self.cuts[name, peer] = way
        for chain in _chains(way):
            host.run("iptables", "--wait", "--insert", chain, *_rule(chain, peer))

    def heal(self, name: str, peer: str = "") -> None:
        way = self.cuts.pop((name, peer))
        for chain in _chains(way):
            self.hosts[name].run("iptables", "--wait", "--delete", chain, *_rule(chain, peer))

    def _add(self, host: Host) -> None:
        assert self._block is not None
        self.hosts[host.name] = host
        run("ip", "netns", "add", host.namespace)
        end = ("peer", "name", "eth0", "netns", host.namespace)
        run(*_inside(self.switch, "ip", "link", "add", host.name, "type", "veth", *end))
        self._plug_in(host.name)
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/{self._block.prefixlen}", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    def _plug_in(self, cable: str) -> None:
        run(*_inside(self.switch, "ip", "link", "set", cable, "master", "switch", "up"))

    def _namespaces(self) -> list[str]:
        folder = Path("/run/netns")
        return sorted(p.name for p in folder.glob(f"{self.own}-*")) if folder.is_dir() else []


def run(*argv: str, check: bool = True) -> str:
    """What it printed. Raises RuntimeError with its words when it failed."""
    done = subprocess.run(
        argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_COMMAND_BOUND_S
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _inside(namespace: str, *argv: str) -> list[str]:
    # Not `ip netns exec`: that would take the cgroups out of /sys.
    return ["nsenter", f"--net=/run/netns/{namespace}", *argv]


def _chains(way: Way) -> tuple[str, ...]:
    return {Way.BOTH: ("INPUT", "OUTPUT"), Way.IN: ("INPUT",), Way.OUT: ("OUTPUT",)}[way]


def _rule(chain: str, peer: str) -> list[str]:
    interface = ["--in-interface", "eth0"] if chain == "INPUT" else ["--out-interface", "eth0"]
    address = [] if not peer else ["--source", peer] if chain == "INPUT" else ["--destination", peer]
    return [*interface, *address, "--match", "comment", "--comment", _RULE, "--jump", "DROP"]


def _free_block() -> IPv4Network:
    """A /24 that no route of this machine touches. Not the first one: another run may choose at the same time."""
    taken = [IPv4Network(line.split()[0]) for line in run("ip", "-4", "route").splitlines() if line[0].isdigit()]
    blocks = list(_RANGE.subnets(new_prefix=24))
    random.shuffle(blocks)
    return next(block for block in blocks if not any(block.overlaps(other) for other in taken))


def _links() -> list[str]:
    return [p.name for p in Path("/sys/class/net").iterdir()]
