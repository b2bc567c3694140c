"""Structured logs: a constant event name, the rest in fields. Everything goes to stderr.

A person's console when stderr is a terminal, else one JSON object a line.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog
from structlog.typing import EventDict

Logger = structlog.stdlib.BoundLogger


def configure(level: str = "info", *, json: bool | None = None) -> None:
    """Logs of this process go to stderr from now on. json: None decides by whether stderr is a terminal."""
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through logging; only what they warn of is worth a line, and it looks like ours.
    of_libraries = logging.StreamHandler(sys.stderr)
    of_libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_add_component, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.basicConfig(handlers=[of_libraries], level=logging.WARNING, force=True)


def _add_component(_: Any, __: str, event: EventDict) -> EventDict:
    return {"component": event["_record"].name, **event}


def get_logger(name: str) -> Logger:
    logger: Logger = structlog.get_logger(component=name)
    return logger


class OncePer:
    """Lets the same key through once in a while, so that a lasting fault is one line a minute and no flood."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._seconds = seconds
        self._clock = clock
        self._last: dict[str, float] = {}

    def __call__(self, key: str) -> bool:
        """Whether it is time to say this again."""
        now = self._clock()
        if len(self._last) > 1000:
            self._last = {k: t for k, t in self._last.items() if now - t < self._seconds}
        if now - self._last.get(key, float("-inf")) < self._seconds:
            return False
        self._last[key] = now
        return True
