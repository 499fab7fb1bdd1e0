from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.store.keys import (
    REPOSITORY_KEY,
    PackKey,
    RecordKey,
    RecordKind,
    SegmentKey,
    SnapshotKey,
    clock_key,
    is_object_key,
    is_probe_key,
    packs_prefix,
    probe_key,
    probes_prefix,
    require_safe_key,
    require_safe_prefix,
    retention_key,
    segments_prefix,
    snapshots_prefix,
    split_key,
    sweeps_prefix,
)

_ID = "20261122T085557123Z-7f3a91c2"
_SHA256 = hashlib.sha256(b"pack")

databases = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True, alphabet=st.characters(codec="ascii"))
snapshot_ids = st.from_regex(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}", fullmatch=True, alphabet=st.characters(codec="ascii"))


def test_keys_are_spelled_as_the_format_says():
    """Keys are part of the repository format: their spelling never changes."""
    assert REPOSITORY_KEY == "backupd.json"
    assert str(SnapshotKey("app", _ID)) == f"app/snapshots/{_ID}.json"
    assert str(PackKey("app", _SHA256.digest())) == f"app/packs/{_SHA256.hexdigest()}.zst"
    assert snapshots_prefix("app") == "app/snapshots/"
    assert packs_prefix("app") == "app/packs/"
    assert [str(RecordKey(kind, "app", _ID)) for kind in RecordKind] == [
        f"app/continuity/{_ID}.json",
        f"app/deletions/{_ID}.json",
        f"app/drills/{_ID}.json",
        f"app/sweeps/{_ID}.json",
        f"app/trash/{_ID}.json",
        f"app/undeleted/{_ID}.json",
    ]
    assert retention_key("app") == "app/retention.json"
    assert clock_key("app") == "app/sweeps/clock.json"
    assert sweeps_prefix("app") == "app/sweeps/"


def test_a_listing_shows_deletions_before_packs_and_manifests_before_trash():
    """The order of keys, deletions to marks, is part of what makes it safe to remove beside others."""
    keys = [
        str(RecordKey(RecordKind.DELETION, "app", _ID)),
        str(PackKey("app", _SHA256.digest())),
        str(SnapshotKey("app", _ID)),
        str(RecordKey(RecordKind.TRASH, "app", _ID)),
        str(RecordKey(RecordKind.UNDELETED, "app", _ID)),
    ]
    assert keys == sorted(keys)


@given(databases, snapshot_ids, st.binary(min_size=32, max_size=32))
def test_keys_are_parsed_back(database: str, snapshot_id: str, sha256: bytes):
    """Every key that can be written is safe, read back as itself, and not mistaken for the other kind."""
    snapshot, pack = SnapshotKey(database, snapshot_id), PackKey(database, sha256)
    assert SnapshotKey.parse(str(snapshot)) == snapshot
    assert PackKey.parse(str(pack)) == pack
    encrypted = PackKey(database, sha256, is_encrypted=True)
    assert str(encrypted) == f"{pack}.age"
    assert PackKey.parse(str(encrypted)) == encrypted
    assert SnapshotKey.parse(str(pack)) is PackKey.parse(str(snapshot)) is None
    assert split_key(str(snapshot)) == ("snapshots", snapshot_id)
    assert split_key(str(pack)) == split_key(str(encrypted)) == ("packs", sha256.hex())
    require_safe_key(str(snapshot))
    require_safe_key(str(pack))


@given(st.sampled_from(RecordKind), databases, snapshot_ids)
def test_keys_of_records_are_parsed_back(kind: RecordKind, database: str, record_id: str):
    """The key of every kind of record is parsed back, and is no key of another kind."""
    record = RecordKey(kind, database, record_id)
    assert RecordKey.parse(str(record)) == record
    assert SnapshotKey.parse(str(record)) is PackKey.parse(str(record)) is None
    assert split_key(str(record)) == (kind, record_id)
    require_safe_key(str(record))


def test_keys_of_segments_are_spelled_as_the_format_says():
    """The key says the window, the commits, when the last one was seen, and the SHA-256."""
    seen_at = datetime(2026, 11, 29, 14, 3, 7, 123000, UTC)
    key = SegmentKey("app", _ID, 7, 123456, seen_at, _SHA256.digest())
    name = f"000000000007-000000123456-20261129T140307123Z-{_SHA256.hexdigest()}.zst"
    assert str(key) == f"app/segments/{_ID}/{name}"
    assert str(SegmentKey("app", _ID, 7, 123456, seen_at, _SHA256.digest(), is_encrypted=True)) == f"{key}.age"
    assert segments_prefix("app") == "app/segments/"


@given(
    databases,
    st.integers(1, 10**12 - 1),
    st.integers(1, 10**12 - 1),
    st.datetimes(timezones=st.just(UTC)),
    st.booleans(),
)
def test_keys_of_segments_are_parsed_back(database: str, first: int, last: int, time: datetime, is_encrypted: bool):  # noqa: FBT001
    """The key of every segment is parsed back, and is no key of another kind."""
    seen_at = time - timedelta(microseconds=time.microsecond % 1000)
    key = SegmentKey(database, _ID, min(first, last), max(first, last), seen_at, _SHA256.digest(), is_encrypted)
    assert SegmentKey.parse(str(key)) == key
    assert SnapshotKey.parse(str(key)) is PackKey.parse(str(key)) is RecordKey.parse(str(key)) is None
    assert split_key(str(key)) is None
    assert is_object_key(str(key))
    require_safe_key(str(key))


_SEGMENT = f"app/segments/{_ID}/000000000007-000000000009-20261129T140307123Z-{_SHA256.hexdigest()}.zst"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("000000000007", "000000000000"),
        ("000000000007", "000000000010"),
        ("000000000007", "00000000007"),
        ("000000000007", "0000000000007"),
        ("20261129T14", "20261129T24"),
        ("20261129T14", "20261131T14"),
        ("20261122T08", "20261122T24"),
        ("20261122T08", "20260229T08"),
        ("20261122T08", "00001122T08"),
        (".zst", ".zst.gpg"),
        (".zst", ".zst\n"),
        ("segments", "segment"),
        ("app", "../app"),
        (_SHA256.hexdigest(), _SHA256.hexdigest().upper()),
    ],
)
def test_keys_that_no_segment_has_are_foreign(old: str, new: str):
    """A key with another form, a number out of order, or a time that does not exist is that of no segment."""
    assert SegmentKey.parse(_SEGMENT) is not None
    assert SegmentKey.parse(_SEGMENT.replace(old, new)) is None
    assert not is_object_key(_SEGMENT.replace(old, new))


@pytest.mark.parametrize(
    "foreign_key",
    [
        "",
        "/",
        "backupd.json",
        "RESTORE.md",
        "app",
        "app/snapshots/",
        f"app/trash/{_ID}.jso",
        f"app/drill/{_ID}.json",
        f"app/trash/sweeps/{_ID}.json",
        "app/sweeps/clock.json",
        "app/retention.json",
        f"snapshots/{_ID}.json",
        f"/app/snapshots/{_ID}.json",
        f"x/app/snapshots/{_ID}.json",
        f"app/snapshots/{_ID}.json/x",
        f"app/snapshots/{_ID}.json\n",
        f"app/snapshots/{_ID}xjson",
        f"app/snapshots/{_ID.upper()}.json",
        f"app/snapshots/{_ID[:-1]}.json",
        f"app/snapshots/{_ID}.json".replace("2", "\N{ARABIC-INDIC DIGIT TWO}"),
        f"../snapshots/{_ID}.json",
        f"-app/snapshots/{_ID}.json",
        f"{'a' * 101}/snapshots/{_ID}.json",
        f"a b/packs/{_SHA256.hexdigest()}.zst",
        f"app/packs/{_SHA256.hexdigest().upper()}.zst",
        f"app/packs/{_SHA256.hexdigest()[:-1]}.zst",
        f"app/packs/{_SHA256.hexdigest()}.zst.gpg",
        f"app/packs/{_SHA256.hexdigest()}.age",
        f"app/packs/{_SHA256.hexdigest()}.tmp",
    ],
)
def test_foreign_objects_are_recognized(foreign_key: str):
    """What is not exactly a manifest's, a pack's or a record's key is none of them."""
    assert SnapshotKey.parse(foreign_key) is None
    assert PackKey.parse(foreign_key) is None
    assert RecordKey.parse(foreign_key) is None
    assert split_key(foreign_key) is None


@given(st.text())
def test_any_text_can_be_parsed(key: str):
    """A listing may hold anything; parsing raises nothing, and gives only what prints as the same key."""
    assert all(
        parsed is None or str(parsed) == key
        for parsed in (SnapshotKey.parse(key), PackKey.parse(key), RecordKey.parse(key), SegmentKey.parse(key))
    )


@pytest.mark.parametrize("database", ["", "..", "a/b", "-a", "a" * 101, "a\n", "ä"])
def test_malformed_names_make_no_key(database: str):
    """A key is never built from a name that could not be read back."""
    with pytest.raises(ValueError, match="malformed object key"):
        SnapshotKey(database, _ID)
    with pytest.raises(ValueError, match="malformed object key"):
        PackKey(database, _SHA256.digest())
    with pytest.raises(ValueError, match="malformed object key"):
        RecordKey(RecordKind.TRASH, database, _ID)
    with pytest.raises(ValueError, match="malformed object key"):
        SegmentKey(database, _ID, 1, 1, datetime.now(UTC), _SHA256.digest())


def test_malformed_ids_make_no_key():
    """An id or a hash of the wrong form makes no key."""
    with pytest.raises(ValueError, match="malformed object key"):
        SnapshotKey("app", "../../backupd")
    with pytest.raises(ValueError, match="malformed object key"):
        PackKey("app", _SHA256.digest()[:-1])


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "a/.", "a/.."])
def test_prefixes_may_end_anywhere(prefix: str):
    """A prefix is a string that a key may begin with; `a/..` begins the name `a/..b`."""
    require_safe_prefix(prefix)


def test_probe_key_is_unique():
    """A probe's key is reserved and belongs to no database; it has no slash, so that no directory is left."""
    key = probe_key("0123456789abcdef" * 2)
    assert key == "doctor-0123456789abcdef0123456789abcdef.probe"
    assert is_probe_key(key)
    assert is_object_key(key)
    assert key.startswith(probes_prefix())
    require_safe_key(key)
    for other in (f"x{key}", f"{key}x", key.upper(), f"app/{key}", "doctor-notes.probe", key.replace("0", "g")):
        assert not is_probe_key(other)
        assert not is_object_key(other)
    with pytest.raises(ValueError, match="malformed"):
        probe_key("../../etc")
