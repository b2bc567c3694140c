"""kakuri controller, kakuri agent, kakuri db …: this process becomes the one that does it.

One rule: they are started as `python -m …`, and imported never: the client side stays free of SQL and CRI.
"""

import os
import sys
from typing import NoReturn

import typer

# Everything after the command's name belongs to the process that is started, --help included.
PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def controller(context: typer.Context) -> None:
    """Run a controller in the foreground (its own flags; see kakuri controller --help)."""
    become("controller", *context.args)


def agent(context: typer.Context) -> None:
    """Run a node agent in the foreground (its own flags; see kakuri agent --help)."""
    become("agent", *context.args)


def become(module: str, *arguments: str) -> NoReturn:
    sys.stdout.flush()
    # Else a folder of the module's name, where a person happens to be, would be run instead of ours.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)  # noqa: S606 - no shell
