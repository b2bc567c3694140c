"""What a controller can be told: by flag, or by environment variable KAKURI_CONTROLLER_<NAME>."""

import socket
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    log_level: str = Field("info", description="debug, info, warning or error", pattern="^(debug|info|warning|error)$")

    @property
    def holder_name(self) -> str:
        return self.holder or f"{socket.gethostname()}:{split_address(self.http)[1]}"
