"""Flags and variables of the agent."""

from pathlib import Path

import pytest

from agent.settings import SettingsError, parse
from kakuri.host import node_name, split_address


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE", "STATE_DIR", "GRPC", "JSON", "SERVER", "RUNTIME", "CRI_ENDPOINT", "LABEL", "LOG_LEVEL"):
        monkeypatch.delenv(f"KAKURI_AGENT_{name}", raising=False)


def test_all_has_a_default() -> None:
    settings, shutdown = parse([])
    assert not shutdown
    assert settings.node == node_name()
    assert settings.state_dir == Path("/var/lib/kakuri/agent")
    assert (settings.grpc, settings.json_lines) == ("127.0.0.1:9001", "127.0.0.1:9000")


def test_flags_win_over_variables_and_those_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAKURI_AGENT_NODE", "from-variable")
    monkeypatch.setenv("KAKURI_AGENT_JSON", "127.0.0.1:7000")
    monkeypatch.setenv("KAKURI_AGENT_CRI_ENDPOINT", "unix:///run/a.sock=runc unix:///run/b.sock=kata,edera")
    settings, shutdown = parse(["--grpc", "0.0.0.0:0", "--label", "zone=a", "--label", "empty=", "--shutdown"])
    assert shutdown
    assert settings.node == "from-variable"
    assert (settings.grpc, settings.json_lines) == ("0.0.0.0:0", "127.0.0.1:7000")
    assert settings.label == {"zone": "a", "empty": ""}
    assert settings.endpoints == [("unix:///run/a.sock", ("runc",)), ("unix:///run/b.sock", ("kata", "edera"))]
    assert parse(["--node", "given", "--json", "127.0.0.1:1"])[0].node == "given"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--node", "Not A Name"], "--node: 'Not A Name' is not a name"),
        (["--grpc", "9001"], "--grpc: '9001' is not an address; use host:port"),
        (["--json", "127.0.0.1:99999"], "--json: '127.0.0.1:99999' is not an address"),
        (["--server", "localhost"], "--server: 'localhost' is not a server"),
        (["--runtime", "docker"], "--runtime: Input should be 'auto', 'containerd' or 'fake'"),
        (["--cri-endpoint", "/run/x.sock"], "--cri-endpoint: '/run/x.sock' is not a CRI endpoint"),
        (["--label", "zone"], "--label: 'zone' is not a label; use key=value"),
        (["--label", "zone=a b"], "--label: .* has the value 'a b'"),
    ],
)
def test_what_cannot_be_right_is_refused_in_words(flags: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse(flags)


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:9") == ("127.0.0.1", 9)
    assert split_address("[::1]:9") == ("::1", 9)
