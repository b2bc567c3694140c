"""The network of a private runtime's pods: a bridge of its own, with a block of addresses that nothing else here uses.

One rule: a block, once chosen, is kept as long as the state dir, for running pods hold addresses of it.
"""

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from agent.places import Places

# A bridge takes at most 1023 ports, so a larger block would be of no use. 1024 blocks, out of the way of what Docker
# (172.17.0.0/16 and up), Kubernetes (10.96.0.0/12, 10.244.0.0/16), and most home routers take.
_BLOCKS = IPv4Network("10.176.0.0/12")
_BLOCK_PREFIX = 22


class NetworkError(Exception):
    """No block of addresses is free; the message says which were looked at."""


def write_network(places: Places) -> IPv4Network:
    """The CNI configuration is in its folder. Returns the pods' block of addresses."""
    block = _claim_block(places)
    places.cni.mkdir(parents=True, exist_ok=True)
    (places.cni / "10-kakuri.conflist").write_text(conflist(places, block))
    return block


def conflist(places: Places, block: IPv4Network) -> str:
    """The network as CNI reads it."""
    bridge = {
        "type": "bridge",
        "bridge": places.network,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(places.addresses),
            "ranges": [[{"subnet": str(block)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {"cniVersion": "1.0.0", "name": places.network, "plugins": [bridge, portmap]}
    return json.dumps(network, indent=2) + "\n"


def choose_block(key: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first block from the key's own place on that overlaps nothing taken. key: hexadecimal."""
    blocks = list(_BLOCKS.subnets(new_prefix=_BLOCK_PREFIX))
    first = int(key, 16) % len(blocks)
    busy = list(taken)
    for block in blocks[first:] + blocks[:first]:
        if not any(block.overlaps(other) for other in busy):
            return block
    raise NetworkError(f"each /{_BLOCK_PREFIX} of {_BLOCKS} overlaps a route of this machine; free one of them")


def routes(text: str, *, but: str) -> list[IPv4Network]:
    """The networks of /proc/net/route, without the default route and without those of one interface."""
    found = []
    for line in text.splitlines()[1:]:
        interface, destination, _, _, _, _, _, mask = line.split()[:8]
        if interface != but and int(mask, 16):
            found.append(IPv4Network((_address(destination), _address(mask)), strict=False))
    return found


def _claim_block(places: Places) -> IPv4Network:
    chosen = places.folder / "subnet"
    claim = places.volatile / "subnet"
    places.volatile.mkdir(parents=True, exist_ok=True)
    with _locked(places.volatile.parent / "lock"):
        taken = [*routes(Path("/proc/net/route").read_text(), but=places.network), *_claims(places)]
        block = _read_block(chosen)
        # Without a claim nothing runs here since the last boot, so a block that became another's can be given up.
        if block is None or (not claim.exists() and any(block.overlaps(other) for other in taken)):
            block = choose_block(places.key, taken)
            places.folder.mkdir(parents=True, exist_ok=True)
            chosen.write_text(f"{block}\n")
        # Its bridge, and so its route, comes only with the first pod; until then this file tells the others.
        claim.write_text(f"{block}\n")
    return block


def _claims(places: Places) -> list[IPv4Network]:
    others = (claim for claim in places.volatile.parent.glob("*/subnet") if claim.parent != places.volatile)
    return [block for block in map(_read_block, others) if block is not None]


def _read_block(path: Path) -> IPv4Network | None:
    try:
        return IPv4Network(path.read_text().strip())
    except (OSError, ValueError):
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _address(little_endian: str) -> str:
    return str(IPv4Address(bytes.fromhex(little_endian)[::-1]))
