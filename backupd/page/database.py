"""The page of one database: in each store its state, a timeline, how it grows, and its snapshots."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from backupd.config.values import format_duration
from backupd.format.manifest import SnapshotKind
from backupd.format.records import CheckOutcome
from backupd.page.charts import Point, bars, growth
from backupd.page.document import Links, anchor, banner, facts, page, scrolling, trail
from backupd.page.html import Markup, joined, tag
from backupd.page.overview import alarm_item
from backupd.page.timeline import timelines
from backupd.page.words import NOTHING, Headline, after, ago, capitalized, moment, title_of, took
from backupd.quantities import age, count, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from backupd.config import RetentionSettings
    from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, Situation

SNAPSHOTS_SHOWN = 100
_GOOD = {"current", "running"}
_RULES = ("keep_last", "hourly", "daily", "weekly", "monthly", "yearly")


class Part(NamedTuple):
    """Which snapshots are listed: at most so many, older than one if given."""

    most: int = SNAPSHOTS_SHOWN
    before: str | None = None


def render_database(database: KnownDatabase, situation: Situation, part: Part) -> str:
    """Return the page of one database."""
    found = database_headline(database, situation)
    links = Links(root="../")
    content = database_content(database, situation, links, part)
    return page(
        f"{database.name}: {found.sentence}",
        found.tone,
        trail(("All databases", links.overview), database.name),
        *content,
        now=situation.now,
    )


def database_content(database: KnownDatabase, situation: Situation, links: Links, part: Part) -> list[Markup | None]:
    """Return the content of that page."""
    alarms = situation.alarms_of.get(database.name, ())
    items = [alarm_item(alarm, situation, None) for alarm in alarms]
    return [
        banner(database_headline(database, situation), situation.now, level=1 + links.is_one_file),
        tag("ul", *items, class_="alarms") if len(items) > 1 or (items and not alarms[0].is_red) else None,
        _of_database(database, situation),
        *(_store(database, store, situation, links, part, number) for number, store in enumerate(database.stores)),
    ]


def database_headline(database: KnownDatabase, situation: Situation) -> Headline:
    """Return how one database is, since when, and what to do about it."""
    name, now = database.name, situation.now
    red = [alarm for alarm in situation.alarms_of.get(name, ()) if alarm.is_red]
    if red:
        title = title_of(red[0])
        return Headline("bad", capitalized(title, name), red[0].since, red[0].hint)
    if database.health.vanished_at is not None:
        return Headline("warn", f"The file of {name} is gone", database.health.vanished_at, None)
    at = situation.restorable(name)
    if at is None:
        return Headline("warn", f"{name} waits for its first snapshot")
    state = situation.state(name)
    if state in _GOOD:
        return Headline("good", f"{name} can be restored to {age(at, now)}")
    return Headline("warn", f"{name} is {state}; it can be restored to {age(at, now)}")


def _of_database(database: KnownDatabase, situation: Situation) -> Markup:
    health, now = database.health, situation.now
    follow = health.follow
    is_running = situation.status.daemon is not None and situation.status.daemon.stopped_at is None
    followed = None
    if follow is not None:
        window = follow.window_since
        followed = "no recovery window is open" if window is None else f"recovery window begun {ago(window, now)}"
    return facts(
        [
            ("File", health.path),
            ("Next run", after(health.next_run_at if is_running else None, now)),
            ("Next test restore", after(health.next_drill_at if is_running else None, now)),
            ("Journal mode", health.journal_mode),
            ("Log followed", followed),
        ]
    )


def _store(
    database: KnownDatabase, store: KnownStore, situation: Situation, links: Links, part: Part, number: int
) -> Markup:
    key = f"{anchor(database.name)}-{number}" if links.is_one_file else f"store-{number}"
    return tag(
        "section",
        links.heading(2, f"{database.name} in {store.url}" if links.is_one_file else f"In {store.url}", id=key),
        _store_facts(database, store, situation),
        timelines(database, store, situation, key=f"{key}-span"),
        _charts(store, situation.now),
        _retention(store, links),
        _snapshots(database, store, situation, links, part),
        aria_labelledby=key,
    )


def _store_facts(database: KnownDatabase, store: KnownStore, situation: Situation) -> Markup:
    health, now = store.health, situation.now
    state = situation.state_in(database.name, store.url)
    tone = "g" if state in _GOOD else "w" if state in {"waiting", "retrying", "vanished"} else "b"
    last = health.last_run
    run = None if last is None else f"{last.outcome}, {ago(last.started_at, now)}, took {took(last.duration_seconds)}"
    if health.proven_at is not None:
        tested: str | None = f"passed {ago(health.proven_at, now)}"
    elif health.intact_at is not None:
        tested = f"stored bytes right {ago(health.intact_at, now)}; not restored: no key is here"
    else:
        tested = "none from here: the keys may only put" if health.is_put_only else "none yet"
    if health.drill_failure is not None:
        tested = f"failed {ago(health.drill_failure.last_at, now)}; last passed {ago(health.proven_at, now)}"
    stored = store.stored[-1][1] if store.stored else None
    return facts(
        [
            ("State", tag("span", state, class_=tone)),
            ("Restorable to", ago(situation.restorable_in(database.name, store.url), now)),
            ("Last run", run),
            ("Last failure", None if health.failure is None else health.failure.message),
            ("Test restore", tested),
            ("Snapshots", count(len(store.snapshots))),
            ("Packs of all of them", None if stored is None else size(stored)),
            ("Commits kept", size(sum(each.stored_bytes for each in store.windows)) if store.windows else None),
            ("Last seen in the store", ago(health.seen_at, now)),
        ]
    )


def _charts(store: KnownStore, now: datetime) -> Markup | None:
    runs = store.runs
    sizes = [Point(at, each.summary.image_bytes) for at, each in zip(store.taken_at, store.snapshots, strict=True)]
    stored = [Point(at, total) for at, total in store.stored]
    changed = [Point(run.started_at, run.changed_pages) for run in runs if run.changed_pages is not None]
    lasted = [Point(run.started_at, run.duration_seconds) for run in runs if run.outcome != "failed"]
    charts = [
        growth("Size of the database", _of_time(sizes), size, now=now),
        growth("Stored", _of_time(stored), size, now=now),
        bars("Changed pages of a run", changed, lambda value: count(round(value)), now=now),
        bars("Duration of a run", lasted, took, now=now),
    ]
    shown = [chart for chart in charts if chart is not None]
    return tag("div", *shown, class_="charts") if shown else None


def _of_time(points: Sequence[Point]) -> list[Point]:
    """Return points in the order of their times: after a wrong clock, that of snapshots is another one."""
    return [
        [*group][-1] for _, group in groupby(sorted(points, key=lambda point: point.at), key=lambda point: point.at)
    ]


def _retention(store: KnownStore, links: Links) -> Markup:
    hold = store.health.hold
    held = None
    if hold is not None:
        what = joined("Nothing is removed since ", moment(hold.since), f": {hold.message}. ")
        held = tag("p", tag("span", "On hold. ", class_="w"), what, tag("b", "What to do: "), hold.hint or "")
    unkept = sum(each.kept_because == () for each in store.snapshots)
    parts = [f"{count(unkept, 'snapshot')} {'is' if unkept == 1 else 'are'} kept by no rule" if unkept else ""]
    parts += [f"{count(len(store.removed), 'removed snapshot')} in the trash" if store.removed else ""]
    effect = "; ".join(filter(None, parts))
    return joined(
        links.heading(3, "Retention"),
        tag("p", f"{_rules(store.policy)}{f' Now {effect}.' if effect else ''}"),
        held,
    )


def _rules(policy: RetentionSettings | None) -> str:
    """Return what the policy keeps, in one sentence."""
    if policy is None:
        return "No policy is known here: nothing is removed."
    if policy.is_empty:
        return "The policy has no rule: nothing is removed."
    names = dict(zip(_RULES, ("last", "hourly", "daily", "weekly", "monthly", "yearly"), strict=True))
    kept = [f"{getattr(policy, rule)} {name}" for rule, name in names.items() if getattr(policy, rule)]
    if policy.within is not None:
        kept.append(f"all of {format_duration(policy.within)}")
    return f"Kept are: {', '.join(kept)}; tagged ones for {format_duration(policy.tagged)}."


def _snapshots(database: KnownDatabase, store: KnownStore, situation: Situation, links: Links, part: Part) -> Markup:
    newest_first = [
        each for each in reversed(store.snapshots) if part.before is None or str(each.summary.id) < part.before
    ]
    shown, rest = newest_first[: part.most], newest_first[part.most :]
    newest_id = store.health.snapshot_id
    unknown = None
    if newest_id is not None and newest_id not in store.by_id and part.before is None:
        unknown = tag("p", f"The newest snapshot, {newest_id}, is not listed yet: the next run reads it.")
    more = None
    if rest and not links.is_one_file:
        more = tag("p", tag("a", f"{count(len(rest))} older ones", href=f"?before={shown[-1].summary.id}"))
    elif rest:
        more = tag("p", f"{count(len(rest))} older ones are not in this file.")
    if not shown:
        return joined(links.heading(3, "Snapshots"), unknown or tag("p", "None is known here."))
    head = ("Snapshot", "Taken", "Size", "Stored", "Changed", "Test restore", "Kept because")
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", each, scope="col") for each in head))),
        tag("tbody", *(_row(database.name, each, situation, links) for each in shown)),
        class_="s",
    )
    return joined(
        links.heading(3, "Snapshots"), unknown, scrolling(f"Snapshots of {database.name} in {store.url}", table), more
    )


def _row(name: str, snapshot: KnownSnapshot, situation: Situation, links: Links) -> Markup:
    summary = snapshot.summary
    snapshot_id = str(summary.id)
    return tag(
        "tr",
        tag("th", tag("a", snapshot_id, href=links.snapshot(name, snapshot_id))),
        tag("td", moment(summary.id.taken_at)),
        tag("td", size(summary.image_bytes), class_="n"),
        tag("td", size(summary.stored_bytes), class_="n"),
        tag("td", count(summary.changed_pages, "page"), class_="n"),
        check_cell(snapshot, situation.now),
        tag("td", _kept(snapshot)),
    )


def check_cell(snapshot: KnownSnapshot, now: datetime) -> Markup:
    """Return a cell with what the last check of a snapshot found."""
    check = snapshot.check
    if check is None:
        return tag("td", NOTHING)
    words = {
        CheckOutcome.PROVEN: ("g", "passed"),
        CheckOutcome.INTACT: ("g", "intact"),
        CheckOutcome.DAMAGED_STORE: ("b", "damaged"),
        CheckOutcome.DAMAGED_SOURCE: ("b", "damaged source"),
    }
    tone, word = words.get(check.outcome, ("w", str(check.outcome)))
    return tag("td", f"{word} {ago(check.at, now)}", class_=tone)


def _kept(snapshot: KnownSnapshot) -> str:
    summary = snapshot.summary
    marks: Iterable[str] = (*summary.tags, *(() if summary.kind is SnapshotKind.REGULAR else ("before a restore",)))
    reasons = snapshot.kept_because
    why = "no policy" if reasons is None else ", ".join(reasons) or "no rule keeps it"
    tags = ", ".join(marks)
    return f"{why} [{tags}]" if tags else why
