from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import NoSuchSnapshotError, UsageError
from backupd.format import SnapshotId
from backupd.format.manifest import Manifest, SnapshotKind, SourceFacts, Writer
from backupd.repository.references import is_tag, parse_reference, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

"""A busy machine is no reason to fail."""

_SOURCE = SourceFacts(
    journal_mode="wal",
    encoding="UTF-8",
    free_pages=0,
    schema_version=1,
    user_version=0,
    application_id=0,
    sqlite_version="3.45.1",
    tables=(),
    schema_digest=None,
    alembic_revisions=None,
)
_WRITER = Writer(id="0", host="web-1", path="/data/app.db", uid=0, gid=0, mode=0o600, backupd_version="0.1.0")
_NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def snapshot(
    text: str, *, sequence: int, tags: tuple[str, ...] = (), kind: SnapshotKind = SnapshotKind.REGULAR
) -> Manifest:
    """A snapshot of an empty database."""
    return Manifest(
        id=SnapshotId(text),
        sequence=sequence,
        base=None,
        database="app",
        kind=kind,
        tags=tags,
        page_size=4096,
        page_count=0,
        changed_pages=0,
        stored_bytes=0,
        image_digest="0" * 64,
        packs=(),
        page_map="",
        source=_SOURCE,
        writer=_WRITER,
    )


_HISTORY = (
    snapshot("20261120T100000000Z-aaaa0000", sequence=1, tags=("v1", "keep")),
    snapshot("20261121T100000000Z-bbbb0000", sequence=2, tags=("v1",)),
    snapshot("20261122T080000000Z-cccc0000", sequence=3, tags=("before-migration+2",)),
    snapshot("20261122T080000000Z-cccd0000", sequence=4, tags=("v2",), kind=SnapshotKind.BEFORE_RESTORE),
    snapshot("20261122T110000500Z-dddd0000", sequence=5),
)


def found(text: str, history: Sequence[Manifest] = _HISTORY, now: datetime = _NOW) -> int | None:
    """The sequence of the snapshot that `text` means."""
    manifest = resolve(parse_reference(text), history, now)
    return manifest.sequence if manifest else None


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time as in Germany, by a rule that needs no time zone database."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("20261121T100000000Z-bbbb0000", 2),
        ("20261121T100000000Z-bbbb0001", None),
        ("20261121", 2),
        ("20261121T", 2),
        ("20261121T10000", 2),
        ("20261122T080000000Z-cccd", 4),
        ("20261122T11", 5),
        ("2025", None),
        ("20261123T", None),
    ],
)
def test_ids_and_their_beginnings(text: str, sequence: int | None):
    """An id means its snapshot, of any kind, and so does a beginning that only one id has."""
    assert parse_reference(text).is_id
    assert found(text) == sequence


@pytest.mark.parametrize(("text", "count"), [("2026", 5), ("20261122", 3), ("20261122T080000000Z-ccc", 2)])
def test_ambiguous_beginnings_are_refused(text: str, count: int):
    """A beginning of several ids means none of them; the hint shows them."""
    with pytest.raises(NoSuchSnapshotError, match=f"^{count} snapshots begin with {text}$") as raised:
        found(text)
    assert "20261122T080000000Z-cccd0000" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("text", "sequence"),
    [("latest", 5), ("latest~0", 5), ("latest~1", 3), ("latest~3", 1), ("latest~4", None), ("latest~999999999", None)],
)
def test_latest_counts_regular_snapshots_backwards(text: str, sequence: int | None):
    """`latest` never means a snapshot that was taken for a restore."""
    assert parse_reference(text).names_one_moment
    assert found(text) == sequence


@pytest.mark.parametrize(
    ("text", "sequence"), [("before-restore", 4), ("before-restore~0", 4), ("before-restore~1", None)]
)
def test_safety_snapshots_have_a_word_of_their_own(text: str, sequence: int | None):
    """The word before-restore counts the snapshots that were taken for a restore, and no others."""
    assert parse_reference(text).names_one_moment
    assert found(text) == sequence


def test_the_newest_is_the_last_of_the_list_not_the_one_with_the_latest_id():
    """The newest snapshot is the last one by sequence, not the one with the latest clock."""
    behind = (*_HISTORY, snapshot("20261101T000000000Z-eeee0000", sequence=6))
    assert found("latest", behind) == 6
    assert found("2026-11-22T12:00Z", behind) == 6


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("2026-11-22T11:00:00.500Z", 5),
        ("2026-11-22T11:00:00.499Z", 3),
        ("2026-11-22T11:00Z", 3),
        ("2026-11-22 11:00:01+00:00", 5),
        ("2026-11-22T13:00:01+02:00", 5),
        ("2026-11-22T10:59:59-00:30", 5),
        ("2026-11-22T07:59:59Z", 2),
        ("2026-11-20T09:59Z", None),
        ("9999-12-31T23:59Z", 5),
    ],
)
def test_times_with_an_offset(text: str, sequence: int | None):
    """A time means the newest regular snapshot at or before it."""
    assert parse_reference(text).names_one_moment
    assert found(text) == sequence


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("13:00", "2026-11-22T12:00:00+00:00"),
        ("8:05", "2026-11-22T07:05:00+00:00"),
        ("12:59:59.5", "2026-11-22T11:59:59.500000+00:00"),
        ("13:00:01", "2026-11-21T12:00:01+00:00"),
        ("00:00", "2026-11-21T23:00:00+00:00"),
        ("90s", "2026-11-22T11:58:30+00:00"),
        ("2026-11-22T08:00Z", "2026-11-22T08:00:00+00:00"),
    ],
)
def test_times_and_ages_mean_a_moment(text: str, moment: str):
    """A time of day is the last one on local clocks; all others are as they say."""
    assert parse_reference(text).moment(_NOW) == datetime.fromisoformat(moment)
    assert parse_reference(text).names_one_moment


@pytest.mark.parametrize("text", ["latest", "latest~2", "before-restore", "v1", "20261122"])
def test_other_references_mean_no_moment(text: str):
    """Words, tags and ids mean snapshots."""
    assert parse_reference(text).moment(_NOW) is None


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("2026-03-29T01:59", 1),  # winter time: 00:59 UTC
        ("2026-03-29T03:00", 2),  # summer time: 01:00 UTC
        ("2026-03-29T02:30", 2),  # skipped by the clocks; read as winter time, 01:30 UTC
        ("2026-10-25T02:30", 3),  # twice on the clocks; the first one, 00:30 UTC
        ("2026-10-25T03:00", 4),  # winter time: 02:00 UTC
        ("2026-10-25T02:30+01:00", 4),  # the second one, said exactly
    ],
)
def test_times_without_an_offset_are_local_as_of_their_date(text: str, sequence: int):
    """Daylight saving is that of the date in question, not that of today."""
    history = (
        snapshot("20260329T005900000Z-00000001", sequence=1),
        snapshot("20260329T010000000Z-00000002", sequence=2),
        snapshot("20261025T003000000Z-00000003", sequence=3),
        snapshot("20261025T013000000Z-00000004", sequence=4),
    )
    assert found(text, history) == sequence


@pytest.mark.parametrize(
    ("text", "sequence"),
    [("0s", 5), ("59m", 5), ("1h", 3), ("3h59m59s", 3), ("4h", 3), ("4h1m", 2), ("1d", 2), ("1w", None)],
)
def test_ages_count_back_from_now(text: str, sequence: int | None):
    """An age is that long before now, in whatever time zone now is given."""
    assert found(text) == sequence
    assert found(text, now=_NOW.astimezone(timezone(timedelta(hours=-9)))) == sequence


@pytest.mark.parametrize(
    ("text", "sequence"), [("v1", 2), ("keep", 1), ("before-migration+2", 3), ("v2", 4), ("v", None)]
)
def test_tags_mean_the_newest_snapshot_that_has_them(text: str, sequence: int | None):
    """A tag is compared whole; kinds do not matter, because it was given on purpose."""
    assert parse_reference(text).is_tag
    assert found(text) == sequence


@pytest.mark.parametrize(
    ("text", "database", "rest"),
    [
        ("app@latest", "app", "latest"),
        ("tenant-7.eu@2h", "tenant-7.eu", "2h"),
        ("app@v1", "app", "v1"),
        ("v1", None, "v1"),
    ],
)
def test_a_database_may_stand_before_the_reference(text: str, database: str | None, rest: str):
    """`NAME@` chooses the database, and the rest means what it means alone."""
    reference = parse_reference(text)
    assert (reference.database, reference.text) == (database, rest)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "@",
        "@latest",
        "app@",
        "latest~",
        "latest~-1",
        "latest~1000000000",
        "2026-11-22",
        "2026-11-22T",
        "123",
        "-1h",
        "1.5h",
        "2 hours",
        "2h30",
        "20261121t10",
        "20261121T100000000Z-BBBB",
        "v1 ",
        "a b",
        "v1\n",
        "../app",
        "ä",
        "~1",
    ],
)
def test_garbage_is_refused_with_the_forms_that_exist(garbage: str):
    """What can be no reference is a usage error whose hint lists the forms."""
    with pytest.raises(UsageError, match="is not a snapshot") as raised:
        parse_reference(garbage)
    assert "latest~2" in str(raised.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-30T08:00",
        "2026-11-22T25:00",
        "2026-11-22T08:00 CET",
        "0000-01-01T00:00",
        "9999-12-31T23:59-23:59",
        "0001-01-01T00:00+23:59",
        "0001-01-01T00:00",
        "9999999d",
    ],
)
def test_times_that_do_not_exist_are_refused(text: str):
    """What looks like a time or an age and is outside the calendar is a usage error, never a crash."""
    with pytest.raises(UsageError, match="is not a time"):
        found(text, now=_NOW)


@pytest.mark.parametrize("text", ["../x@latest", "a b@latest", "\udcff@v1", "restore.md@2h"])
def test_what_is_no_name_of_a_database_is_refused(text: str):
    """A reference with an invalid name of a database, which would become a part of a key, is refused."""
    with pytest.raises(UsageError, match="cannot be the name of a database"):
        parse_reference(text)


@pytest.mark.parametrize(
    "name",
    ["latest", "before-restore", "before-restore~1", "latest~2", "2h", "1st", "", "a" * 101, "a/b", "a@b", "-a", "ä"],
)
def test_what_cannot_be_a_tag(name: str):
    """A tag never looks like another form of reference, and is printable everywhere."""
    assert not is_tag(name)


@given(st.text() | st.from_regex(r"[0-9T:Zdhlatest~@.+-]{0,40}", fullmatch=True))
def test_any_text_is_a_reference_or_a_usage_error(text: str):
    """Parsing and resolving raise nothing but the errors that they document."""
    try:
        reference = parse_reference(text)
        assert sum((reference.is_id, reference.is_tag, reference.names_one_moment)) == 1
        resolve(reference, _HISTORY, _NOW)
    except (UsageError, NoSuchSnapshotError):
        pass
