"""`python -m agent`: a node agent, in the foreground. Exit codes: 0, 1 error, 2 usage."""

import asyncio
import sys

from agent.app import AgentError, run
from agent.settings import SettingsError, parse


def main() -> int:
    try:
        settings, shutdown = parse(sys.argv[1:])
    except SettingsError as error:
        print(f"agent: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    try:
        asyncio.run(run(settings, shutdown=shutdown))
    except AgentError as error:
        print(f"agent: {error}", file=sys.stderr)  # noqa: T201 - a person reads it
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
