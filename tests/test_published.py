"""What is published is readable: nothing is put that a reader of this version would refuse."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness.cli import CommandLine
from harness.extent import sampled
from harness.packs import encode_pack
from harness.place import create_database
from msgspec.structs import replace
from pyrage import x25519

from backupd.backup.results import BackupResult, Outcome
from backupd.encryption import NO_ENCRYPTION, Encryption
from backupd.errors import UnreadableObjectError
from backupd.format import FormatError
from backupd.format.manifest import Manifest, decode_manifest
from backupd.format.pack import page_hash
from backupd.format.records import MAX_RECORD_BYTES, Drill
from backupd.health import Status
from backupd.health.alarms import find_alarms
from backupd.health.recording import with_snapshots
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

_VECTORS = Path(__file__).parent / "vectors"
_KEYS = {
    "manifest": "app/snapshots/20261122T085557123Z-7f3a91c2.json",
    "private": "app/snapshots/20261122T085557123Z-7f3a91c2.json",
    "trash": "app/trash/20261122T085557123Z-7f3a91c2.json",
    "drill": "app/drills/20261122T085557123Z-7f3a91c2.json",
    "sweep": "app/sweeps/20261122T085557123Z-7f3a91c2.json",
    "deletion": "app/deletions/20261122T085557123Z-7f3a91c2.json",
    "retention": "app/retention.json",
    "repository": "backupd.json",
}
_READ_WITH_A_KEY = re.compile("private-(of-another|part)")


def _vectors(where: str) -> list[Any]:
    files = [file for kind in _KEYS for file in sorted((_VECTORS / where).glob(f"{kind}-*.json"))]
    return [pytest.param(file, id=file.stem) for file in files if not _READ_WITH_A_KEY.match(file.stem)]


def _repository(root: Path, encryption: Encryption = NO_ENCRYPTION) -> Repository:
    return Repository(DirectoryStore(root / "store"), StateDirectory(root / "state"), encryption)


@pytest.mark.parametrize("file", _vectors("invalid"))
def test_no_object_is_put_that_breaks_a_rule(tmp_path: Path, file: Path) -> None:
    """An object that a reader would refuse is not put."""
    repository = _repository(tmp_path)
    if file.stem == "repository-format-2":
        return  # a newer format is what a newer backupd writes
    with pytest.raises(UnreadableObjectError, match="no reader would accept it"):
        repository.put_object(_KEYS[file.stem.partition("-")[0]], file.read_bytes())
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name", ["manifest-minimal", "trash-minimal", "drill-proven", "sweep-one-pack", "retention-both"]
)
def test_an_object_is_put_under_its_own_key_only(tmp_path: Path, name: str) -> None:
    """An object is put under its own key, and refused under that of another database."""
    repository = _repository(tmp_path)
    key, content = _KEYS[name.partition("-")[0]], (_VECTORS / f"valid/{name}.json").read_bytes()
    repository.put_object(key, content)
    if name.startswith(("manifest", "trash", "drill")):
        with pytest.raises(UnreadableObjectError, match="it is that of app@"):
            repository.put_object(key.replace("app", "other"), content)


def test_a_record_that_is_too_large_is_not_put(tmp_path: Path) -> None:
    """Readers stop at a size, whatever is in it."""
    drill = Drill.decode((_VECTORS / "valid/drill-proven.json").read_bytes())
    longest = replace(drill, damaged_packs=("0" * 64,) * 100_001)
    with pytest.raises(UnreadableObjectError, match="length <= 100000"):
        _repository(tmp_path).put_object(_KEYS["drill"], longest.encode())
    with pytest.raises(UnreadableObjectError, match=f"readers take at most {MAX_RECORD_BYTES}"):
        _repository(tmp_path).put_object(_KEYS["drill"], bytes(MAX_RECORD_BYTES + 1))


_WRONG: dict[str, Any] = {
    "sequence": 1 << 53,
    "page_size": 1000,
    "page_count": 2,
    "changed_pages": -1,
    "stored_bytes": 1 << 63,
    "image_digest": "0" * 63,
    "page_map": "AAAA",
    "packs": (),
    "tags": ("\ud800",),
    "writer": None,
    "database": "..",
}


@pytest.mark.parametrize("is_encrypted", sampled([False, True]))
@pytest.mark.parametrize("name", _WRONG)
def test_no_snapshot_is_committed_that_does_not_restore(tmp_path: Path, name: str, *, is_encrypted: bool) -> None:
    """A manifest that does not read back in full is not committed, and nothing is put."""
    create_database(tmp_path / "app.db", rows=1)
    CommandLine(tmp_path).run("now", "app.db", "--store", "store")
    recipients = (str(x25519.Identity.generate().to_public()),) if is_encrypted else ()
    repository = _repository(tmp_path, Encryption(recipients))
    archive = repository.archive("app")
    (manifest,) = archive.history().manifests
    assert isinstance(manifest, Manifest)
    before = sorted((tmp_path / "store").rglob("*"))
    value = replace(manifest.writer, host="\udcff") if name == "writer" else _WRONG[name]
    with pytest.raises(ValueError if name == "database" else UnreadableObjectError):
        archive.commit(replace(manifest, **{name: value}), tmp_path / "hashes")
    assert sorted((tmp_path / "store").rglob("*")) == before


@pytest.mark.parametrize(
    ("numbers", "hashes", "images"),
    [
        ([], 0, 0),
        ([0], 1, 512),
        ([2, 1], 2, 1024),
        ([1, 1], 2, 1024),
        ([1 << 27], 1, 512),
        ([1], 2, 512),
        ([1, 2], 2, 512),
    ],
)
def test_no_pack_is_made_that_does_not_read(numbers: list[int], hashes: int, images: int) -> None:
    """A pack whose index or frame does not read back is not made."""
    with pytest.raises(FormatError):
        encode_pack(512, numbers, page_hash(bytes(512)) * hashes, bytes(images), level=1)


def test_a_refusal_is_red_at_once() -> None:
    """An object that is not put is a red alarm at once, with no retry to wait for."""
    now = datetime.now(UTC)
    error = UnreadableObjectError("not put")
    result = BackupResult(database="app", store="/b", outcome=Outcome.FAILED, error=error)
    status = with_snapshots(Status(), [result], path="/app.db", at=now, due_by=None, fingerprint=None)
    (alarm,) = find_alarms(status, now=now, alive_at=None)
    assert (alarm.kind, alarm.is_red) == ("failing", True)
    assert status.databases["app"].stores["/b"].snapshot_id is None


def test_a_host_name_need_not_be_text(tmp_path: Path) -> None:
    """The system calls a host what it was called, byte by byte; its snapshots can still be read."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--uts", "true"], check=False).returncode:
        pytest.skip("needs unshare, and the right to use it")
    create_database(tmp_path / "app.db", rows=1)
    named = "import ctypes, os, sys; ctypes.CDLL(None).sethostname(b'\\xffh', 2); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-m", "backupd", "now", "app.db", "--store", "store"]
    subprocess.run(
        ["unshare", "--uts", sys.executable, "-c", named, *command],
        cwd=tmp_path,
        check=True,
        env={"BACKUPD_STATE_DIR": str(tmp_path / "state")},
    )
    (file,) = (tmp_path / "store/app/snapshots").iterdir()
    manifest = decode_manifest(file.read_bytes())
    assert isinstance(manifest, Manifest)
    assert manifest.writer.host == "\\xffh"


@pytest.mark.parametrize(
    "name", sampled(["a\0b", "\u202e", "ü", "\U0001f4be", "\ufeff", "x" * 100_000, "\x7f\x1b[31m", "\uffff"])
)
def test_a_table_may_be_called_anything(tmp_path: Path, name: str) -> None:
    """SQLite takes nearly every text for a name; so do the revisions of Alembic."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (name,))
        if "\0" not in name:
            connection.execute(f'CREATE TABLE "{name}" (x)')
    backupd = CommandLine(tmp_path)
    backupd.run("now", "app.db", "--store", "store")
    (snapshot,) = backupd.json("list", "--store", "store")["snapshots"]
    # What is far longer than a revision is left out, with a warning.
    assert len(snapshot["alembic_revisions"] or ()) == (len(name) < 1000)
    backupd.run("restore", "latest", "--to", "restored.db", "--store", "store")
