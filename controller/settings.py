"""What a controller can be told: by flag, or by environment variable KAKURI_CONTROLLER_<NAME>."""

import socket
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from controller.loops.bounds import NodeBounds
from kakuri.host import check_address, split_address


class ControllerSettings(BaseSettings):
    """Runs the kakuri controller: the HTTP API and the loops over one store."""

    model_config = SettingsConfigDict(
        env_prefix="KAKURI_CONTROLLER_",
        cli_prog_name="kakuri controller",
        cli_kebab_case=True,
        cli_avoid_json=True,
        frozen=True,
        extra="ignore",
    )

    http: Annotated[str, AfterValidator(check_address)] = Field(
        "127.0.0.1:8080", description="host:port that the HTTP API listens on"
    )
    store: str = Field(
        "sqlite:///kakuri.db", description="sqlite:////path, postgresql://user@host/name, or memory:// (forgets all)"
    )
    holder: str = Field("", description="this controller's name in the lease; by default <host name>:<HTTP port>")
    node_silent_after_s: float = Field(
        10, ge=1, description="a node that answers nothing for so long takes no new work"
    )
    node_lease_s: float = Field(
        30,
        ge=1,
        description="how long a node may run what says on_disconnect: replace without hearing from a controller",
    )
    node_stop_bound_s: float = Field(
        10, ge=3, description="how long after its lease such a thing may take to end there"
    )
    clock_slack_s: float = Field(
        5, ge=0.5, description="what the three waits are made longer by, for clocks that differ"
    )
    node_lost_after_s: float = Field(
        0, ge=0, description="when a silent node counts as lost; at least the sum of lease, bound and slack"
    )
    # Fewer than one large apply and what follows from it write, and a watcher that blinked must list again.
    keep_changes: int = Field(50_000, ge=10_000, description="how many changes are kept for watches that come back")
    # Fewer, and one bad workload on many nodes pushes out what all others have to say.
    keep_events: int = Field(10_000, ge=1000, description="how many events are kept, the least recently seen go first")
    log_level: str = Field("info", description="debug, info, warning or error", pattern="^(debug|info|warning|error)$")

    @property
    def node_bounds(self) -> NodeBounds:
        return NodeBounds(
            silent_after_s=self.node_silent_after_s,
            lease_s=self.node_lease_s,
            stop_bound_s=self.node_stop_bound_s,
            clock_slack_s=self.clock_slack_s,
            lost_after_s=self.node_lost_after_s,
        )

    @property
    def holder_name(self) -> str:
        return self.holder or f"{socket.gethostname()}:{split_address(self.http)[1]}"
