"""Where warnings and notes of the use cases go: to stderr; those of the daemon, whose results they are, to stdout.

structlog takes 0.1 s of CPU to import and most runs log nothing, so it is imported with the first line that is logged.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import datetime
from typing import TYPE_CHECKING, Any

from backupd.errors import LimitReachedError, expected
from backupd.masking import masked_values

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import TextIO

    from backupd.errors import BackupdError


class Log:
    """What modules log with: an event in words, and values by name. One instance, `log`."""

    def __init__(self) -> None:
        self._is_quiet = False
        self._is_daemon = False
        self._logger: Any = None

    def configure(self, *, is_quiet: bool, is_daemon: bool = False) -> None:
        """Decide before the first line: quiet keeps warnings and errors only.

        A daemon's lines go to stdout, for people when that is a terminal and as JSON objects when not; others go to
        stderr, for people or as `key=value`.
        """
        self._is_quiet = is_quiet
        self._is_daemon = is_daemon
        self._logger = None
        # What libraries have to say of their retries and pools would go to stderr, in no form that people read, and
        # with whatever they were given.
        if not logging.getLogger().handlers:
            logging.getLogger().addHandler(logging.NullHandler())
        logging.captureWarnings(capture=True)

    def info(self, event: str, **values: object) -> None:
        """Something worth knowing that needs nobody."""
        self._structlog().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Something that somebody should look at; `hint` says how."""
        self._structlog().warning(event, **values)

    def error(self, event: str, **values: object) -> None:
        """Something that was not done and should have been; `hint` says what to do."""
        self._structlog().error(event, **values)

    def unexpected(self, error: BaseException, **values: object) -> BackupdError:
        """Report an exception where none was expected: a limit, an error of ours, or else a bug with its traceback.

        Gives it as an error of ours.
        """
        known = expected(error)
        if isinstance(known, LimitReachedError):
            self.error("a limit of this machine was reached", **values, error=known.values())
        elif known is error:
            self.error("given up", **values, error=known.values())
        else:
            told = "".join(traceback.format_exception(error))
            self.error("this is a bug in backupd", **values, error=repr(error), traceback=told)
        return known

    def _structlog(self) -> Any:
        if self._logger is None:
            self._logger = _new_logger(is_quiet=self._is_quiet, is_daemon=self._is_daemon)
        return self._logger


log = Log()


def printable(text: str) -> str:
    """`text` on one line: file names and stores can bring line breaks and commands for the terminal with them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _new_logger(*, is_quiet: bool, is_daemon: bool) -> Any:
    import structlog  # noqa: PLC0415  (late, as said above)

    lines = _Lines("stdout" if is_daemon else "stderr")
    if lines.are_for_people:
        form = [structlog.processors.add_log_level, _timestamp(), _colours()] if is_daemon else [_for_people]
    else:
        form = [structlog.processors.add_log_level, _timestamp(), _for_machines(is_daemon=is_daemon)]
    # JSON has escapes of its own for what no terminal should see.
    is_text = lines.are_for_people or not is_daemon
    return structlog.wrap_logger(
        lines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if is_quiet else logging.INFO),
        processors=[_masked, *([_printable] if is_text else []), *form],
        context_class=dict,
    )


def _masked(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: masked_values(value) for key, value in event.items()}


def _printable(_logger: object, _level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A traceback is made to be read in lines.
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


def _for_machines(*, is_daemon: bool) -> Any:
    import structlog  # noqa: PLC0415  (as above)

    if is_daemon:
        return _json_line
    return structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])


def _for_people(_logger: object, level: str, event: MutableMapping[str, Any]) -> str:
    """`warning: what happened (key value, key value)`, and the hint on a line of its own."""
    hint, what = event.pop("hint", None), event.pop("event")
    details = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in event.items())
    line = printable(f"{'note' if level == 'info' else level}: {what}" + (f" ({details})" if details else ""))
    return f"{line}\nhint: {printable(str(hint))}" if hint else line


def _json_line(_logger: object, _level: str, event: MutableMapping[str, Any]) -> str:
    """One object, with what people look for first; times as everywhere in JSON documents."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return json.dumps({**first, **event}, default=_jsonable)


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


class _Lines:
    """Writes whole lines to a stream that is looked up for each: a progress bar takes stderr over for a while."""

    def __init__(self, stream: str) -> None:
        self._name = stream
        self._lock = threading.Lock()

    @property
    def _stream(self) -> TextIO | None:
        stream: TextIO | None = getattr(sys, self._name)
        return stream

    @property
    def are_for_people(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def msg(self, message: str) -> None:
        stream = self._stream
        if stream is None:
            return
        # In one piece, or the lines of several threads get into each other; and a file's name need not be text.
        encoding = stream.encoding or "utf-8"
        line = f"{message}\n".encode(encoding, "backslashreplace").decode(encoding)
        try:
            with self._lock:
                stream.write(line)
                stream.flush()
        except OSError:
            return

    debug = info = warning = error = critical = msg
