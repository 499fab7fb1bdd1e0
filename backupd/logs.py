"""Where warnings and notes of the use cases go: to stderr, never to stdout.

structlog takes 0.1 s of CPU to import and most runs log nothing, so it is imported with the first line that is logged.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Log:
    """What modules log with: an event in words, and values by name. One instance, `log`."""

    def __init__(self) -> None:
        self._is_quiet = False
        self._logger: Any = None

    def configure(self, *, is_quiet: bool) -> None:
        """Decide before the first line: quiet keeps warnings only."""
        self._is_quiet = is_quiet

    def info(self, event: str, **values: object) -> None:
        """Something worth knowing that needs nobody."""
        self._structlog().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Something that somebody should look at; `hint` says how."""
        self._structlog().warning(event, **values)

    def _structlog(self) -> Any:
        if self._logger is None:
            self._logger = _new_logger(is_quiet=self._is_quiet)
        return self._logger


log = Log()


def _new_logger(*, is_quiet: bool) -> Any:
    """Lines for people when stderr is a terminal, else `key=value`."""
    import structlog  # noqa: PLC0415  (late, as said above)

    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return structlog.wrap_logger(
        _StderrLogger(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if is_quiet else logging.INFO),
        processors=[_for_people] if is_terminal else _machine_processors(),
        context_class=dict,
    )


def _machine_processors() -> list[Any]:
    import structlog  # noqa: PLC0415  (as above)

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

    def msg(self, message: str) -> None:
        try:
            print(message, file=sys.stderr, flush=True)  # noqa: T201
        except OSError:
            return

    debug = info = warning = error = critical = msg
