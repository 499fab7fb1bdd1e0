from harness.capturing import breaking_captures
from harness.charge import Charged
from harness.place import create_database

from backupd.daemon.requested import Request, Requests
from backupd.errors import ExitCode


def test_bug_in_one_database_costs_no_other_its_snapshot(tmp_path, monkeypatch, capsys):
    """Each gets its turn, and the answer says what became of it."""
    for name in ("a", "bad", "c"):
        create_database(tmp_path / f"{name}.db", rows=2)
    for name, value in breaking_captures(tmp_path / "broken", "/bad.db").items():
        monkeypatch.setenv(name, value)
    charged = Charged(tmp_path)
    try:
        answered = Requests().answer(Request(None, (), waits=True), charged.charge)
    finally:
        charged.close()
    assert answered.exit_code is ExitCode.PARTLY_DONE
    outcomes = {(each["database"], each["outcome"]) for each in answered.values["snapshots"]}
    assert outcomes == {("a", "created"), ("bad", "failed"), ("c", "created")}
    assert "this is a bug in backupd" in capsys.readouterr().err
