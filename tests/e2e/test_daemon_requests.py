"""`POST /snapshots`: what the web container asks for before it changes the database."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from harness.pages import DOCS, blocks
from harness.place import change_rows, create_database
from harness.site import TOKEN, new_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.daemon import Answer, Daemon


def test_without_a_token_no_snapshot_can_be_requested(tmp_path: Path) -> None:
    """The path does not exist where http.token is not set."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        for token in (None, TOKEN):
            assert daemon.ask("/snapshots", body="", token=token).code == 404
        daemon.wait_for("snapshot", outcome="created")
        assert len(daemon.events_of("snapshot")) == 1


def test_only_the_right_token_gets_a_snapshot(daemon: Daemon) -> None:
    """Only the right token gets a snapshot: none, a wrong one, a part of it and another scheme get 401."""
    for token in (None, "", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
        refused = daemon.ask("/snapshots", body="database=app&tag=no", token=token)
        assert refused.code == 401
        assert "Authorization: Bearer TOKEN" in refused.document["error"]["hint"]
    assert daemon.ask("/snapshots", body="database=app&tag=no", Authorization=f"Basic {TOKEN}").code == 401
    assert daemon.ask("/snapshots", token=TOKEN).code == 404
    assert daemon.ask("/elsewhere", body="", token=TOKEN).code == 404
    taken = daemon.ask("/snapshots", body="database=app&tag=before-upgrade", token=TOKEN)
    assert taken.code == 200
    (snapshot,) = taken.document["snapshots"]
    assert (snapshot["database"], snapshot["outcome"]) == ("app", "created")
    assert [each["tags"] for each in daemon.site.listed("app")] == [[], ["before-upgrade"]]
    assert daemon.site.listed("app")[-1]["id"] == snapshot["id"]
    assert TOKEN not in "".join(daemon.lines)


def test_lines_for_a_migration_do_as_the_page_says(daemon: Daemon, tmp_path: Path) -> None:
    """The page's Python lines for a migration take a snapshot, or fail and say why, so that nothing is migrated."""
    (code,) = [block for block in blocks(DOCS / "operations.md", "python") if "/snapshots" in block]
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    code = code.replace("/run/secrets/backupd_token", str(tmp_path / "token"))
    code = code.replace("backupd:9620", f"127.0.0.1:{daemon.site.port}")
    unknown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (unknown.returncode, unknown.stderr.split(": ")[0]) == (1, "no snapshot, so no migration")
    assert "no database 'creditrobot'" in unknown.stderr
    code = code.replace('"creditrobot"', '"app"')
    taken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(taken.stdout)["snapshots"][0]["outcome"] == "created"
    assert daemon.site.listed("app")[-1]["tags"] == ["pre-migration"]


def test_requests_come_as_forms_json_or_query(daemon: Daemon) -> None:
    """A form, JSON or a query asks for a snapshot of one database, or of all without a name."""
    as_json = {"content_type": "application/json", "token": TOKEN}
    asked = [
        daemon.ask("/snapshots", body=json.dumps({"database": "app", "tag": "as-json"}), **as_json),
        daemon.ask("/snapshots", body="database=app&tag=as-form", token=TOKEN),
        daemon.ask("/snapshots?database=app&tag=in-query", body="", token=TOKEN),
        daemon.ask("/snapshots", body=json.dumps({"tag": "all", "wait": True}), **as_json),
    ]
    assert [each.code for each in asked] == [200] * 4
    assert [each["database"] for each in asked[-1].document["snapshots"]] == ["app", "users"]
    tags = [tag for each in daemon.site.listed("app") for tag in each["tags"]]
    assert tags == ["as-json", "as-form", "in-query", "all"]


def test_request_without_waiting_is_answered_at_once(daemon: Daemon) -> None:
    """`wait=false` is answered at once with 202, and the snapshot is taken."""
    change_rows(daemon.site.home / "app.db", "changed")
    position = daemon.position
    accepted = daemon.ask("/snapshots", body="database=app&wait=false", token=TOKEN)
    assert (accepted.code, accepted.document) == (202, {"accepted": ["app"]})
    assert daemon.wait_for("snapshot", after=position)["outcome"] == "created"


@pytest.mark.parametrize(
    ("body", "content_type", "reported"),
    [
        ("database=nobody", "application/x-www-form-urlencoded", "no database 'nobody'"),
        ("database=app&tag=latest", "application/x-www-form-urlencoded", "'latest' cannot be a tag"),
        ("database=app&tag=../x", "application/x-www-form-urlencoded", "'../x' cannot be a tag"),
        ("database=app&wait=perhaps", "application/x-www-form-urlencoded", "wait must be true or false"),
        ("databse=app", "application/x-www-form-urlencoded", "unknown key 'databse'"),
        ("{", "application/json", "cannot be read"),
        ("[" * 16_000, "application/json", "cannot be read"),
        ("[1]", "application/json", "cannot be read"),
        ("7", "application/json", "cannot be read"),
        ('{"database": 7}', "application/json", "database must be"),
        ('{"database": "app", "tag": ["x"]}', "application/json", "a tag must be a text"),
        ('{"database": "app", "tag": {"x": 1}}', "application/json", "a tag must be a text"),
        ('{"database": "app", "wait": "maybe"}', "application/json", "wait must be true or false"),
    ],
)
def test_impossible_request_is_refused(refusing: Daemon, body: str, content_type: str, reported: str) -> None:
    """An impossible request gets 400 with a message, and no snapshot."""
    refused = refusing.ask("/snapshots", body=body, token=TOKEN, content_type=content_type)
    assert refused.code == 400
    assert reported in refused.document["error"]["message"]
    assert refusing.events_of("snapshot") == []
    assert refusing.ask("/healthz").code == 200


def test_a_body_that_is_too_large_is_refused(refusing: Daemon) -> None:
    """A body that is too large gets 413 with the limit."""
    refused = refusing.ask("/snapshots", body="x" * 20_000, token=TOKEN)
    assert refused.code == 413
    assert "16384 bytes" in refused.document["error"]["hint"]


def test_a_body_in_chunks_is_read(daemon: Daemon) -> None:
    """The database and the tag in a body that comes in chunks are used."""
    in_chunks = "11\r\ndatabase=users&ta\r\n7\r\ng=parts\r\n0\r\n\r\n"
    taken = daemon.ask("/snapshots", body=in_chunks, token=TOKEN, **{"Transfer-Encoding": "chunked"})
    assert taken.code == 200
    assert [each["database"] for each in taken.document["snapshots"]] == ["users"]
    assert daemon.site.listed("users")[-1]["tags"] == ["parts"]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with nothing to do but answer requests."""
    site = new_site(tmp_path_factory.mktemp("refusing"))
    create_database(site.home / "app.db", rows=10)
    site.configure(http={"token": TOKEN})
    site.backupd.run("now")
    with site.daemon() as running:
        running.wait_for("planned", is_missed=False)
        yield running


def test_a_store_that_fails_is_no_success(daemon: Daemon) -> None:
    """503, so that `curl --fail` keeps the upgrade from being done, with what is wrong."""
    daemon.site.store.rename(daemon.site.home / "moved")
    daemon.site.store.touch()
    failed = daemon.ask("/snapshots", body="database=app&tag=before-upgrade", token=TOKEN)
    assert failed.code == 503
    (snapshot,) = failed.document["snapshots"]
    assert snapshot["outcome"] == "failed"
    assert str(daemon.site.store) in snapshot["error"]["message"]


def test_simultaneous_requests_each_get_a_snapshot(daemon: Daemon) -> None:
    """Each of several simultaneous requests gets a snapshot of its own."""
    ready = threading.Barrier(4)

    def ask(body: str) -> Answer:
        ready.wait()
        return daemon.ask("/snapshots", body=body, token=TOKEN)

    with ThreadPoolExecutor(4) as threads:
        bodies = [*(f"database=app&tag=n{number}" for number in range(3)), "database=users&tag=other"]
        answers = list(threads.map(ask, bodies))
    assert [each.code for each in answers] == [200] * 4
    assert len({each.document["snapshots"][0]["id"] for each in answers}) == 4
    assert {tag for each in daemon.site.listed("app") for tag in each["tags"]} == {"n0", "n1", "n2"}
