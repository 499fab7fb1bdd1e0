"""Histories of a real SQLite file through the whole of backup and restore, compared byte for byte.

HISTORIES=200 makes that many random histories, other ones each time, instead of the few that are always the same.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from harness.extent import examples, slow
from harness.kept_workers import kept_workers
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from backupd.backup import BackupResult, Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.format.manifest import Manifest

_HISTORIES = int(os.environ.get("HISTORIES", "0"))
_CREATE = "CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)"
_PAGE_SIZES = [512, 1024, 4096, 8192, 32768, 65536]


def canonical(image: bytes, page_size: int) -> bytes:
    """What FORMAT.md, section 8, makes of a database file: the change counter becomes a function of the content."""
    if not image:
        return image
    first, rest = bytearray(image[:page_size]), image[page_size:]
    first[24:28] = first[92:96] = bytes(4)
    pages = (rest[start : start + page_size] for start in range(0, len(rest), page_size))
    hashes = b"".join(blake3(page).digest(length=16) for page in pages)
    counter = int.from_bytes(blake3(bytes(first) + hashes).digest()[:4], "big") or 1
    first[24:28] = first[92:96] = counter.to_bytes(4, "big")
    return bytes(first) + rest


class Application:
    """The owner of a database file: changes it, and knows what its bytes are."""

    def __init__(self, file: Path) -> None:
        file.touch()
        self.file = file
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._keys = 0

    def close(self) -> None:
        """Close the database, which checkpoints it."""
        self._connection.close()

    def run(self, *statements: str) -> None:
        """Run SQL."""
        for statement in statements:
            self._connection.execute(statement).fetchall()

    def use(self, *, page_size: int, journal_mode: str) -> None:
        """Change the page size, which needs a rebuild outside of WAL mode, and the journal mode."""
        self.run("PRAGMA journal_mode = delete", f"PRAGMA page_size = {page_size}", "VACUUM")
        self.run(
            "CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)", f"PRAGMA journal_mode = {journal_mode}"
        )

    def insert(self, rows: int, row_bytes: int) -> None:
        """Add rows whose content is never the same twice."""
        values = [(self._keys + row, os.urandom(8) + bytes(row_bytes)) for row in range(rows)]
        self._keys += rows
        self.run(_CREATE, "BEGIN")
        self._connection.executemany("INSERT INTO t VALUES (?, ?)", values)
        self.run("COMMIT")

    def image(self) -> bytes:
        """The bytes of the file, with everything from the WAL in them."""
        self.run("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_size,) = self._connection.execute("PRAGMA page_size").fetchone()
        (page_count,) = self._connection.execute("PRAGMA page_count").fetchone()
        return canonical(self.file.read_bytes()[: page_size * page_count], page_size)


class Protected:
    """A database, its stores and the state directory, and what each snapshot has to be."""

    def __init__(self, directory: Path, stores: int = 1) -> None:
        self.app = Application(directory / "app.db")
        self.state = directory / "state"
        self.stores = [DirectoryStore(directory / f"store-{number}") for number in range(stores)]
        self.expected: dict[str, dict[str, bytes]] = {store.url: {} for store in self.stores}

    def back_up(self, *, stores: int | None = None, request: SnapshotRequest | None = None) -> list[BackupResult]:
        """Take a snapshot into the first `stores` stores. None fails; each is expected to be the file as it is now."""
        results = back_up(
            Database("app", self.app.file),
            [Repository(store, StateDirectory(self.state)) for store in self.stores[:stores]],
            Settings(),
            request=request or SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        image = self.app.image()
        for result in results:
            assert result.outcome is not Outcome.FAILED, result.error
            assert result.warnings == ()
            assert self.expected[result.store].setdefault(str(result.id), image) == image
        return results

    def manifests(self, store: DirectoryStore, state: Path | None = None) -> tuple[Manifest, ...]:
        """The snapshots in a store, oldest first."""
        archive = Repository(store, StateDirectory(state or self.state)).archive("app")
        return tuple(archive.opened(archive.manifest(each.id)) for each in archive.history().manifests)


def restored(store: DirectoryStore, manifest: Manifest, scratch: Path) -> bytes:
    """The image of a snapshot, restored on a host that has nothing but the store."""
    target = scratch / f"{manifest.id}.db"
    repository = Repository(store, StateDirectory(scratch / "state"))
    restore_to_file(
        RestorePoint(repository.archive(manifest.database), manifest),
        target,
        force=True,
        as_source=False,
        on_progress=lambda _: None,
    )
    return target.read_bytes()


def assert_every_snapshot_stands_alone(protected: Protected, scratch: Path) -> None:
    """Each snapshot is in its store, and restores to its image after all others were deleted."""
    for store in protected.stores:
        expected = protected.expected[store.url]
        for kept in expected:
            shutil.rmtree(scratch, ignore_errors=True)
            alone = shutil.copytree(store.url, scratch / "store")
            names = {manifest.stem for manifest in (alone / "app" / "snapshots").iterdir()}
            assert names == set(expected)
            for name in names - {kept}:
                (alone / "app" / "snapshots" / f"{name}.json").unlink()
            (manifest,) = protected.manifests(DirectoryStore(alone), scratch / "state")
            assert restored(DirectoryStore(alone), manifest, scratch) == expected[kept]


@dataclass(frozen=True)
class Step:
    """What the application does, what backupd has lost since the last snapshot, and what the user asks for."""

    change: str
    amount: int = 100
    page_size: int = 4096
    journal_mode: str = "wal"
    lost: str = "nothing"
    request: SnapshotRequest = field(default_factory=SnapshotRequest)
    stores: int = 2

    def run(self, protected: Protected) -> None:
        """Do all of it, and take the snapshot."""
        self._change(protected.app)
        lose(protected.state, self.lost)
        protected.back_up(stores=self.stores, request=self.request)

    def _change(self, app: Application) -> None:
        statements = {
            "nothing": (),
            "update": (_CREATE, f"UPDATE t SET v = randomblob(200) WHERE k % 97 = {self.amount % 97}"),
            "delete": (_CREATE, f"DELETE FROM t WHERE k % 3 = {self.amount % 3}"),
            "shrink": ("DROP TABLE IF EXISTS t", "VACUUM"),
            "auto-vacuum": ("PRAGMA auto_vacuum = incremental", "VACUUM", f"PRAGMA incremental_vacuum({self.amount})"),
        }
        if self.change == "insert":
            app.insert(self.amount, 300)
        elif self.change == "rebuild":
            app.use(page_size=self.page_size, journal_mode=self.journal_mode)
        else:
            app.run(*statements[self.change])


def lose(state: Path, what: str) -> None:
    """Delete the state directory or the cached page hashes in it, or write zeros over these."""
    if what == "state":
        shutil.rmtree(state, ignore_errors=True)
    for file in state.glob("cache/*/*/*.hashes"):
        if what == "hashes":
            file.unlink()
        elif what == "truth":
            file.write_bytes(bytes(file.stat().st_size))


steps = st.builds(
    Step,
    change=st.sampled_from(["nothing", "insert", "insert", "update", "delete", "shrink", "rebuild", "auto-vacuum"]),
    amount=st.integers(1, 400),
    page_size=st.sampled_from(_PAGE_SIZES),
    journal_mode=st.sampled_from(["wal", "delete", "persist"]),
    lost=st.sampled_from(["nothing", "nothing", "state", "hashes", "truth"]),
    request=st.sampled_from(
        [SnapshotRequest(), SnapshotRequest(), SnapshotRequest(tags=("tag",)), SnapshotRequest(is_full=True)]
    ),
    stores=st.sampled_from([1, 2, 2]),
)


@settings(
    max_examples=_HISTORIES or examples(4),
    derandomize=not _HISTORIES,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=5, max_size=6 if _HISTORIES else 5))
@example(
    [
        Step("nothing"),
        Step("rebuild", page_size=512, journal_mode="wal"),
        Step("insert", stores=1),
        Step("update", lost="state"),
        Step("shrink", lost="truth"),
        Step("nothing", request=SnapshotRequest(tags=("v1",))),
    ]
)
@example(
    [
        Step("rebuild", page_size=65536, journal_mode="delete"),
        Step("insert", amount=400, request=SnapshotRequest(is_full=True)),
        Step("rebuild", page_size=1024, journal_mode="delete", stores=1),
        Step("delete", lost="hashes"),
        Step("auto-vacuum", amount=3),
    ]
)
def test_every_snapshot_of_a_history_restores_byte_for_byte(history: list[Step]):
    """Each snapshot of any history restores on its own as the file was, whatever cache or store was lost."""
    with tempfile.TemporaryDirectory() as directory:
        protected = Protected(Path(directory), stores=2)
        with closing(protected.app):
            for step in history:
                step.run(protected)
        for store in protected.stores:
            if Path(store.url).exists():
                sequences = [manifest.sequence for manifest in protected.manifests(store)]
                assert sequences == list(range(1, len(sequences) + 1))
        protected.stores = [store for store in protected.stores if Path(store.url).exists()]
        assert_every_snapshot_stands_alone(protected, Path(directory) / "scratch")


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Protected]:
    """A database of some hundred pages of 512 bytes in WAL mode, with a first snapshot in one store."""
    protected = Protected(tmp_path)
    with closing(protected.app):
        protected.app.use(page_size=512, journal_mode="wal")
        protected.app.insert(300, 300)
        protected.back_up()
        yield protected


@slow
def test_many_small_snapshots_name_few_packs(protected: Protected, tmp_path: Path):
    """Small packs are merged on the way, so that the list of packs stays short, and every snapshot restores."""
    for row in range(0, 175, 5):
        protected.app.run(f"UPDATE t SET v = randomblob(308) WHERE k = {row}")
        protected.back_up()
    (store,) = protected.stores
    manifests = protected.manifests(store)
    packs = [len(manifest.packs) for manifest in manifests]
    assert len(packs) == 36
    assert packs[-1] < max(packs) <= 34
    for manifest in manifests:
        assert restored(store, manifest, tmp_path) == protected.expected[store.url][str(manifest.id)]


def test_the_count_of_changed_pages_is_the_number_of_pages_that_differ(protected: Protected):
    """`changed_pages` is what a comparison of the two images gives, and all when the page size changed."""
    (store,) = protected.stores
    before = protected.app.image()
    protected.app.run("UPDATE t SET v = randomblob(300) WHERE k IN (7, 200)")
    (result,) = protected.back_up()
    after = protected.expected[store.url][str(result.id)]
    starts = range(0, max(len(before), len(after)), 512)
    assert result.changed_pages == sum(before[start : start + 512] != after[start : start + 512] for start in starts)
    protected.app.use(page_size=1024, journal_mode="wal")
    (result,) = protected.back_up()
    assert (result.page_size, result.changed_pages) == (1024, result.page_count)


@pytest.mark.parametrize("lost", ["state", "hashes", "truth"])
def test_a_lost_base_is_rebuilt_from_the_store(protected: Protected, lost: str):
    """A snapshot whose base cache is lost or wrong still stores only what changed."""
    first = protected.manifests(protected.stores[0])[0]
    Step("update", lost=lost).run(protected)
    _, second = protected.manifests(protected.stores[0])
    assert 0 < second.changed_pages < second.page_count / 4
    assert second.packs[: len(first.packs)] == first.packs
    assert sum(pack.pages for pack in second.packs[len(first.packs) :]) == second.changed_pages


def test_nothing_changed_is_said_and_stored_only_on_request(protected: Protected):
    """An unchanged database makes no snapshot; with a tag, one of the same packs; in full, one of new packs."""
    (store,) = protected.stores
    (unchanged,) = protected.back_up()
    (tagged,) = protected.back_up(request=SnapshotRequest(tags=("v1",)))
    (full,) = protected.back_up(request=SnapshotRequest(is_full=True))
    outcomes = [result.outcome for result in (unchanged, tagged, full)]
    assert outcomes == [Outcome.UNCHANGED, Outcome.CREATED, Outcome.CREATED]
    first, second, third = protected.manifests(store)
    assert (unchanged.id, second.packs, second.stored_bytes) == (first.id, first.packs, 0)
    assert (third.changed_pages, sum(pack.pages for pack in third.packs)) == (0, third.page_count)


def test_pages_of_a_pack_that_vanished_are_stored_again(protected: Protected, tmp_path: Path):
    """The snapshot after a pack was lost stores its pages again, changed or not, and restores."""
    (store,) = protected.stores
    (lost,) = protected.manifests(store)[0].packs
    (Path(store.url) / "app" / "packs" / f"{lost.sha256}.zst").unlink()
    protected.app.insert(1, 0)
    (result,) = protected.back_up()
    newest = protected.manifests(store)[-1]
    assert result.outcome is Outcome.CREATED
    assert newest.changed_pages < 20
    assert restored(store, newest, tmp_path) == protected.expected[store.url][str(newest.id)]
