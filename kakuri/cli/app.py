"""The command line as a whole: which verbs there are, and in which order --help names them.

One rule: importing this imports nothing slow. --help must answer faster than a person notices.
"""

import typer

from kakuri.cli import (
    apply,
    cordon,
    db,
    delete,
    describe,
    dev,
    drain,
    events,
    get,
    logs,
    node,
    processes,
    version,
    wait,
)
from kakuri.cli.session import ServerOption, remember_server

app = typer.Typer(
    name="kakuri",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to import than all of this
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
nodes = typer.Typer(help="Let go of nodes.", no_args_is_help=True, rich_markup_mode=None)
database = typer.Typer(help="Look after the database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def root(server: ServerOption = None) -> None:
    """Run containers in strongly isolated sandboxes, without Kubernetes."""
    remember_server(server)


app.command()(apply.apply)
app.command()(get.get)
app.command()(describe.describe)
app.command()(logs.logs)
app.command()(events.events)
app.command()(wait.wait)
app.command()(delete.delete)
app.command()(cordon.cordon)
app.command()(cordon.uncordon)
app.command()(drain.drain)
app.add_typer(nodes, name="node")
app.command()(dev.dev)
app.command(context_settings=processes.PASSED_ON)(processes.controller)
app.command(context_settings=processes.PASSED_ON)(processes.agent)
app.add_typer(database, name="db")
app.command()(version.version)
nodes.command()(node.forget)
nodes.command()(node.release)
database.command(context_settings=processes.PASSED_ON)(db.upgrade)
database.command(context_settings=processes.PASSED_ON)(db.backup)
database.command(context_settings=processes.PASSED_ON)(db.restore)
database.command(context_settings=processes.PASSED_ON)(db.check)
database.command()(db.confirm)
