"""`backupd verify` as people and scripts see it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from harness.damage import flip

if TYPE_CHECKING:
    from pathlib import Path

    from harness.command_line import CommandLine


def _packs(cli: CommandLine, store: str = "backups") -> list[Path]:
    return sorted((cli.directory / store / "app/packs").iterdir(), key=lambda file: -file.stat().st_size)


def test_each_snapshot_has_a_line(stored: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """Each verified snapshot has a line that says what was checked, and where."""
    result = stored.run("verify", "--all", expect=0)
    ids = [each["id"] for each in snapshots]
    assert [line.split("  ")[:3] for line in result.lines] == [["app", "verified", each] for each in ids]
    assert all(line.endswith(f"every byte and every page read  -> {stored.directory}/backups") for line in result.lines)
    assert result.stderr.startswith("3 snapshots verified; ")
    quiet = stored.run("verify", "app@upgrade", "--quiet", expect=0)
    assert (len(quiet.lines), quiet.stderr) == (1, "")


def test_json_document_has_exactly_these_keys(stored: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """The JSON document has exactly the documented keys."""
    document = stored.run("verify", "latest", "--level", "receipt", "--json", expect=0).document
    store = f"{stored.directory}/backups"
    assert document == {
        "snapshots": [
            {
                "id": snapshots[-1]["id"],
                "database": "app",
                "store": store,
                "level": "receipt",
                "outcome": "right",
                "looked_at": "sizes",
                "packs": len(stored.run("show", "latest", "--json", expect=0).document["snapshot"]["packs"]),
                "rows": {},
            }
        ],
        "findings": [
            {
                "kind": "not-checkable",
                "is_damage": False,
                "store": store,
                "database": None,
                "key": "",
                "reason": "sizes only: the store keeps no checksum of packs",
                "snapshots": [],
            }
        ],
        "continuity": [],
        "problems": [],
        "warnings": [],
        "packs_read": 0,
        "packs_read_before": 0,
        "read_bytes": document["read_bytes"],
        "duration_seconds": document["duration_seconds"],
    }


def test_damage_is_reported_with_what_to_do(cli: CommandLine) -> None:
    """Damage is reported in words, in JSON and by the exit code, and the command in the hint repairs the store."""
    cli.run("now", "app.db", expect=0)
    pack = _packs(cli)[0]
    pack.write_bytes(pack.read_bytes()[:-1])
    result = cli.run("verify", expect=20)
    assert "app  damaged  " in result.stdout
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith(f"error: app: pack-wrong-size: app/packs/{pack.name} in {cli.directory}/backups: it has ")
    assert "; affects 2" in error
    assert f"backupd now app --store {cli.directory}/backups" in hint
    document = cli.run("verify", "--json", expect=20).document
    assert [each["kind"] for each in document["findings"]] == ["pack-wrong-size"]
    cli.run("now", "app.db", expect=0)
    assert cli.run("verify", expect=0).stdout.startswith("app  verified  ")


def test_unreachable_store_is_partly_done(cli: CommandLine) -> None:
    """The other store is verified."""
    cli.run("now", "app.db", expect=0)
    (cli.directory / "file").touch()
    (cli.directory / "backupd.toml").write_text('[[stores]]\nurl = "backups"\n[[stores]]\nurl = "file"\n')
    result = cli.run("verify", expect=3)
    assert result.stdout.startswith("app  verified  ")
    assert f"error: store {cli.directory}/file is not a directory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--all", "latest"], 2, "both --all and snapshots are given"),
        (["--sample", "10%", "--level", "receipt"], 2, "--sample has no use with --level receipt"),
        (["--sample", "0%"], 2, "'0%' is not a share"),
        (["--sample", "101%"], 2, "'101%' is not a share"),
        (["--sample", "10"], 2, "'10' is not a share"),
        (["--bandwidth", "fast"], 2, "'fast' is not a size"),
        (["--bandwidth", "0"], 2, "a bandwidth of 0 reads nothing"),
        (["--level", "some"], 2, "'some' is not one of"),
        (["latest~9"], 12, "no snapshot latest~9"),
        (["--database", "other"], 12, "no snapshots of other in"),
    ],
)
def test_wrong_usage_is_refused(stored: CommandLine, arguments: list[str], code: int, message: str) -> None:
    """Wrong usage is refused with one line that says what is wrong."""
    result = stored.run("verify", *arguments, expect=code)
    assert message in result.stderr.splitlines()[0]
    assert result.stdout == ""


def test_sample_and_bandwidth_are_accepted(stored: CommandLine) -> None:
    """A rate may be written with `/s`, too."""
    document = stored.run("verify", "--all", "--sample", "10%", "--bandwidth", "50MB/s", "--json", expect=0).document
    assert document["packs_read"] == 1
    assert [each["outcome"] for each in document["snapshots"]] == ["right"] * 3


@pytest.fixture
def configured(cli: CommandLine) -> CommandLine:
    """`app.db` is configured, and has one snapshot."""
    (cli.directory / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n')
    cli.run("now", expect=0)
    return cli


def _status(cli: CommandLine) -> tuple[dict[str, Any], list[str]]:
    """What is known of the database in its store, and the kinds of alarms."""
    document = cli.run("status", "--json", expect=0).document["status"]
    (health,) = document["databases"]["app"]["stores"].values()
    return health, [alarm["kind"] for alarm in document["alarms"]]


def test_status_records_a_proof_only_for_a_drill(configured: CommandLine) -> None:
    """The other levels prove nothing."""
    (snapshot,) = configured.run("list", "--json", expect=0).document["snapshots"]
    configured.run("verify", expect=0)
    health, _ = _status(configured)
    assert (health["proven_id"], health["intact_id"]) == (None, None)
    (line,) = configured.run("verify", "--level", "drill", expect=0).lines
    assert "restored and checked by SQLite: 2,001 rows in 2 tables  -> " in line
    health, _ = _status(configured)
    assert health["proven_id"] == snapshot["id"]


def test_damage_found_by_verify_is_an_alarm_until_it_is_repaired(configured: CommandLine) -> None:
    """Damage is an alarm until the snapshot that the hint asks for was taken and drilled."""
    flip(_packs(configured)[0], -20)
    configured.run("verify", expect=20)
    health, kinds = _status(configured)
    assert (health["is_damaged"], health["fingerprint"], kinds) == (True, None, ["damaged"])
    assert "a verification found damage that affects 1 snapshot: pack app/packs/" in health["drill_failure"]["message"]
    assert (
        "backupd now app; then check the new snapshot: backupd verify app@latest --level drill"
        in health["drill_failure"]["hint"]
    )
    configured.run("now", "app", expect=0)
    assert _status(configured)[1] == ["damaged"]
    configured.run("verify", "app@latest", "--level", "drill", expect=0)
    health, kinds = _status(configured)
    assert (health["is_damaged"], health["drill_failure"], health["hold"], kinds) == (False, None, None, [])


def test_damage_of_an_old_snapshot_raises_one_alarm(configured: CommandLine) -> None:
    """The newest does not need that pack: it cannot be repaired, and a nightly verification must not alarm again."""
    (old,) = _packs(configured)
    with closing(sqlite3.connect(configured.directory / "app.db")) as connection, connection:
        connection.execute("DELETE FROM users WHERE id = 1")
    configured.run("now", "app", "--full", expect=0)
    flip(old, -20)
    configured.run("verify", "--all", expect=20)
    assert _status(configured)[1] == ["damaged"]
    configured.run("verify", expect=0)
    assert _status(configured)[1] == []
    for level in ("packs", "drill"):
        configured.run("verify", "--all", "--level", level, expect=20)
        assert _status(configured)[1] == []


def test_unconfigured_databases_are_in_no_status(cli: CommandLine) -> None:
    """A verification of a database that is not configured writes no status."""
    cli.run("now", "app.db", expect=0)
    cli.run("verify", "--level", "drill", expect=0)
    assert not (cli.directory / "state/status.json").exists()


def test_odd_values_are_a_note_everywhere(cli: CommandLine) -> None:
    """A column that was declared otherwise when they were written: exit code 0, and no alarm."""
    with closing(sqlite3.connect(cli.directory / "app.db")) as connection:
        connection.executescript(
            "CREATE TABLE t (x NUMERIC); INSERT INTO t VALUES (1); PRAGMA writable_schema = ON;"
            "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (x TEXT)' WHERE name = 't'"
        )
    (cli.directory / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n')
    cli.run("now", expect=0)
    found = cli.run("verify", "--level", "drill", expect=0)
    note = "values that do not fit their columns, which is no damage: NUMERIC value in t.x"
    assert "note: app: odd-values: " in found.stderr
    for verb in ("verify --level drill", "list", "status"):
        notes = cli.run(*verb.split(), expect=0).stderr
        assert note in notes
        assert "warning" not in notes
    (finding,) = cli.run("verify", "--level", "drill", "--json", expect=0).document["findings"]
    assert (finding["kind"], finding["is_damage"]) == ("odd-values", False)
    (health,) = cli.run("status", "--json", expect=0).document["status"]["databases"]["app"]["stores"].values()
    assert (health["remark"], health["is_source_damaged"]) == (note, False)
    rescued = [
        sys.executable,
        str(cli.directory / "backups/rescue.py"),
        "restore",
        "app@latest",
        str(cli.directory / "r.db"),
    ]
    assert subprocess.run(rescued, capture_output=True, check=True).returncode == 0
