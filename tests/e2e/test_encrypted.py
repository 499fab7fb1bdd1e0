"""Encrypted snapshots through the command line: who can read what, and what a lost key, cache or machine costs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import slow
from harness.place import change_rows, content_digest, create_database

if TYPE_CHECKING:
    from pathlib import Path

USAGE, DAMAGE = 2, 20
_MARK = "a title that is secret"


def _keys(backupd: CommandLine, name: str) -> str:
    """The public key of a new pair; the secret one is in the file `name`."""
    return backupd.run("keygen", "--output", name).stdout.strip()


def _configure(home: Path, *recipients: str) -> None:
    (home / "backupd.toml").write_text(
        f"""
[[databases]]
path = "app.db"
[[stores]]
url = "backups"
[encryption]
recipients = {json.dumps(recipients)}
"""
    )


@pytest.fixture
def backupd(tmp_path: Path) -> CommandLine:
    """A database with a mark in it, in a place with one pair of keys, whose public one is configured."""
    create_database(tmp_path / "app.db", rows=300)
    change_rows(tmp_path / "app.db", _MARK)
    backupd = CommandLine(tmp_path)
    _configure(tmp_path, _keys(backupd, "key"))
    return backupd


def _restored(backupd: CommandLine, snapshot: str, *options: str) -> str:
    """The content of a snapshot after a restore, as a digest."""
    target = backupd.home / "restored.db"
    backupd.json("restore", snapshot, "--to", "restored.db", *options)
    digest = content_digest(target)
    target.unlink()
    return digest


def _stored_bytes(home: Path) -> bytes:
    """All bytes of the store, except for the two objects that are the same in every store."""
    found = sorted((home / "backups").rglob("*"))
    return b"".join(
        each.read_bytes() for each in found if each.is_file() and each.name not in {"RESTORE.md", "rescue.py"}
    )


def test_only_the_key_restores(backupd: CommandLine) -> None:
    """Content, schema and paths are encrypted, snapshots store only changes, and only the key restores them."""
    home = backupd.home
    first = content_digest(home / "app.db")
    backupd.run("now")
    change_rows(home / "app.db", "another")
    second = content_digest(home / "app.db")
    (made,) = backupd.json("now")["snapshots"]
    assert made["changed_pages"] < made["page_count"] / 4
    assert backupd.json("now")["snapshots"][0]["outcome"] == "unchanged"
    stored = _stored_bytes(home)
    for private in (_MARK, "report", str(home), "app.db"):
        assert private.encode() not in stored
    assert {each.suffix for each in (home / "backups/app/packs").iterdir()} == {".age"}
    refused = backupd.run("restore", "latest", "--to", "restored.db", code=USAGE)
    assert "is encrypted, and there is no key here to decrypt it" in refused.stderr
    assert not (home / "restored.db").exists()
    assert _restored(backupd, "latest", "--identity", "key") == second
    assert _restored(backupd, "latest~1", "--identity", "key") == first


@slow
def test_a_machine_without_its_state_and_key_stores_everything_again(backupd: CommandLine) -> None:
    """Without its state a machine lists and stores everything again, unless it has the key."""
    home = backupd.home
    backupd.run("now", "--tag", "mine")
    shutil.rmtree(home / "state")
    (listed,) = backupd.json("list")["snapshots"]
    assert (listed["tags"], listed["is_encrypted"], listed["image_digest"]) == (["mine"], True, None)
    assert "is encrypted: give the key with --identity FILE" in backupd.run("show", "mine").stdout
    assert "report" in backupd.run("show", "mine", "--identity", "key").stdout
    shutil.rmtree(home / "state")
    change_rows(home / "app.db", "once more")
    full = backupd.run("now")
    assert "every page was stored again" in full.stderr
    (entry,) = backupd.json("list")["snapshots"][1:]
    assert (entry["changed_pages"], entry["sequence"]) == (entry["page_count"], 2)
    assert _restored(backupd, "latest", "--identity", "key") == content_digest(home / "app.db")
    shutil.rmtree(home / "state")
    change_rows(home / "app.db", "and again")
    with_key = CommandLine(home, BACKUPD_IDENTITY_FILE="key")
    (entry,) = with_key.json("now")["snapshots"]
    assert entry["changed_pages"] < entry["page_count"] / 4


@slow
def test_encryption_is_switched_on_later_and_off_again(backupd: CommandLine) -> None:
    """Old packs stay readable and are named on; a full snapshot leaves none; what is plain needs no key."""
    home = backupd.home
    recipients = (home / "backupd.toml").read_text()
    _configure(home)
    backupd.run("now")
    plain = content_digest(home / "app.db")
    (home / "backupd.toml").write_text(recipients)
    change_rows(home / "app.db", "encrypted")
    (mixed,) = backupd.json("now")["snapshots"]
    assert any("encryption was switched on" in each for each in mixed["warnings"])
    assert mixed["changed_pages"] < mixed["page_count"] / 4
    shown = backupd.json("show", mixed["id"])["snapshot"]
    assert {pack.get("encryption") for pack in shown["packs"]} == {None, "age"}
    assert "age, but for 1 pack of 2" in backupd.run("show", mixed["id"]).stdout
    assert _restored(backupd, "latest", "--identity", "key") == content_digest(home / "app.db")
    (full,) = backupd.json("now", "--full")["snapshots"]
    assert full["warnings"] == backupd.json("now")["snapshots"][0]["warnings"] == []
    assert {pack.get("encryption") for pack in backupd.json("show", full["id"])["snapshot"]["packs"]} == {"age"}
    assert _restored(backupd, "latest~2") == plain
    _configure(home)
    change_rows(home / "app.db", "plain")
    reported = backupd.run("now").reported("warning")
    assert any("encryption was switched off" in each and "backupd now app --full" in each for each in reported), (
        reported
    )
    assert backupd.run("now").reported("warning") == reported
    backupd.run("now", "--full")
    assert backupd.run("now").reported("warning") == []
    assert _restored(backupd, "latest") == content_digest(home / "app.db")


@slow
def test_a_key_is_added(backupd: CommandLine) -> None:
    """The new one opens what is stored in full after it, and says what it cannot open; the old one opens everything."""
    home = backupd.home
    backupd.run("now")
    public = _keys(backupd, "new.key")
    _configure(home, public)
    change_rows(home / "app.db", "for the new key")
    assert "the recipients have changed" in backupd.run("now").stderr
    refused = backupd.run("restore", "latest", "--to", "restored.db", "--identity", "new.key", code=USAGE)
    assert "new.key decrypts pack app/packs/" in refused.stderr
    assert "add them to the same file" in refused.stderr
    (home / "both.key").write_text((home / "key").read_text() + (home / "new.key").read_text())
    assert _restored(backupd, "latest", "--identity", "both.key") == content_digest(home / "app.db")
    backupd.run("now", "--full")
    assert _restored(backupd, "latest", "--identity", "new.key") == content_digest(home / "app.db")
    refused = backupd.run("restore", "latest~2", "--to", "restored.db", "--identity", "new.key", code=USAGE)
    assert "new.key decrypts" in refused.stderr


def test_a_restore_into_the_live_database_and_back(backupd: CommandLine) -> None:
    """The safety snapshot is encrypted too, and the way back needs the key as well."""
    home = backupd.home
    backupd.run("now")
    before = content_digest(home / "app.db")
    change_rows(home / "app.db", "a mistake")
    mistake = content_digest(home / "app.db")
    backupd.run("restore", "latest", "--yes", code=USAGE)
    assert content_digest(home / "app.db") == mistake
    backupd.run("restore", "latest", "--yes", "--identity", "key")
    assert content_digest(home / "app.db") == before
    backupd.run("undo", "--yes", code=USAGE)
    backupd.run("undo", "--yes", "--identity", "key")
    assert content_digest(home / "app.db") == mistake


@slow
def test_damage_is_damage_and_no_wrong_key(backupd: CommandLine) -> None:
    """A flipped bit in a pack or in a manifest is reported as such, with the key and without."""
    home = backupd.home
    backupd.run("now")
    (pack,) = (home / "backups/app/packs").iterdir()
    good = pack.read_bytes()
    for at in (0, 60, len(good) // 2, len(good) - 1):
        pack.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refused = backupd.run("restore", "latest", "--to", "r.db", "--identity", "key", code=DAMAGE)
        assert "does not have the SHA-256 that names it" in refused.stderr
    pack.write_bytes(good)
    (manifest,) = (home / "backups/app/snapshots").iterdir()
    text = manifest.read_bytes()
    at = text.index(b'"age": "') + 40
    manifest.write_bytes(text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :])
    refused = backupd.run("restore", "latest", "--to", "r.db", "--identity", "key", code=DAMAGE)
    assert "is damaged" in refused.stderr
    assert not (home / "r.db").exists()


@slow
def test_old_ones_go_and_come_back_without_a_key(backupd: CommandLine) -> None:
    """Retention, the trash and undelete need nothing that is encrypted."""
    home = backupd.home
    with (home / "backupd.toml").open("a") as file:
        file.write("\n[retention]\nkeep_last = 1\ndaily = 0\nweekly = 0\nmonthly = 0\nafter_snapshot = false\n")
    ids = []
    for title in ("one", "two", "three"):
        change_rows(home / "app.db", title)
        ids.append(backupd.json("now")["snapshots"][0]["id"])
    shutil.rmtree(home / "state")
    backupd.run("prune")
    assert [each["id"] for each in backupd.json("list")["snapshots"]] == ids[-1:]
    backupd.run("undelete", ids[0])
    assert [each["id"] for each in backupd.json("list")["snapshots"]] == [ids[0], ids[-1]]
    _restored(backupd, ids[0], "--identity", "key")


@slow
def test_wrong_key_is_reported_once(backupd: CommandLine) -> None:
    """A wrong key is reported once for all snapshots, and a file that is no key is refused."""
    for title in ("one", "two", "three"):
        change_rows(backupd.home / "app.db", title)
        backupd.run("now")
    shutil.rmtree(backupd.state)
    _keys(backupd, "other")
    assert backupd.run("list", "--identity", "other").stderr.count("what is encrypted cannot be read") == 1
    backupd.refusal("list", "--identity", "none", code=USAGE, names=["none", "cannot be read"])
