"""The page of all databases: the sentence that matters, what is wrong, and a list with the worst first.

A row has as few bytes as it can: a thousand of them are one page of less than 150 kB.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from backupd.page.document import Links, banner, page, scrolling
from backupd.page.html import Markup, joined, tag
from backupd.page.timeline import strip
from backupd.page.words import NOTHING, after, ago, capitalized, headline, moment, title_of
from backupd.quantities import age, count, size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from backupd.health.alarms import Alarm
    from backupd.page.values import Situation

    Runs = Mapping[str, Sequence[tuple[datetime, str]]]

MOST_WITH_PICTURES = 25
"""Up to so many databases, each has a picture of its last week."""
MOST_BYTES = 118_000
"""What the rows of one page may take up; the others are on the next page."""

_ALARMS_SHOWN = 10
_FAR = timedelta(days=36_500)
_COLUMNS = (
    ("name", "Database", "ascending"),
    ("problem", "State", "descending"),
    ("age", "Restorable to", "descending"),
    ("size", "Size", "descending"),
)
SORTS = tuple(key for key, _, _ in _COLUMNS)
"""The orders that the list can have."""
USUAL_SORT = "problem"
_TONES = {"current": "g", "running": "g", "waiting": "w", "retrying": "w", "vanished": "w", "unproven": "b"}


class Place(NamedTuple):
    """Which part of the list is shown, and in which order."""

    sort: str = USUAL_SORT
    start: int = 0


def render_overview(situation: Situation, place: Place, runs: Runs) -> str:
    """Return the page of all databases. `runs` are the last ones of each, as far as pictures of them are wanted."""
    found = headline(situation)
    content = overview(situation, Links(), place, runs, most_bytes=MOST_BYTES)
    return page(found.sentence, found.tone, *content, now=situation.now)


def overview(
    situation: Situation, links: Links, place: Place, runs: Runs, *, most_bytes: int | None
) -> list[Markup | None]:
    """Return the content of that page."""
    found = headline(situation)
    return [
        banner(found, situation.now),
        _alarms(situation, links),
        _databases(situation, links, place, runs, most_bytes),
        _daemon(situation),
    ]


def alarm_item(alarm: Alarm, situation: Situation, links: Links | None) -> Markup:
    """Return one thing that is wrong, since when, and what to do about it."""
    title = title_of(alarm)
    name = alarm.database
    link = links.database(name) if links and name is not None and name in situation.status.databases else None
    heading = capitalized(title, name)
    tone = "b" if alarm.is_red else "w"
    return tag(
        "li",
        tag(
            "p",
            tag("span", tag("span", "Alarm: " if alarm.is_red else "Note: "), class_=tone),
            tag("b", tag("a", heading, href=link) if link else heading),
        ),
        tag("p", joined(alarm.message, ". Since ", moment(alarm.since), f", {ago(alarm.since, situation.now)}.")),
        tag("p", joined(tag("b", "What to do: "), alarm.hint)),
    )


def _alarms(situation: Situation, links: Links) -> Markup | None:
    if not situation.alarms:
        return None
    shown = situation.alarms[:_ALARMS_SHOWN]
    rest = len(situation.alarms) - len(shown)
    more = tag("p", f"And {count(rest)} more: the pages of the databases below have them.") if rest else None
    return tag(
        "section",
        tag("h2", "What is wrong" if any(alarm.is_red for alarm in shown) else "What to look at"),
        tag("ul", *(alarm_item(alarm, situation, links) for alarm in shown), class_="alarms"),
        more,
    )


def _databases(situation: Situation, links: Links, place: Place, runs: Runs, most_bytes: int | None) -> Markup | None:
    names = sorted_names(situation, place.sort)
    if not names:
        return None
    has_pictures = len(names) <= MOST_WITH_PICTURES and bool(runs)
    rows, taken, end = [], 0, place.start
    for name in names[place.start :]:
        row = _row(name, situation, links, runs.get(name, ()) if has_pictures else None)
        taken += len(row.encode())
        if most_bytes is not None and taken > most_bytes:
            break
        rows.append(row)
        end += 1
    others = [tag("th", "Next run")] + ([tag("th", "Last 7 days")] if has_pictures else [])
    head = tag("thead", tag("tr", *(_heading(column, place, links) for column in _COLUMNS), *others))
    table = tag("table", head, tag("tbody", *rows), class_="o r")
    return tag(
        "section",
        tag("h2", count(len(names), "database")),
        scrolling("Databases", table),
        _pages(place, end, len(names)),
    )


def sorted_names(situation: Situation, sort: str) -> list[str]:
    """Return the names of all databases in one of the orders in `SORTS`; those that are equal in it by name."""
    names = sorted(situation.status.databases)
    now = situation.now

    def age_of(name: str) -> timedelta:
        at = situation.restorable(name)
        return -_FAR if at is None else at - now

    keys: dict[str, Callable[[str], object]] = {
        "problem": situation.severity,
        "age": age_of,
        "size": lambda name: -(_size_of(name, situation) or -1),
    }
    return names if sort not in keys else sorted(names, key=keys[sort])  # type: ignore[arg-type]


def _row(name: str, situation: Situation, links: Links, runs: Sequence[tuple[datetime, str]] | None) -> Markup:
    database = situation.status.databases[name]
    state = situation.state(name)
    at = situation.restorable(name)
    size_bytes = _size_of(name, situation)
    tone = _TONES.get(state, "b")
    if tone == "g" and name in situation.alarms_of:
        tone = "b" if any(alarm.is_red for alarm in situation.alarms_of[name]) else "w"
    return tag(
        "tr",
        tag("th", tag("a", name, href=links.database(name))),
        tag("td", state, class_=tone),
        tag("td", "never" if at is None else age(at, situation.now)),
        tag("td", NOTHING if size_bytes is None else size(size_bytes)),
        tag("td", after(database.next_run_at if _is_running(situation) else None, situation.now)),
        None if runs is None else tag("td", strip(runs, situation.now)),
    )


def _size_of(name: str, situation: Situation) -> int | None:
    """Return the size of a database at its last run that found it out."""
    stores = situation.status.databases[name].stores.values()
    sizes = [health.last_run.image_bytes for health in stores if health.last_run is not None]
    return max((each for each in sizes if each is not None), default=None)


def _is_running(situation: Situation) -> bool:
    daemon = situation.status.daemon
    return daemon is not None and daemon.stopped_at is None


def _heading(column: tuple[str, str, str], place: Place, links: Links) -> Markup:
    key, label, direction = column
    if links.is_one_file:
        return tag("th", label, scope="col", aria_sort=direction if key == place.sort else None)
    link = tag("a", label, href=f"?sort={key}")
    return tag("th", link, scope="col", aria_sort=direction if key == place.sort else None)


def _pages(place: Place, end: int, total: int) -> Markup | None:
    if not place.start and end >= total:
        return None
    shown = f"{count(place.start + 1)} to {count(end)} of {count(total)}. "
    first = tag("a", "First ones", href=f"?sort={place.sort}") if place.start else None
    following = tag("a", "Next ones", href=f"?sort={place.sort}&start={end}") if end < total else None
    return tag("p", shown, joined(*filter(None, (first, following)), by=" · "))


def _daemon(situation: Situation) -> Markup | None:
    daemon, now = situation.status.daemon, situation.now
    if daemon is None:
        return None
    sign = ago(situation.alive_at, now)
    if daemon.stopped_at is not None:
        return tag("p", f"The daemon was stopped {age(daemon.stopped_at, now)}.", class_="quiet")
    return tag(
        "p",
        f"The daemon (process {daemon.pid}, version {daemon.version}) was started {age(daemon.started_at, now)}; "
        f"last sign of life {sign}.",
        class_="quiet",
    )
