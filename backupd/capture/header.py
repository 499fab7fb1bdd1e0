"""The first bytes of a file: the header of an SQLite database, or what kind of file it is instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from backupd.errors import NotADatabaseError
from backupd.format import is_page_size

LOOKED_AT_BYTES = 4096
HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"
_WRITE_VERSION, _READ_VERSION = 18, 19
_WAL_VERSION = _NEWEST_VERSION = 2
_NEWEST_SCHEMA_FORMAT = 4
_ENCODINGS = range(4)
# The largest, smallest and leaf payload fractions, which every version sets to these.
_FRACTIONS = b"\x40\x20\x20"
_EXPANSION = slice(72, 92)
"""Zeros in every version. Source: https://www.sqlite.org/fileformat2.html#the_database_header."""

_OWN_COPY = "have the application export a plain copy, and back up that one"
_RECOVER = "restore the newest snapshot, or recover what can be with: sqlite3 FILE .recover"
_NAME_THE_DATABASE = "check the path: give the database file itself"

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
)
_DUMPS = (
    (b"PGDMP", "a dump of PostgreSQL"),
    (b"--\n-- PostgreSQL database", "a dump of PostgreSQL"),
    (b"-- MySQL dump", "a dump of MySQL"),
    (b"-- MariaDB dump", "a dump of MariaDB"),
    (b"/*M!", "a dump of MariaDB"),
)
_OTHERS = (
    (0, b"** This file contains an SQLite 2", "a database of SQLite 2", "convert it: sqlite OLD .dump | sqlite3 NEW"),
    (0, b"SQLite-CEROD", "a database of SQLite's CEROD extension, which encrypts", _OWN_COPY),
    (0, b"ZV-", "a database of SQLite's ZIPVFS extension, which compresses", _OWN_COPY),
    (0, b"\x37\x7f\x06", "the write-ahead log of a database, which alone is none", _NAME_THE_DATABASE),
    (0, b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", "the rollback journal of a database", _NAME_THE_DATABASE),
    (0, b"LTX1", "a file of Litestream or LiteFS", _NAME_THE_DATABASE),
    (0, b"age-encryption.org/", "a file that age encrypted", "decrypt it first: age -d"),
    (0, b"Salted__", "a file that openssl encrypted", "decrypt it first: openssl enc -d"),
    (0, b"-----BEGIN PGP", "a file that GnuPG encrypted", "decrypt it first: gpg -d"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, and not the file", "get the file: git lfs pull"),
    (8, b"DUCK", "a database of DuckDB", "use its own EXPORT DATABASE"),
    (16, b"\xde\xc0\xef\xbe", "a database of LMDB", "use its own mdb_copy"),
    (12, b"\x62\x31\x05\x00", "a database of Berkeley DB", "use its own db_hotbackup"),
    (4, b"Standard ", "a database of Microsoft Access", "copy it while Access is closed"),
)
_SQL = (b"PRAGMA ", b"BEGIN", b"CREATE ", b"INSERT ", b"DROP ", b"SET ", b"-- ", b"--\n", b"/*")
_NEVER_IN_TEXT = range(9)
_SHORTEST_SAMPLE_BYTES = 256
_SAMPLE_BYTES = 1024
_RANDOM_SHARE = 0.85
"""Share of the distinct values expected in as many random bytes. Texts and tables have at most half of them."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a database, from page 1.

    Source: https://www.sqlite.org/fileformat2.html#the_database_header.
    """

    is_wal: bool
    """Whether SQLite opens it in WAL mode."""
    page_size: int
    """0 for an empty file, and where SQLite has to look for page 1 in the log."""
    writer_version: int
    """SQLITE_VERSION_NUMBER of the library that changed page 1 last; 0 for an empty file."""
    page_count: int = 0
    """The size that page 1 states; 0 where SQLite takes the length of the file instead."""
    is_read_only: bool = False
    """Whether SQLite reads this version of the format but does not write it."""

    @classmethod
    def in_page(cls, head: bytes, *, is_wal: bool, page_size: int) -> Self:
        """Parse the first bytes of page 1."""
        # An SQLite before 3.7.0 changes the counter and leaves the size, and the counter that the size is valid for.
        page_count = int.from_bytes(head[28:32], "big") if head[24:28] == head[92:96] else 0
        writer_version = int.from_bytes(head[96:100], "big")
        return cls(is_wal, page_size, writer_version, page_count, head[_WRITE_VERSION] > _NEWEST_VERSION)

    @property
    def sqlite_version(self) -> str:
        """The version in the form `3.45.1`; empty for an empty file."""
        number = self.writer_version
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else ""


def header_of(path: str, head: bytes) -> Header:
    """Parse `head`, the first bytes of the file at `path`. Raises `NotADatabaseError` when SQLite would not read it.

    A write version above 2 is accepted: SQLite reads such a database, and only refuses to write it.
    """
    if not head:
        return Header(is_wal=False, page_size=0, writer_version=0)
    page_size = page_size_of(head)
    if page_size is None or not is_readable(head):
        raise not_a_database(path, head)
    return Header.in_page(head, is_wal=says_wal(head), page_size=page_size)


def is_readable(head: bytes) -> bool:
    """Whether SQLite reads a database that begins like this. Source: https://www.sqlite.org/src/file/src/btree.c."""
    return page_size_of(head) is not None and head[_READ_VERSION] <= _NEWEST_VERSION


def page_size_of(head: bytes) -> int | None:
    """Return the page size that `head` states, or None where there is no valid header."""
    if len(head) < HEADER_BYTES or not head.startswith(_MAGIC):
        return None
    page_size = int.from_bytes(head[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    return page_size if is_page_size(page_size) else None


def says_wal(head: bytes) -> bool:
    """Whether the header asks for WAL mode. `head` may be shorter than a header."""
    return head[_READ_VERSION : _READ_VERSION + 1] == bytes([_WAL_VERSION])


def not_a_database(path: str, head: bytes, detail: str = "") -> NotADatabaseError:
    """The error for a file that SQLite does not read, which says what it is by its first bytes `head`.

    `head` should be `LOOKED_AT_BYTES` long, or as long as the file; less serves too. `detail` is what SQLite said.
    """
    if head.startswith(_MAGIC):
        return _unread_sqlite(path, head, detail)
    what = _foreign(head)
    if what is not None:
        return NotADatabaseError(f"{path} is not an SQLite database: it is {what[0]}", hint=what[1])
    if _looks_random(head):
        how = " (only its page size is in clear, as SEE and wxSQLite3 do)" if head[21:24] == _FRACTIONS else ""
        return NotADatabaseError(
            f"{path} is not an SQLite database, or it is encrypted: its bytes look random{how}",
            hint=f"a database of SQLCipher or another encrypting SQLite cannot be read: {_OWN_COPY}",
        )
    return NotADatabaseError(
        f"{path} is not an SQLite database, or it is encrypted",
        hint="check the path; a database of SQLCipher or another encrypting SQLite cannot be read",
    )


def _unread_sqlite(path: str, head: bytes, detail: str) -> NotADatabaseError:
    detail = f": {detail}" if detail else ""
    if len(head) < HEADER_BYTES:
        return NotADatabaseError(f"{path} is not an SQLite database: it ends inside its header", hint=_RECOVER)
    if head[21:24] == _FRACTIONS and _has_odd_rest(head):
        return NotADatabaseError(
            f"{path} begins like an SQLite database, and the rest cannot be read{detail}; it looks encrypted behind a "
            "header in clear, as by SQLCipher with cipher_plaintext_header_size",
            hint=f"without its key it cannot be read: {_OWN_COPY}",
        )
    version = max(head[18], head[19])
    if head[21:24] == _FRACTIONS and version > _NEWEST_VERSION:
        mode = {3: "WAL2 mode, of SQLite's wal2 branch", 255: "MVCC mode, of Turso"}.get(version)
        what = mode or f"version {version} of the file format, of a newer SQLite or another program"
        return NotADatabaseError(
            f"{path} is an SQLite database in {what}, which the SQLite here does not read",
            hint="switch it back with the program that uses it: PRAGMA journal_mode = wal",
        )
    if head[21:24] == _FRACTIONS and _schema_format(head) > _NEWEST_SCHEMA_FORMAT:
        return NotADatabaseError(
            f"{path} has a schema format that the SQLite here does not know{detail}",
            hint="a newer SQLite or another program wrote it, or its header is corrupt: see whether the application "
            "still reads it",
        )
    return NotADatabaseError(f"{path} has a corrupt or encrypted SQLite header{detail}", hint=_RECOVER)


def _has_odd_rest(head: bytes) -> bool:
    """Whether the header looks encrypted behind the part that SQLCipher leaves in clear."""
    has_odd_fields = (
        int.from_bytes(head[56:60], "big") not in _ENCODINGS or _schema_format(head) > _NEWEST_SCHEMA_FORMAT
    )
    return has_odd_fields and any(head[_EXPANSION])


def _schema_format(head: bytes) -> int:
    return int.from_bytes(head[44:48], "big")


def _foreign(head: bytes) -> tuple[str, str] | None:
    """Name another kind of file, with a hint, or return None."""
    for magic, name in _COMPRESSED:
        if head.startswith(magic):
            return f"compressed ({name})", "give the database itself: backupd compresses what it stores"
    for magic, what in _DUMPS:
        if head.startswith(magic):
            return what, "backupd backs up SQLite databases alone"
    for offset, magic, what, hint in _OTHERS:
        if head[offset:].startswith(magic):
            return what, hint
    if not any(head):
        return "nothing but zeros where a database begins", _RECOVER
    return _text(head)


def _text(head: bytes) -> tuple[str, str] | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if any(byte in _NEVER_IN_TEXT for byte in head):
        return None
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # what was read may end inside a character
            return None
    if text.upper().startswith(_SQL):
        return "a dump in SQL", "give the database itself, or make one of it: sqlite3 NEW < DUMP"
    if text.lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page or XML, the answer to a failed download perhaps", _NAME_THE_DATABASE
    return "a text", _NAME_THE_DATABASE


def _looks_random(head: bytes) -> bool:
    """Whether these bytes could be encrypted: they have as many distinct values as random ones."""
    if len(head) < _SHORTEST_SAMPLE_BYTES:
        return False
    sample = head[:_SAMPLE_BYTES]
    expected = 256 * (1 - (255 / 256) ** len(sample))
    return len(set(sample)) >= _RANDOM_SHARE * expected
