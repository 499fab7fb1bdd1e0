"""Databases with the page checksums of SQLite's checksum VFS: an application does not read a page with a wrong one."""

from __future__ import annotations

import os
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest
from harness.capturing import capture
from harness.extent import sampled

if TYPE_CHECKING:
    from pathlib import Path

PAGE_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def _checksum(page: bytes) -> bytes:
    """The checksum of all but the last 8 bytes of a page, as https://www.sqlite.org/cksumvfs.html defines it."""
    first = second = 0
    for (word,), (next_word,) in zip(*[struct.iter_unpack("<I", page[:-8])] * 2, strict=True):
        first = first + word + second & 0xFFFFFFFF
        second = second + next_word + first & 0xFFFFFFFF
    return struct.pack("<II", first, second)


def _wrong_pages(image: bytes, page_size: int) -> list[int]:
    pages = [image[start : start + page_size] for start in range(0, len(image), page_size)]
    return [number for number, page in enumerate(pages, 1) if page[-8:] != _checksum(page)]


def _make(path: Path, page_size: int, journal_mode: str, *, is_sealed: bool = True) -> None:
    """A database that reserves 8 bytes, sealed as an application with that VFS leaves it."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.reserve_bytes(reserve=8)
        connection.execute(f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE t (a); CREATE INDEX i ON t (a)")
        for _ in range(5):
            connection.execute("INSERT INTO t VALUES (randomblob(5000))")
    image = bytearray(path.read_bytes())
    if is_sealed:
        for end in range(page_size, len(image) + 1, page_size):
            image[end - 8 : end] = _checksum(bytes(image[end - page_size : end]))
    path.write_bytes(image)


@pytest.mark.parametrize("journal_mode", sampled(["delete", "wal"]))
@pytest.mark.parametrize("page_size", sampled(PAGE_SIZES, fast={512, 4096, 65536}))
def test_page_checksums_are_right_in_the_image(tmp_path: Path, page_size: int, journal_mode: str) -> None:
    """Every page of the image has a right checksum, even page 1, whose change counter is replaced."""
    database = tmp_path / "app.db"
    _make(database, page_size, journal_mode)
    captured = capture(database, tmp_path / "spool")
    assert captured.page_size == page_size
    assert _wrong_pages(captured.image(), page_size) == []
    # The same content gives the same image, whatever the counter was that the application sealed it with.
    with closing(apsw.Connection(str(database))) as connection:
        connection.execute("PRAGMA user_version = 7; PRAGMA user_version = 0")
    image = bytearray(database.read_bytes())
    image[page_size - 8 : page_size] = _checksum(bytes(image[:page_size]))
    database.write_bytes(image)
    assert capture(database, tmp_path / "again").image()[:page_size] == captured.image()[:page_size]


@pytest.mark.parametrize("what", ["never-sealed", "other-bytes", "wrong"])
def test_page_1_without_a_right_checksum_gets_none(tmp_path: Path, what: str) -> None:
    """Reserved bytes may be those of another extension, and a wrong checksum is to be seen by the application."""
    database = tmp_path / "app.db"
    _make(database, 4096, "delete", is_sealed=what == "wrong")
    image = bytearray(database.read_bytes())
    image[4088:4096] = {"never-sealed": bytes(8), "other-bytes": os.urandom(8)}.get(what, image[4088:4096])
    if what == "wrong":
        image[3000] ^= 1
    database.write_bytes(image)
    captured = capture(database, tmp_path / "spool").image()
    assert captured[4088:4096] == image[4088:4096]
    assert 1 in _wrong_pages(captured, 4096)
