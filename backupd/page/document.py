"""A whole page: its head, its style and its few lines of script, and the headers that go with it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from backupd import __version__
from backupd.page.html import Markup, joined, tag
from backupd.page.style import SCRIPT, STYLE, SYMBOLS
from backupd.page.words import Headline, ago, local, moment

if TYPE_CHECKING:
    from datetime import datetime

CONTENT_TYPE = "text/html; charset=utf-8"

_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E{}%3C/svg%3E"
_SHAPES = {
    "good": "%3Ccircle cx='4' cy='4' r='4' fill='%231a7f37'/%3E",
    "warn": "%3Cpath d='M4 0 8 8H0z' fill='%23b07400'/%3E",
    "bad": "%3Cpath d='M0 0h8v8H0z' fill='%23b42318'/%3E",
}


def _hash_of(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_POLICY_OF_FILE = (
    f"default-src 'none'; style-src {_hash_of(STYLE)}; script-src {_hash_of(SCRIPT)}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
HEADERS = (
    ("Content-Security-Policy", f"{_POLICY_OF_FILE}; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Nothing is loaded from anywhere, and the only style and script are the page's own."""


@dataclass(frozen=True, slots=True)
class Links:
    """The addresses of pages, relative to the one that links to them, so that a proxy may serve them anywhere."""

    root: str = ""
    is_one_file: bool = False
    """All pages are sections of one file."""

    def heading(self, level: int, *content: str, **attributes: str) -> Markup:
        """Return a heading of that level on the page of its own; in one file, it is one level deeper."""
        return tag(f"h{level + self.is_one_file}", *content, **attributes)

    @property
    def overview(self) -> str:
        """The address of the page of all databases."""
        return "#top" if self.is_one_file else self.root or "./"

    def database(self, name: str) -> str:
        """Return the address of the page of a database."""
        return f"#{anchor(name)}" if self.is_one_file else f"{self.root}database/{quote(name, safe='')}"

    def snapshot(self, name: str, snapshot_id: str) -> str:
        """Return the address of the page of a snapshot."""
        if self.is_one_file:
            return f"#{anchor(name, snapshot_id)}"
        return f"{self.root}snapshot/{quote(name, safe='')}/{quote(snapshot_id, safe='')}"


def anchor(name: str, snapshot_id: str | None = None) -> str:
    """Return the id of the section of a database, or of a snapshot, in one file."""
    return f"database-{quote(name, safe='')}" if snapshot_id is None else f"{quote(name, safe='')}@{snapshot_id}"


def page(title: str, tone: str, *content: Markup | None, now: datetime, is_file: bool = False) -> str:
    """Return a whole page. In a file, it carries its own security policy, and no script can be added to it."""
    policy = tag("meta", http_equiv="Content-Security-Policy", content=_POLICY_OF_FILE) if is_file else None
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        policy,
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup('<meta name="robots" content="noindex">'),
        tag("title", title),
        tag("link", rel="icon", href=_ICON.format(_SHAPES[tone])),
        tag("style", Markup(STYLE)),
    )
    zone = f"{local(now):%z}"
    footer = tag(
        "footer",
        tag(
            "p",
            "As of ",
            moment(now, is_exact=True),
            f". Times are those of this machine (UTC{zone[:3]}:{zone[3:5]}). ",
            "Everything here comes from the records of this machine: no store was asked for it.",
        ),
        tag("p", f"backupd {__version__}"),
    )
    main = tag("main", *content, id="top", tabindex="-1")
    skip = Markup('<a class="skip" href="#top">Skip to the content</a>')
    body = tag("body", SYMBOLS, skip, main, footer, tag("script", Markup(SCRIPT)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def missing_page(sentence: str, root: str, *, now: datetime) -> str:
    """Return the page for an address at which nothing is; `root` leads from there to the overview."""
    found = Headline("warn", sentence, hint="look for it among all databases")
    links = Links(root=root)
    return page(sentence, found.tone, trail(("All databases", links.overview)), banner(found, now), now=now)


def trail(*steps: tuple[str, str] | str) -> Markup:
    """Return the way back: links with their texts, and at last the text of the page itself."""
    items = [
        tag("li", tag("span", step, aria_current="page"))
        if isinstance(step, str)
        else tag("li", tag("a", step[0], href=step[1]))
        for step in steps
    ]
    return tag("nav", tag("ol", *items), aria_label="Where you are", class_="trail")


def banner(found: Headline, now: datetime, *, level: int = 1) -> Markup:
    """Return the sentence at the top, with since when, and what to do."""
    since = None
    if found.since is not None:
        since = joined("Since ", moment(found.since), f", {ago(found.since, now)}. ")
    what_to_do = None if found.hint is None else joined(tag("b", "What to do: "), found.hint)
    below = joined(since, what_to_do) if since or what_to_do else None
    return tag(
        "header",
        tag(f"h{level}", found.sentence + ("" if found.sentence.endswith(".") else ".")),
        None if below is None else tag("p", below),
        class_=f"banner {found.tone}",
    )


def scrolling(label: str, content: Markup) -> Markup:
    """Return a table that may be wider than the page: it scrolls by itself, with the keyboard too."""
    return tag("div", content, class_="wide", role="region", aria_label=label, tabindex="0")


def facts(rows: list[tuple[str, str | None]], *, is_list: bool = False) -> Markup:
    """Return labels and what belongs to them, side by side or one below the other; what is None is left out."""
    items = [tag("div", tag("dt", label), tag("dd", value)) for label, value in rows if value is not None]
    return tag("dl", *items, class_="facts rows" if is_list else "facts")
