"""Logging: structlog to stderr, readable on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog

LEVELS = ("debug", "info", "warning", "error")


class OncePerOutage:
    """Warns of the first failure in a row; the others are for those who debug.

    An outage of an hour is one line in the log, whoever meets it however often.
    """

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._warned = False

    def failed(self, event: str, **facts: object) -> None:
        """Something has failed, possibly once more."""
        (self._log.debug if self._warned else self._log.warning)(event, **facts)
        self._warned = True

    def over(self) -> None:
        """It works again."""
        self._warned = False


def configure_logging(level: str = "info") -> None:
    """Send our events, and what cryptofeed and its libraries log, to stderr."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up only when something is wrong; what matters of them we log ourselves.
    root.setLevel(max(numeric, logging.WARNING))
