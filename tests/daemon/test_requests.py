from harness.capturing import breaking_captures
from harness.context import PlacedContext
from harness.place import create_database

from backupd.daemon.requests import HttpRequest, Requests
from backupd.errors import ExitCode


def test_bug_in_one_database_costs_no_other_its_snapshot(tmp_path, monkeypatch, capsys):
    """A bug in one database leaves the others their snapshots, and the answer has the outcome of each."""
    for name in ("a", "bad", "c"):
        create_database(tmp_path / f"{name}.db", rows=2)
    for name, value in breaking_captures(tmp_path / "broken", "/bad.db").items():
        monkeypatch.setenv(name, value)
    placed = PlacedContext(tmp_path)
    try:
        answered = Requests().answer(HttpRequest(None, (), waits=True), placed.context)
    finally:
        placed.close()
    assert answered.exit_code is ExitCode.PARTLY_DONE
    outcomes = {(each["database"], each["outcome"]) for each in answered.values["snapshots"]}
    assert outcomes == {("a", "created"), ("bad", "failed"), ("c", "created")}
    assert "this is a bug in backupd" in capsys.readouterr().err
