"""`python -m controller` runs a controller; `python -m controller db upgrade --store URL` migrates its store."""

import asyncio
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from controller.app import run
from controller.settings import ControllerSettings
from controller.store import upgrade
from controller.store.contract import StoreError
from kakuri.log import configure


def main() -> int:
    """0 after a clean end, 1 when it can't run, 2 when it was told wrongly; stderr says why."""
    arguments = sys.argv[1:]
    upgrading = arguments[:2] == ["db", "upgrade"]
    try:
        settings = CliApp.run(ControllerSettings, cli_args=arguments[2:] if upgrading else arguments)
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(
                f"--{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}\n"
            )
        return 2
    configure(settings.log_level)
    try:
        if upgrading:
            done = asyncio.run(upgrade(settings.store))
            was = f"was at {done.before or 'nothing'}" if done.changed else "had it already"
            copy = f"; a copy from before is {done.backup}" if done.backup else ""
            sys.stderr.write(f"the store has schema {done.after} ({was}){copy}\n")
        else:
            asyncio.run(run(settings))
    except StoreError as error:
        sys.stderr.write(f"the store can't be opened: {error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"can't listen on {settings.http}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
