"""The page of one snapshot: what `backupd show` says of it, and the commands to use it, ready to copy."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from backupd.format.records import CheckOutcome
from backupd.page.document import Links, anchor, banner, facts, page, trail
from backupd.page.facts import snapshot_facts
from backupd.page.html import Markup, joined, tag
from backupd.page.words import Headline
from backupd.quantities import age, size

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, Situation

_FOUND = {
    CheckOutcome.PROVEN: ("good", "a test restore of it passed"),
    CheckOutcome.INTACT: ("good", "every stored byte of it is right"),
    CheckOutcome.DAMAGED_STORE: ("bad", "it is damaged in the store"),
    CheckOutcome.DAMAGED_SOURCE: ("bad", "the database was damaged when it was captured"),
}
_SHOWN_ABOVE = {"snapshot", "store"}


def find_snapshot(database: KnownDatabase, snapshot_id: str) -> list[tuple[KnownStore, KnownSnapshot]]:
    """Return the stores in which a snapshot is known, with what is known of it there."""
    return [(store, store.by_id[snapshot_id]) for store in database.stores if snapshot_id in store.by_id]


def render_snapshot(
    database: KnownDatabase, found: list[tuple[KnownStore, KnownSnapshot]], situation: Situation
) -> str:
    """Return the page of one snapshot, which `find_snapshot` found in at least one store."""
    links = Links(root="../../")
    name, snapshot_id = database.name, str(found[0][1].summary.id)
    head = snapshot_headline(found, situation.now)
    return page(
        f"{name}@{snapshot_id}",
        head.tone,
        trail(("All databases", links.overview), (name, links.database(name)), snapshot_id),
        banner(head, situation.now),
        *snapshot_content(name, found, situation.now, links),
        now=situation.now,
    )


def snapshot_section(
    database: KnownDatabase, found: list[tuple[KnownStore, KnownSnapshot]], situation: Situation
) -> Markup:
    """Return one snapshot as a section of a file."""
    name, snapshot_id = database.name, str(found[0][1].summary.id)
    return tag(
        "section",
        tag("h3", f"{name}@{snapshot_id}"),
        tag("p", f"{snapshot_headline(found, situation.now).sentence}."),
        *snapshot_content(name, found, situation.now, Links(is_one_file=True)),
        tag("p", tag("a", f"Back to {name}", href=f"#{anchor(name)}")),
        id=anchor(name, snapshot_id),
    )


def snapshot_headline(found: list[tuple[KnownStore, KnownSnapshot]], now: datetime) -> Headline:
    """Return how a snapshot is: the worst that is known of it in any store."""
    summary = found[0][1].summary
    what = f"{summary.database} as it was {age(summary.id.taken_at, now)}, {size(summary.image_bytes)}"
    outcomes = {snapshot.check.outcome for _, snapshot in found if snapshot.check is not None}
    for outcome in (CheckOutcome.DAMAGED_STORE, CheckOutcome.DAMAGED_SOURCE, CheckOutcome.PROVEN, CheckOutcome.INTACT):
        if outcome in outcomes:
            tone, words = _FOUND[outcome]
            hint = None if tone == "good" else f"see what else there is: backupd list {summary.database}"
            return Headline(tone, f"{what}: {words}", hint=hint)
    return Headline("warn", f"{what}: no test restore has looked at it")


def snapshot_content(
    name: str, found: list[tuple[KnownStore, KnownSnapshot]], now: datetime, links: Links
) -> list[Markup]:
    """Return the commands, and the facts in each store."""
    level = 3 if links.is_one_file else 2
    content = [links.heading(level, "Commands"), *_commands(name, str(found[0][1].summary.id))]
    for store, snapshot in found:
        rows: list[tuple[str, str | None]] = [
            (label[0].upper() + label[1:], value)
            for label, value in snapshot_facts(snapshot.summary, store.url, snapshot.check, now=now, is_public=True)
            if label not in _SHOWN_ABOVE
        ]
        if snapshot.kept_because is not None:
            rows.insert(2, ("Kept because", ", ".join(snapshot.kept_because) or "no rule keeps it"))
        content += [links.heading(level, f"In {store.url}"), facts(rows, is_list=True)]
    return content


def _commands(name: str, snapshot_id: str) -> list[Markup]:
    reference = quote(f"{name}@{snapshot_id}")
    commands = (
        ("Show what a restore would change, and change nothing", f"backupd restore {reference} --dry-run"),
        ("Query it with SQL", f"backupd query {reference}"),
        ("Compare it with the database as it is now", f"backupd diff {reference} live"),
        ("Write it as SQL", f"backupd dump {reference} > {quote(f'{name}.sql')}"),
        ("Show which rows of a table it would bring back", f"backupd recover {reference} TABLE --dry-run"),
    )
    return [
        joined(tag("p", what), tag("div", tag("pre", tag("code", command)), class_="copy"))
        for what, command in commands
    ]
