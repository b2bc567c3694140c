"""Controllers that start in no time: forks of a process that has imported all of one, and has done nothing else yet.

One rule: what runs in a fork is what `python -m controller` runs, flags and all; only the imports are spared.

    python -m chaos.nursery FLAGS    for each line on stdin, a controller's process id on stdout
"""

import os
import sys
from typing import NoReturn

from controller.__main__ import main as run_controller


def main() -> None:
    """Ends when stdin does."""
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _be_controller()
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os.waitpid(pid, 0)  # so that its place and its locks are free before the next one is asked for
        sys.stdout.write("ended\n")
        sys.stdout.flush()


def _be_controller() -> NoReturn:
    os.close(0)
    os._exit(run_controller())


if __name__ == "__main__":
    main()
