"""The agent's settings: flags of `python -m agent`, else environment variables KAKURI_AGENT_*, else defaults.

One rule: what can't be right is refused here, in words, before anything is started.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent.handlers import GvisorPlatform
from kakuri.host import check_address, node_name
from kakuri.model.fields import Labels, Name

LogLevel = Literal["debug", "info", "warning", "error"]
_ENDPOINT = re.compile(r"(?P<url>unix:///[^=\s]+)(?:=(?P<handlers>[A-Za-z0-9][-A-Za-z0-9_.,]*))?")
_LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(Labels)


class SettingsError(Exception):
    """A flag or a variable that can't be right."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="KAKURI_AGENT_", frozen=True, extra="forbid", populate_by_name=True)

    node: Name = Field(default_factory=node_name)
    """The node's id."""
    state_dir: Path = Path("/var/lib/kakuri/agent")
    """Ledger, logs and the private runtime."""
    grpc: str = "127.0.0.1:9001"
    json_lines: str = Field(default="127.0.0.1:9000", validation_alias=AliasChoices("json_lines", "KAKURI_AGENT_JSON"))
    server: Annotated[tuple[str, ...], NoDecode] = ("http://127.0.0.1:8080",)
    """The controllers that it registers with: any one of them that answers."""
    advertise: str = ""
    """host:port under which the controller reaches grpc; empty: where it listens."""
    runtime: Literal["auto", "containerd", "fake"] = "auto"
    cri_endpoint: Annotated[tuple[str, ...], NoDecode] = ()
    """unix:///socket=handler,handler: runtimes that are there already; then no private one is started."""
    label: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    gvisor_platform: GvisorPlatform = "systrap"
    log_level: LogLevel = "info"

    @field_validator("grpc", "json_lines", "advertise")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return check_address(value) if value else value

    @field_validator("server", mode="before")
    @classmethod
    def _are_servers(cls, value: Any) -> Any:
        given = value.split() if isinstance(value, str) else value
        for server in given:
            if not re.fullmatch(r"https?://\S+", server):
                raise ValueError(f"{server!r} is not a server; use http://host:port")
        return given

    @field_validator("cri_endpoint", mode="before")
    @classmethod
    def _are_endpoints(cls, value: Any) -> Any:
        given = value.split() if isinstance(value, str) else value
        for endpoint in given:
            if not _ENDPOINT.fullmatch(endpoint):
                raise ValueError(
                    f"{endpoint!r} is not a CRI endpoint; use unix:///path/of/socket=handler,handler, "
                    "such as unix:///run/containerd/containerd.sock=runc"
                )
        return given

    @field_validator("label", mode="before")
    @classmethod
    def _are_labels(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        labels: dict[str, str] = {}
        for part in value.split() if isinstance(value, str) else value:
            key, equals, text = part.partition("=")
            if not equals:
                raise ValueError(f"{part!r} is not a label; use key=value")
            labels[key] = text
        return labels

    @field_validator("label")
    @classmethod
    def _are_good_labels(cls, value: dict[str, str]) -> dict[str, str]:
        return _LABELS.validate_python(value)

    @property
    def endpoints(self) -> Sequence[tuple[str, tuple[str, ...]]]:
        """(unix:///socket, handlers); no handlers: the runtime is asked."""
        parsed = [_ENDPOINT.fullmatch(e) for e in self.cri_endpoint]
        return [(m["url"], tuple(h for h in (m["handlers"] or "").split(",") if h)) for m in parsed if m is not None]


def parse(arguments: Sequence[str]) -> tuple[Settings, bool]:
    """The settings, and whether this is a shutdown. Raises SettingsError; --help and bad flags end the process."""
    parser = argparse.ArgumentParser(
        prog="kakuri agent", description="Runs a node's containers through CRI.", allow_abbrev=False
    )
    flags = parser.add_argument
    flags("--node", metavar="NAME", help="this node's id; else the host's name")
    flags("--state-dir", metavar="DIR", help="where ledger, logs and the private runtime are kept")
    flags("--grpc", metavar="HOST:PORT", help="the controller's way in (127.0.0.1:9001)")
    flags("--json", metavar="HOST:PORT", dest="json_lines", help="JSON lines, for people with nc (127.0.0.1:9000)")
    flags(
        "--server", metavar="URL", action="append",
        help="a controller to register with (http://127.0.0.1:8080); several allowed, any that answers will do",
    )  # fmt: skip
    flags(
        "--advertise", metavar="HOST:PORT", help="how the controller reaches --grpc, when it listens on all addresses"
    )
    flags("--runtime", metavar="KIND", help="auto, containerd (a private one) or fake (nothing really runs)")
    flags(
        "--cri-endpoint", metavar="URL=HANDLERS", action="append",
        help="a runtime that is there already: unix:///run/x.sock=runc,runsc; several allowed",
    )  # fmt: skip
    flags("--label", metavar="KEY=VALUE", action="append", help="a label of this node; several allowed")
    flags("--gvisor-platform", metavar="NAME", help="systrap (fast calls, some idle cost) or ptrace (the opposite)")
    flags("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    flags("--shutdown", action="store_true", help="with no agent running: end all that runs here, and the runtime")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    shutdown = given.pop("shutdown")
    return _settings(given), shutdown


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [f"{_flag(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise SettingsError("; ".join(problems)) from error


def _flag(location: tuple[int | str, ...]) -> str:
    name = str(location[0]) if location else "settings"
    return "--json" if name in {"json_lines", "KAKURI_AGENT_JSON"} else f"--{name.replace('_', '-')}"
