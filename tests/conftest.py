"""Fixtures that several folders share live in support/, one file a topic."""

pytest_plugins = [
    "support.postgres",
    "support.stores",
    "support.containerd",
    "support.dev",
    "support.runtime",
    "support.cri_subject",
    "support.agents",
]
