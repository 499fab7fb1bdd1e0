"""A database, a directory store whose clock can be moved, two hosts, and the steps of rotation between them."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.backup import BackupResult, Outcome, SnapshotRequest, back_up
from backupd.config import Database, RetentionSettings, Settings
from backupd.format.records import CheckOutcome, DeletionRecord, Drill, FoundPack, Moment, SweepRecord
from backupd.prune import PruneOptions, PruneResult, forget, prune
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from harness.kept_workers import kept_workers
from harness.place import change_rows, create_database

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.store import Store

GRACE = timedelta(days=3)
LAST_ONE = RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0, grace=GRACE)
NO_RULE_FOR_TAGS = LAST_ONE.replaced(tagged=timedelta(0))


@dataclass(slots=True)
class Rotation:
    """`home` holds app.db, states of it to choose from, a store, and a state directory for each host."""

    home: Path
    restored: int = field(default=0)

    @property
    def root(self) -> Path:
        return self.home / "store"

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(self.root)

    def copy(self, home: Path) -> Rotation:
        """Copy everything into another directory, with the same ages."""
        shutil.copytree(self.home, home)
        return Rotation(home)

    def host(self, name: str) -> StateDirectory:
        return StateDirectory(self.home / f"state-{name}")

    def repository(self, host: str = "a", store: Store | None = None) -> Repository:
        return Repository(store or self.store, self.host(host))

    def become(self, content: str) -> None:
        """Make the database file one of a few states, each the same byte for byte whenever it is chosen."""
        chosen = self.home / f"content-{content}.db"
        if not chosen.exists():
            base = self.home / "content-base.db"
            if not base.exists():
                create_database(base, rows=60, row_bytes=2000)
            if content != "base":
                shutil.copy(base, chosen)
                change_rows(chosen, content)
        shutil.copy(chosen, self.home / "app.db")

    def back_up(self, host: str = "a", store: Store | None = None, *, tags: tuple[str, ...] = ()) -> BackupResult:
        (result,) = back_up(
            Database("app", self.home / "app.db"),
            [Repository(store or self.store, self.host(host))],
            Settings(),
            request=SnapshotRequest(tags=tags),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        return result

    def snapshot(self, content: str) -> SnapshotId:
        """A snapshot of one of the states, by host a."""
        self.become(content)
        result = self.back_up()
        assert result.outcome is Outcome.CREATED, result
        assert result.id is not None
        return result.id

    def prune(
        self,
        host: str = "a",
        store: Store | None = None,
        *,
        policy: RetentionSettings | None = LAST_ONE,
        is_dry_run: bool = False,
        accepts_shrink: bool = False,
    ) -> PruneResult:
        return prune(
            self.repository(host, store).archive("app"),
            policy,
            now=datetime.now(UTC),
            options=PruneOptions(is_dry_run=is_dry_run, accepts_shrink=accepts_shrink),
        )

    def forget(self, snapshot_id: SnapshotId) -> None:
        forget(self.repository().archive("app"), snapshot_id, now=datetime.now(UTC))

    def age(self, by: timedelta = GRACE + timedelta(hours=1)) -> None:
        """Make everything in the store older by its clock, but for packs: with another time they are other packs."""
        for file in self.root.rglob("*.json"):
            if file.is_file():
                status = file.stat()
                os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - int(by.total_seconds()) * 10**9))

    def put(self, key: str, content: bytes) -> None:
        self.store.put(key, content, sha256=hashlib.sha256(content).digest())

    def manifests(self) -> tuple[Manifest, ...]:
        """What the store lists, on a host that knows nothing of it."""
        self.restored += 1
        archive = self.repository(f"reader-{self.restored}").archive("app")
        return tuple(archive.opened(archive.manifest(each.id)) for each in archive.history().manifests)

    def ids(self) -> list[SnapshotId]:
        return [manifest.id for manifest in self.manifests()]

    def names(self, directory: str) -> set[str]:
        """What is in a directory of the store, without `.json` and `.zst`."""
        return {file.stem for file in (self.root / "app" / directory).glob("*")}

    def objects(self) -> dict[str, tuple[bytes, int]]:
        """Every object with its content and time."""
        files = (file for file in self.root.rglob("*") if file.is_file())
        return {str(file.relative_to(self.root)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    def assert_every_snapshot_restores(self) -> list[SnapshotId]:
        """Restore each listed snapshot, which checks its image digest; returns their ids, oldest first."""
        manifests = self.manifests()
        for manifest in manifests:
            target = self.home / "restored.db"
            restore_to_file(
                RestorePoint(self.repository(f"reader-{self.restored}").archive(manifest.database), manifest),
                target,
                force=True,
                as_source=False,
                on_progress=lambda _: None,
            )
            assert target.stat().st_size == manifest.image_bytes
        return [manifest.id for manifest in manifests]

    def unnamed_packs(self) -> set[str]:
        """Packs that no manifest and no trash entry names."""
        return self.names("packs") - self.repository().archive("app").holdings().named_packs

    def assert_no_leftovers(self) -> None:
        """Assert that after enough prunes a grace apart the store holds only what snapshots need."""
        for _ in range(5):
            self.age()
            result = self.prune()
            assert result.error is None, result.error
        manifests = {str(snapshot_id) for snapshot_id in self.ids()}
        assert self.names("deletions") == set()
        assert self.names("trash") <= manifests
        assert self.names("sweeps") <= {"clock"}
        assert self.names("drills") <= manifests
        assert self.unnamed_packs() == set()


@dataclass(slots=True)
class Ripe:
    """A store in which one prune by `LAST_ONE` has something to do at every step."""

    rotation: Rotation
    purged: SnapshotId
    removed: list[SnapshotId]
    newest: SnapshotId
    swept: set[str]
    """Packs that are due for deletion. The state "x" of the database, captured again, makes exactly these bytes."""
    orphan: str
    """A pack of a capture that failed a while ago, which no sweep has found yet."""

    def copy(self, home: Path) -> Ripe:
        return Ripe(self.rotation.copy(home), self.purged, self.removed, self.newest, self.swept, self.orphan)


def make_ripe(home: Path) -> Ripe:
    """Two snapshots to remove, one to purge, packs to delete and to find, records that are out of date."""
    home.mkdir()
    rotation = Rotation(home)
    first, of_x, third = rotation.snapshot("base"), rotation.snapshot("x"), rotation.snapshot("base")
    keep_all = LAST_ONE.replaced(keep_last=100)
    rotation.forget(of_x)
    for _ in range(3):  # it is purged, its packs are found, their grace passes
        rotation.age()
        if rotation.unnamed_packs() and rotation.names("sweeps") - {"clock"}:
            break
        assert rotation.prune(policy=keep_all).error is None
    swept = rotation.unnamed_packs()
    assert swept
    purged, newest = rotation.snapshot("y"), rotation.snapshot("base")
    rotation.forget(purged)
    orphan = hashlib.sha256(b"orphan").hexdigest()
    rotation.put(f"app/packs/{orphan}.zst", b"orphan")
    named = rotation.repository().archive("app").holdings()
    stored = named.listing.packs[min(named.named_packs)]
    contradicted = FoundPack(sha256=min(named.named_packs), modified_at=Moment.of(stored.modified_at))
    gone, of_trash = "20200101T000000000Z-00000000", str(purged)
    rotation.put(f"app/sweeps/{gone}.json", SweepRecord(packs=(contradicted,)).encode())
    rotation.put(f"app/deletions/{gone}.json", DeletionRecord(packs=(min(named.named_packs),)).encode())
    for snapshot_id in (gone, of_trash):
        drill = Drill(snapshot=snapshot_id, database="app", outcome=CheckOutcome.PROVEN, at=datetime.now(UTC))
        rotation.put(f"app/drills/{snapshot_id}.json", drill.encode())
    rotation.age()
    return Ripe(rotation, purged, [first, third], newest, swept, orphan)
