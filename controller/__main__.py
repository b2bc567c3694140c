"""`python -m controller` runs a controller; `python -m controller db …` looks after its store."""

import asyncio
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from controller.app import run
from controller.settings import ControllerSettings
from controller.store.contract import StoreError
from kakuri.log import configure


def main() -> int:
    """0 after a clean end, 1 when it can't run, 2 when it was told wrongly; stderr says why."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["db"]:
        from controller import db  # noqa: PLC0415 - a controller that is started again should be back at once

        return db.run(arguments[1:])
    try:
        settings = CliApp.run(ControllerSettings, cli_args=arguments)
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(
                f"--{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}\n"
            )
        return 2
    configure(settings.log_level)
    try:
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
