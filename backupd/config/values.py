"""Types of configuration values: durations, sizes, paths, texts and secrets, and how each is written."""

import difflib
import re
from collections.abc import Callable
from datetime import timedelta, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from backupd.errors import UsageError, keep_secret

_DURATION = re.compile(
    r"(?:([0-9]{1,9})w)?(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,12})ms)?"
)
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([kmgt]?i?b)", re.IGNORECASE)
# Control characters, zero-width marks, and what reverses text. A path may have all else, even bytes that are no text.
_STRAY = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_PORTS = range(1, 1 << 16)
_SWITCHES: dict[str | int, bool] = {
    **dict.fromkeys((True, "true", "yes", "on", "1", "t", "y"), True),
    **dict.fromkeys((False, "false", "no", "off", "0", "f", "n"), False),
}
_LONGEST = timedelta(days=365_000)
# Systems and libraries count the milliseconds of a timeout in 31 bits.
_LONGEST_WAIT = timedelta(days=24)
_UNIT_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
_BYTES_BY_LOWER_CASE_UNIT = {unit.lower(): size_bytes for unit, size_bytes in _UNIT_BYTES.items()}


class InvalidValueError(UsageError, ValueError):
    """A configuration value is not valid."""


class Secret:
    """A text that is not shown where it is printed."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('**********')"


def parse_duration(text: str) -> timedelta:
    """Read "500ms", "30s", "3m", "1h", "2d", "1w", or units in falling order together, such as "1h30m".

    Raises `InvalidValueError` for anything else, a bare number included. Zero is a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise InvalidValueError(f"{text!r} is not a duration", hint="write it like 500ms, 30s, 3m, 1h30m, 2d or 1w")
    weeks, days, hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    try:
        return timedelta(
            weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds
        )
    except OverflowError:
        raise InvalidValueError(f"{text!r} is too long a duration") from None


def format_duration(duration: timedelta) -> str:
    """Return the shortest text that `parse_duration` reads back as `duration`, rounded down to milliseconds."""
    remaining_ms = duration // timedelta(milliseconds=1)
    text = ""
    for unit, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, remaining_ms = divmod(remaining_ms, unit_ms)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(text: str) -> int:
    """Read "256MB" (decimal), "256MiB" (binary), "1.5GB", or a number of bytes without a unit.

    Upper and lower case are equal. Raises `InvalidValueError` for anything else, including "256M": tools disagree about
    what it means.
    """
    hint = "write it like 256MB (decimal) or 256MiB (binary)"
    if re.fullmatch(r"[0-9]{1,20}", text.strip()):
        return int(text)
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidValueError(f"{text!r} is not a size", hint=hint)
    size_bytes = Fraction(match[1]) * _BYTES_BY_LOWER_CASE_UNIT[match[2].lower()]
    if size_bytes.denominator != 1:
        raise InvalidValueError(f"{text!r} is not a whole number of bytes", hint=hint)
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Return the text with the smallest whole number that `parse_size` reads back as `size_bytes`."""
    exact = [unit for unit, unit_bytes in _UNIT_BYTES.items() if size_bytes and size_bytes % unit_bytes == 0]
    unit = max(exact, key=_UNIT_BYTES.__getitem__, default="B")
    return f"{size_bytes // _UNIT_BYTES[unit]}{unit}"


def absolute_path(value: object) -> Path:
    """Make a path absolute, from the home directory (`~`) or the current one, without resolving symbolic links.

    Raises `InvalidValueError` when it is empty, not text, or not a path.
    """
    if not isinstance(value, str | Path):
        raise InvalidValueError("must be a path in quotes")
    if not str(value) or "\0" in str(value):
        raise InvalidValueError("must not be empty" if not str(value) else "a path cannot contain a NUL character")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError:
        raise InvalidValueError(f"the home directory in {str(value)!r} is not known") from None


def zone_from_name(name: str | None) -> tzinfo | None:
    """Return the time zone of a name, as `datetime.astimezone` takes it; None is the system's local time."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415  (it takes 2 ms of each start, and few configurations name a zone)

    return None if name is None else ZoneInfo(name)


def _known_time_zone(name: str) -> str:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones  # noqa: PLC0415  (as above)

    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = available_timezones()
        likely = difflib.get_close_matches(name, known, n=1)
        hint = "write it like Europe/Berlin" if known else "this system has no time zones: install tzdata"
        raise InvalidValueError(
            f"{name!r} is not a time zone", hint=f"did you mean {likely[0]}?" if likely else hint
        ) from None
    return name


def read_text(value: object) -> str:
    """Return `value` if it is text, or raise `InvalidValueError`."""
    if not isinstance(value, str):
        raise InvalidValueError("must be a text in quotes")
    return value


def read_switch(value: object) -> bool:
    """Return a boolean, or that of a word such as variables have. Raises `InvalidValueError` for anything else."""
    word = value.lower() if isinstance(value, str) else value
    if not isinstance(word, str | int) or word not in _SWITCHES:
        raise InvalidValueError("must be true or false")
    return _SWITCHES[word]


def at_least(least: int) -> Callable[[int], int]:
    """Return a reader that accepts whole numbers from `least` on."""

    def checked(number: int) -> int:
        if number < least:
            raise InvalidValueError(f"must be at least {least}")
        return number

    return checked


def at_most(most: int) -> Callable[[int], int]:
    """Return a reader that accepts whole numbers up to `most`."""

    def checked(number: int) -> int:
        if number > most:
            raise InvalidValueError(f"must be at most {most}")
        return number

    return checked


def _checked_text(value: object) -> str:
    text = read_text(value)
    if not text:
        raise InvalidValueError("must not be empty")
    problem = stray_characters(text)
    if problem is not None or not text.isprintable():
        raise InvalidValueError(problem or "must not contain an unprintable character")
    return text


def read_secret(value: object) -> Secret:
    """Return a text as a secret. Raises `InvalidValueError` for anything else."""
    return value if isinstance(value, Secret) else Secret(read_text(value))


def _checked_secret(value: object) -> Secret:
    secret = read_secret(value)
    keep_secret(_checked_text(secret.reveal()))
    return secret


def stray_characters(text: str) -> str | None:
    """Return what is wrong with a text that a tool may have added characters to, without repeating it."""
    if text.endswith(("\n", "\r")):
        return "must not end with a line break"
    if _STRAY.search(text):
        return "must not contain a control character"
    return "must not begin or end with a space" if text != text.strip() else None


def reject_impossible_port(authority: str) -> None:
    """Raise `InvalidValueError` when `authority`, the host of a URL and perhaps a port, has a port that cannot exist.

    The message does not repeat it: a secret may be in it.
    """
    _, _, port = authority.rpartition("]")[2].partition(":")  # after the brackets of an IPv6 address
    if port and not is_port(port):
        raise InvalidValueError("must have a port from 1 to 65535", hint="correct what is after the host, or omit it")


def is_port(text: str) -> bool:
    """Whether `text` is the number of a port to which a program can connect."""
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) in _PORTS


def _duration(value: object) -> timedelta:
    if isinstance(value, str):
        value = parse_duration(value)
    if not isinstance(value, timedelta):
        raise InvalidValueError("must be a duration with a unit", hint='write it like "30s"')
    if value <= timedelta(0):
        raise InvalidValueError("must be longer than 0s")
    if value > _LONGEST:  # beyond it, dates leave the calendar
        raise InvalidValueError(f"must be at most {format_duration(_LONGEST)}")
    return value


def _wait(value: timedelta) -> timedelta:
    if value > _LONGEST_WAIT:
        raise InvalidValueError(f"must be at most {format_duration(_LONGEST_WAIT)}: longer waits are not possible")
    return value


def _size(value: object) -> int:
    if isinstance(value, str):
        value = parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError("must be a size", hint='write it like "256MB", or as a number of bytes')
    return value


def _count(value: object) -> int:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError("must be a whole number")
    return value


def _time_zone(value: object) -> str:
    return _known_time_zone(read_text(value))


Duration = Annotated[timedelta, _duration]
Wait = Annotated[Duration, _wait]
"""A duration for which the system can wait."""
Size = Annotated[int, _size]
Count = Annotated[int, _count]
AbsolutePath = Annotated[Path, absolute_path]
Text = Annotated[str, _checked_text]
HiddenText = Annotated[Secret, _checked_secret]
"""A secret, masked in all output from the moment it is read."""
TimeZone = Annotated[str, _time_zone]
