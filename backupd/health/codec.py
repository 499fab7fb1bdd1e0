"""The status as JSON and back, by tables: a status of a thousand databases is read and written all the time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec.structs import replace

from backupd.health.values import (
    VERSION,
    AlarmState,
    DaemonHealth,
    DatabaseHealth,
    Delivery,
    Failure,
    FollowHealth,
    Gap,
    LastRun,
    Problem,
    SegmentsHealth,
    Status,
    StoreHealth,
    Totals,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Convert = Callable[[Any], Any]

_T = TypeVar("_T")


class UnreadableStatusError(ValueError):
    """The content of a file is not a status; the text says why."""


class NewerStatusError(UnreadableStatusError):
    """A status was written by a newer backupd."""


class Encoder:
    """Encodes statuses. It keeps the text of each database, and encodes only those that have changed since the last."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[DatabaseHealth, str]] = {}

    def encode(self, status: Status) -> str:
        """Return the content of a status file; what is None is left out."""
        known = self._known
        self._known = {
            name: before
            if (before := known.get(name)) is not None and before[0] is database
            else (database, f"{_JSON.encode(name)}:{_text(database)}")
            for name, database in status.databases.items()
        }
        rest = _JSON.encode(_STATUS.brief(replace(status, databases={})))
        databases = ",\n".join([text for _, text in self._known.values()])
        return f'{rest[:-1]},"databases":{{\n{databases}\n}}}}\n'


def decode(text: str | bytes) -> Status:
    """Return the status in the content of a file. Unknown keys are ignored. Raises `UnreadableStatusError`."""
    try:
        tree = json.loads(text)
        _check_version(tree["version"])
        return _STATUS.decode(tree)
    except UnreadableStatusError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnreadableStatusError(f"{type(error).__name__}: {error}") from error


def values(status: Status) -> dict[str, Any]:
    """Return the whole status with every key, as `backupd status --json` shows it."""
    return _STATUS.full(status)


def utc_text(moment: datetime) -> str:
    """Return an aware `moment` as in `2026-11-22T08:55:57.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _check_version(version: Any) -> None:
    if type(version) is int and version > VERSION:
        raise NewerStatusError(f"it has version {version}, and this backupd knows {VERSION}")
    if version != VERSION:
        raise UnreadableStatusError(f"it has version {version!r}")


class _Record(Generic[_T]):
    """Encodes a dataclass whose fields are simple values, times, other records, or records by name.

    `keys` gives the keys in JSON of the fields that have another name there.
    """

    def __init__(self, cls: type[_T], keys: Mapping[str, str] = MappingProxyType({}), /, **kinds: _Kind) -> None:
        self._cls = cls
        self._decoders = [(keys.get(name, name), name, kind.decode) for name, kind in kinds.items()]
        self._briefs = [(keys.get(name, name), kind.brief) for name, kind in kinds.items()]
        self._fulls = [(keys.get(name, name), kind.full) for name, kind in kinds.items()]
        self._parts = attrgetter(*kinds)

    def decode(self, tree: dict[str, Any]) -> _T:
        """Return the value. Raises ValueError, TypeError, KeyError or AttributeError when `tree` is something else."""
        return self._cls(**{name: decode(tree[key]) for key, name, decode in self._decoders if key in tree})

    def brief(self, value: _T) -> dict[str, Any]:
        """Return the fields that are not None, false or empty."""
        return {
            key: brief(part) if brief else part
            for (key, brief), part in zip(self._briefs, self._parts(value), strict=True)
            if part or (part is not False and part == 0)
        }

    def full(self, value: _T) -> dict[str, Any]:
        """Return every field."""
        return {
            key: full(part) if full and part is not None else part
            for (key, full), part in zip(self._fulls, self._parts(value), strict=True)
        }


class _Kind:
    """How one field is read and written. Without an encoder, JSON holds the value as it is."""

    def __init__(self, decode: Convert, brief: Convert | None = None, full: Convert | None = None) -> None:
        self.decode = decode
        self.brief = brief
        self.full = full or brief


def _simple(cls: type, *more: type) -> _Kind:
    allowed = frozenset((cls, *more))

    def decode(part: Any) -> Any:
        if type(part) not in allowed:
            raise TypeError(f"{part!r} is no {cls.__name__}")
        return part

    return _Kind(decode)


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment


def _one(record: _Record[Any]) -> _Kind:
    return _Kind(record.decode, record.brief, record.full)


def _by_name(record: _Record[Any]) -> _Kind:
    def decode(tree: dict[str, Any]) -> dict[str, Any]:
        one = record.decode
        return {name: one(part) for name, part in tree.items()}

    def brief(parts: Mapping[str, Any]) -> dict[str, Any]:
        one = record.brief
        return {name: one(part) for name, part in parts.items()}

    def full(parts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: record.full(part) for name, part in parts.items()}

    return _Kind(decode, brief, full)


_TEXT, _INT, _FLOAT, _BOOL = _simple(str), _simple(int), _simple(float, int), _simple(bool)
# Most times are as they were in the last status, and formatting them costs as much as all the rest.
_iso_text = lru_cache(maxsize=1 << 13)(datetime.isoformat)
_TIME = _Kind(_time, _iso_text, utc_text)
_TIMES = _Kind(
    lambda texts: tuple([_time(text) for text in texts]),
    lambda times: [_iso_text(each) for each in times],
    lambda times: [utc_text(each) for each in times],
)

_FAILURE_RECORD = _Record(
    Failure,
    since=_TIME,
    count=_INT,
    last_at=_TIME,
    message=_TEXT,
    hint=_TEXT,
    exit_code=_INT,
    is_transient=_BOOL,
    is_refusal=_BOOL,
)
_FAILURE = _one(_FAILURE_RECORD)
_PROBLEM = _one(_Record(Problem, since=_TIME, message=_TEXT, hint=_TEXT, ends_by_itself=_BOOL))
_LAST_RUN = _one(
    _Record(
        LastRun,
        started_at=_TIME,
        duration_seconds=_FLOAT,
        outcome=_TEXT,
        stored_bytes=_INT,
        changed_pages=_INT,
        page_count=_INT,
        page_size=_INT,
    )
)
_FOLLOW = _one(
    _Record(
        FollowHealth,
        max_age_seconds=_FLOAT,
        lag_seconds=_FLOAT,
        window=_TEXT,
        window_since=_TIME,
        last_gap=_one(_Record(Gap, at=_TIME, reason=_TEXT, is_blind=_BOOL)),
        gaps=_TIMES,
        gaps_total=_INT,
    )
)
_SEGMENTS = _one(
    _Record(
        SegmentsHealth,
        waiting_since=_TIME,
        waiting_bytes=_INT,
        problem=_PROBLEM,
        lost_since=_TIME,
        lost_until=_TIME,
    )
)
_STORE = _Record(
    StoreHealth,
    {"odd_values": "remark"},
    current_at=_TIME,
    due_by=_TIME,
    planned_since=_TIME,
    fingerprint=_TEXT,
    snapshot_id=_TEXT,
    snapshot_at=_TIME,
    seen_at=_TIME,
    proven_id=_TEXT,
    proven_at=_TIME,
    intact_id=_TEXT,
    intact_at=_TIME,
    odd_values=_TEXT,
    last_run=_LAST_RUN,
    totals=_one(_Record(Totals, snapshots=_INT, failures=_INT, stored_bytes=_INT)),
    failure=_FAILURE,
    drill_failure=_FAILURE,
    is_put_only=_BOOL,
    is_damaged=_BOOL,
    is_schema_unreadable=_BOOL,
    is_source_damaged=_BOOL,
    damaged_source_id=_TEXT,
    hold=_PROBLEM,
    prune_failure=_FAILURE,
    pruned_at=_TIME,
    passed_over=_PROBLEM,
    segments=_SEGMENTS,
    continuity_at=_TIME,
    continuity_problem=_PROBLEM,
    continuity_window=_TEXT,
    is_window_broken=_BOOL,
)
_DATABASE = _Record(
    DatabaseHealth,
    path=_TEXT,
    is_scheduled=_BOOL,
    next_run_at=_TIME,
    next_drill_at=_TIME,
    proof_due_by=_TIME,
    running_since=_TIME,
    read_problem=_PROBLEM,
    vanished_at=_TIME,
    journal_mode=_TEXT,
    follow=_FOLLOW,
    stores=_by_name(_STORE),
)
_DAEMON = _Record(
    DaemonHealth,
    pid=_INT,
    version=_TEXT,
    started_at=_TIME,
    stopped_at=_TIME,
    config_problem=_PROBLEM,
    entry_problems=_by_name(_FAILURE_RECORD),
    blind_since=_TIME,
)
_ALARM = _Record(
    AlarmState,
    {"deliveries": "told"},
    raised_at=_TIME,
    title=_TEXT,
    database=_TEXT,
    ended_at=_TIME,
    deliveries=_by_name(_Record(Delivery, at=_TIME, times=_INT)),
)
_STATUS = _Record(
    Status,
    version=_INT,
    written_at=_TIME,
    daemon=_one(_DAEMON),
    alarms=_by_name(_ALARM),
    databases=_by_name(_DATABASE),
)
# In ASCII: a file's name need not be valid UTF-8, and surrogates cannot be encoded otherwise.
_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def _text(database: DatabaseHealth) -> str:
    return _JSON.encode(_DATABASE.brief(database))
