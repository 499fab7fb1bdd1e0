"""The table of page hashes: whatever is known of the blocks of a base, each page has its own hash."""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from harness.capturing import capture
from harness.extent import examples
from harness.kept_workers import kept_workers
from harness.place import change_rows, create_database
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.capture.limits import StreamBase
from backupd.capture.table import BLOCK_BYTES, HashTable, KnownBlocks, known_blocks
from backupd.format.pack import HASH_BYTES, page_hash

if TYPE_CHECKING:
    from harness.capturing import Capturing

PAGE_BYTES = 16384
PAGES_PER_BLOCK = BLOCK_BYTES // PAGE_BYTES
_MOST_PAGES = 3 * PAGES_PER_BLOCK + 1
_UNKNOWN = bytes(HASH_BYTES)

# Few values, so that blocks are often as they were.
_values = st.integers(0, 1)
_batches = st.lists(
    st.tuples(st.integers(1, _MOST_PAGES), st.lists(_values, min_size=1, max_size=_MOST_PAGES), st.booleans()),
    max_size=4,
)
_histories = st.lists(st.tuples(st.integers(1, _MOST_PAGES), _batches), min_size=1, max_size=3)


def _page(value: int) -> bytes:
    return bytes([value + 1]) * PAGE_BYTES


def _write(file: Path, history: list[tuple[int, list[tuple[int, list[int], bool]]]], known: KnownBlocks) -> list[int]:
    """Record a history of sizes and batches in a table beside `file`; the values that the pages have at the end."""
    table = HashTable(file, 1, page_size=PAGE_BYTES, known=known)
    image: dict[int, int] = {}
    for page_count, batches in history:
        table.resize(page_count)
        image = {number: value for number, value in image.items() if number <= page_count}
        for first, values, is_in_order in batches:
            pages = [(first + at, value) for at, value in enumerate(values) if first + at <= page_count]
            for number, value in pages if is_in_order else ():
                image[number] = value
            if not is_in_order:
                pages.reverse()
                image.update(pages)
            table.record([number for number, _ in pages], [_page(value) for _, value in pages])
        missing = [number for number in range(1, page_count + 1) if number not in image]
        table.record(missing, [_page(0)] * len(missing))
        image.update(dict.fromkeys(missing, 0))
    table.close()
    return [image[number] for number in sorted(image)]


@settings(max_examples=examples(200))
@given(histories=st.lists(_histories, min_size=2, max_size=3))
def test_blocks_that_are_known_change_no_hash(
    histories: list[list[tuple[int, list[tuple[int, list[int], bool]]]]],
) -> None:
    """Images that build on each other have the hashes of their pages, and what is said of their blocks is true."""
    with tempfile.TemporaryDirectory() as directory:
        known = KnownBlocks(b"", b"")
        for number, history in enumerate(histories):
            file = Path(directory) / f"{number}.hashes"
            image = _write(file, history, known)
            hashes = file.read_bytes()
            assert hashes == b"".join(page_hash(_page(value)) for value in image)
            known = known_blocks(file, hashes)
            digests = [known.digests[at : at + HASH_BYTES] for at in range(0, len(known.digests), HASH_BYTES)]
            assert len(digests) <= -(-len(image) // PAGES_PER_BLOCK)
            for block, digest in enumerate(digests):
                pages = image[block * PAGES_PER_BLOCK : (block + 1) * PAGES_PER_BLOCK]
                whole = blake3(b"".join(map(_page, pages))).digest(HASH_BYTES)
                assert digest in {_UNKNOWN, whole}
                assert digest == _UNKNOWN or len(pages) == PAGES_PER_BLOCK


def test_pages_of_a_known_block_are_not_hashed(tmp_path: Path) -> None:
    """The hashes of the base are taken for them: wrong ones show that."""
    image = [_page(value) for value in (0, 1) * PAGES_PER_BLOCK]
    numbers = list(range(1, len(image) + 1))
    table = HashTable(tmp_path / "hashes", len(image), page_size=PAGE_BYTES, known=KnownBlocks(b"", b""))
    table.record(numbers, image)
    table.close()
    digests = known_blocks(tmp_path / "hashes", (tmp_path / "hashes").read_bytes()).digests
    wrong = bytes(range(HASH_BYTES)) * len(image)
    for changed, expected in ((False, wrong), (True, wrong[: PAGES_PER_BLOCK * HASH_BYTES])):
        if changed:
            image[-1] = _page(7)
        table = HashTable(None, len(image), page_size=PAGE_BYTES, known=KnownBlocks(wrong, digests))
        table.record(numbers, image)
        assert table.run(1, len(image)).startswith(expected)
    assert table.run(PAGES_PER_BLOCK + 1, PAGES_PER_BLOCK) == b"".join(map(page_hash, image[PAGES_PER_BLOCK:]))


def test_page_that_comes_twice_in_a_batch_has_its_last_image(tmp_path: Path) -> None:
    """Whatever was recorded before: the last image of each page counts, and a page is returned once."""
    table = HashTable(tmp_path / "hashes", 9, page_size=PAGE_BYTES, known=KnownBlocks(b"", b""))
    table.record([5], [_page(1)])
    assert table.record([5, 7, 5], [_page(0), _page(0), _page(1)]).numbers == [7]
    assert table.run(5, 1) == page_hash(_page(1))
    assert table.changed([5, 5], [_page(1), _page(0)]).images == [_page(0)]


def test_image_is_complete_without_its_blocks(tmp_path: Path) -> None:
    """Blocks that cannot be written cost the next capture time, and this one nothing."""
    (tmp_path / "hashes.blocks").mkdir()
    image = _write(tmp_path / "hashes", [(8, [(1, [1] * 8, True)])], KnownBlocks(b"", b""))
    hashes = (tmp_path / "hashes").read_bytes()
    assert hashes == b"".join(page_hash(_page(value)) for value in image)
    assert known_blocks(tmp_path / "hashes", hashes).digests == b""


@pytest.mark.parametrize("damage", ["lost", "cut", "of another image", "changed", "a pipe"])
def test_blocks_that_are_not_those_of_the_hashes_are_not_known(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with the file of blocks, pages are hashed one by one."""
    file, blocks = tmp_path / "hashes", tmp_path / "hashes.blocks"
    pages = 2 * PAGES_PER_BLOCK
    for value in (1, 0):
        file.unlink(missing_ok=True)
        _write(file, [(pages, [(1, [value] * pages, True)])], KnownBlocks(b"", b""))
        if value:
            other = blocks.read_bytes()
    content = blocks.read_bytes()
    assert known_blocks(file, file.read_bytes()).digests == content[32:] != b""
    assert content[32:] != other[32:]
    if damage == "a pipe":
        blocks.unlink()
        os.mkfifo(blocks)
        assert known_blocks(file, file.read_bytes()).digests == b""
        return
    blocks.write_bytes({"cut": content[:-1], "changed": content[:-1] + b"?"}.get(damage, other))
    if damage == "lost":
        blocks.unlink()
    assert known_blocks(file, file.read_bytes()) == KnownBlocks(file.read_bytes(), b"")


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_captures_that_know_blocks_store_what_has_changed(tmp_path: Path, journal_mode: str, page_size: int) -> None:
    """A chain of captures, of databases that grow and shrink, stores exactly the pages that differ."""
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("VACUUM")
    create_database(database, rows=2000, journal_mode=journal_mode)
    last = capture(database, tmp_path / "0", workers=kept_workers())
    assert not last.hashes.with_name("hashes.blocks").exists()
    for number, change in enumerate(
        (
            lambda: None,
            lambda: change_rows(database, "changed"),
            lambda: _execute(database, "DELETE FROM report WHERE id > 1000", "VACUUM"),
            lambda: change_rows(database, "again", rows=300),
        ),
        1,
    ):
        change()
        base = StreamBase(last.page_size, str(last.hashes), ())
        now = capture(database, tmp_path / str(number), streams=[base], workers=kept_workers())
        plain = capture(database, tmp_path / f"{number}-plain", workers=kept_workers())
        assert now.hashes.read_bytes() == plain.hashes.read_bytes()
        assert set(now.streams[0]) == _differing(last, now)
        assert now.hashes.with_name("hashes.blocks").exists() == (page_size < BLOCK_BYTES)
        if page_size < BLOCK_BYTES:
            blocks = known_blocks(now.hashes, now.hashes.read_bytes()).digests
            known = sum(any(blocks[at : at + HASH_BYTES]) for at in range(0, len(blocks), HASH_BYTES))
            assert known >= now.page_count * page_size // BLOCK_BYTES - 2  # without page 1, and the end
        last = now


def _execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def _differing(before: Capturing, after: Capturing) -> set[int]:
    hashes = [each.hashes.read_bytes() for each in (before, after)]
    rows = [[each[at : at + HASH_BYTES] for at in range(0, len(each), HASH_BYTES)] for each in hashes]
    pairs = itertools.zip_longest(*rows)
    return {number for number, (old, new) in enumerate(pairs, 1) if new is not None and old != new}
