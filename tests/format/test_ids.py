from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.format import FormatError, SnapshotId

"""A busy machine is no reason to fail."""

times = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(times, st.integers(min_value=0))
def test_an_id_keeps_its_time_to_the_millisecond(taken_at: datetime, random_bits: int):
    """The time of an id is the one that it was made from, in UTC, without what is below a millisecond."""
    snapshot_id = SnapshotId.new(taken_at, random_bits)
    assert snapshot_id.taken_at == taken_at - timedelta(microseconds=taken_at.microsecond % 1000)
    assert snapshot_id.taken_at.tzinfo is UTC
    assert SnapshotId(str(snapshot_id)) == snapshot_id


@given(times, times)
def test_ids_are_ordered_like_their_times(one: datetime, other: datetime):
    """Ids as text have the order of their times, whatever the random bits are."""
    first, second = SnapshotId.new(one, 0xFFFFFFFF), SnapshotId.new(other, 0)
    if first.taken_at != second.taken_at:
        assert (first < second) == (str(first) < str(second)) == (first.taken_at < second.taken_at)


def test_an_id_is_made_in_utc_with_32_random_bits():
    """A time of another zone becomes UTC, and of the random number the low 32 bits are used."""
    taken_at = datetime(2026, 11, 22, 9, 55, 57, 123999, tzinfo=timezone(timedelta(hours=1)))
    assert str(SnapshotId.new(taken_at, 0xAB_7F3A91C2)) == "20261122T085557123Z-7f3a91c2"
    assert str(SnapshotId.new(taken_at, 1)) == "20261122T085557123Z-00000001"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20261122T085557123Z",
        "20261122T085557123Z-",
        "20261122T085557123Z-7f3a91c",
        "20261122T085557123Z-7f3a91c22",
        "20261122T085557123Z-7F3A91C2",
        "20261122t085557123z-7f3a91c2",
        "20261122T085557123Z-7f3a91c2\n",
        " 20261122T085557123Z-7f3a91c2",
        "20261122T085557Z-7f3a91c2",
        "20261122T085557123Z-7f3a91c\N{ARABIC-INDIC DIGIT TWO}",
        "00001122T085557123Z-7f3a91c2",
        "20261322T085557123Z-7f3a91c2",
        "20261100T085557123Z-7f3a91c2",
        "20260229T085557123Z-7f3a91c2",
        "20261122T245557123Z-7f3a91c2",
        "20261122T086057123Z-7f3a91c2",
        "20161231T235960000Z-7f3a91c2",
    ],
)
def test_what_is_no_id_is_refused(text: str):
    """Text of another form, or with a time that does not exist, is no id."""
    with pytest.raises(FormatError, match="is not a snapshot id"):
        SnapshotId(text)


@pytest.mark.parametrize(
    "text", ["00010101T000000000Z-00000000", "99991231T235959999Z-ffffffff", "20280229T000000000Z-0a0b0c0d"]
)
def test_the_first_and_the_last_id_are_ids(text: str):
    """The limits of the calendar are inside, and so is a leap day."""
    assert SnapshotId(text).taken_at.isoformat(timespec="milliseconds").replace("-", "").startswith(text[:8])


@given(st.text() | st.from_regex(r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}", fullmatch=True))
def test_any_text_is_an_id_or_a_format_error(text: str):
    """Any text is an id with a time, or raises `FormatError`."""
    with suppress(FormatError):
        assert SnapshotId(text).taken_at.tzinfo is UTC
