"""Fixtures that several folders share live in support/, one file a topic."""

import signal

# A shell without job control starts what it puts in the background with SIGINT ignored, and a child of ours that is
# sent one would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "support.ports",  # first: others import it
    "support.postgres",
    "support.stores",
    "support.containerd",
    "support.dev",
    "support.children",
    "support.cluster",
    "support.previous",
    "support.command_line",
    "support.runtime",
    "support.cri_subject",
    "support.agents",
]
