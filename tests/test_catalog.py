from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from harness.extent import examples
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers
from harness.manifests import manifests
from harness.rotation import LAST_ONE, Rotation
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.encryption import Encryption, generate_identity
from backupd.errors import TargetUnwritableError
from backupd.format import SnapshotId
from backupd.format.manifest import (
    PackEntry,
    SealedManifest,
    SealedSummary,
    SnapshotKind,
    Summary,
    encrypt_manifest,
    summary_of,
)
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.state.catalog import Catalog, names_of_packs
from backupd.store import StoredObject

if TYPE_CHECKING:
    from backupd.format.manifest import Manifest
    from backupd.repository.history import History

_AT = datetime(2026, 11, 22, 8, 55, 57, 123456, tzinfo=UTC)


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """Four snapshots, which host a has taken."""
    rotation = Rotation(tmp_path)
    for content in ("base", "x", "y", "z"):
        rotation.snapshot(content)
    return rotation


def gets_of_a_history(rotation: Rotation, host: str = "b") -> int:
    """The number of objects that a new process on `host` reads for the history."""
    store = FaultyStore(rotation.store)
    repository = rotation.repository(host, store)
    repository.exists()
    store.calls.clear()
    assert len(repository.archive("app").history().manifests) == len(rotation.names("snapshots"))
    return store.calls.count("get")


def history(rotation: Rotation, host: str = "b") -> History:
    """The history as a new process on `host` reads it."""
    return rotation.repository(host).archive("app").history()


def change_state(rotation: Rotation, statement: str, host: str = "b") -> None:
    """Change the state database of `host` behind its back."""
    with closing(sqlite3.connect(rotation.home / f"state-{host}/.state.db", isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount > 0


def ids_in_batches(rotation: Rotation, host: str = "b") -> list[list[str]]:
    """The snapshots of each batch of manifests in the state database of `host`."""
    return _ids_in_batches(rotation.home / f"state-{host}")


def _ids_in_batches(state: Path) -> list[list[str]]:
    with closing(sqlite3.connect(state / ".state.db")) as connection:
        rows = connection.execute("SELECT ids FROM manifests ORDER BY ids").fetchall()
    return [ids.decode().split() for (ids,) in rows]


@settings(max_examples=examples(100))
@given(manifests)
def test_a_summary_comes_back_as_it_was_kept(manifest: Manifest) -> None:
    """What a row says is all that the manifest says, but for the page map, whatever its texts and numbers are."""
    with TemporaryDirectory() as home:
        catalog = _catalog(home)
        listed = {manifest.id: StoredObject("key", 1, _AT)}
        catalog.keep_summaries({manifest.id: summary_of(manifest)}, listed, keys=None)
        assert catalog.summaries(listed, keys=None) == ({manifest.id: summary_of(manifest)}, False)


def _catalog(home: str) -> Catalog:
    """A catalog that is not allowed to lose anything."""

    def fail(reason: str) -> None:
        raise AssertionError(reason)

    state = StateDirectory(Path(home))
    return Catalog(state.database, lambda: ("repository", "app"), lambda: state.cache("repository", "app"), fail)


def test_a_history_reads_only_what_is_new_and_the_newest(rotation: Rotation) -> None:
    """A host reads each manifest once; the newest every time, because the next snapshot builds on it."""
    assert [gets_of_a_history(rotation) for _ in range(3)] == [4, 1, 1]
    rotation.snapshot("x")
    assert [gets_of_a_history(rotation) for _ in range(2)] == [1, 1]
    first = history(rotation)
    assert [type(each) for each in first.manifests[:-1]] == [Summary] * 4
    assert [summary_of(each) for each in first.manifests] == [summary_of(each) for each in rotation.manifests()]


@pytest.mark.parametrize("changes_size", [False, True])
def test_a_manifest_that_was_put_again_is_read_again(rotation: Rotation, *, changes_size: bool) -> None:
    """An object counts as known while the store lists it with the size and the time that it had."""
    history(rotation)
    file = rotation.root / f"app/snapshots/{rotation.ids()[1]}.json"
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] if changes_size else bytes(len(content)))
    if changes_size:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [str(damaged.id) for damaged in history(rotation).damaged] == [file.stem]
    file.write_bytes(content)
    assert len(history(rotation).manifests) == 4


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"UPDATE manifests SET content = CAST(replace(content, '{text}', '{other}') AS BLOB)"
            for text, other in (("regular", "reguler"), ("-", "+"))
        ),
        "UPDATE packs SET content = CAST(replace(content, 'sha256', 'sha255') AS BLOB)",
        "UPDATE packs SET content = CAST(substr(content, 2) AS BLOB)",
        "UPDATE packs SET checksum = checksum + 1",
        "DELETE FROM packs",
        "UPDATE facts SET content = CAST(replace(content, 'delete', 'remove') AS BLOB)",
        "UPDATE facts SET checksum = checksum + 1",
        "DELETE FROM facts",
        "UPDATE manifests SET content = CAST(substr(content, 2) AS BLOB)",
        "UPDATE manifests SET content = zeroblob(8)",
        "UPDATE manifests SET ids = CAST(replace(ids, '-', '+') AS BLOB)",
        "UPDATE manifests SET checksum = 'x'",
        "DELETE FROM manifests",
    ],
)
def test_a_row_that_is_damaged_counts_as_absent(rotation: Rotation, statement: str) -> None:
    """A damaged disk must not change what a prune removes: such manifests are read again, and the row mended."""
    expected = [summary_of(each) for each in history(rotation).manifests]
    change_state(rotation, statement)
    assert gets_of_a_history(rotation) == 4
    assert [summary_of(each) for each in history(rotation).manifests] == expected
    assert gets_of_a_history(rotation) == 1
    assert ids_in_batches(rotation) == [[*map(str, rotation.ids())]]
    assert (count(rotation, "packs"), count(rotation, "facts")) == (len(rotation.names("packs")), 1)


@pytest.mark.parametrize("table", ["packs", "facts"])
def test_a_manifest_is_read_again_only_for_what_it_refers_to(rotation: Rotation, table: str) -> None:
    """A damaged pack costs the manifests that name it, and damaged facts all that have them."""
    history(rotation)
    change_state(rotation, f"UPDATE {table} SET content = x'00' WHERE number = (SELECT max(number) FROM {table})")
    last = rotation.manifests()[-1].packs[-1]
    with_it = sum(last in each.packs for each in rotation.manifests())
    assert gets_of_a_history(rotation) == (with_it if table == "packs" else 4)
    assert gets_of_a_history(rotation) == 1


@pytest.mark.parametrize("table", ["packs", "facts"])
def test_rows_that_changed_places_are_not_taken_for_each_other(rotation: Rotation, table: str) -> None:
    """Every row may be whole, and the rows of packs of another age, as after a write that a disk has lost."""
    expected = [summary_of(each) for each in history(rotation).manifests]
    change_state(rotation, f"UPDATE {table} SET number = -number")
    change_state(rotation, f"UPDATE {table} SET number = number + (SELECT count(*) FROM {table}) + 1")
    assert [summary_of(each) for each in history(rotation).manifests] == expected


_COLUMNS = {
    "manifests": ("ids", "content", "checksum"),
    "packs": ("number", "content", "checksum"),
    "facts": ("number", "content", "checksum"),
    "records": ("key", "size", "modified_at", "content"),
}


@pytest.mark.parametrize("value", ["x'010203'", "'none'", "-1.5", "x''", "9223372036854775807"])
@pytest.mark.parametrize(("table", "column"), [(table, column) for table in _COLUMNS for column in _COLUMNS[table]])
def test_a_value_of_another_type_stops_nothing(rotation: Rotation, table: str, column: str, value: str) -> None:
    """One bit of a row says what type a value has: the row counts as absent, also when rows are forgotten."""
    rotation.forget(rotation.ids()[0])
    rotation.repository("b").archive("app").holdings()
    expected = [summary_of(each) for each in history(rotation).manifests]
    key = "key" if table == "records" else "number"
    change_state(rotation, f"UPDATE {table} SET {column} = {value} WHERE {key} = (SELECT min({key}) FROM {table})")
    assert [summary_of(each) for each in history(rotation).manifests] == expected
    assert rotation.prune("b", policy=LAST_ONE).error is None
    assert [each.id for each in history(rotation).manifests] == [expected[-1].id]
    assert rotation.repository("b").archive("app").holdings().trash.damaged == ()


def test_what_the_store_has_no_more_is_forgotten(rotation: Rotation) -> None:
    """Snapshots that were removed go, with the packs that no other snapshot needs."""
    history(rotation)
    assert ids_in_batches(rotation) == [[*map(str, rotation.ids())]]
    assert count(rotation, "packs") == len(rotation.names("packs"))
    newest = rotation.ids()[-1]
    needed = {pack.sha256 for pack in rotation.manifests()[-1].packs}
    assert len(needed) < len(rotation.names("packs"))
    rotation.prune(policy=LAST_ONE)
    found = history(rotation).manifests
    assert [each.id for each in found] == [newest]
    assert ids_in_batches(rotation) == [[str(newest)]]
    assert (count(rotation, "packs"), count(rotation, "facts")) == (len(needed), 1)


def count(rotation: Rotation, table: str, host: str = "b") -> int:
    """The number of rows in a table of the state database of `host`."""
    return _count(rotation.home / f"state-{host}", table)


def _count(state: Path, table: str) -> int:
    with closing(sqlite3.connect(state / ".state.db")) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@settings(max_examples=examples(50))
@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200)), min_size=1, max_size=6), manifests)
def test_batches_stay_full_and_complete(steps: list[tuple[int, int]], manifest: Manifest) -> None:
    """Whatever comes and goes: each snapshot is in one batch, and at most one batch has room for another."""
    with TemporaryDirectory() as home:
        catalog = _catalog(home)
        present: dict[SnapshotId, Summary | SealedSummary] = {}
        last = 0
        for added, removed in steps:
            new = {
                each: replace(summary_of(manifest), id=each, sequence=number + 1)
                for number in range(last, last + added)
                if (each := SnapshotId.new(_AT + timedelta(seconds=number), number))
            }
            last += added
            kept = [*present.items()]
            present = dict(kept[removed // 2 : len(kept) - removed // 2]) | new
            listed = {each: StoredObject(str(each), 1, _AT) for each in present}
            catalog.keep_summaries(new, listed, keys=None)
            assert catalog.summaries(listed, keys=None) == (present, False)
            sizes = [len(batch) for batch in _ids_in_batches(Path(home))]
            assert sum(sizes) == len(present)
            assert sum(size < 64 for size in sizes) <= 1
            assert all(size <= 64 for size in sizes)


@pytest.mark.parametrize(("snapshots", "packs", "most_bytes"), [(70, 600, 900_000), (5, 12_500, 6_000_000)])
def test_a_pack_is_kept_once_whatever_names_it(tmp_path: Path, snapshots: int, packs: int, most_bytes: int) -> None:
    """Snapshots come one at a time, each with one new pack: the state grows by that, and by numbers of the others."""
    entries = [
        PackEntry(sha256=f"{number:064x}", stored_bytes=1, pages=1, encryption="age")
        for number in range(packs + snapshots)
    ]
    present: dict[SnapshotId, Summary | SealedSummary] = {}
    for number in range(snapshots):
        catalog = _catalog(str(tmp_path))
        new = SnapshotId.new(_AT + timedelta(seconds=number), number)
        present[new] = summary_with(new, number + 1, tuple(entries[number : number + packs]))
        listed = {each: StoredObject(str(each), 1, _AT) for each in present}
        catalog.keep_summaries({new: present[new]}, listed, keys=None)
        assert catalog.summaries(listed, keys=None)[0].keys() == present.keys()
    assert catalog.summaries(listed, keys=None) == (present, False)
    assert _count(tmp_path, "packs") == packs + snapshots - 1
    assert _count(tmp_path, "facts") == 1
    assert (tmp_path / ".state.db").stat().st_size < most_bytes
    last = {new: listed[new]}
    catalog.keep_summaries({}, last, keys=None)
    assert catalog.summaries(last, keys=None) == ({new: present[new]}, False)
    assert _count(tmp_path, "packs") == packs


@settings(max_examples=examples(20))
@given(manifests)
def test_what_manifests_have_in_common_is_in_memory_once(manifest: Manifest) -> None:
    """Facts, such as the names of thousands of tables, are the same for all snapshots of all batches."""
    with TemporaryDirectory() as home:
        catalog = _catalog(home)
        ids = [SnapshotId.new(_AT + timedelta(seconds=number), number) for number in range(150)]
        summaries = {each: replace(summary_of(manifest), id=each) for each in ids}
        listed = {each: StoredObject(str(each), 1, _AT) for each in ids}
        catalog.keep_summaries(summaries, listed, keys=None)
        found, _ = catalog.summaries(listed, keys=None)
        assert len(_ids_in_batches(Path(home))) > 1
        assert len({id(each.source) for each in found.values() if isinstance(each, Summary)}) <= 1
        for pack in range(len(manifest.packs)):
            assert len({id(each.packs[pack]) for each in found.values()}) == 1


def test_two_processes_refer_to_the_same_rows(tmp_path: Path) -> None:
    """Both read, and then both keep something new: each row is there once, and what was read before is still whole."""
    first, second = _catalog(str(tmp_path)), _catalog(str(tmp_path))
    packs = tuple(PackEntry(sha256=f"{number:064x}", stored_bytes=1, pages=1, encryption="age") for number in range(9))
    ids = [SnapshotId.new(_AT + timedelta(seconds=number), number) for number in range(3)]
    summaries = {each: summary_with(each, 1 + number, packs[number : number + 7]) for number, each in enumerate(ids)}
    listed = {each: StoredObject(str(each), 1, _AT) for each in ids}
    first.keep_summaries({ids[0]: summaries[ids[0]]}, {ids[0]: listed[ids[0]]}, keys=None)
    seen, _ = first.summaries(listed, keys=None)
    second.keep_summaries({ids[1]: summaries[ids[1]]}, {ids[1]: listed[ids[1]]}, keys=None)
    assert _count(tmp_path, "packs") == 7
    first.keep_summaries({ids[2]: summaries[ids[2]]} | seen, listed, keys=None)
    assert second.summaries(listed, keys=None) == (summaries, False)
    assert _count(tmp_path, "packs") == 9
    assert seen == {ids[0]: summaries[ids[0]]}


def test_manifests_that_name_many_packs_are_in_small_batches(tmp_path: Path) -> None:
    """A batch that is written again for each new snapshot stays small, and one with very many packs is alone."""
    catalog = _catalog(str(tmp_path))
    packs = tuple(
        PackEntry(sha256=f"{number:064x}", stored_bytes=1, pages=1, encryption="age") for number in range(6_000)
    )
    summaries = {
        each: summary_with(each, number, packs * repeated)
        for number, repeated in enumerate((1, 1, 1, 3, 1), 1)
        if (each := SnapshotId.new(_AT + timedelta(seconds=number), number))
    }
    listed = {each: StoredObject(str(each), 1, _AT) for each in summaries}
    catalog.keep_summaries(summaries, listed, keys=None)
    assert catalog.summaries(listed, keys=None) == (summaries, False)
    ids = [*map(str, summaries)]
    assert _ids_in_batches(tmp_path) == [ids[:2], [ids[2], ids[4]], [ids[3]]]


def summary_with(snapshot_id: SnapshotId, sequence: int, packs: tuple[PackEntry, ...]) -> SealedSummary:
    """What is known of an encrypted snapshot with these packs."""
    return SealedSummary(
        id=snapshot_id,
        sequence=sequence,
        base=None,
        database="app",
        kind=SnapshotKind.REGULAR,
        tags=(),
        page_size=4096,
        page_count=1,
        changed_pages=1,
        stored_bytes=1,
        packs=packs,
        writer_id="a",
    )


def test_packs_that_are_decoded_when_needed_are_those_of_the_manifest(rotation: Rotation) -> None:
    """Packs of the catalog read as the tuple that they stand for."""
    history(rotation)
    for known, whole in zip(history(rotation).manifests, rotation.manifests(), strict=True):
        assert known.packs == whole.packs
        assert hash(known.packs) == hash(whole.packs)
        assert (len(known.packs), known.packs[0], [*known.packs]) == (len(whole.packs), whole.packs[0], [*whole.packs])
        assert [*names_of_packs(known.packs)] == [*names_of_packs(whole.packs)] == [each.sha256 for each in whole.packs]
        assert known.packs != whole.packs[1:]
        assert known.packs != "packs"


def test_a_copy_of_a_repository_has_rows_of_its_own(rotation: Rotation) -> None:
    """A copy of a repository has the same id, and continues with another history."""
    history(rotation)
    shutil.copytree(rotation.root, rotation.home / "copy")
    copied = Rotation(rotation.home)
    elsewhere = Repository(type(rotation.store)(rotation.home / "copy"), rotation.host("b")).archive("app")
    (rotation.home / f"copy/app/snapshots/{rotation.ids()[0]}.json").unlink()
    assert len(elsewhere.history().manifests) == 3
    assert len(history(copied).manifests) == 4
    assert sorted(map(len, ids_in_batches(rotation))) == [3, 4]


def test_an_encrypted_manifest_is_opened_when_there_is_a_key(tmp_path: Path) -> None:
    """Without one, its head is known; once there is one, all of it is, and stays so on this machine."""
    public, secret = generate_identity(_AT)
    (tmp_path / "key").write_text(secret)
    rotation = Rotation(tmp_path)
    taken = rotation.snapshot("base")
    manifest = rotation.manifests()[0]
    _put_encrypted(rotation, manifest, Encryption([public]))
    rotation.snapshot("x")
    for _ in range(2):
        sealed = history(rotation).manifests[0]
        assert (type(sealed), sealed.id) == (SealedSummary, taken)
    key = Encryption([public], tmp_path / "key")
    opened = Repository(rotation.store, rotation.host("b"), key).archive("app").history().manifests[0]
    assert summary_of(opened) == summary_of(manifest)
    again = Repository(rotation.store, rotation.host("b"), key).archive("app").history().manifests[0]
    assert again == summary_of(manifest)


def test_keys_that_do_not_fit_are_tried_once(tmp_path: Path) -> None:
    """A host with other keys reads an encrypted manifest again only when its file of keys changes."""
    (public, _), (_, other) = generate_identity(_AT), generate_identity(_AT)
    (tmp_path / "key").write_text(other)
    rotation = Rotation(tmp_path)
    rotation.snapshot("base")
    _put_encrypted(rotation, rotation.manifests()[0], Encryption([public]))
    rotation.snapshot("x")

    def gets() -> int:
        store = FaultyStore(rotation.store)
        repository = Repository(store, rotation.host("b"), Encryption([public], tmp_path / "key"))
        repository.exists()
        store.calls.clear()
        assert type(repository.archive("app").history().manifests[0]) in {SealedSummary, SealedManifest}
        return store.calls.count("get")

    assert [gets() for _ in range(3)] == [2, 1, 1]
    (tmp_path / "key").write_text(f"# of another day\n{other}")
    assert [gets() for _ in range(2)] == [2, 1]


def test_an_older_listing_forgets_no_private_part(tmp_path: Path) -> None:
    """A listing may be older than a snapshot that another run has just committed, whose private part is only here."""
    public, _ = generate_identity(_AT)
    rotation = Rotation(tmp_path)
    rotation.snapshot("base")
    archive = Repository(rotation.store, rotation.host("a"), Encryption([public])).archive("app")
    older = archive.listing()
    rotation.become("x")
    (result,) = back_up(
        Database("app", tmp_path / "app.db"),
        [Repository(rotation.store, rotation.host("a"), Encryption([public]))],
        Settings(),
        request=SnapshotRequest(),
        on_progress=lambda _: None,
        workers=kept_workers(),
    )
    assert result.id is not None
    change_state(rotation, "DELETE FROM manifests", "a")
    archive.history(older)
    assert archive.catalog.private_part(result.id) is not None


def _put_encrypted(rotation: Rotation, manifest: Manifest, encryption: Encryption) -> None:
    content, _ = encrypt_manifest(manifest, encryption.encrypt)
    rotation.put(f"app/snapshots/{manifest.id}.json", content)


def test_a_state_that_cannot_be_written_costs_requests_only(
    rotation: Rotation, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything is read from the store, and one line of the log says why."""
    (rotation.home / "state-b").write_text("a file in the way")
    for _ in range(2):
        assert len(history(rotation).manifests) == 4
    assert gets_of_a_history(rotation) == 4
    assert "nothing can be cached" in capfd.readouterr().err
    with pytest.raises(TargetUnwritableError):
        rotation.host("b").database.read(lambda connection: connection)


def test_a_state_that_is_damaged_is_learned_again(rotation: Rotation) -> None:
    """Losing it costs requests, and the next process needs none of them."""
    assert gets_of_a_history(rotation) == 4
    for file in (rotation.home / "state-b").glob(".state.db*"):
        file.write_bytes(b"\xa5" * 9000)
    assert [gets_of_a_history(rotation) for _ in range(2)] == [4, 1]


def test_a_record_is_kept_as_it_is_listed(tmp_path: Path) -> None:
    """A record of another time or size is another one; one that was put again meanwhile is not kept."""
    catalog = _catalog(str(tmp_path))
    stored = StoredObject("app/drills/1.json", 3, _AT)
    catalog.keep_record(stored, b"four")
    assert catalog.record(stored) is None
    catalog.keep_record(stored, b"abc")
    assert catalog.record(stored) == b"abc"
    assert catalog.record(replace(stored, modified_at=_AT + timedelta(microseconds=1))) is None
    assert catalog.record(replace(stored, size_bytes=4)) is None
    catalog.drop_records({"app/drills/2.json"})
    assert catalog.record(stored) is None
