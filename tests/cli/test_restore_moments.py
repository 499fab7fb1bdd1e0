"""Restores of moments between snapshots, as users type them."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.command_line import CommandLine
from harness.following import Followed

from backupd.prune.segments import merge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Service:
    """The command line in the directory of a followed database, which is configured."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.followed = Followed(home)
        self.line = CommandLine(home)
        (home / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n')
        self.followed.execute("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('first')")
        self.snapshot = self.followed.snapshot()
        self.second = self.followed.execute("INSERT INTO notes VALUES ('second')")
        self.followed.cut()
        self.third = self.followed.execute("INSERT INTO notes VALUES ('third')")
        self.followed.cut()

    def notes(self, file: str = "app.db") -> list[str]:
        with closing(sqlite3.connect(self.home / file)) as connection:
            return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY rowid")]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A configured database with one snapshot and two commits after it, each in a segment."""
    service = Service(tmp_path)
    yield service
    service.followed.close()


def local(moment: datetime) -> str:
    """A time as users write it, with its offset, to the millisecond."""
    return moment.astimezone().isoformat(timespec="milliseconds")


def test_a_commit_is_restored_to_a_file(service: Service):
    """The line says which commit it is, and of what it is made; the file is that state, byte for byte."""
    result = service.line.run("restore", local(service.second.seen_at), "--to", "second.db", expect=0)
    assert re.fullmatch(
        rf"restored app, commit of [0-9-]+ [0-9:]+\.[0-9]{{3}}\+0[12]:00, [0-9]+ (s|min) ago "
        rf"\(snapshot {service.snapshot} \+ 1 segment\) from {service.home}/backups to {service.home}/second.db: "
        r"[0-9.]+ kB in [0-9.]+ s; every pack and segment have their checksums, and SQLite checked all of it\n",
        result.stdout,
    )
    assert result.stderr == ""
    assert (service.home / "second.db").read_bytes() == service.second.image
    restored = service.line.run("restore", "0s", "--to", "third.db", "--json", expect=0).document["restored"]
    assert (restored["id"], restored["segments"], restored["gap"]) == (service.snapshot, 2, None)
    assert datetime.fromisoformat(restored["commit_at"]) == service.third.seen_at
    assert (service.home / "third.db").read_bytes() == service.third.image


def test_a_time_of_day_means_the_last_one(service: Service):
    """`14:03:07.123` is that of today, in local time; one that has not been yet is that of yesterday."""
    environ = {"TZ": "UTC"}
    clock = service.second.seen_at.strftime("%H:%M:%S.%f")[:-3]
    service.line.run("restore", clock, "--to", "second.db", expect=0, environ=environ)
    assert service.notes("second.db") == ["first", "second"]
    later = (service.second.seen_at + timedelta(hours=1)).strftime("%H:%M")
    result = service.line.run("restore", later, "--to", "no.db", environ=environ)
    assert (result.code, result.stderr.splitlines()[0][:6]) == (12, "error:")


def test_a_commit_is_restored_in_place_and_undone(service: Service):
    """The plan names the commit, the restore brings its rows back while the application is connected, and undo all."""
    second = local(service.second.seen_at)
    service.followed.execute("DELETE FROM notes")
    dry = service.line.run("restore", second, "--dry-run", expect=0).stdout
    assert f"(snapshot {service.snapshot} + 1 segment) from {service.home}/backups\n" in dry
    assert "0 -> 2  (+2)" in dry
    plan = service.line.run("restore", second, "--dry-run", "--json", expect=0).document["plan"]
    assert (plan["segments"], plan["image_bytes"]) == (1, len(service.second.image))
    assert service.notes() == []
    result = service.line.run("restore", second, "--yes", expect=0)
    assert "restored app, commit of " in result.stdout
    assert service.notes() == ["first", "second"]
    service.line.run("undo", "app", "--yes", expect=0)
    assert service.notes() == []


def test_a_missing_database_is_restored_from_a_commit(service: Service):
    """Without a file at the configured path, the commit is put there."""
    service.followed.close()
    for file in service.home.glob("app.db*"):
        file.unlink()
    service.line.run("restore", local(service.third.seen_at), expect=0)
    assert (service.home / "app.db").read_bytes() == service.third.image


def test_a_time_in_a_gap_is_explained(service: Service):
    """The snapshot before it is restored, with a warning that says what is missing and what comes closer."""
    service.followed.miss("INSERT INTO notes VALUES ('missed')")
    service.followed.begin_window("the log was truncated")
    service.followed.execute("INSERT INTO notes VALUES ('fourth')")
    service.followed.cut()
    at = (service.third.seen_at + timedelta(microseconds=500)).isoformat()
    result = service.line.run("restore", at, "--to", "before.db", expect=0)
    assert service.notes("before.db") == ["first"]
    warning, hint = result.stderr.splitlines()
    assert warning.startswith("warning: the snapshot before that moment is taken: between ")
    assert warning.endswith(", not every moment can be restored: the log was truncated")
    closer = hint.removeprefix("hint: the last commit before that: backupd restore ")
    service.line.run("restore", closer, "--to", "closer.db", expect=0)
    assert service.notes("closer.db") == ["first", "second", "third"]
    gap = service.line.run("restore", at, "--to", "json.db", "--json", expect=0).document["restored"]["gap"]
    assert gap["reason"] == "the log was truncated"
    assert datetime.fromisoformat(gap["began_at"]) == service.third.seen_at


def test_ids_and_words_still_mean_snapshots(service: Service):
    """Segments change nothing for `latest`, ids and tags."""
    for number, reference in enumerate(("latest", service.snapshot)):
        service.line.run("restore", reference, "--to", f"{number}.db", expect=0)
        assert service.notes(f"{number}.db") == ["first"]


def test_damage_writes_nothing_and_names_the_snapshot(service: Service):
    """A damaged segment is damage, exit code 20; the hint is a restore that works."""
    for file in (service.home / "backups/app/segments").rglob("*.zst"):
        file.write_bytes(b"damaged")
    result = service.line.run("restore", local(service.third.seen_at), "--to", "no.db", expect=20)
    assert not (service.home / "no.db").exists()
    assert "does not have the SHA-256 that names it" in result.stderr
    assert f"hint: restore the snapshot before that time: app@{service.snapshot}\n" in result.stderr


def test_list_shows_windows_and_the_gaps_between_them(service: Service):
    """Each window is a line with its span, each gap one with its reason; JSON has the same."""
    plain = service.line.run("list", "app", expect=0).stdout.splitlines()
    (window,) = [line for line in plain if ": any moment from " in line]
    assert window.startswith(f"app in {service.home}/backups: any moment from ")
    service.followed.begin_window("the log was truncated")
    service.followed.snapshot()
    last = service.followed.execute("INSERT INTO notes VALUES ('fourth')")
    service.followed.cut()
    lines = service.line.run("list", expect=0).stdout.splitlines()[-3:]
    assert lines[0] == window
    assert re.search(r": between .* and .*, not every moment can be restored: the log was truncated$", lines[1])
    assert ": any moment from " in lines[2]
    first, second = service.line.run("list", "--json", expect=0).document["windows"]
    assert (first["first_commit"], first["last_commit"], first["segments"], first["gap"]) == (1, 4, 2, None)
    assert datetime.fromisoformat(first["began_at"]) < service.second.seen_at
    assert datetime.fromisoformat(second["ended_at"]) == last.seen_at
    assert datetime.fromisoformat(second["gap"]["began_at"]) == service.third.seen_at
    assert second["gap"]["reason"] == "the log was truncated"


def test_list_says_where_only_minutes_are_kept(service: Service):
    """A window that was thinned has the last commit of each minute, up to where every commit is kept."""
    archive = service.followed.archive
    (segments,) = archive.segments().segments.values()
    merge(archive, segments, thins=True)
    service.followed.execute("INSERT INTO notes VALUES ('fourth')")
    service.followed.cut()
    files = {each: each.stat().st_mtime for each in (service.home / "backups/app/segments").rglob("*.zst")}
    thinned = min(files)
    assert len(files) == 2

    def line() -> str:
        return service.line.run("list", "app", expect=0).stdout.splitlines()[-1]

    assert ": any moment from " in line()  # thinned as soon as it was stored, which is not done
    later = files[thinned] + 2 * 3600
    os.utime(thinned, (later, later))
    assert re.search(r": the last commit of each minute from .* to .*, and any moment from then to ", line())
    (window,) = service.line.run("list", "app", "--json", expect=0).document["windows"]
    assert datetime.fromisoformat(window["minutes_until"]) == service.third.seen_at
    max(files).unlink()
    assert re.search(r": the last commit of each minute from [^,]* to [^,]*$", line())


def test_show_lists_the_commits_around_a_time(service: Service):
    """A time shows what was committed before and after it; a snapshot's id does not."""
    at = local(service.second.seen_at)
    lines = service.line.run("show", at, expect=0).stdout.splitlines()
    commits = [line for line in lines if line.startswith("commit ")]
    assert [line.split()[1] for line in commits] == ["before", "before", "before", "after"]
    assert re.search(r" commit 3: [0-9]+ pages? \([0-9, ]+\) of [0-9]+$", commits[2])
    document = service.line.run("show", at, "--json", expect=0).document
    assert [each["number"] for each in document["commits"]] == [1, 2, 3, 4]
    assert datetime.fromisoformat(document["commits"][2]["seen_at"]) == service.second.seen_at
    assert service.line.run("show", service.snapshot, "--json", expect=0).document["commits"] == []


def test_segments_that_cannot_be_read_hide_no_snapshot(service: Service):
    """`list` and `show` report a damaged segment, and show the rest."""
    for file in (service.home / "backups/app/segments").rglob("*.zst"):
        file.write_bytes(b"damaged")
    listed = service.line.run("list", "--json", expect=0).document
    assert ([each["id"] for each in listed["snapshots"]], listed["problems"]) == ([service.snapshot], [])
    (window,) = listed["windows"]
    assert window["began_at"] is None
    assert "does not have the SHA-256 that names it" in window["problem"]["message"]
    assert "; segment app/segments/" in service.line.run("list", expect=0).stdout
    shown = service.line.run("show", local(service.third.seen_at), expect=0)
    assert shown.stdout.startswith(f"snapshot        app@{service.snapshot}\n")
    assert shown.stderr.startswith("warning: the commits around that time cannot be shown: segment app/segments/")


def test_whatever_removes_or_checks_leaves_segments_alone(service: Service):
    """A prune with a sweep, a verification and a removed snapshot keep every segment, and report none as foreign."""
    segments = sorted((service.home / "backups/app/segments").rglob("*.zst"))
    service.line.run("now", "--tag", "newer", expect=0)
    for command in (("prune",), ("verify",), ("forget", f"app@{service.snapshot}"), ("prune", "--dry-run")):
        result = service.line.run(*command, expect=0)
        assert "segments" not in result.stdout + result.stderr
    assert sorted((service.home / "backups/app/segments").rglob("*.zst")) == segments
    # A commit whose snapshot was removed by hand cannot be rebuilt from it.
    result = service.line.run("restore", local(service.second.seen_at), "--to", "gone.db")
    assert result.code == 12


def test_show_says_which_commits_are_broken(service: Service):
    """Commits that a check has found wrong are named, with why, and what can be restored in their place."""
    service.followed.miss("CREATE TABLE other (a)")
    last = service.followed.execute("INSERT INTO notes VALUES ('fourth')")
    second_snapshot = service.followed.snapshot()
    service.followed.cut()
    at = local(last.seen_at)
    assert "BROKEN" not in service.line.run("show", at, expect=0).stdout
    service.line.run("verify", "latest", "--level", "drill", expect=20)
    shown = service.line.run("show", at, expect=0)
    commits = [line for line in shown.stdout.splitlines() if line.startswith("commit ")]
    assert [line.endswith("; BROKEN") for line in commits] == [False, False, True, True, True]
    assert f"do not give snapshot {second_snapshot}" in shown.stderr
    assert "hint: restore a snapshot of that time: backupd list app\n" in shown.stderr
    document = service.line.run("show", at, "--json", expect=0).document
    assert [each["is_broken"] for each in document["commits"]] == [False, False, True, True, True]
    assert "of the recovery window" in document["gap"]["reason"]
    other = service.line.run("show", service.snapshot, "--json", expect=0).document
    assert (other["commits"], other["gap"]) == ([], None)
