"""Who is to be told what, now: each alarm when it is raised, again at growing intervals, and once when it is over.

Pure. What each target knows is in the status, so that a restart repeats nothing and forgets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from backupd.health.values import AlarmState, Told

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from backupd.health.judging import Alarm
    from backupd.health.values import Status

_LONGEST_SILENCE = timedelta(days=1)
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message to one target, about everything that is to be told there now."""

    title: str
    body: str
    is_good: bool
    """Only of alarms that are over."""
    keys: tuple[str, ...]
    """Of the alarms that it tells of."""


def with_alarms(status: Status, alarms: Collection[Alarm], targets: Collection[str], *, now: datetime) -> Status:
    """Remember which alarms are on at `now`, and which are over that somebody was told of.

    `targets` are the keys of those who are told: of others, it is forgotten what they know.
    """
    on = {alarm.key: alarm for alarm in alarms} if targets else {}
    titles = {alarm.title for alarm in on.values()}
    states = {}
    for key, state in status.alarms.items():
        told = {target: told for target, told in state.told.items() if target in targets}
        if key in on:
            states[key] = replace(state, told=told, ended_at=None)
        elif told and state.title not in titles and not _is_only_forgotten(key, state, status):
            states[key] = replace(state, told=told, ended_at=state.ended_at or now)
    for key, alarm in on.items():
        if key not in states:
            states[key] = AlarmState(raised_at=now, title=alarm.title, database=alarm.database)
    return status if states == status.alarms else replace(status, alarms=states)


def notice_for(
    target: str, status: Status, alarms: Collection[Alarm], *, now: datetime, remind_after: timedelta
) -> Notice | None:
    """What `target` is to be told now, by a status that `with_alarms` made; None when it knows everything."""
    on = {alarm.key: alarm for alarm in alarms}
    raised = [alarm for key, alarm in on.items() if target not in status.alarms[key].told]
    reminded = [
        alarm
        for key, alarm in on.items()
        if _is_forgotten(alarm, status.alarms[key].told.get(target), now, remind_after)
    ]
    over = {key: state for key, state in status.alarms.items() if state.ended_at is not None and target in state.told}
    if not raised and not reminded and not over:
        return None
    ended = [_end(state, status) for state in over.values()]
    blocks = [
        *_blocks("", raised),
        *_blocks("Still so: ", reminded),
        *_shortened([f"Over: {text}." for text in ended]),
    ]
    return Notice(
        title=_title(raised, reminded, [state.title for state in over.values()]),
        body="\n\n".join(blocks),
        is_good=not raised and not reminded,
        keys=(*(alarm.key for alarm in (*raised, *reminded)), *over),
    )


def with_told(status: Status, target: str, notice: Notice, *, now: datetime) -> Status:
    """Remember that `target` got `notice`. What is over, and known to be by all who were told of it, is forgotten."""
    states = dict(status.alarms)
    for key in notice.keys:
        state = states.get(key)
        if state is None:
            continue
        told = dict(state.told)
        before = told.pop(target, None)
        if state.ended_at is None:
            told[target] = Told(at=now, times=before.times + 1 if before else 1)
        if told:
            states[key] = replace(state, told=told)
        else:
            del states[key]
    return replace(status, alarms=states)


def _is_forgotten(alarm: Alarm, told: Told | None, now: datetime, remind_after: timedelta) -> bool:
    """Whether it was told so long ago that it is to be told again: after a while, then after twice as long, and so on.

    A clock that was set back by as much brings it up too.
    """
    if told is None or alarm.is_told_once:
        return False
    longest = max(_LONGEST_SILENCE, remind_after)
    # The limit keeps the power of two within reason after years.
    silence: timedelta = min(remind_after * 2 ** min(told.times - 1, 20), longest)
    return abs(now - told.at) >= silence


def _is_only_forgotten(key: str, state: AlarmState, status: Status) -> bool:
    """A file that vanished long ago is not remembered any more: it has not come back."""
    return key.startswith("vanished ") and state.database not in status.databases


def _end(state: AlarmState, status: Status) -> str:
    """In what way it is over."""
    database = status.databases.get(state.database) if state.database else None
    if state.database is not None and database is None:
        return f"{state.title}: it is not configured any more"
    if database is not None and database.vanished_at is not None:
        return f"{state.title}: {database.path} is gone"
    return f"{state.title} (from {_time(state.raised_at)} to {_time(state.ended_at or state.raised_at)})"


def _blocks(prefix: str, alarms: Sequence[Alarm]) -> list[str]:
    return _shortened(
        [f"{prefix}{alarm.message}.\nSince: {_time(alarm.since)}\nWhat to do: {alarm.hint}" for alarm in alarms]
    )


def _shortened(texts: list[str]) -> list[str]:
    """A store that is down for a thousand tenants is told in a message that somebody can read."""
    more = len(texts) - _SHOWN
    return texts if more <= 0 else [*texts[:_SHOWN], f"... and {more} more like these; all of them: backupd status"]


def _title(raised: Sequence[Alarm], reminded: Sequence[Alarm], ended: Sequence[str]) -> str:
    alarms = raised or reminded
    if not alarms:
        return f"backupd: over: {_and_more(ended[0], len(ended))}"
    word = "PROBLEM" if any(alarm.is_red for alarm in alarms) else "note"
    again = "" if raised else "still: "
    return f"backupd {word}: {again}{_and_more(f'{alarms[0].kind}: {alarms[0].title}', len(alarms))}"


def _and_more(first: str, count: int) -> str:
    return first if count == 1 else f"{first}, and {count - 1} more"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
