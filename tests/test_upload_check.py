"""What a store has shown of a snapshot when `now` ends, and what its listing and its own checksums tell."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers
from harness.packs import pack_entry
from harness.stored import Stored

from backupd.backup import Outcome, SnapshotRequest, back_up
from backupd.backup.results import UploadCheck
from backupd.config import Database, Settings
from backupd.errors import LostManifestError
from backupd.repository import Repository
from backupd.repository.history import Listing
from backupd.repository.packs import PackFault, compare_checksums, faults_in_listing
from backupd.store import ObjectFacts, StoredObject

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.backup import BackupResult
    from backupd.format.manifest import PackEntry
    from backupd.store import Store


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """A database with one snapshot."""
    stored = Stored(tmp_path)
    stored.back_up()
    return stored


def run(stored: Stored, store: Store, *, is_full: bool = False) -> BackupResult:
    """`backupd now`, without its command line."""
    (result,) = back_up(
        Database("app", stored.root / "app.db"),
        [Repository(store, stored.state)],
        Settings(),
        request=SnapshotRequest(is_full=is_full),
        on_progress=lambda _: None,
        workers=kept_workers(),
    )
    return result


def test_snapshot_ends_with_an_upload_check(stored: Stored) -> None:
    """A snapshot, and a run that finds nothing new, ends with an upload check of all its packs."""
    stored.back_up(rows=1)
    result = run(stored, stored.store)
    sizes = [file.stat().st_size for file in stored.packs()]
    assert (result.outcome, result.upload_check) == (Outcome.UNCHANGED, UploadCheck(len(sizes), sum(sizes)))
    full = run(stored, stored.store, is_full=True)
    assert full.upload_check == UploadCheck(1, full.stored_bytes)
    assert full.values()["receipt"] == {"packs": 1, "stored_bytes": full.stored_bytes}


class _Manifests(FaultyStore):
    """Keeps the first `wrong` manifests that are put as something else."""

    def __init__(self, store: Store, *, wrong: int, change: Callable[[bytes], bytes]) -> None:
        super().__init__(store)
        self.wrong = wrong
        self._change = change

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        super().put(key, content, sha256=sha256)
        if "/snapshots/" in key and self.wrong:
            self.wrong -= 1
            assert isinstance(content, bytes)
            changed = self._change(content)
            self._store.put(key, changed, sha256=hashlib.sha256(changed).digest())


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\n", lambda _: b""])
def test_manifest_that_does_not_come_back_is_put_again(stored: Stored, change: Callable[[bytes], bytes]) -> None:
    """A manifest that reads back wrong is put again once, and the snapshot is then sound."""
    store = _Manifests(stored.store, wrong=1, change=change)
    result = run(stored, store, is_full=True)
    assert (result.error, store.wrong) == (None, 0)
    assert stored.verify(wants_all=True).exit_code == 0


def test_store_that_keeps_another_manifest_has_an_error(stored: Stored) -> None:
    """A store that keeps another manifest has an error that a retry may help, and the next run works."""
    store = _Manifests(stored.store, wrong=2, change=lambda content: content[:-1])
    result = run(stored, store, is_full=True)
    assert isinstance(result.error, LostManifestError)
    assert result.error.retry_can_help
    assert (result.outcome, result.upload_check) == (Outcome.FAILED, None)
    assert run(stored, stored.store).error is None


def _packs(number: int) -> list[PackEntry]:
    return [pack_entry(hashlib.sha256(bytes([each])).hexdigest(), stored_bytes=100, pages=1) for each in range(number)]


def test_listing_shows_what_is_not_there() -> None:
    """A listing shows packs that are missing or have another size."""
    right, small, missing = _packs(3)
    now = datetime.now(UTC)
    shown = {right: 100, small: 99}
    survey = Listing(packs={pack.sha256: StoredObject("key", size, now) for pack, size in shown.items()})
    assert faults_in_listing([right, small, missing], survey) == {
        small: (PackFault.WRONG_SIZE, "it has 99 bytes instead of 100"),
        missing: (PackFault.MISSING, "it is not there"),
    }


def test_pack_that_came_by_its_key_is_looked_at_when_asked_for() -> None:
    """Each is looked at once, and one that has gone by then is missing."""
    right, small, gone = _packs(3)
    keys = {pack: f"app/packs/{pack.sha256}.zst" for pack in (right, small, gone)}
    sizes, looked_at = {keys[right]: 100, keys[small]: 99}, []

    def look(key: str) -> StoredObject | None:
        looked_at.append(key)
        return StoredObject(key, sizes[key], datetime.now(UTC)) if key in sizes else None

    listing = Listing.of("app", keys.values(), look)
    assert (set(listing.packs), looked_at) == ({pack.sha256 for pack in keys}, [])
    assert listing.missing([right, small, gone]) == [small, gone]
    assert listing.packs[small.sha256].size_bytes == 99
    assert looked_at == [*keys.values()]


class _Reporting(FaultyStore):
    """Has the facts that a test says, by the beginning of the SHA-256 in the key."""

    def __init__(self, store: Store, facts: Callable[[str], ObjectFacts]) -> None:
        super().__init__(store)
        self._facts = facts

    def facts(self, key: str) -> ObjectFacts:
        self._count("head")
        return self._facts(key.rpartition("/")[2].partition(".")[0])


def test_checksums_are_compared_one_by_one(stored: Stored) -> None:
    """Each pack whose checksum or size differs is named."""
    packs = _packs(20)
    odd = {packs[3].sha256: ObjectFacts(100, bytes(32)), packs[17].sha256: ObjectFacts(99, None)}
    store = _Reporting(stored.store, lambda sha: odd.get(sha, ObjectFacts(100, bytes.fromhex(sha))))
    found = compare_checksums(stored.repository(store).archive("app"), packs, lambda: None)
    assert found.compared == frozenset(packs)
    assert {pack: fault for pack, (fault, _) in found.faults.items()} == {
        packs[3]: PackFault.WRONG_CHECKSUM,
        packs[17]: PackFault.WRONG_SIZE,
    }
    assert found.why_not is None


def test_store_without_checksums_is_not_asked_for_all(stored: Stored) -> None:
    """A store that keeps no checksums is asked for a few, and not for those of all packs."""
    store = _Reporting(stored.store, lambda _: ObjectFacts(100, None))
    found = compare_checksums(stored.repository(store).archive("app"), _packs(200), lambda: None)
    assert (found.compared, dict(found.faults)) == (frozenset(), {})
    assert found.why_not == "the store keeps no checksum of packs"
    assert Counter(store.calls)["head"] == 8
