"""Whether the local time of this process is what TZ means: the C library goes by UTC, silently, where it knows better.

It reads names of files and the rules of POSIX; `datetime.astimezone`, and so every schedule without a zone of its own,
goes by it. Libraries that parse TZ themselves, such as tzlocal, know only the names.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = r"(?:<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})"
_TIME = r"[+-]?[0-9]{1,3}(?::[0-9]{2}){0,2}"
_RULE = rf"(?:M[0-9]{{1,2}}\.[1-5]\.[0-6]|J?[0-9]{{1,3}})(?:/{_TIME})?"
# What POSIX lets stand in TZ besides the name of a file: abbreviations, offsets, and when clocks are changed.
_POSIX_ZONE = re.compile(rf"{_NAME}{_TIME}(?:{_NAME}(?:{_TIME})?(?:,{_RULE},{_RULE})?)?")
_WINTER_AND_SUMMER = ((1, 1), (7, 1))


class Misunderstanding(NamedTuple):
    """What is wrong with TZ, and what to do about it."""

    message: str
    hint: str


def zone_meant(environ: Mapping[str, str]) -> str | None:
    """What TZ says, without the colon that may be in front of it; None when it says nothing."""
    return environ.get("TZ", "").removeprefix(":") or None


def misunderstood_zone(environ: Mapping[str, str], now: datetime) -> Misunderstanding | None:
    """Why the local time is not that of TZ; None when it is, or TZ says nothing. `now` is aware."""
    meant = zone_meant(environ)
    if meant is None or _POSIX_ZONE.fullmatch(meant):
        return None
    zone = _zone_called(meant)
    if zone is None:
        bare = meant.strip(" \t\r\n\"'")
        is_wrapped = bare != meant and (_zone_called(bare) is not None or _POSIX_ZONE.fullmatch(bare))
        likely = f"write it alone, TZ={bare}: lists in Compose and --env-file keep quotes" if is_wrapped else None
        return Misunderstanding(
            f"there is no time zone TZ={meant}: schedules go by UTC",
            likely or "write it like Europe/Berlin, or set schedule.time_zone",
        )
    if not _agrees(zone, now):
        local = now.astimezone().isoformat(sep=" ", timespec="seconds")
        return Misunderstanding(
            f"this system does not know TZ={meant}: its local time is {local}",
            "install tzdata, or set schedule.time_zone",
        )
    return None


def _zone_called(name: str) -> ZoneInfo | None:
    try:
        if name.startswith("/") and os.path.isfile(name):  # noqa: PTH113  (it need be no path at all)
            with open(name, "rb") as file:  # noqa: PTH123  (as above)
                return ZoneInfo.from_file(file)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _agrees(zone: ZoneInfo, now: datetime) -> bool:
    """Whether the C library's local time is that of `zone`, in winter and in summer."""
    moments = (datetime(now.year, month, day, 12, tzinfo=UTC) for month, day in _WINTER_AND_SUMMER)
    return all(moment.astimezone().utcoffset() == moment.astimezone(zone).utcoffset() for moment in moments)
