"""Logs: one line an event, ours and the libraries' alike."""

import json
import subprocess
import sys

SCRIPT = """
import logging
from kakuri import log

log.configure(json=True)
log.get_logger("ours").info("reconciled", took_s=0.5)
logging.getLogger("some.library").info("nothing to see")
try:
    raise ValueError("bad")
except ValueError:
    logging.getLogger("some.library").exception("it %s", "failed")
"""


def test_what_a_library_warns_of_is_one_json_line_like_our_own() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=30).stderr

    ours, theirs = [json.loads(line) for line in told.splitlines()]
    assert (ours["component"], ours["event"], ours["level"], ours["took_s"]) == ("ours", "reconciled", "info", 0.5)
    assert (theirs["component"], theirs["event"], theirs["level"]) == ("some.library", "it failed", "error")
    assert "ValueError: bad" in theirs["exception"]
    assert set(theirs) == {"component", "event", "level", "timestamp", "exception"}
