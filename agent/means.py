"""What all workers of a node work with."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from agent.clock import Clock
from agent.endpoints import Endpoints
from agent.gate import Gate
from agent.ledger import Ledger
from agent.node_lease import NodeLease
from agent.observations import Observations
from agent.pulls import Pulls
from kakuri.log import OncePer


@dataclass(frozen=True, slots=True)
class Means:
    """What all workers of a node work with."""

    ledger: Ledger
    observations: Observations
    endpoints: Endpoints
    pulls: Pulls
    gate: Gate
    lease: NodeLease
    clock: Clock
    logs: Path
    """One folder an allocation."""
    once: OncePer
    closing: asyncio.Event
    """The agent ends: nothing new is begun."""
