"""`backupd report`: what it writes, and what it refuses."""

from __future__ import annotations

from harness.command_line import CommandLine


def test_a_report_needs_no_daemon(tmp_path):
    """What `backupd now` has done is in the report, and that no daemon watches it."""
    place = CommandLine(tmp_path)
    place.create_database("app.db", rows=20)
    (tmp_path / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n\n[[stores]]\nurl = "backups"\n')
    place.run("now", expect=0)
    finished = place.run("report", "--html", "report.html", expect=0)
    assert finished.stdout.startswith(f"wrote {tmp_path}/report.html, ")
    text = (tmp_path / "report.html").read_text()
    assert "The database is known, but no daemon watches it; it can be restored to" in text
    assert text.count("<h1>") == 1
    assert "backupd restore app@" in text


def test_a_report_of_nothing_says_so(tmp_path):
    """Where backupd has not worked, the report says that, and no state is made."""
    place = CommandLine(tmp_path)
    place.run("report", "--html", "report.html", expect=0)
    assert "Nothing is known yet" in (tmp_path / "report.html").read_text()


def test_a_report_replaces_nothing(tmp_path):
    """A file that exists stays as it is, also one that a link leads to nothing."""
    place = CommandLine(tmp_path)
    (tmp_path / "report.html").write_text("precious")
    (tmp_path / "link.html").symlink_to(tmp_path / "nowhere")
    for name in ("report.html", "link.html"):
        finished = place.run("report", "--html", name, expect=2)
        assert finished.stderr.splitlines() == [
            f"error: {tmp_path}/{name} exists already",
            "hint: name a new file: --html FILE",
        ]
    assert (tmp_path / "report.html").read_text() == "precious"


def test_a_report_needs_a_directory(tmp_path):
    """The errors name what is missing, on one line with one hint."""
    place = CommandLine(tmp_path)
    finished = place.run("report", "--html", "missing/report.html", expect=2)
    assert finished.stderr.startswith(f"error: the directory {tmp_path}/missing does not exist\nhint: ")
    finished = place.run("report", "--html", "-", expect=2)
    assert finished.stderr.startswith("error: a report cannot be written to standard output\nhint: ")
    finished = place.run("report", expect=2)
    assert finished.stderr.startswith("error: ")
    assert len(finished.stderr.splitlines()) == 2
    assert sorted(each.name for each in tmp_path.iterdir() if each.suffix == ".html") == []
