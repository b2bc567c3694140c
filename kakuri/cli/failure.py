"""How a command ends when not well. The exit codes: 0, 1 error, 2 usage, 3 applied but not ready, 130 Ctrl-C.

Failure      1
├── Usage    2
└── NotReady 3
"""


class Failure(Exception):  # noqa: N818 - a command's end, told to a person
    """The message goes to stderr as it is."""

    code = 1


class Usage(Failure):
    code = 2


class NotReady(Failure):
    """What was asked for was done, but what was waited for did not come."""

    code = 3


class ReaderLeft(Exception):  # noqa: N818 - what happened
    """Whoever read our stdout has had enough. No error of ours, and nothing more to say."""
