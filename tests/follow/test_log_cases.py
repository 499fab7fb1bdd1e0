"""Logs written byte by byte, each for one thing that a follower must see, or must not be deceived by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backupd.follow.log import Gap, LogFollower
from follow.log_files import BIG_ENDIAN, FRAME_HEADER_BYTES, LITTLE_ENDIAN, Frame, frame_offset, log_bytes

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 512
OLD, NEW = (7, 100), (8, 200)


def commit(*pages: int, fill: int = 1) -> list[Frame]:
    """The frames of a commit of a database of nine pages, each filled with one byte."""
    return [Frame(page, 9 if page == pages[-1] else 0, bytes([fill]) * SIZE) for page in pages]


def log(frames: list[Frame], salts: tuple[int, int] = OLD, magic: int = LITTLE_ENDIAN) -> bytes:
    """A log of these frames."""
    return log_bytes(frames, page_size=SIZE, salts=salts, magic=magic)


def over(new: bytes, old: bytes) -> bytes:
    """An old log whose beginning was written over."""
    return new + old[len(new) :]


def said(follower: LogFollower) -> list[str | tuple[int, ...]]:
    """What a poll returns: the pages of each commit, or `gap`."""
    return ["gap" if isinstance(each, Gap) else each.pages for each in follower.poll()]


@pytest.fixture
def file(tmp_path) -> Path:
    """The path of the log."""
    return tmp_path / "app.db-wal"


@pytest.mark.parametrize("magic", [LITTLE_ENDIAN, BIG_ENDIAN])
def test_both_byte_orders_are_followed(file, magic):
    """A log may come from a machine of the other byte order."""
    file.write_bytes(log(commit(1) + commit(2), magic=magic))
    follower = LogFollower(file)
    assert said(follower) == [(2,)]

    file.write_bytes(log(commit(1) + commit(2) + commit(3, 4) + commit(5), magic=magic))
    assert said(follower) == [(3, 4), (5,)]


def test_the_old_log_keeps_its_byte_order_when_the_new_one_has_another(file):
    """SQLite writes the order of its own machine with the next header."""
    file.write_bytes(log(commit(1), magic=BIG_ENDIAN))
    follower = LogFollower(file)
    assert said(follower) == [(1,)]

    whole = log(commit(1) + commit(2) + commit(3), magic=BIG_ENDIAN)
    file.write_bytes(over(log([], NEW), whole))
    assert said(follower) == [(2,), (3,)]


def test_a_reset_is_seen_when_the_salt_wraps_around(file):
    """The first salt counts modulo 2**32."""
    last, first = (0xFFFFFFFF, 5), (0, 6)
    file.write_bytes(log(commit(1) + commit(2), last))
    follower = LogFollower(file)
    assert said(follower) == [(2,)]

    file.write_bytes(over(log(commit(3), first), log(commit(1) + commit(2) + commit(4), last)))
    assert said(follower) == [(4,), (3,)]


def test_a_salt_that_rises_by_two_is_a_gap(file):
    """A whole log may have come and gone."""
    file.write_bytes(log(commit(1) + commit(2)))
    follower = LogFollower(file)
    said(follower)

    file.write_bytes(over(log(commit(3), (OLD[0] + 2, 1)), log(commit(1) + commit(2))))
    assert said(follower) == ["gap", (3,)]


def test_frames_that_were_spilled_over_the_old_end_are_a_gap(file):
    """A page that is spilled twice breaks the new chain early, although many frames were written over."""
    old = log(commit(1) + commit(2) + commit(3) + commit(4, 5, 6))
    file.write_bytes(old[: frame_offset(4, SIZE)])
    follower = LogFollower(file)
    assert said(follower) == [(3,)]

    spilled = bytearray(log([Frame(page, 0, bytes(SIZE)) for page in range(1, 7)], NEW))
    spilled[frame_offset(2, SIZE) + FRAME_HEADER_BYTES] ^= 0xFF
    file.write_bytes(spilled)
    assert said(follower)[0] == "gap"


def test_an_old_log_that_was_cut_is_a_gap(file):
    """`journal_size_limit` cuts the log at the first commit after a reset."""
    old = log(commit(1) + commit(2) + commit(3) + commit(4))
    file.write_bytes(old[: frame_offset(3, SIZE)])
    follower = LogFollower(file)
    assert said(follower) == [(2,)]

    file.write_bytes(over(log(commit(5), NEW), old)[: frame_offset(4, SIZE) + 100])
    assert said(follower) == ["gap", (5,)]


@pytest.mark.parametrize("equal", [0, 1, 2])
def test_a_commit_that_sqlite_took_back_is_a_gap(file, equal):
    """A writer was killed before it made its commit known. The next one is shorter, and may begin with equal frames."""
    taken_back = log(commit(1) + commit(2, 3, 4, 5, 6))
    file.write_bytes(taken_back)
    follower = LogFollower(file)
    assert said(follower) == [(2, 3, 4, 5, 6)]

    others = commit(*range(2 + equal, 5), fill=9)
    frames = commit(1) + commit(2, 3, 4, 5, 6)[:equal] + others
    file.write_bytes(over(log(frames), taken_back))
    assert said(follower) == ["gap", (2, 3, 4)]


def test_a_commit_that_sqlite_took_back_before_a_reset_is_a_gap(file):
    """What took its place has been checkpointed, and the end of what was taken back is still in the old log."""
    taken_back = log(commit(1) + commit(2, 3, 4, 5, 6))
    file.write_bytes(taken_back)
    follower = LogFollower(file)
    assert said(follower) == [(2, 3, 4, 5, 6)]

    old = over(log(commit(1) + commit(2, 3, fill=9)), taken_back)
    file.write_bytes(over(log(commit(7), NEW), old))
    assert said(follower) == ["gap", (7,)]


def test_a_log_that_went_back_is_a_gap(file):
    """A copy was put back, and other commits followed."""
    file.write_bytes(log(commit(1) + commit(2) + commit(3)))
    follower = LogFollower(file)
    said(follower)

    file.write_bytes(log(commit(1) + commit(4) + commit(5) + commit(6)))
    assert said(follower) == ["gap", (6,)]


def test_a_commit_is_returned_when_its_last_byte_is_there(file):
    """Neither a part of a frame nor frames behind a missing one count."""
    before, after = log(commit(1)), log(commit(1) + commit(2, 3))
    file.write_bytes(before)
    follower = LogFollower(file)
    assert said(follower) == [(1,)]

    file.write_bytes(after[:-1])
    assert said(follower) == []
    second = frame_offset(2, SIZE)
    third = frame_offset(3, SIZE)
    file.write_bytes(after[:second] + bytes(third - second) + after[third:])
    assert said(follower) == []
    file.write_bytes(after)
    assert said(follower) == [(2, 3)]


def test_padding_is_no_commit(file):
    """Where a sector may be torn, SQLite repeats the last frame of a commit up to its end."""
    padded = commit(2, 3)
    file.write_bytes(log(commit(1)))
    follower = LogFollower(file)
    said(follower)

    file.write_bytes(log([*commit(1), *padded, padded[-1], padded[-1], *commit(4)]))
    assert said(follower) == [(2, 3), (4,)]


def test_a_stored_position_holds_until_the_machine_starts_again(file):
    """A loss of power may take frames out of the middle of the log."""
    file.write_bytes(log(commit(1)))
    with_position = LogFollower(file)
    said(with_position)
    position = with_position.position
    file.write_bytes(log(commit(1) + commit(2)))

    assert said(LogFollower(file, position)) == [(2,)]
    assert said(LogFollower(file, position._replace(boot="the boot before")))[0] == "gap"
