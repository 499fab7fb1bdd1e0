"""The pages as they are drawn from values: what they say, what they escape, and how large they are."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import time
from datetime import timedelta
from html.parser import HTMLParser

import pytest
import sample
from harness.packs import pack_entry
from msgspec.structs import replace
from sample import BUCKET, DISK, HOSTILE, NOW, database_health, store_health

from backupd.format.manifest import SealedSummary
from backupd.health.values import Failure, Status
from backupd.page import document
from backupd.page.database import Part, database_headline, render_database
from backupd.page.html import Markup, joined, tag, text
from backupd.page.overview import Place, render_overview, sorted_names
from backupd.page.report import render_report
from backupd.page.snapshot import find_snapshot, render_snapshot
from backupd.page.timeline import restorable_spans
from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, Situation
from backupd.page.words import headline

_VOID = {"meta", "link", "input", "br"}
_IMPLIED = {"td", "th", "tr"}


class _Tree(HTMLParser):
    """Reads a page, and finds out whether its elements are closed in order, and which addresses it has."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.found, self.words = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        values = dict(attrs)
        self.addresses += [values[key] for key in ("href", "src") if values.get(key)]
        self.ids += [values["id"]] if "id" in values else []
        assert not [key for key, _ in attrs if key.startswith("on") or key == "style"]
        if tag not in _VOID | _IMPLIED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _read(page):
    tree = _Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    assert len(tree.ids) == len(set(tree.ids))
    return tree


def test_what_is_not_markup_is_escaped():
    """Text and attributes are escaped by construction, and control characters become visible."""
    assert text("<b> & \"'\x1b") == "&lt;b&gt; &amp; &quot;&#x27;\\x1b"
    assert tag("a", "<i>", tag("b", "&"), None, href='"x"', data_x=None, hidden=True) == (
        '<a href="&quot;x&quot;" hidden>&lt;i&gt;<b>&amp;</b></a>'
    )
    assert joined("<", Markup("<br>"), by=" & ") == "&lt; &amp; <br>"


@pytest.mark.parametrize("is_troubled", [False, True])
def test_pages_are_well_formed_and_load_nothing(is_troubled):
    """Every element is closed, every id is unique, and every address is a relative one or an anchor."""
    for path, page in sample.pages(is_troubled=is_troubled).items():
        tree = _read(page)
        anchors = [each for each in tree.addresses if each.startswith("#")]
        assert {each[1:] for each in anchors} <= {*tree.ids}, path
        others = [each for each in tree.addresses if not each.startswith(("#", "?", "data:image/svg+xml,"))]
        assert all(re.fullmatch(r"(?:\.\./)*(?:\./)?(?:(?:database|snapshot)/[\w.@/-]+)?", each) for each in others), (
            path
        )


def test_names_from_files_and_stores_are_escaped_everywhere():
    """A hostile name, URL, path, tag, message or hint is text on every page."""
    failure = Failure(since=NOW, count=3, last_at=NOW, message=HOSTILE, hint=HOSTILE, exit_code=10)
    health = store_health(failure=failure, drill_failure=failure, current_at=None)
    database = database_health(HOSTILE, {HOSTILE: health}, path=HOSTILE, journal_mode=HOSTILE)
    of = sample.situation({HOSTILE: database})
    summary = replace(sample.summary("app", NOW, 1), database=HOSTILE, tags=(HOSTILE,))
    summary = replace(summary, source=replace(summary.source, tables=(HOSTILE,)))
    runs = [replace_run(run) for run in sample._runs("app", DISK)[-200:]]
    store = KnownStore(HOSTILE, health, (KnownSnapshot(summary, None, (HOSTILE,)),), runs=tuple(runs))
    known = KnownDatabase(HOSTILE, database, (store,))
    pages = [
        render_overview(of, Place(), {HOSTILE: [(run.started_at, run.outcome) for run in runs]}),
        render_database(known, of, Part()),
        render_snapshot(known, find_snapshot(known, str(summary.id)), of),
        render_report(of, {HOSTILE: known}, {}),
        document.missing_page(HOSTILE, "../", now=NOW),
    ]
    for page in pages:
        tree = _read(page)
        assert tree.found.count("script") == 1
        assert "alert" in "".join(tree.words)
        assert "\x1b" not in page


def replace_run(run):
    """A failed run with a hostile reason."""
    return run._replace(outcome="failed", message=HOSTILE)


def test_policy_names_the_style_and_the_script():
    """The headers allow the one style and the one script of a page, and nothing else."""
    page = sample.pages()["/"]
    policy = dict(document.HEADERS)["Content-Security-Policy"]
    for name in ("style", "script"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "http" not in policy
    assert "unsafe" not in policy


def test_sentence_says_that_all_is_well():
    """The sentence has the number of databases, and the age of the state that the oldest can be restored to."""
    assert headline(sample.sample()).sentence == "All 12 databases are current; the oldest can be restored to 40 s ago"
    one = sample.situation({"app": database_health("app", {DISK: store_health()})})
    assert headline(one).sentence == "The database is current; it can be restored to 40 s ago"


def test_sentence_says_what_is_wrong_since_when_and_what_to_do():
    """The first red alarm is the sentence, with its time and its hint."""
    found = headline(sample.sample(is_troubled=True))
    assert found.sentence == f"2 of 12 databases need attention: billing in {BUCKET} is late, and 1 more"
    assert found.tone == "bad"
    assert found.since == NOW - timedelta(hours=3)
    assert "backupd doctor" in found.hint


def test_sentence_before_anything_is_known():
    """Without a status, with a stopped daemon and before a first snapshot, the sentence says so, and what to do."""
    nothing = headline(Situation(Status(), (), NOW, None))
    assert nothing.sentence.startswith("Nothing is known yet")
    of = sample.sample()
    stopped = replace(of.status, daemon=replace(of.status.daemon, stopped_at=NOW - timedelta(hours=3)))
    found = headline(Situation(stopped, (), NOW, NOW))
    assert (
        found.sentence
        == "All 12 databases are known, but no daemon watches them; the oldest can be restored to 40 s ago"
    )
    waiting = sample.situation({"app": database_health("app", {DISK: store_health(current_at=None, due_by=None)})})
    assert headline(waiting).sentence == "0 of 1 database current; 1 waits for a first snapshot"


def test_a_thousand_tenants_are_one_small_page():
    """A thousand databases take up less than 150 kB, and are drawn in 0.1 s; on a busy machine in five times that."""
    names = [f"tenant-{number:04}" for number in range(1000)]
    of = sample.situation({name: database_health(name, {DISK: store_health()}) for name in names})
    taken = []
    for _ in range(5):
        fresh = Situation(of.status, of.alarms, of.now, of.alive_at)
        began = time.process_time()
        page = render_overview(fresh, Place(), {})
        taken.append(time.process_time() - began)
    assert _read(page).found.count("tr") == 1001
    assert len(page.encode()) < 150_000
    assert min(taken) < 0.5


def test_a_thousand_tenants_that_are_all_late_are_one_small_page():
    """With an alarm for each of a thousand databases in two stores, some are shown, and the page stays small."""
    stores = {DISK: store_health(due_by=NOW - timedelta(minutes=5)), BUCKET: store_health(due_by=NOW)}
    of = sample.situation({f"tenant-{number:04}": database_health("x", stores) for number in range(1000)})
    page = render_overview(of, Place(), {})
    assert len(of.alarms) == 1000
    assert "And 990 more" in page
    assert _read(page).found.count("tr") == 1001
    assert len(page.encode()) < 150_000


def test_long_names_are_divided_into_pages():
    """However long the names are, a page stays below 150 kB, and links to the next one until all were shown."""
    names = [f"tenant-{number:04}-{'x' * 80}" for number in range(1000)]
    of = sample.situation({name: database_health(name, {DISK: store_health()}) for name in names})
    shown, start = [], 0
    while True:
        page = render_overview(of, Place("name", start), {})
        assert len(page.encode()) < 150_000
        shown += re.findall(r'href="database/([^"]+)"', page)
        following = re.search(r"sort=name&amp;start=(\d+)", page)
        if following is None:
            break
        start = int(following[1])
    assert shown == names


def test_the_worst_come_first_and_other_orders_are_links():
    """The list begins with what is wrong; each heading links to another order, and the present one is marked."""
    of = sample.sample(is_troubled=True)
    assert sorted_names(of, "problem")[:3] == ["shop", "billing", "app"]
    assert sorted_names(of, "name")[:2] == ["app", "billing"]
    assert sorted_names(of, "size")[0] in {"app", "billing", "shop"}
    assert sorted_names(of, "age")[0] == "billing"
    page = render_overview(of, Place("name"), {})
    assert re.findall(r'href="\?sort=(\w+)"', page) == ["name", "problem", "age", "size"]
    assert '<th scope="col" aria-sort="ascending"><a href="?sort=name">' in page


def test_timeline_has_every_kind_of_mark():
    """Snapshots, removals, test restores, windows, gaps, holds and runs are drawn, and described in words."""
    of = sample.sample(is_troubled=True)
    page = render_database(sample.sample_database(of), of, Part())
    for shape in ("kept", "unkept", "tagged", "safety", "removed", "passed", "intact", "failed"):
        assert f'<use href="#{shape}"' in page
    for lane in ("Snapshots", "Removed by retention", "Test restores", "Any moment", "Hold", "Runs"):
        assert f'class="lane">{lane}</text>' in page
    assert 'class="gap"' in page
    assert re.search(r"Last week: \d+ snapshots; \d+ removed; test restores: \d+ passed; any moment of 99% of it", page)
    assert "the log was reset before it was read" in page


def test_windows_begin_at_a_snapshot_and_end_at_the_recovery_point():
    """Commits before the first snapshot cannot be restored; the open window reaches to the recovery point."""
    of = sample.sample()
    known = sample.sample_database(of)
    spans = restorable_spans(known, known.stores[0], of)
    taken = [each.summary.id.taken_at for each in known.stores[0].snapshots]
    assert all(any(at <= began for at in taken) for began, _ in spans)
    assert spans[-1][1] == of.restorable_in("app", DISK)


def test_a_broken_window_ends_where_its_commits_are_right():
    """No moment after the last commit that is right is shown as one that can be restored."""
    of = sample.sample()
    known = sample.sample_database(of)
    right_until = NOW - timedelta(hours=2)
    broken = {of.status.databases["app"].follow.window: right_until, "1": NOW - timedelta(days=365)}
    spans = restorable_spans(known, dataclasses.replace(known.stores[0], broken=broken), of)
    assert len(spans) == len(restorable_spans(known, known.stores[0], of)) - 1
    assert spans[-1][1] == right_until


def test_a_snapshot_page_has_the_commands():
    """The commands name the snapshot in full, each alone in an element that is ready to copy."""
    of = sample.sample()
    known = sample.sample_database(of)
    snapshot_id = str(known.stores[0].snapshots[-1].summary.id)
    page = render_snapshot(known, find_snapshot(known, snapshot_id), of)
    name = f"app@{snapshot_id}"
    assert re.findall(r"<code>(.*?)</code>", page) == [
        f"backupd restore {name} --dry-run",
        f"backupd query {name}",
        f"backupd diff {name} live",
        f"backupd dump {name} &gt; app.sql",
        f"backupd recover {name} TABLE --dry-run",
    ]
    assert "alembic_version, booking, user" in page


@pytest.mark.parametrize("is_sealed", [False, True])
def test_what_encryption_hides_is_not_shown(is_sealed):
    """The tables of an encrypted snapshot are not on its page, even where they are known on this machine."""
    of = sample.sample()
    summary = sample.summary("app", NOW, 1)
    pack = replace(
        pack_entry("ab" * 32, stored_bytes=5000, pages=1), index_bytes=None, index_hash=None, encryption="age"
    )
    summary = replace(summary, packs=(pack,))
    if is_sealed:
        values = {name: getattr(summary, name) for name in SealedSummary.__struct_fields__}
        summary = SealedSummary(**values)
    store = KnownStore(DISK, store_health(), (KnownSnapshot(summary, None, None),))
    known = KnownDatabase("app", of.status.databases["app"], (store,))
    page = render_snapshot(known, find_snapshot(known, str(summary.id)), of)
    assert "booking" not in page
    assert "Encryption" in page


def test_older_snapshots_are_on_further_pages():
    """A page lists so many snapshots, and links to those before them."""
    of = sample.sample()
    known = sample.sample_database(of)
    ids = [str(each.summary.id) for each in reversed(known.stores[0].snapshots)]
    first = render_database(known, of, Part(most=30))
    assert f'href="?before={ids[29]}"' in first
    second = render_database(known, of, Part(most=30, before=ids[29]))
    assert ids[30] in second
    assert f'href="../snapshot/app/{ids[29]}"' not in second


def test_a_report_is_one_file_with_everything():
    """Links in a report lead to its own sections, and it carries its security policy."""
    report = sample.pages()["/report.html"]
    assert '<meta http-equiv="Content-Security-Policy"' in report
    tree = _read(report)
    assert tree.found.count("h1") == 1
    assert all(each.startswith(("#", "data:")) for each in tree.addresses)
    assert len([each for each in tree.ids if each.startswith("app@")]) == 20


def test_a_database_without_anything_has_a_page():
    """A database that waits for its first snapshot is shown without marks and charts."""
    health = database_health("app", {DISK: store_health(current_at=None, due_by=None, last_run=None, snapshot_id=None)})
    of = sample.situation({"app": health})
    known = KnownDatabase("app", health, (KnownStore(DISK, health.stores[DISK]),))
    _read(render_database(known, of, Part()))
    assert database_headline(known, of).sentence == "app waits for its first snapshot"
