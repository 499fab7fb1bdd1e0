"""Where warnings and notes of the use cases go: to stderr, never to stdout."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping


def configure(*, is_quiet: bool) -> None:
    """Send log lines to stderr: for people when that is a terminal, else as `key=value`. Quiet keeps warnings only."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if is_quiet else logging.INFO),
        processors=[_for_people] if is_terminal else _machine_processors(),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )


def _machine_processors() -> list[Any]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
    ]


def _for_people(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """`warning: what happened (key value, key value)`, and the hint on a line of its own."""
    hint, what = event.pop("hint", None), event.pop("event")
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event.items())
    line = f"{'note' if level == 'info' else level}: {what}" + (f" ({details})" if details else "")
    return f"{line}\nhint: {hint}" if hint else line


class _StderrLogger:
    """Looks stderr up for each line, because a progress bar takes it over for a while."""

    def __init__(self, *_: object) -> None: ...

    def msg(self, message: str) -> None:
        try:
            print(message, file=sys.stderr, flush=True)  # noqa: T201
        except OSError:
            return

    debug = info = warning = error = critical = msg
