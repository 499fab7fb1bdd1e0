"""Test restores, of real databases out of real stores."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from harness.checks import check_context
from harness.command_line import wait_until
from harness.damage import flip
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers
from harness.packs import decode_pack, encode_pack, entry_of
from msgspec.structs import replace

from backupd.backup import SnapshotRequest, back_up
from backupd.config import CaptureSettings, Database, RetentionSettings, Settings
from backupd.config.stores import EncryptionSettings
from backupd.encryption import Encryption, generate_identity
from backupd.errors import (
    BusyError,
    DamageError,
    InterruptedByUserError,
    NoSuchObjectError,
    NoSuchSnapshotError,
    StoreUnavailableError,
    TargetUnwritableError,
)
from backupd.format import SnapshotId
from backupd.format.manifest import encode_manifest
from backupd.format.records import CheckOutcome, Drill
from backupd.live.soundness import MOST_FINDINGS
from backupd.prune import prune
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.keys import PackKey
from backupd.verify import CheckContext, CheckResult, drill

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 4, 0, tzinfo=UTC)


class Place:
    """A database `app`, a store, and a state directory."""

    def __init__(self, root: Path) -> None:
        self.path = root / "app.db"
        self.store_root = root / "store"
        self.store = DirectoryStore(self.store_root)
        self.state = StateDirectory(root / "state")
        self.repository = Repository(self.store, self.state)
        self.archive = self.repository.archive("app")

    def write(self, script: str, **functions: Callable[..., object]) -> None:
        """Run SQL, in which collations and functions of these names can be used."""
        with closing(sqlite3.connect(self.path)) as connection:
            for name, function in functions.items():
                if name.startswith("collation"):
                    connection.create_collation(name, function)
                else:
                    connection.create_function(name, 1, function, deterministic=True)
            connection.executescript(script)

    def fill(self, rows: int = 500) -> None:
        """A table with some rows of half a kilobyte."""
        self.write("CREATE TABLE IF NOT EXISTS t (a UNIQUE)")
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executemany("INSERT INTO t VALUES (?)", ((os.urandom(250).hex(),) for _ in range(rows)))

    def back_up(self, *, is_full: bool = False) -> SnapshotId:
        """Take a snapshot; its id."""
        (result,) = back_up(
            Database(name="app", path=self.path),
            [self.repository],
            Settings(),
            request=SnapshotRequest(is_full=is_full),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.error is None
        assert result.id is not None
        return result.id

    def drill(
        self,
        *,
        snapshot: SnapshotId | None = None,
        repository: Repository | None = None,
        settings: Settings | None = None,
        should_stop: Callable[[], None] = lambda: None,
    ) -> CheckResult:
        """Drill, and see that nothing is left in scratch."""
        limit = (settings or Settings()).capture.deadline
        context = CheckContext(now=NOW, examination_limit=limit, should_stop=should_stop)
        result = drill((repository or self.repository).archive("app"), context, snapshot=snapshot)
        assert self.spooled() == []
        return result

    def spooled(self) -> list[Path]:
        """What lies in scratch."""
        return sorted((self.state.root / "spool").glob("*"))

    def recorded(self, snapshot: SnapshotId) -> CheckOutcome | None:
        """What the store knows of drills of that snapshot."""
        file = self.store_root / "app" / "drills" / f"{snapshot}.json"
        return Drill.decode(file.read_bytes()).outcome if file.exists() else None

    def packs(self) -> list[Path]:
        """Files of all packs."""
        return sorted((self.store_root / "app" / "packs").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place with no snapshot yet."""
    return Place(tmp_path)


def test_sound_snapshot_is_proven(place: Place) -> None:
    """The newest one is restored and checked, and the store has a record of it from then on."""
    place.fill()
    first = place.back_up()
    place.fill(3)
    newest = place.back_up()
    result = place.drill()
    assert (result.outcome, result.id, result.error, result.findings) == (CheckOutcome.PROVEN, newest, None, ())
    assert result.image_bytes == place.path.stat().st_size
    assert result.fetched_bytes == sum(pack.stat().st_size for pack in place.packs())
    assert result.rows == {"t": 503}
    assert result.started_at == NOW
    assert result.duration_seconds > 0
    assert (place.recorded(newest), place.recorded(first)) == (CheckOutcome.PROVEN, None)


def test_older_snapshot_can_be_drilled(place: Place) -> None:
    """A drill of an older snapshot restores the state of its time."""
    place.fill(10)
    first = place.back_up()
    place.fill(5)
    place.back_up()
    result = place.drill(snapshot=first)
    assert (result.outcome, result.id, result.rows) == (CheckOutcome.PROVEN, first, {"t": 10})
    assert place.recorded(first) is CheckOutcome.PROVEN


def test_empty_database_is_proven(place: Place) -> None:
    """A file of no bytes is a database without tables."""
    place.path.touch()
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, result.id, result.image_bytes) == (CheckOutcome.PROVEN, snapshot, 0)


def test_newest_proven_snapshot_is_kept_by_retention(place: Place) -> None:
    """Retention trusts what a drill has recorded."""
    place.fill(5)
    proven = place.back_up()
    assert place.drill().outcome is CheckOutcome.PROVEN
    for _ in range(3):
        place.fill(1)
        place.back_up()
    policy = RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0)
    result = prune(place.archive, policy, now=datetime.now(UTC) + timedelta(days=400))
    kept = {decision.manifest.id: decision.reasons for decision in result.decisions if decision.is_kept}
    assert "newest proven" in " ".join(kept[proven])


@pytest.mark.parametrize("damage", ["flipped", "missing", "empty"])
def test_damage_of_the_store_names_packs_and_remedy(place: Place, damage: str) -> None:
    """The drill says which packs are damaged, and which command repairs that; after it, the same drill is proven."""
    place.fill()
    place.back_up()
    place.fill(3)
    newest = place.back_up()
    victim = max(place.packs(), key=lambda pack: pack.stat().st_size)
    if damage == "missing":
        victim.unlink()
    else:
        flip(victim, victim.stat().st_size // 2) if damage == "flipped" else victim.write_bytes(b"")
    result = place.drill()
    assert (result.outcome, result.id) == (CheckOutcome.DAMAGED_STORE, newest)
    assert result.damaged_packs == (victim.name.removesuffix(".zst"),)
    assert isinstance(result.error, DamageError)
    assert victim.name in result.error.message
    assert str(newest) in result.error.message
    assert "app" in result.error.message
    assert f"backupd now app --store {place.store.url}" in str(result.error.hint)
    assert place.recorded(newest) is CheckOutcome.DAMAGED_STORE
    healed = place.back_up()
    assert (place.drill().outcome, place.recorded(healed)) == (CheckOutcome.PROVEN, CheckOutcome.PROVEN)


def test_all_damaged_packs_are_found(place: Place) -> None:
    """A drill finds all damaged packs, because all have to be stored again."""
    for _ in range(3):
        place.fill(50)
        place.back_up()
    for pack in place.packs():
        flip(pack, -1)
    result = place.drill()
    manifest = place.archive.history().manifests[-1]
    assert result.damaged_packs == tuple(pack.sha256 for pack in manifest.packs)
    assert f"{len(manifest.packs)} of its {len(manifest.packs)} packs are damaged" in str(result.error)


def test_damaged_manifest_is_damage_of_the_store(place: Place) -> None:
    """The newest snapshot is the one whose manifest cannot be read, and not the one before it."""
    place.fill()
    place.back_up()
    place.fill(3)
    newest = place.back_up()
    flip(place.store_root / "app" / "snapshots" / f"{newest}.json", 300)
    result = place.drill()
    assert (result.outcome, result.id) == (CheckOutcome.DAMAGED_STORE, newest)
    assert f"the manifest of app@{newest}" in str(result.error)
    assert place.recorded(newest) is CheckOutcome.DAMAGED_STORE


class TurningStore(FaultyStore):
    """Turns a bit of the first pack that is asked for, on its way, once."""

    has_turned = False

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        content = super().get(key, limit_bytes=limit_bytes)
        if "/packs/" in key and not self.has_turned:
            self.has_turned = True
            return content[:-1] + bytes([content[-1] ^ 1])
        return content


def test_damage_on_the_way_is_no_damage_of_the_store(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """What is right the second time was never wrong in the store; but it is logged."""
    place.fill()
    newest = place.back_up()
    store = TurningStore(place.store)
    result = place.drill(repository=Repository(store, place.state))
    assert store.has_turned
    assert (result.outcome, place.recorded(newest)) == (CheckOutcome.PROVEN, CheckOutcome.PROVEN)
    assert "the right ones at the second read" in "".join(capsys.readouterr())


def test_page_that_does_not_have_its_hash_is_damage(place: Place) -> None:
    """The pack's SHA-256, checksum and index are all right."""
    place.fill()
    manifest = place.archive.opened(place.archive.manifest(place.back_up()))
    (pack,) = manifest.packs
    index, images = decode_pack(place.store.get(place.archive.pack_key(pack), limit_bytes=pack.most_bytes))
    turned = bytes([*images[:-1], images[-1] ^ 1])
    numbers = [int(number) for number in np.frombuffer(index.page_numbers, dtype="<u4")]
    content = encode_pack(index.page_size, numbers, index.hashes, turned, level=1)
    digest = hashlib.sha256(content)
    place.store.put(str(PackKey("app", digest.digest())), content, sha256=digest.digest())
    forged = replace(manifest, id=SnapshotId("20990101T000000000Z-00000000"), sequence=2, packs=(entry_of(content),))
    place.repository.put_object(f"app/snapshots/{forged.id}.json", encode_manifest(forged))
    result = place.drill()
    assert (result.outcome, result.id) == (CheckOutcome.DAMAGED_STORE, forged.id)
    assert result.damaged_packs == (digest.hexdigest(),)
    assert "holds other pages than it says" in str(result.error)


def test_image_with_a_wrong_digest_is_damage_without_a_pack(place: Place) -> None:
    """Right packs that do not make up the image are damage in the store, without a damaged pack."""
    place.fill()
    manifest = place.archive.opened(place.archive.manifest(place.back_up()))
    forged = replace(manifest, id=SnapshotId("20990101T000000000Z-00000000"), sequence=2, image_digest="0" * 64)
    place.repository.put_object(f"app/snapshots/{forged.id}.json", encode_manifest(forged))
    result = place.drill()
    assert (result.outcome, result.damaged_packs) == (CheckOutcome.DAMAGED_STORE, ())
    assert "do not make up its image" in str(result.error)


def corrupt(path: Path, table: str) -> None:
    """Overwrite the middle of a page of one table's index, as a failing disk does."""
    with closing(sqlite3.connect(path)) as connection:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = ?", (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size + page_size // 2)
        file.write(b"\xa5" * (page_size // 2))


def test_damaged_source_is_reported_with_what_sqlite_found(place: Place) -> None:
    """Every byte is the one that was captured, and SQLite says what is wrong with them."""
    place.write("CREATE TABLE t (a INTEGER, b); CREATE INDEX i ON t (b)")
    with closing(sqlite3.connect(place.path)) as connection, connection:
        connection.executemany("INSERT INTO t VALUES (?, ?)", ((number, f"{number:050}") for number in range(3000)))
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'i'")
        connection.execute("PRAGMA writable_schema = RESET")
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, result.id, result.damaged_packs) == (CheckOutcome.DAMAGED_SOURCE, snapshot, ())
    assert isinstance(result.error, DamageError)
    assert "is as it was captured" in result.error.message
    assert "never used" in result.error.message
    assert str(place.path) in str(result.error.hint)
    assert 1 < len(result.findings) <= MOST_FINDINGS
    assert place.recorded(snapshot) is CheckOutcome.DAMAGED_SOURCE


def test_overwritten_page_of_a_tree_is_found(place: Place) -> None:
    """A page that is overwritten in the source, as by a failing disk, is a damaged source."""
    place.fill()
    corrupt(place.path, "t")
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, place.recorded(snapshot)) == (CheckOutcome.DAMAGED_SOURCE, CheckOutcome.DAMAGED_SOURCE)
    assert result.findings


def test_malformed_schema_is_found(place: Place) -> None:
    """SQLite opens no table of such a database."""
    place.write(
        "CREATE TABLE t (a); CREATE TABLE u (a); PRAGMA writable_schema = ON;"
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (' WHERE name = 't'"
    )
    place.back_up()
    result = place.drill()
    assert result.outcome is CheckOutcome.DAMAGED_SOURCE
    assert "malformed database schema" in str(result.error)


def _foreign_table(module: str) -> str:
    """SQL that makes a virtual table, although SQLite cannot do so here."""
    created = f"CREATE VIRTUAL TABLE own USING {module}"
    return f"PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES ('table', 'own', 'own', 0, '{created}')"


_ONLY_THE_APPLICATION_CAN = {
    "collation": (
        "CREATE TABLE own (a TEXT COLLATE collation_de PRIMARY KEY); INSERT INTO own VALUES ('b'), ('a')",
        "own",
    ),
    "function": ("CREATE TABLE own (a); CREATE INDEX i ON own (fold(a)); INSERT INTO own VALUES (1), (2)", "own"),
    "tokenizer": (_foreign_table('fts5(x, tokenize="stems")'), "own"),
    "module": (_foreign_table("vec0(x)"), "own"),
}


@pytest.mark.parametrize("what", _ONLY_THE_APPLICATION_CAN)
def test_what_only_the_application_can_check_is_no_alarm(place: Place, what: str) -> None:
    """The rest is checked anyway, the snapshot counts as proven, and the result says what was not checked."""
    script, table = _ONLY_THE_APPLICATION_CAN[what]
    place.fill()
    place.write(script, collation_de=lambda a, b: (a > b) - (a < b), fold=lambda value: value)
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, result.error) == (CheckOutcome.NOT_CHECKABLE, None)
    (finding,) = result.findings
    assert finding.startswith(f"table {table}: ")
    assert result.rows["t"] == 500
    assert place.recorded(snapshot) is CheckOutcome.PROVEN


def test_damage_beside_what_cannot_be_checked_is_found(place: Place) -> None:
    """A table that cannot be checked does not hide damage in another one."""
    script, _ = _ONLY_THE_APPLICATION_CAN["collation"]
    place.fill()
    place.write(script, collation_de=lambda a, b: (a > b) - (a < b))
    corrupt(place.path, "t")
    place.back_up()
    assert place.drill().outcome is CheckOutcome.DAMAGED_SOURCE


_ODD_VALUES = {
    "numeric": ("x NUMERIC", "x TEXT", "INSERT INTO t (x) VALUES (1)", "NUMERIC value in t.x"),
    "text": ("x TEXT", "x NUMERIC", "INSERT INTO t (x) VALUES ('1')", "TEXT value in t.x"),
    "null": ("x", "x NOT NULL", "INSERT INTO t (x) VALUES (NULL)", "NULL value in t.x"),
    "strict": ("x ANY", "x INT", "INSERT INTO t (x) VALUES ('one')", "non-INT value in t.x"),
}


def _edit_column(place: Place, what: str, rows: int = 1) -> str:
    """Change the declared type of a column by hand, as migration tools do; what SQLite says of its rows then."""
    before, after, insert, line = _ODD_VALUES[what]
    strict = " STRICT" if what == "strict" else ""
    place.write(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, {before}){strict};"
        + f"{insert};" * rows
        + "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = "
        + f"'CREATE TABLE t (id INTEGER PRIMARY KEY, {after}){strict}' WHERE name = 't'"
    )
    return line


@pytest.mark.parametrize("what", _ODD_VALUES)
def test_values_that_do_not_fit_their_column_are_no_damage(place: Place, what: str) -> None:
    """Pages and indexes are sound, and the values are as they were written: that is reported, and proven."""
    line = _edit_column(place, what, rows=300)
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, result.error) == (CheckOutcome.PROVEN, None)
    assert result.findings == result.odd_values == (f"{line} (300 times)",)
    assert str(result.odd_values_summary).endswith(f": {line} (300 times)")
    assert place.recorded(snapshot) is CheckOutcome.PROVEN


@pytest.mark.parametrize("damage", ["index", "unique"])
def test_many_odd_values_hide_no_damage(place: Place, damage: str) -> None:
    """SQLite stops after a hundred lines; an index without its rows, or with equal ones, comes after them."""
    _edit_column(place, "numeric", rows=300)
    place.write("CREATE TABLE z (a, b); INSERT INTO z VALUES (1, 1), (1, 2); CREATE INDEX i ON z (a)")
    edited = "CREATE INDEX i ON z (b)" if damage == "index" else "CREATE UNIQUE INDEX i ON z (a)"
    place.write(f"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = '{edited}' WHERE name = 'i'")
    place.back_up()
    result = place.drill()
    assert result.outcome is CheckOutcome.DAMAGED_SOURCE
    assert ("missing from index i" if damage == "index" else "non-unique entry in index i") in str(result.error)
    assert result.odd_values


def test_table_for_which_no_memory_is_enough_is_damage(place: Place) -> None:
    """A length in its index is wrong: the machine is not to blame, and the other tables are checked."""
    place.fill()
    place.write("CREATE VIRTUAL TABLE f USING fts5 (x); INSERT INTO f VALUES ('some words')")
    with closing(sqlite3.connect(place.path)) as connection, connection:
        (structure,) = connection.execute("SELECT block FROM f_data WHERE id = 10").fetchone()
        structure = structure[:8] + b"\xff\xff\xff\x7f" + structure[12:]
        connection.execute("UPDATE f_data SET block = ? WHERE id = 10", (structure,))
    snapshot = place.back_up()
    result = place.drill()
    assert (result.outcome, result.rows["t"]) == (CheckOutcome.DAMAGED_SOURCE, 500)
    assert "table f: SQLite needs more memory" in str(result.error)
    assert place.recorded(snapshot) is CheckOutcome.DAMAGED_SOURCE


def test_orphans_and_broken_checks_are_no_damage(place: Place) -> None:
    """Rows that break a foreign key are reported; neither they nor broken CHECK constraints are damage."""
    place.write(
        "CREATE TABLE user (id INTEGER PRIMARY KEY); CREATE TABLE report (user REFERENCES user (id), n CHECK (n > 0));"
        "PRAGMA ignore_check_constraints = ON; INSERT INTO report VALUES (1, 5), (2, -5)"
    )
    place.back_up()
    result = place.drill()
    assert result.outcome is CheckOutcome.PROVEN
    assert result.findings == ("2 rows of report without the row of user that they refer to",)


class Encrypted:
    """A place whose snapshots are encrypted; `identity` is the file with the key, which backups do without."""

    def __init__(self, place: Place) -> None:
        self.place = place
        public, secret = generate_identity(NOW)
        self.identity = place.path.parent / "identity"
        self.identity.write_text(secret)
        self.settings = Settings(encryption=EncryptionSettings(recipients=(public,)))

    def back_up(self) -> None:
        (result,) = back_up(
            Database(name="app", path=self.place.path),
            [Repository(self.place.store, self.place.state, self.settings.open_encryption())],
            self.settings,
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.error is None

    def drill(self, *, identity: Path | None = None, state: str = "state") -> CheckResult:
        directory = StateDirectory(self.place.path.parent / state)
        encryption = Encryption(self.settings.encryption.recipients, identity)
        return self.place.drill(repository=Repository(self.place.store, directory, encryption))


@pytest.mark.parametrize("state", ["state", "another"])
@pytest.mark.parametrize("has_wrong_key", [False, True])
def test_what_cannot_be_decrypted_here_is_read_in_full(place: Place, state: str, *, has_wrong_key: bool) -> None:
    """Without the key a drill reads every byte, says that it restored nothing, and lowers no older proof."""
    encrypted = Encrypted(place)
    place.fill()
    encrypted.back_up()
    wrong = place.path.parent / "wrong"
    wrong.write_text(generate_identity(NOW)[1])
    result = encrypted.drill(state=state, identity=wrong if has_wrong_key else None)
    assert (result.outcome, result.error, result.damaged_packs) == (CheckOutcome.INTACT, None, ())
    assert result.fetched_bytes == sum(pack.stat().st_size for pack in place.packs())
    assert "not restored: this machine has no identity" in str(result.values()["note"])
    assert result.id is not None
    assert place.recorded(result.id) is CheckOutcome.INTACT
    proven = encrypted.drill(state=state, identity=encrypted.identity)
    assert (proven.outcome, proven.values()["note"], proven.rows) == (CheckOutcome.PROVEN, None, {"t": 500})
    assert place.recorded(result.id) is CheckOutcome.PROVEN
    assert encrypted.drill(state=state).outcome is CheckOutcome.INTACT
    assert place.recorded(result.id) is CheckOutcome.PROVEN  # which says more, and keeps it from being removed


def test_a_drill_without_a_key_keeps_what_one_with_a_key_found(place: Place) -> None:
    """A damaged source is reported again, and a proof is reported with its time."""
    encrypted = Encrypted(place)
    place.fill()
    sound = place.path.read_bytes()
    corrupt(place.path, "t")
    encrypted.back_up()
    found = encrypted.drill(identity=encrypted.identity, state="another")
    assert (found.outcome, found.id is not None) == (CheckOutcome.DAMAGED_SOURCE, True)
    assert found.id is not None
    record = place.store_root / f"app/drills/{found.id}.json"
    recorded_at = record.stat().st_mtime_ns
    again = encrypted.drill()
    assert (again.outcome, again.id, again.proven_at) == (CheckOutcome.DAMAGED_SOURCE, found.id, None)
    assert isinstance(again.error, DamageError)
    assert f"test restore found {NOW:%Y-%m-%d %H:%M:%SZ}" in again.error.message
    assert "no key" in again.error.message
    assert record.stat().st_mtime_ns == recorded_at
    place.path.write_bytes(sound)
    place.fill(10)
    encrypted.back_up()
    assert encrypted.drill(identity=encrypted.identity, state="another").outcome is CheckOutcome.PROVEN
    seen = encrypted.drill()
    assert (seen.outcome, seen.proven_at) == (CheckOutcome.INTACT, NOW)
    assert seen.note is not None
    assert "it was proven 2026-11-22 04:00:00Z" in seen.note


def test_damage_names_the_other_snapshots_that_need_the_same_packs(place: Place) -> None:
    """Damage names the other snapshots that need the same packs, so that none of them is suggested."""
    place.fill()
    first = place.back_up()
    (shared,) = place.packs()
    place.fill(3)
    second = place.back_up()
    shared.unlink()
    assert place.drill().damaged_snapshots == (first, second)


def test_damage_is_found_and_repaired_without_a_key(place: Place) -> None:
    """The SHA-256 of what is stored shows it; the next snapshot encrypts the pages once more."""
    encrypted = Encrypted(place)
    place.fill()
    encrypted.back_up()
    (victim,) = place.packs()
    flip(victim, victim.stat().st_size // 2)
    damaged = encrypted.drill()
    assert (damaged.outcome, damaged.damaged_packs) == (CheckOutcome.DAMAGED_STORE, (victim.name.split(".")[0],))
    encrypted.back_up()
    assert encrypted.drill().outcome is CheckOutcome.INTACT
    assert encrypted.drill(identity=encrypted.identity).outcome is CheckOutcome.PROVEN


def test_every_failing_call_makes_a_drill_inconclusive(place: Place) -> None:
    """A store that fails in the middle proves nothing and damages nothing; the record of the snapshot stays."""
    place.fill()
    snapshot = place.back_up()
    assert place.drill().outcome is CheckOutcome.PROVEN
    calls = FaultyStore(place.store)
    assert place.drill(repository=Repository(calls, place.state)).outcome is CheckOutcome.PROVEN
    assert len(calls.calls) >= 4
    for number in range(len(calls.calls)):
        result = place.drill(repository=Repository(FaultyStore(place.store, fail_at=number), place.state))
        assert result.outcome is CheckOutcome.INCONCLUSIVE
        assert isinstance(result.error, StoreUnavailableError)
        assert place.recorded(snapshot) is CheckOutcome.PROVEN


class VanishingStore(FaultyStore):
    """Goes away, as a disk that is unmounted does, before the call numbered `vanish_at`."""

    def __init__(self, store: DirectoryStore, *, vanish_at: int) -> None:
        super().__init__(store)
        self._vanish_at = vanish_at
        self._turn = threading.Lock()

    def _count(self, call: str) -> bool:
        with self._turn:
            if len(self.calls) == self._vanish_at:
                Path(self.url).rename(f"{self.url} elsewhere")
            return super()._count(call)


def test_store_that_vanishes_is_not_damaged(place: Place) -> None:
    """A store that vanishes at any moment makes a drill inconclusive, and no other store is made in its place."""
    for _ in range(2):
        place.fill(50)
        snapshot = place.back_up()
    calls = FaultyStore(place.store)
    assert place.drill(repository=Repository(calls, place.state)).outcome is CheckOutcome.PROVEN
    assert calls.calls.count("put") == 1
    elsewhere = Path(f"{place.store_root} elsewhere")
    for number in range(calls.calls.index("put")):
        store = VanishingStore(DirectoryStore(place.store_root), vanish_at=number)
        result = place.drill(repository=Repository(store, place.state))
        assert (result.outcome, result.damaged_packs) == (CheckOutcome.INCONCLUSIVE, ())
        assert not place.store_root.exists()
        elsewhere.rename(place.store_root)
        assert place.recorded(snapshot) is CheckOutcome.PROVEN


def test_packs_that_vanish_with_their_store_are_not_called_missing(place: Place) -> None:
    """The error says that the store has gone, and that another attempt may succeed."""
    for _ in range(2):
        place.fill(50)
        place.back_up()
    calls = FaultyStore(place.store)
    place.drill(repository=Repository(calls, place.state))
    last_pack = max(number for number, call in enumerate(calls.calls[:-2]) if call == "get")
    store = VanishingStore(DirectoryStore(place.store_root), vanish_at=last_pack)
    error = place.drill(repository=Repository(store, place.state)).error
    assert isinstance(error, StoreUnavailableError)
    assert error.message == f"{store.url} has gone away in the middle of a drill of app: it holds no backups any more"
    assert "mounted" in str(error.hint)


def test_damage_is_reported_even_if_it_cannot_be_recorded(place: Place) -> None:
    """The result matters more than its record."""
    place.fill()
    place.back_up()
    place.packs()[0].unlink()
    calls = FaultyStore(place.store)
    assert place.drill(repository=Repository(calls, place.state)).outcome is CheckOutcome.DAMAGED_STORE
    last = FaultyStore(place.store, fail_at=len(calls.calls) - 1)
    assert place.drill(repository=Repository(last, place.state)).outcome is CheckOutcome.DAMAGED_STORE


def test_missing_store_or_snapshot_is_an_error(place: Place) -> None:
    """A missing store, no snapshot, and an unknown snapshot each have their error, and nothing is recorded."""
    result = place.drill()
    assert (result.outcome, result.id) == (CheckOutcome.INCONCLUSIVE, None)
    assert isinstance(result.error, NoSuchObjectError)
    place.repository.create_if_missing()
    assert isinstance(place.drill().error, NoSuchSnapshotError)
    place.fill(1)
    place.back_up()
    result = place.drill(snapshot=SnapshotId("20200101T000000000Z-00000000"))
    assert isinstance(result.error, NoSuchSnapshotError)
    assert place.recorded(SnapshotId("20200101T000000000Z-00000000")) is None


def test_lack_of_room_is_an_error_before_anything_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the state directory is never filled up: other programs use it too."""
    place.fill()
    place.back_up()
    full = SimpleNamespace(f_bavail=place.path.stat().st_size, f_frsize=1, f_blocks=1, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    calls = FaultyStore(place.store)
    result = place.drill(repository=Repository(calls, place.state))
    assert result.outcome is CheckOutcome.INCONCLUSIVE
    assert isinstance(result.error, TargetUnwritableError)
    assert "MiB free, a test restore needs" in result.error.message
    assert calls.calls.count("get") < 4


def test_full_scratch_makes_a_drill_inconclusive(place: Place) -> None:
    """A disk that fills up during the drill, here by a limit on file sizes, says nothing about the snapshot."""
    place.fill()
    snapshot = place.back_up()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (place.path.stat().st_size // 2, hard))
    try:
        result = place.drill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.outcome is CheckOutcome.INCONCLUSIVE
    assert isinstance(result.error, TargetUnwritableError)
    assert str(place.state.root) in result.error.message
    assert place.recorded(snapshot) is None


def test_only_one_drill_at_a_time(place: Place) -> None:
    """A second one of the same database in the same store is refused at once, and does no harm."""
    place.fill()
    place.back_up()
    seen: list[CheckResult] = []

    def also_drill() -> None:
        if not seen:
            seen.append(drill(place.archive, check_context()))

    assert place.drill(should_stop=also_drill).outcome is CheckOutcome.PROVEN
    assert isinstance(seen[0].error, BusyError)
    assert seen[0].outcome is CheckOutcome.INCONCLUSIVE


def test_drill_can_be_stopped_at_any_moment(place: Place) -> None:
    """A drill that is stopped at any moment is inconclusive, and records nothing."""
    place.fill()
    snapshot = place.back_up()
    asked = [0]

    def count() -> None:
        asked[0] += 1

    def stop_at(number: int) -> Callable[[], None]:
        passed = [0]

        def should_stop() -> None:
            passed[0] += 1
            if passed[0] > number:
                raise InterruptedByUserError("stopped", hint=None)

        return should_stop

    assert place.drill(should_stop=count).outcome is CheckOutcome.PROVEN
    (place.store_root / "app" / "drills" / f"{snapshot}.json").unlink()
    assert asked[0] >= 3
    for number in range(4):
        result = place.drill(should_stop=stop_at(number))
        if number == 3 and result.outcome is CheckOutcome.PROVEN:
            break  # SQLite was done with the image before it was first waited for
        assert result.outcome is CheckOutcome.INCONCLUSIVE
        assert isinstance(result.error, InterruptedByUserError)
        assert place.recorded(snapshot) is None


def test_examination_by_sqlite_is_limited_in_time(place: Place) -> None:
    """The examination by SQLite is limited by the deadline of captures."""
    place.fill()
    place.back_up()
    settings = Settings(capture=CaptureSettings(deadline=timedelta(microseconds=1)))
    result = place.drill(settings=settings)
    assert isinstance(result.error, BusyError)
    assert "capture.deadline" in str(result.error.hint)


_DRILL_THAT_HANGS = """
import sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from backupd.verify import CheckContext, drill
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
state = StateDirectory(Path(sys.argv[1]) / "state")
repository = Repository(DirectoryStore(Path(sys.argv[1]) / "store"), state)
context = CheckContext(
    now=datetime.now(UTC), examination_limit=timedelta(hours=1), should_stop=lambda: time.sleep(60)
)
drill(repository.archive("app"), context)
"""


def test_scratch_of_a_killed_drill_is_removed_by_the_next(place: Place) -> None:
    """An image may be large."""
    place.fill()
    place.back_up()
    process = subprocess.Popen([sys.executable, "-c", _DRILL_THAT_HANGS, str(place.path.parent)])
    try:
        wait_until(lambda: any(file.name == "image.db" for entry in place.spooled() for file in entry.glob("*")))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert place.spooled() != []
    assert place.drill().outcome is CheckOutcome.PROVEN


def open_files(process_id: int) -> set[Path]:
    """What the process has open at this moment."""
    found = set()
    for link in Path(f"/proc/{process_id}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the directory was read
            found.add(link.readlink())
    return found


def test_examination_ends_with_its_parent(tmp_path: Path) -> None:
    """The process that looks through an image does not outlive the process that started it."""
    file = tmp_path / "image.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute(
            "INSERT INTO t WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
            "SELECT randomblob(300) FROM n"
        )
        connection.execute("CREATE INDEX i ON t (a)")
    command = [sys.executable, "-P", "-m", "backupd.live.soundness", str(file)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        wait_until(lambda: file in open_files(process.pid))
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()
