"""kakuri on the command line: an HTTP client, one file a verb."""

from typing import NoReturn


def main() -> NoReturn:
    """The whole command line; exits with its code."""
    from kakuri.cli.session import guarded  # noqa: PLC0415 - importing this package must stay free

    def command() -> None:
        from kakuri.cli.app import app  # noqa: PLC0415 - inside, so that Ctrl-C while importing is quiet too

        app(standalone_mode=True)

    guarded(command)
