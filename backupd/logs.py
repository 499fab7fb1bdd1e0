"""The log: commands write it to stderr, and the daemon, whose output it is, to stdout.

structlog takes 0.1 s of CPU to import and most runs log nothing: it is imported with the first line.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from backupd.errors import BackupdError, LimitReachedError, as_backupd_error, masked_values

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from typing import TextIO


class Log:
    """The log of the process: an event in words, and values by name. Its one instance is `log`."""

    def __init__(self) -> None:
        self._is_quiet = False
        self._is_daemon = False
        self._logger: Any = None

    def configure(self, *, is_quiet: bool, is_daemon: bool = False) -> None:
        """Choose the form of the log, before the first line. A quiet log has only warnings and errors.

        A daemon logs to stdout, as text on a terminal and as JSON objects elsewhere; commands log to stderr, as text or
        as `key=value`.
        """
        self._is_quiet = is_quiet
        self._is_daemon = is_daemon
        self._logger = None
        # Libraries would log their retries and pools to stderr, in another form, and with their arguments.
        if not logging.getLogger().handlers:
            logging.getLogger().addHandler(logging.NullHandler())
        logging.captureWarnings(capture=True)

    def info(self, event: str, **values: object) -> None:
        """Log an event that needs no action."""
        self._structlog().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Log an event that should be checked; `hint` says how."""
        self._structlog().warning(event, **values)

    def error(self, event: str, **values: object) -> None:
        """Log a failure; `hint` says what to do."""
        self._structlog().error(event, **values)

    def unexpected(self, error: BaseException, **values: object) -> BackupdError:
        """Log an exception where none was expected, a bug with its traceback, and return it as a `BackupdError`."""
        known = as_backupd_error(error)
        if isinstance(known, LimitReachedError):
            self.error("a limit of this machine was reached", **values, error=known.values())
        elif known is error:
            self.error("given up", **values, error=known.values())
        else:
            lines = "".join(traceback.format_exception(error))
            self.error("this is a bug in backupd", **values, error=repr(error), traceback=lines)
        return known

    def failure(self, error: BaseException, **values: object) -> BackupdError:
        """Return `error` as a `BackupdError`; log it first, as `unexpected` does, when it was none.

        For a caller that reports expected errors in its result.
        """
        return error if isinstance(error, BackupdError) else self.unexpected(error, **values)

    @contextmanager
    def catch(self, *passed: type[Exception], **values: object) -> Iterator[None]:
        """Log an exception of the block, as `unexpected` does, and continue after it; those in `passed` are raised.

        For work that no caller waits for: one failure must end neither its thread nor what comes next.
        """
        try:
            yield
        except passed:
            raise
        except Exception as error:  # noqa: BLE001  (logged, and with its traceback when it is a bug)
            self.unexpected(error, **values)

    def _structlog(self) -> Any:
        if self._logger is None:
            self._logger = _new_logger(is_quiet=self._is_quiet, is_daemon=self._is_daemon)
        return self._logger


log = Log()


def printable(text: str) -> str:
    """Return `text` on one line: file names and stores may contain line breaks and commands for the terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _new_logger(*, is_quiet: bool, is_daemon: bool) -> Any:
    import structlog  # noqa: PLC0415  (late: see above)

    lines = _Lines("stdout" if is_daemon else "stderr")
    if lines.is_terminal:
        form = [structlog.processors.add_log_level, _timestamp(), _colours()] if is_daemon else [_as_text]
    else:
        form = [structlog.processors.add_log_level, _timestamp(), _as_data(is_daemon=is_daemon)]
    # JSON escapes control characters itself.
    is_text = lines.is_terminal or not is_daemon
    return structlog.wrap_logger(
        lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if is_quiet else logging.INFO),
        processors=[_masked, *([_printable] if is_text else []), *form],
        context_class=dict,
    )


def _masked(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: masked_values(value) for key, value in event.items()}


def _printable(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A traceback keeps its lines.
    return {
        key: printable(value) if isinstance(value, str) and key != "traceback" else value
        for key, value in event.items()
    }


def _timestamp() -> Any:
    import structlog  # noqa: PLC0415  (as above)

    return structlog.processors.TimeStamper(fmt="iso", utc=True)


def _colours() -> Any:
    import structlog  # noqa: PLC0415  (as above)

    return structlog.dev.ConsoleRenderer(pad_event_to=0)


def _as_data(*, is_daemon: bool) -> Any:
    import structlog  # noqa: PLC0415  (as above)

    if is_daemon:
        return _json_line
    return structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])


def _as_text(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """`warning: what happened (key value, key value)`, and the hint on a line of its own."""
    hint, what = event.pop("hint", None), event.pop("event")
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event.items())
    line = printable(f"{'note' if level == 'info' else level}: {what}" + (f" ({details})" if details else ""))
    return f"{line}\nhint: {printable(str(hint))}" if hint else line


def _json_line(_logger: object, _level: str, event: MutableMapping[str, Any]) -> str:
    """Return one JSON object that begins with time, level and event."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, default=_jsonable)


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


class _Lines:
    """Writes whole lines to stdout or stderr, looked up each time: a progress bar may replace stderr for a while."""

    def __init__(self, stream: str) -> None:
        self._name = stream
        self._lock = threading.Lock()

    @property
    def _stream(self) -> TextIO | None:
        stream: TextIO | None = getattr(sys, self._name)
        return stream

    @property
    def is_terminal(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def msg(self, message: str) -> None:
        stream = self._stream
        if stream is None:
            return
        # In one write, so that the lines of threads do not mix. A file's name need not be valid text.
        encoding = stream.encoding or "utf-8"
        line = f"{message}\n".encode(encoding, "backslashreplace").decode(encoding)
        try:
            with self._lock:
                stream.write(line)
                stream.flush()
        except OSError:
            return

    debug = info = warning = error = critical = msg
