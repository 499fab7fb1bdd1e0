"""All pages in one file, for mail or an audit: the parts are sections, and links lead to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.page.database import Part, database_content
from backupd.page.document import Links, anchor, page
from backupd.page.html import Markup, tag
from backupd.page.overview import Place, overview, sorted_names
from backupd.page.snapshot import find_snapshot, snapshot_section
from backupd.page.words import headline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from backupd.page.values import KnownDatabase, Situation

MOST_SNAPSHOTS = 400
"""Snapshots with a section of their own, in all databases together."""
MOST_OF_DATABASE = 20


def render_report(
    situation: Situation,
    databases: Mapping[str, KnownDatabase],
    runs: Mapping[str, Sequence[tuple[datetime, str]]],
) -> str:
    """Return the whole report: the overview, each of `databases`, and the newest snapshots of each."""
    links = Links(is_one_file=True)
    found = headline(situation)
    part = Part(most=max(1, min(MOST_OF_DATABASE, MOST_SNAPSHOTS // max(1, len(databases)))))
    sections: list[Markup | None] = [*overview(situation, links, Place(), runs, most_bytes=None)]
    names = [name for name in sorted_names(situation, Place().sort) if name in databases]
    sections += [_section(databases[name], situation, links, part) for name in names]
    return page(found.sentence, found.tone, *sections, now=situation.now, is_file=True)


def _section(database: KnownDatabase, situation: Situation, links: Links, part: Part) -> Markup:
    ids = {str(each.summary.id) for store in database.stores for each in store.snapshots[-part.most :]}
    snapshots = [
        snapshot_section(database, find_snapshot(database, each), situation) for each in sorted(ids, reverse=True)
    ]
    return tag(
        "section",
        *database_content(database, situation, links, part),
        *snapshots,
        tag("p", tag("a", "Back to all databases", href=links.overview)),
        id=anchor(database.name),
    )
