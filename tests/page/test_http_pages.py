"""The status page as a daemon serves it, and what it knows of real databases without asking a store."""

from __future__ import annotations

import re
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from harness.command_line import CommandLine
from harness.daemon import wait_until
from harness.place import change_rows, create_database
from harness.site import new_site, not_within_a_test

from backupd.config import load
from backupd.daemon.pages import MOST_AT_ONCE, Pages
from backupd.errors import LimitReachedError
from backupd.format.records import CheckOutcome
from backupd.health import StatusFile
from backupd.health.values import Status
from backupd.jobs.knowledge import known_database
from backupd.page.timeline import restorable_spans
from backupd.page.values import Situation
from backupd.state import StateDirectory


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A daemon with two databases, one of them with several snapshots and a test restore; and its site."""
    home = tmp_path_factory.mktemp("served")
    site = new_site(home)
    for name in ("app", "users"):
        create_database(home / f"{name}.db", rows=30, journal_mode="wal")
    schedule = {"drills": not_within_a_test(), "prunes": "never"}
    site.configure("app.db", "users.db", schedule=schedule, retention={"after_snapshot": True, "keep_last": 2})
    with site.daemon() as running:
        for name in ("app", "users"):
            running.wait_for("snapshot", database=name, outcome="created")
        for number in range(3):
            change_rows(home / "app.db", f"title {number}", rows=number + 3)
            running.wait_for("snapshot", after=running.run_again("app"), database="app", outcome="created")
        running.wait_for("drill", after=running.drill_again(), database="app")
        change_rows(home / "app.db", "last", rows=2)
        running.wait_for("snapshot", after=running.run_again("app"), database="app", outcome="created")
        yield running


def _ask(served, path, method="GET"):
    with closing(HTTPConnection("127.0.0.1", served.site.port, timeout=30)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def _known(served, name):
    state = StateDirectory(served.site.state)
    status = StatusFile(state).read()
    now = datetime.now(UTC)
    return known_database(name, Situation(status, (), now, now), load(served.site.home / "backupd.toml"), state)


def test_the_front_page_lists_every_database(served):
    """GET / is HTML with the sentence, and a link to each database."""
    code, headers, text = _ask(served, "/")
    assert (code, headers["Content-Type"], headers["Cache-Control"]) == (200, "text/html; charset=utf-8", "no-store")
    assert re.search(r"<h1>All 2 databases are current; the oldest can be restored to \d+ s ago\.</h1>", text)
    assert re.findall(r'href="(database/\w+)"', text) == ["database/app", "database/users"]


def test_pages_carry_a_strict_policy(served):
    """No source of content is allowed but the page itself, also where a page is not there."""
    for path in ("/", "/database/app", "/database/nothing"):
        _, headers, _ = _ask(served, path)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_a_database_has_its_snapshots_and_test_restores(served):
    """The page of a database has each snapshot, its test restore, and why the policy keeps it."""
    _, _, text = _ask(served, "/database/app")
    newest = served.site.status.read().databases["app"].stores[str(served.site.store)].snapshot_id
    assert f'href="../snapshot/app/{newest}"' in text
    assert '<use href="#kept"' in text
    assert '<use href="#passed"' in text
    assert "newest proven" in text
    assert str(served.site.home / "app.db") in text


def test_a_snapshot_has_what_show_prints(served):
    """Every fact that `backupd show` prints of a snapshot is on its page."""
    newest = served.site.status.read().databases["app"].stores[str(served.site.store)].snapshot_id
    code, _, text = _ask(served, f"/snapshot/app/{newest}")
    assert code == 200
    shown = CommandLine(served.site.home).run("show", newest, "--database", "app", expect=0).stdout
    (digest,) = re.findall(r"image digest +(\w+)", shown)
    assert digest in text
    assert f"backupd restore app@{newest} --dry-run" in text


def test_what_is_known_here_is_what_the_store_has(served):
    """The snapshots, their outcomes and the reasons to keep them are those that `list` and `prune` find there."""
    listed = CommandLine(served.site.home).run("list", "app", "--json", expect=0).document["snapshots"]
    (store,) = _known(served, "app").stores
    assert [str(each.summary.id) for each in store.snapshots] == [each["id"] for each in listed]
    proven = [each["id"] for each in listed if each["proven_at"]]
    assert proven
    found = [each for each in store.snapshots if each.check and each.check.outcome is CheckOutcome.PROVEN]
    assert [str(each.summary.id) for each in found] == proven
    (pruned,) = CommandLine(served.site.home).run("prune", "app", "--dry-run", "--json", expect=0).document["pruned"]
    known = {str(each.summary.id): list(each.kept_because) or ["no rule keeps it"] for each in store.snapshots}
    assert known == {each["id"]: each["reasons"] for each in pruned["decisions"]}


def test_no_page_asks_a_store(served):
    """The pages are the same while the directory of the store has another name."""
    store = served.site.store
    away = store.with_name("away")
    newest = served.site.status.read().databases["app"].stores[str(store)].snapshot_id
    store.rename(away)
    try:
        for path in ("/", "/database/app", f"/snapshot/app/{newest}"):
            assert _ask(served, path)[0] == 200
        assert not store.exists()
    finally:
        away.rename(store)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/database/",
        "/database/nothing",
        "/database/app/",
        "/database/..%2f..%2fetc",
        "/snapshot/app",
        "/snapshot/app/nothing",
        "/snapshot/nothing/20261122T135940000Z-00000007",
        "/database/%3Cscript%3E",
        "/database/%ff%fe%00",
    ],
)
def test_other_addresses_are_404(served, path):
    """What is not there is 404, whatever its name is, and a name is escaped."""
    code, _, text = _ask(served, path)
    assert code == 404
    assert "<script>" not in text.replace("<script>if(", "")


@pytest.mark.parametrize(
    "query", ["sort=<script>", "sort=", "start=-1", "start=99999999999999", "start=%ff", "a=1&a=2&&"]
)
def test_an_odd_query_means_the_usual_page(served, query):
    """What a query has that is not known counts as absent."""
    code, _, text = _ask(served, f"/?{query}".replace("<", "%3C").replace(">", "%3E"))
    assert code == 200
    assert 'aria-sort="descending"' in text or "of 2" in text


def test_head_has_the_headers_alone(served):
    """HEAD answers as GET does, without the page."""
    code, headers, text = _ask(served, "/", "HEAD")
    assert (code, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_pages_show_no_content_of_a_database(served):
    """Values of rows, and the SQL of a schema, are on no page."""
    with closing(sqlite3.connect(served.site.home / "app.db")) as connection:
        (title,) = connection.execute("SELECT title FROM report WHERE id = 20").fetchone()
    newest = served.site.status.read().databases["app"].stores[str(served.site.store)].snapshot_id
    for path in ("/", "/database/app", f"/snapshot/app/{newest}"):
        _, _, text = _ask(served, path)
        assert title not in text
        assert "CREATE TABLE" not in text


def test_a_report_has_the_same(served):
    """`backupd report` beside the daemon writes the pages into one file."""
    finished = CommandLine(served.site.home).run("report", "--html", "report.html", "--json", expect=0)
    file = served.site.home / "report.html"
    text = file.read_text()
    assert finished.document == {"report": {"file": str(file), "bytes": len(file.read_bytes())}}
    assert file.stat().st_mode & 0o777 == 0o600
    assert 'id="database-app"' in text
    assert "All 2 databases are current" in text


def test_recovery_windows_are_those_that_the_store_lists(tmp_path):
    """Where the log is followed, the windows that a prune saw are those of `list`, and the open one is drawn."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10, journal_mode="wal")
    site.configure("app.db", follow={"enabled": True, "interval": "1s"}, retention={"after_snapshot": True})
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as connection, site.daemon() as running:
        connection.execute("UPDATE report SET title = 'followed' WHERE id = 1")
        running.wait_for("a recovery window begins")
        for number in range(2):
            connection.execute("UPDATE report SET title = ? WHERE id = 2", (f"title {number}",))
            wait_until(lambda: any(site.store.glob("app/segments/*/*")))
            running.wait_for("snapshot", after=running.run_again(), database="app")
        command_line = CommandLine(tmp_path)
        command_line.run("prune", "app", expect=0)
        listed = command_line.run("list", "app", "--json", expect=0).document["windows"]
        state = StateDirectory(site.state)
        now = datetime.now(UTC)
        of = Situation(StatusFile(state).read(), (), now, now)
        known = known_database("app", of, load(tmp_path / "backupd.toml"), state)
        (store,) = known.stores
        assert listed
        assert [each.id for each in store.windows] == [each["id"] for each in listed]
        (span,) = restorable_spans(known, store, of)
        assert now - span[1] < timedelta(minutes=1)
        text = running.ask("/database/app").text
        assert 'class="lane">Any moment</text>' in text
        assert "every commit from" in text


class _Alerts:
    """No alarm, after a wait."""

    def __init__(self):
        self.may_answer = threading.Event()
        self.asked = threading.Semaphore(0)

    def alarms(self):
        self.asked.release()
        assert self.may_answer.wait(30)
        return ()


class _Context:
    """A context of a daemon that knows nothing."""

    def __init__(self, home):
        self.state = StateDirectory(home)
        self.status = StatusFile(self.state)


def test_few_pages_are_made_at_once(tmp_path):
    """While so many pages are being made, another one is refused, and there is room for health checks."""
    alerts, context = _Alerts(), _Context(tmp_path / "state")
    context.status.update(lambda _: Status())
    pages, made = Pages(alerts), []
    threads = [threading.Thread(target=lambda: made.append(pages.page("/", "", context))) for _ in range(MOST_AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert alerts.asked.acquire(timeout=30)
    with pytest.raises(LimitReachedError, match="pages are being made already"):
        pages.page("/", "", context)
    alerts.may_answer.set()
    for thread in threads:
        thread.join(30)
    assert [page.is_found for page in made] == [True] * MOST_AT_ONCE
    assert pages.page("/", "", context).is_found
