"""Types of configuration values: durations, sizes, paths, texts and secrets, and how each is written."""

import difflib
import re
from datetime import timedelta, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, SecretStr

from backupd.errors import UsageError, keep_secret

_DURATION = re.compile(
    r"(?:([0-9]{1,9})w)?(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,12})ms)?"
)
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([kmgt]?i?b)", re.IGNORECASE)
# Control characters, zero-width marks, and what reverses text. A path may have all else, even bytes that are no text.
_STRAY = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
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
    """A configuration value is not valid.

    It is a `ValueError` as well, because pydantic collects those: all wrong keys are reported at once.
    """


class Table(BaseModel):
    """Base of the configuration's tables: immutable, without unknown keys or values in pydantic's errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def overridden_by(self, *overrides: Self | None) -> Self:
        """Return this table with the keys that are set in each of `overrides`; a later one wins."""
        written = {key: getattr(table, key) for table in (self, *overrides) if table for key in table.model_fields_set}
        return type(self)(**written)


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
    return None if name is None else ZoneInfo(name)


def _known_time_zone(name: str) -> str:
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


def _checked_text(text: str) -> str:
    problem = stray_characters(text)
    if problem is not None or not text.isprintable():
        raise InvalidValueError(problem or "must not contain an unprintable character")
    return text


def _checked_secret(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None:
        _checked_text(secret.get_secret_value())
        keep_secret(secret.get_secret_value())
    return secret


def stray_characters(text: str) -> str | None:
    """Return what is wrong with a text that a tool may have added characters to, without repeating it."""
    if text.endswith(("\n", "\r")):
        return "must not end with a line break"
    if _STRAY.search(text):
        return "must not contain a control character"
    return "must not begin or end with a space" if text != text.strip() else None


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


def _count(value: object) -> object:
    # pydantic would accept `true` as 1 and 3.0 as 3.
    if isinstance(value, bool | float):
        raise InvalidValueError("must be a whole number")
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(format_duration, when_used="json")]
Wait = Annotated[Duration, AfterValidator(_wait)]
"""A duration for which the system can wait."""
Size = Annotated[int, BeforeValidator(_size), PlainSerializer(format_size, when_used="json")]
Count = Annotated[int, BeforeValidator(_count)]
AbsolutePath = Annotated[Path, BeforeValidator(absolute_path)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_checked_text)]
SecretIfAny = Annotated[SecretStr | None, Field(min_length=1), AfterValidator(_checked_secret)]
"""A secret, masked in all output from the moment it is read."""
TimeZone = Annotated[str, AfterValidator(_known_time_zone)]
