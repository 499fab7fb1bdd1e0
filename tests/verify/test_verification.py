"""Verification of real repositories that were really damaged."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from harness.checks import check_context
from harness.damage import flip
from harness.faults import FaultyStore
from harness.packs import decode_pack, encode_pack, entry_of
from harness.stored import Stored
from msgspec.structs import replace

from backupd.encryption import Encryption, generate_identity
from backupd.errors import DamageError, ExitCode, NoSuchSnapshotError, StoreRefusedError, StoreUnavailableError
from backupd.format.manifest import decode_manifest, encode_manifest, encrypt_manifest
from backupd.format.records import CheckOutcome, Drill
from backupd.prune import forget
from backupd.repository import Repository
from backupd.repository.references import parse_reference
from backupd.store.directory import DirectoryStore
from backupd.store.keys import PackKey
from backupd.verify import Kind, Level, VerifyRequest, verify
from backupd.verify.results import Depth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.verify import Verification

    History: TypeAlias = tuple[Stored, tuple[SnapshotId, SnapshotId, SnapshotId]]

_EVERY_LEVEL = pytest.mark.parametrize("level", Level)


def damage(found: Verification) -> list[tuple[Kind, str, tuple[str, ...]]]:
    """Kind, key, and snapshots of what is damage."""
    return [(each.kind, each.key, tuple(map(str, each.snapshots))) for each in found.findings if each.is_damage]


def outcomes(found: Verification) -> dict[str, CheckOutcome]:
    """The outcome of each snapshot."""
    return {str(each.id): each.outcome for each in found.snapshots}


@pytest.mark.parametrize(
    ("level", "outcome", "depth"),
    [
        (Level.UPLOAD_CHECK, CheckOutcome.PRESENT, Depth.SIZES),
        (Level.PACKS, CheckOutcome.INTACT, Depth.PAGES),
        (Level.DRILL, CheckOutcome.PROVEN, Depth.RESTORED),
    ],
)
def test_sound_snapshots_are_verified(stored: Stored, level: Level, outcome: CheckOutcome, depth: Depth) -> None:
    """At each level every snapshot is right, and the result says how deep the check went."""
    ids = [stored.back_up(), stored.back_up(rows=1)]
    found = stored.verify(level=level, wants_all=True)
    assert [(each.id, each.outcome, each.depth) for each in found.snapshots] == [(each, outcome, depth) for each in ids]
    assert (found.exit_code, damage(found), found.problems, found.warnings) == (0, [], (), ())
    assert [each.kind for each in found.findings] == ([Kind.NOT_CHECKABLE] if level is Level.UPLOAD_CHECK else [])


def test_newest_of_every_database_is_selected(stored: Stored) -> None:
    """Without a reference, the newest snapshot of every database is verified, configured or not."""
    stored.back_up()
    newest = stored.back_up(rows=1)
    other = stored.back_up(name="other")
    assert outcomes(stored.verify()) == {str(newest): CheckOutcome.INTACT, str(other): CheckOutcome.INTACT}
    assert outcomes(stored.verify(database="other")) == {str(other): CheckOutcome.INTACT}


@pytest.mark.parametrize("text", ["latest~1", "app@latest~1", "the beginning of an id"])
def test_reference_selects_a_snapshot(stored: Stored, text: str) -> None:
    """A reference by age, or by the beginning of an id, selects a snapshot."""
    first = stored.back_up()
    stored.back_up(rows=1)
    reference = parse_reference(str(first)[:19] if text == "the beginning of an id" else text)
    assert outcomes(stored.verify(references=(reference,))) == {str(first): CheckOutcome.INTACT}


def test_reference_to_no_snapshot_is_an_error(stored: Stored) -> None:
    """A reference to no snapshot, or to several databases, is an error, and so is an empty store."""
    with pytest.raises(NoSuchSnapshotError, match="no snapshots in"):
        stored.verify()
    stored.back_up()
    with pytest.raises(NoSuchSnapshotError, match="latest~7"):
        stored.verify(references=(parse_reference("latest~7"),))
    stored.back_up(name="other")
    with pytest.raises(NoSuchSnapshotError, match="several databases"):
        stored.verify(references=(parse_reference("latest"),))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Two snapshots that share a pack, and one that shares none; only to be copied from."""
    stored = Stored(tmp_path_factory.mktemp("pristine"))
    return stored, (stored.back_up(), stored.back_up(rows=1), stored.back_up(is_full=True))


@pytest.fixture
def history(pristine: History, tmp_path: Path) -> History:
    """A copy of the pristine history for one test."""
    shutil.copytree(pristine[0].root, tmp_path / "copy")
    return Stored(tmp_path / "copy"), pristine[1]


_DAMAGE: dict[str, tuple[Callable[[Path], Any], Kind, Kind | None]] = {
    "missing": (lambda pack: pack.unlink(), Kind.PACK_MISSING, Kind.PACK_MISSING),
    "one byte less": (
        lambda pack: pack.write_bytes(pack.read_bytes()[:-1]),
        Kind.PACK_WRONG_SIZE,
        Kind.PACK_WRONG_SIZE,
    ),
    "empty": (lambda pack: pack.write_bytes(b""), Kind.PACK_WRONG_SIZE, Kind.PACK_WRONG_SIZE),
    "a bit in the index": (lambda pack: flip(pack, 25), Kind.PACK_WRONG_CHECKSUM, None),
    "a bit in the pages": (flip, Kind.PACK_WRONG_CHECKSUM, None),
}


@pytest.mark.parametrize("how", _DAMAGE)
@_EVERY_LEVEL
def test_damaged_pack_is_found_with_all_snapshots_it_affects(history: History, how: str, level: Level) -> None:
    """A damaged pack is reported, and recorded in the store, for each snapshot that it affects."""
    stored, (first, second, full) = history
    shared = (set(_packs(stored, first)) & set(_packs(stored, second))).pop()
    key = f"app/packs/{shared}.zst"
    break_it, expected, by_receipt = _DAMAGE[how]
    break_it(stored.store_root / key)
    found = stored.verify(level=level, references=(parse_reference(str(second)),))
    if level is Level.UPLOAD_CHECK and by_receipt is None:
        assert found.exit_code == 0  # a directory keeps no checksum, and says so
        return
    assert damage(found) == [(expected, key, (str(first), str(second)))]
    assert outcomes(found) == {str(second): CheckOutcome.DAMAGED_STORE}
    assert found.exit_code == 20
    for touched in (first, second):
        record = stored.recorded(touched)
        assert record is not None
        assert (record.outcome, record.damaged_packs) == (CheckOutcome.DAMAGED_STORE, (shared,))
    assert stored.recorded(full) is None


def _packs(stored: Stored, snapshot: object) -> list[str]:
    return [pack.sha256 for pack in decode_manifest(stored.manifest(snapshot).read_bytes()).packs]  # type: ignore[arg-type]


def test_swapped_packs_are_both_found(stored: Stored) -> None:
    """Two packs that have the bytes of each other are both found."""
    stored.back_up()
    newest = stored.back_up()
    one, two = stored.packs()[:2]
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    found = stored.verify()
    assert {key for _, key, _ in damage(found)} == {f"app/packs/{one.name}", f"app/packs/{two.name}"}
    assert {kind for kind, _, _ in damage(found)} <= {Kind.PACK_WRONG_CHECKSUM, Kind.PACK_WRONG_SIZE}
    record = stored.recorded(newest)
    assert record is not None
    assert len(record.damaged_packs) == 2


def test_all_findings_are_reported(stored: Stored) -> None:
    """Three packs in three ways, and a manifest."""
    ids = [stored.back_up(is_full=True) for _ in range(4)]
    files = [stored.store_root / f"app/packs/{_packs(stored, each)[0]}.zst" for each in ids[:3]]
    files[0].unlink()
    flip(files[1])
    files[2].write_bytes(b"x")
    flip(stored.manifest(ids[3]), 200)
    found = stored.verify(wants_all=True)
    assert Counter(kind for kind, _, _ in damage(found)) == {
        Kind.PACK_MISSING: 1,
        Kind.PACK_WRONG_CHECKSUM: 1,
        Kind.PACK_WRONG_SIZE: 1,
        Kind.MANIFEST_DAMAGED: 1,
    }
    assert set(outcomes(found).values()) == {CheckOutcome.DAMAGED_STORE}
    assert len(found.snapshots) == 4


@_EVERY_LEVEL
def test_damaged_manifest_is_found(stored: Stored, level: Level) -> None:
    """The manifest of the newest snapshot, which is the one to restore."""
    stored.back_up()
    newest = stored.back_up(rows=1)
    flip(stored.manifest(newest))
    found = stored.verify(level=level)
    assert (Kind.MANIFEST_DAMAGED, f"app/snapshots/{newest}.json", (str(newest),)) in damage(found)
    assert outcomes(found)[str(newest)] is CheckOutcome.DAMAGED_STORE
    record = stored.recorded(newest)
    assert record is not None
    assert (record.outcome, record.damaged_packs) == (CheckOutcome.DAMAGED_STORE, ())


def test_manifest_with_an_impossible_page_map_is_found(stored: Stored) -> None:
    """A manifest that was written and sealed with an impossible page map is found."""
    snapshot = stored.back_up()
    manifest = decode_manifest(stored.manifest(snapshot).read_bytes())
    stored.manifest(snapshot).write_bytes(encode_manifest(replace(manifest, page_map="AAAA")))
    found = stored.verify()
    assert damage(found)[0] == (Kind.PAGE_MAP_DAMAGED, f"app/snapshots/{snapshot}.json", (str(snapshot),))


def _rewrite_pack(stored: Stored, snapshot: object, change: Callable[[bytes], bytes]) -> str:
    """Put another pack in the place of the only one of a snapshot, whose manifest then names it; its SHA-256."""
    file = stored.manifest(snapshot)  # type: ignore[arg-type]
    manifest = decode_manifest(file.read_bytes())
    (pack,) = manifest.packs
    content = change((stored.store_root / f"app/packs/{pack.sha256}.zst").read_bytes())
    digest = hashlib.sha256(content).digest()
    stored.store.put(str(PackKey("app", digest)), content, sha256=digest)
    named = entry_of(content)
    file.write_bytes(encode_manifest(replace(manifest, packs=(named,))))
    return digest.hex()


def _with_a_wrong_page(content: bytes) -> bytes:
    index, images = decode_pack(content)
    numbers = [int.from_bytes(index.page_numbers[at : at + 4], "little") for at in range(0, 4 * index.pages, 4)]
    changed = bytes([images[0] ^ 1]) + images[1:]
    return encode_pack(index.page_size, numbers, index.hashes, changed, level=1)


def _without_its_last_page(content: bytes) -> bytes:
    index, images = decode_pack(content)
    numbers = [int.from_bytes(index.page_numbers[at : at + 4], "little") for at in range(0, 4 * index.pages - 4, 4)]
    return encode_pack(index.page_size, numbers, index.hashes[:-16], images[: -index.page_size], level=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_with_a_wrong_page, Kind.PAGE_WRONG),
        (_without_its_last_page, Kind.PACK_DOES_NOT_FIT),
        (lambda content: content + b"behind", Kind.PACK_UNREADABLE),
    ],
)
@pytest.mark.parametrize("level", [Level.PACKS, Level.DRILL])
def test_pack_that_was_written_wrong_is_found(
    stored: Stored, change: Callable[[bytes], bytes], expected: Kind, level: Level
) -> None:
    """A pack that was written wrong, and has a right SHA-256, is found by its content."""
    snapshot = stored.back_up()
    pack = _rewrite_pack(stored, snapshot, change)
    found = stored.verify(level=level)
    assert damage(found) == [(expected, f"app/packs/{pack}.zst", (str(snapshot),))]


def test_wrong_page_in_any_frame_is_found(stored: Stored) -> None:
    """Each page is hashed, in the last of several frames too, and is reported by its number."""
    snapshot = stored.back_up(rows=500)

    def change(content: bytes) -> bytes:
        index, images = decode_pack(content)
        assert len(index.frames) > 1
        numbers = memoryview(index.page_numbers).cast("I").tolist()
        return encode_pack(index.page_size, numbers, index.hashes, images[:-1] + b"\xff", level=1)

    _rewrite_pack(stored, snapshot, change)
    (finding,) = (each for each in stored.verify().findings if each.is_damage)
    last_page = decode_manifest(stored.manifest(snapshot).read_bytes()).page_count
    assert (finding.kind, finding.reason.rpartition(": ")[2]) == (Kind.PAGE_WRONG, str(last_page))


def test_image_with_another_digest_is_found(stored: Stored) -> None:
    """Every pack is right, and the manifest has the digest of another image."""
    snapshot = stored.back_up()
    file = stored.manifest(snapshot)
    manifest = decode_manifest(file.read_bytes())
    file.write_bytes(encode_manifest(replace(manifest, image_digest="0" * 64)))
    for level in (Level.PACKS, Level.DRILL):
        found = stored.verify(level=level)
        assert damage(found) == [(Kind.IMAGE_DIGEST_WRONG, f"app/snapshots/{snapshot}.json", (str(snapshot),))]


def test_rows_are_counted_and_foreign_keys_are_information(stored: Stored) -> None:
    """A key that refers to no row is reported, and is no damage."""
    stored.back_up()
    with closing(sqlite3.connect(stored.root / "app.db")) as connection, connection:
        connection.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE child (of REFERENCES parent (id))")
        connection.execute("INSERT INTO child VALUES (7)")
    stored.back_up(rows=1)
    found = stored.verify(level=Level.DRILL)
    assert (found.exit_code, damage(found)) == (0, [])
    assert [(each.kind, each.reason) for each in found.findings] == [
        (Kind.ORPHANED_ROWS, "1 row of child without the row of parent that they refer to")
    ]
    assert found.snapshots[0].rows == {"t": 21, "parent": 0, "child": 1}


def test_damaged_source_is_found_by_drills_alone(stored: Stored) -> None:
    """Every byte is as it was captured, and the database was damaged then."""
    stored.back_up(rows=200)
    path = stored.root / "app.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE INDEX of_t ON t (a)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'of_t'")
    snapshot = stored.back_up(rows=0)
    (sound,) = stored.verify().status_results
    assert sound.outcome is CheckOutcome.INTACT
    found = stored.verify(level=Level.DRILL)
    assert [each.id for each in found.damaged_sources] == [snapshot]
    assert [kind for kind, _, _ in damage(found)] == [Kind.SOURCE_DAMAGED]
    assert found.exit_code == 20
    record = stored.recorded(snapshot)
    assert record is not None
    assert record.outcome is CheckOutcome.DAMAGED_SOURCE
    weaker = stored.verify()
    (again,) = weaker.status_results
    assert (again.outcome, again.error is not None) == (CheckOutcome.DAMAGED_SOURCE, True)
    assert "a damaged database as it was captured" in weaker.warnings[0]
    assert stored.recorded(snapshot) == record


def test_shared_pack_is_read_once(stored: Stored) -> None:
    """However many snapshots need it; and the whole store is listed once."""
    for _ in range(5):
        stored.back_up(rows=1)
    store = stored.counting()
    found = stored.verify(store, wants_all=True)
    packs = len({pack for each in found.snapshots for pack in _packs(stored, each.id)})
    assert found.packs_read == packs
    # backupd.json, each manifest (the newest twice: once for the history), and each pack.
    assert Counter(store.calls) == {"list": 1, "get": 1 + 1 + 5 + packs}
    store.calls.clear()
    stored.verify(store, wants_all=True, level=Level.UPLOAD_CHECK)
    assert Counter(store.calls) == {"list": 1, "get": 1 + 1 + 5, "head": min(packs, 8)}


def test_nothing_is_left_behind(stored: Stored) -> None:
    """A verification leaves nothing in the state directory, and nothing in a sound store."""
    stored.back_up()
    before = sorted(stored.store_root.rglob("*"))
    stored.verify(wants_all=True)
    assert sorted(stored.store_root.rglob("*")) == before
    assert list((stored.state.root / "verifications").iterdir()) == []


def test_sample_reads_some_packs_and_others_each_time(stored: Stored) -> None:
    """A sample reads its share of the packs, at least one, and each pack at some time."""
    for _ in range(4):
        stored.back_up(is_full=True)
    seen = set()
    for seed in range(20):
        store = stored.counting()
        found = verify(
            [stored.repository(store)],
            VerifyRequest(wants_all=True, sample=0.1),
            check_context(random=random.Random(seed)),
        )
        assert found.packs_read == 1
        seen |= {str(each.id) for each in found.snapshots if each.depth is Depth.PAGES}
    assert len(seen) == 4
    assert Counter(each.depth for each in found.snapshots) == {Depth.PAGES: 1, Depth.SAMPLE: 3}


def test_sample_of_drills_is_of_snapshots(stored: Stored) -> None:
    """A sample of drills restores a share of the snapshots."""
    for _ in range(3):
        stored.back_up(rows=1)
    found = stored.verify(wants_all=True, sample=0.3, level=Level.DRILL)
    assert [each.depth for each in found.snapshots] == [Depth.RESTORED]
    assert stored.notes == ["1 of 3 snapshots are restored, chosen at random"]


def test_drill_that_cannot_be_done_is_inconclusive(stored: Stored) -> None:
    """A drill is inconclusive while another one runs, although all packs are there."""
    stored.back_up()
    with stored.state.lock(f"the drill of app in {stored.store.url}", timeout=0):
        found = stored.verify(level=Level.DRILL)
    assert [(each.outcome, each.depth) for each in found.snapshots] == [(CheckOutcome.INCONCLUSIVE, None)]
    assert found.exit_code == ExitCode.BUSY


def test_proof_is_not_overwritten_by_a_weaker_result(stored: Stored) -> None:
    """A proof is not overwritten by the result that every byte is right, but by damage."""
    snapshot = stored.back_up()
    stored.verify(level=Level.DRILL)
    before = stored.recorded(snapshot)
    assert before is not None
    assert before.outcome is CheckOutcome.PROVEN
    stored.verify()
    assert stored.recorded(snapshot) == before
    flip(stored.packs()[0])
    stored.verify()
    after = stored.recorded(snapshot)
    assert after is not None
    assert after.outcome is CheckOutcome.DAMAGED_STORE


def test_repaired_damage_is_recorded_as_repaired(stored: Stored) -> None:
    """The right bytes came back from another copy: the snapshot counts as intact, and not as proven."""
    snapshot = stored.back_up()
    content = stored.packs()[0].read_bytes()
    flip(stored.packs()[0])
    stored.verify()
    stored.packs()[0].write_bytes(content)
    assert stored.verify().exit_code == 0
    record = stored.recorded(snapshot)
    assert record is not None
    assert (record.outcome, record.damaged_packs) == (CheckOutcome.INTACT, ())


def test_damaged_packs_of_an_earlier_record_are_kept(stored: Stored) -> None:
    """A run that reads less keeps the packs that it has not read."""
    snapshot = stored.back_up(rows=20)
    stored.back_up(rows=1)
    shared, other = _packs(stored, snapshot)[0], "ab" * 32
    record = Drill(
        snapshot=snapshot,
        database="app",
        outcome=CheckOutcome.DAMAGED_STORE,
        at=datetime.now(UTC),
        damaged_packs=(other,),
    )
    file = stored.store_root / "app" / "drills" / f"{snapshot}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(record.encode())
    (stored.store_root / f"app/packs/{shared}.zst").unlink()
    stored.verify(level=Level.UPLOAD_CHECK, wants_all=True)
    after = stored.recorded(snapshot)
    assert after is not None
    assert set(after.damaged_packs) == {shared, other}


def test_record_that_cannot_be_written_is_a_warning(stored: Stored) -> None:
    """A record that read-only keys cannot write is a warning, and the damage is still reported."""

    class ReadOnly(FaultyStore):
        def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:  # noqa: ARG002
            raise StoreRefusedError(f"cannot put {key} in {self.url}", hint="allow it")

    stored.back_up()
    flip(stored.packs()[0])
    found = stored.verify(ReadOnly(stored.store))
    assert (found.exit_code, found.problems) == (20, ())
    (warning,) = found.warnings
    assert warning.startswith("what was found of app could not be recorded in the store: cannot put app/drills/")


class _Gone(FaultyStore):
    """Cannot be reached."""

    def _count(self, call: str) -> bool:  # noqa: ARG002
        raise StoreUnavailableError(f"{self.url} cannot be reached")


def test_store_that_cannot_be_reached_hides_no_other(stored: Stored) -> None:
    """A store that cannot be reached has its error, and snapshots in others have their outcomes."""
    snapshot = stored.back_up()
    second = DirectoryStore(stored.root / "second")
    found = stored.verify(_Gone(second), stored.store)
    assert outcomes(found) == {str(snapshot): CheckOutcome.INTACT}
    assert [problem.message for problem in found.problems] == [f"{second.url} cannot be reached"]
    assert found.exit_code == 3
    with pytest.raises(StoreUnavailableError):
        stored.verify(_Gone(second))


def test_store_that_goes_away_in_the_middle_is_not_damaged(stored: Stored) -> None:
    """Everything in it looks missing, and is not reported as damage."""
    snapshot = stored.back_up()

    class Unmounted(FaultyStore):
        def get(self, key: str, *, limit_bytes: int) -> bytes:
            if "/packs/" in key and stored.store_root.exists():
                stored.store_root.rename(stored.root / "elsewhere")
            return super().get(key, limit_bytes=limit_bytes)

    found = stored.verify(Unmounted(stored.store))
    assert damage(found) == []
    assert outcomes(found) == {str(snapshot): CheckOutcome.INCONCLUSIVE}
    assert "has gone away" in found.problems[0].message
    assert found.exit_code == 10
    assert not stored.store_root.exists()


def test_store_without_backups_is_reported(stored: Stored) -> None:
    """A store without backups, which may be an unmounted disk, is reported and not damage."""
    stored.back_up()
    empty = DirectoryStore(stored.root / "empty")
    found = stored.verify(stored.store, empty)
    assert found.exit_code == 0
    assert [(each.kind, each.store) for each in found.findings] == [(Kind.NOT_CHECKABLE, empty.url)]


def test_bits_that_flip_on_the_way_are_no_damage(stored: Stored) -> None:
    """The second time they are right, and the store is not to blame."""

    class Turning(FaultyStore):
        def get(self, key: str, *, limit_bytes: int) -> bytes:
            content = super().get(key, limit_bytes=limit_bytes)
            is_first = "/packs/" in key and self.calls.count("turned") == 0
            if is_first:
                self.calls.append("turned")
            return content[:-1] + bytes([content[-1] ^ 1]) if is_first else content

    stored.back_up()
    store = Turning(stored.store)
    assert stored.verify(store).exit_code == 0
    assert "turned" in store.calls


def test_packs_that_nothing_names_are_information(stored: Stored) -> None:
    """Packs of snapshots in the trash are named; a foreign one is not."""
    first = stored.back_up(is_full=True)
    stored.back_up(is_full=True)
    forget(stored.repository().archive("app"), first, now=datetime.now(UTC))
    assert [each.kind for each in stored.verify(wants_all=True).findings] == []
    stored.store.put(str(PackKey("app", bytes(32))), b"nothing", sha256=bytes(32))
    found = stored.verify(wants_all=True)
    assert [(each.kind, each.key, each.is_damage) for each in found.findings] == [(Kind.ORPHAN, "app/packs/", False)]
    assert found.exit_code == 0


def test_forgotten_snapshots_are_not_missed(stored: Stored) -> None:
    """Forgotten snapshots are not missed, and their packs are not damage."""
    first = stored.back_up()
    second = stored.back_up(rows=1)
    forget(stored.repository().archive("app"), first, now=datetime.now(UTC))
    assert outcomes(stored.verify(wants_all=True)) == {str(second): CheckOutcome.INTACT}


def test_ciphertext_without_a_key_is_compared_by_its_sha_256(stored: Stored, tmp_path: Path) -> None:
    """Ciphertext is compared by its SHA-256, and the result says so; with the key, everything is read."""
    public, secret = generate_identity(datetime.now(UTC))
    (tmp_path / "key").write_text(secret)
    snapshot = stored.back_up()
    _encrypt_again(stored, snapshot, Encryption([public]))
    shutil.rmtree(stored.state.root)
    found = stored.verify()
    assert [(each.outcome, each.depth) for each in found.snapshots] == [(CheckOutcome.INTACT, Depth.CIPHERTEXT)]
    assert [each.reason.partition(":")[0] for each in found.findings] == ["ciphertext only"]
    with_key = Repository(stored.store, stored.state, Encryption([public], tmp_path / "key"))
    opened = verify([with_key], VerifyRequest(), check_context())
    assert [(each.outcome, each.depth) for each in opened.snapshots] == [(CheckOutcome.INTACT, Depth.PAGES)]
    flip(stored.packs()[0])
    assert [kind for kind, _, _ in damage(stored.verify())] == [Kind.PACK_WRONG_CHECKSUM]


def _encrypt_again(stored: Stored, snapshot: object, encryption: Encryption) -> None:
    """Replace the only snapshot and its packs by encrypted ones."""
    file = stored.manifest(snapshot)  # type: ignore[arg-type]
    manifest = decode_manifest(file.read_bytes())
    packs = []
    for pack in manifest.packs:
        plain = stored.store_root / f"app/packs/{pack.sha256}.zst"
        content = encryption.encrypt(plain.read_bytes())
        plain.unlink()
        digest = hashlib.sha256(content).digest()
        stored.store.put(str(PackKey("app", digest, is_encrypted=True)), content, sha256=digest)
        packs.append(
            replace(
                pack,
                sha256=digest.hex(),
                stored_bytes=len(content),
                index_bytes=None,
                index_hash=None,
                encryption="age",
            )
        )
    encrypted, _ = encrypt_manifest(replace(manifest, packs=tuple(packs)), encryption.encrypt)
    file.write_bytes(encrypted)


def test_findings_can_be_written_as_json(stored: Stored) -> None:
    """Findings and outcomes can be written as JSON."""
    stored.back_up()
    flip(stored.packs()[0])
    found = stored.verify()
    document = json.loads(json.dumps([each.values() for each in (*found.findings, *found.snapshots)]))
    assert document[0]["kind"] == "pack-wrong-checksum"
    assert document[0]["is_damage"] is True
    assert document[1]["outcome"] == "damaged"


def test_stop_makes_a_verification_inconclusive(stored: Stored) -> None:
    """A verification that is stopped is inconclusive, with the reason as its problem."""
    snapshot = stored.back_up()

    def stop() -> None:
        raise DamageError("enough")  # any error of ours ends it

    found = stored.verify(should_stop=stop)
    assert outcomes(found) == {str(snapshot): CheckOutcome.INCONCLUSIVE}
    assert found.problems[0].message == "enough"
