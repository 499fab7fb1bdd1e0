"""Restore SQLite databases from a backupd repository, without backupd.

    python3 rescue.py                                             list the snapshots
    python3 rescue.py restore app@latest ../restored.db           write one to a new file
    python3 rescue.py restore app@2026-11-22T08:00 ../old.db      the newest at or before that time (local; Z for UTC)
    python3 rescue.py restore app ../old.db --at 2026-11-22T08:00:07    the last commit at or before that time
    python3 rescue.py needs app@latest                            the objects that it needs, to copy only these

This file needs Python 3.8 or later, without extra packages. It needs the program `zstd`, unless Python is 3.14 or
later, and for encrypted snapshots the program `age`. It reads a directory: the repository itself, or a copy of the
bucket that any S3 client made. It changes nothing there. RESTORE.md in the same directory says more.

Before the new file gets its name, these are checked: the SHA-256 of the manifest and of each pack, the checksum of each
zstd frame, the page map, the BLAKE3 digest of the image (over the page hashes in the packs), and the database, by
SQLite itself. With --check-pages, also each page against its hash, at about 25 MB/s, and each index
against the manifest.

Everything in the repository counts as forged until it is verified: names are matched as a whole, sizes are limited
before memory is allocated, and other programs get only bytes on their standard input.

Read it from the end: `run` carries out the command, `restore` makes the file, and `Image` assembles its content. Their
parts are above them. FORMAT.md, in the source of backupd, specifies the format.
"""

from __future__ import annotations

import argparse
import array
import base64
import collections
import errno
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Exit codes, as in backupd.
USAGE, UNAVAILABLE, NO_SUCH_SNAPSHOT, DAMAGE, NEWER_FORMAT, INTERRUPTED = 2, 10, 12, 20, 21, 130

# The format version that this program reads, and the limits in FORMAT.md.
FORMAT = 1
DATABASE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SNAPSHOT_ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"
SHA256 = r"[0-9a-f]{64}"
SEGMENT = re.compile(r"([0-9]{12})-([0-9]{12})-([0-9]{8}T[0-9]{9}Z)-([0-9a-f]{64})\.zst(\.age)?")
INDEX_HASH = r"[0-9a-f]{32}"
MAX_MANIFEST_BYTES, MAX_TRASH_BYTES = 1 << 28, 1 << 30
MAX_PACK_BYTES, MAX_ENCRYPTED_PACK_BYTES, MAX_PACK_IMAGE_BYTES = 17564700, 17634556, 1 << 24
MIN_FRAME_BYTES = 1 << 16
MAX_SEGMENT_BYTES, MAX_SEGMENT_CONTENT_BYTES, MAX_SEGMENT_IMAGE_BYTES = 84365456, 80 << 20, 64 << 20
MAX_IMAGE_PAGES = 1 << 26
ALWAYS_COUNTED_SEQUENCES = 1 << 32

# SQLite's messages for values that do not fit the type or constraint of their column: not a damage of pages or indexes.
OF_VALUES = re.compile(
    r"(?:NULL|NUMERIC|TEXT|non-[A-Z]+) value in |CHECK constraint failed in "
    r"|index .* stores an imprecise floating-point value for row "
)

REFERENCES = "a snapshot is NAME@latest, NAME@ID, NAME@ and the beginning of an id, or a time: NAME@2026-11-22T08:00"


class Failure(Exception):
    """A failure: a message in one line, a hint that says what to do, and the exit code."""

    def __init__(self, message: str, hint: str = "", code: int = DAMAGE) -> None:
        super().__init__(message)
        self.hint, self.code = hint, code


class Snapshot(NamedTuple):
    """A snapshot, as its manifest has it, and all `values` of that. `key` may be in the trash."""

    key: str
    database: str
    id: str
    sequence: int
    kind: str
    tags: list[str]
    page_size: int
    page_count: int
    packs: list[dict[str, Any]]
    values: dict[str, Any]


class SegmentName(NamedTuple):
    """What the key of a segment says: its window, its first and last commit there, and when the last one was seen."""

    key: str
    database: str
    window: str
    first: int
    last: int
    seen_at: str


# ---------------------------------------------------------------- reading the repository


class Repository:
    """A directory with a repository, or a part of one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            raise Failure(
                f"{root} is not a directory", "name the copy of the repository with --repository", UNAVAILABLE
            )
        try:
            content = self.read("backupd.json", 4096)
        except FileNotFoundError:
            if not any(self.databases()):
                raise Failure(
                    f"{root} has no backups: there is no backupd.json",
                    "run this in the directory with backupd.json, or name that with --repository",
                    UNAVAILABLE,
                ) from None
            say(f"note: backupd.json is missing from {root}; continuing without it")
            return
        values = parsed("backupd.json", content)
        reject_version("backupd.json", values.get("format"))

    def read(self, key: str, limit: int) -> bytes:
        """Return a whole object. FileNotFoundError if it is missing, or not a plain file below the root."""
        path = self.root
        *directories, name = key.split("/")
        for directory in directories:
            path = path / directory
            if not is_directory(path):
                raise FileNotFoundError(key)
        # Without following links, and without waiting for the writer of a pipe.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        if (path / name).is_symlink():
            raise FileNotFoundError(key)
        descriptor = os.open(path / name, flags)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise FileNotFoundError(key)
        with open(descriptor, "rb") as file:
            if status.st_size > limit:
                raise Failure(f"{key} has {status.st_size} bytes where at most {limit} are possible")
            return file.read(limit + 1)

    def databases(self) -> Iterator[str]:
        """Yield the names of the databases, sorted."""
        for name in self._names(self.root):
            kinds = (self.root / name / "snapshots", self.root / name / "trash")
            if re.fullmatch(DATABASE, name) and is_directory(self.root / name) and any(map(is_directory, kinds)):
                yield name

    def snapshots(self, *, removed: bool) -> tuple[list[Snapshot], list[Failure]]:
        """Return all snapshots, by database, the oldest first, and the failures of those that cannot be read."""
        found, damaged = [], []
        kind = "trash" if removed else "snapshots"
        for database in self.databases():
            for name in self._names(self.root / database / kind):
                if re.fullmatch(SNAPSHOT_ID + r"\.json", name):
                    try:
                        found.append(self.snapshot(f"{database}/{kind}/{name}"))
                    except (Failure, OSError) as error:
                        damaged.append(Failure(f"{database}/{kind}/{name}: {error}"))
        return sorted(found, key=lambda each: (each.database, each.sequence, each.id)), damaged

    def snapshot(self, key: str) -> Snapshot:
        """Return the snapshot whose manifest, or trash entry, is at `key`."""
        database, kind, name = key.split("/")
        if kind == "trash":
            entry = unsealed("trash", self.read(key, MAX_TRASH_BYTES))
            manifest = field(entry, "manifest", str).encode()
        else:
            manifest = self.read(key, MAX_MANIFEST_BYTES)
        snapshot = read_manifest(key, unsealed("manifest", manifest))
        if (snapshot.database, snapshot.id + ".json") != (database, name):
            raise Failure(f"it belongs to {snapshot.database}@{snapshot.id}")
        highest = highest_sequence(os.lstat(self.root / key).st_mtime_ns // 10**6, time.time_ns() // 10**6)
        return snapshot._replace(sequence=min(snapshot.sequence, highest))

    def chains(self, database: str) -> list[list[SegmentName]]:
        """Return the segments of a database that continue each other, without a hole; the oldest first."""
        chains: list[list[SegmentName]] = []
        windows = self.root / database / "segments"
        for window in filter(re.compile(SNAPSHOT_ID).fullmatch, self._names(windows)):
            matches = (SEGMENT.fullmatch(name) for name in self._names(windows / window))
            names = [
                SegmentName(
                    f"{database}/segments/{window}/{match[0]}", database, window, int(match[1]), int(match[2]), match[3]
                )
                for match in matches
                if match
            ]
            chain: list[SegmentName] = []
            for name in sorted(names, key=lambda each: (each.first, -each.last)):
                if not chain or name.first > chain[-1].last + 1:
                    chain = []
                    chains.append(chain)
                if not chain or name.last > chain[-1].last:
                    chain.append(name)
        return chains

    def _names(self, directory: Path) -> list[str]:
        # The root may be a link, because the user named it.
        return sorted(os.listdir(directory)) if is_directory(directory) or directory == self.root else []


def highest_sequence(put_at: int, now: int) -> int:
    """Return the highest sequence that counts for a manifest put at `put_at` (milliseconds since 1970, as `now`).

    A planted manifest can so always be followed by a newer one.
    """
    return ALWAYS_COUNTED_SEQUENCES + (max(0, put_at) if put_at <= now else 0)


def is_directory(path: Path) -> bool:
    """Whether `path` is a directory, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def unsealed(kind: str, data: bytes) -> dict[str, Any]:
    """Return the content of a sealed object, after a check of its SHA-256."""
    envelope = re.match(rb'\{"sha256":"([0-9a-f]{64})","%s":' % kind.encode(), data)
    if envelope is None or not data.endswith(b"}\n"):
        raise Failure(f"the object is not a sealed {kind}")
    body = data[envelope.end() : -2]
    if hashlib.sha256(body).hexdigest().encode() != envelope[1]:
        raise Failure(f"the {kind} does not match the SHA-256 of its seal")
    values = parsed(kind, body)
    reject_version(f"the {kind}", values.get("format"))
    return values


def parsed(what: str, data: bytes) -> dict[str, Any]:
    """Parse a JSON object. The format has no numbers of more than 19 digits, which take long to read."""

    def number(text: str) -> int:
        return int(text) if len(text) < 20 else reject_number(text)

    try:
        values = json.loads(data.decode(), parse_int=number, parse_constant=reject_number, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{what} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise Failure(f"{what} cannot be read: it is not an object")
    return values


def reject_number(text: str) -> NoReturn:
    """Raise for a number that the format does not have."""
    raise ValueError(f"{text[:20]} is not a number")


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return one object of JSON; raise if it has a key twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is repeated in one object")
    return values


def reject_version(what: str, version: object) -> None:
    """Raise unless this program knows the format version."""
    if type(version) is not int or version < 1:
        raise Failure(f"{what} does not name its format version")
    if version > FORMAT:
        hint = "use rescue.py from this repository itself, or a newer backupd"
        raise Failure(f"{what} is of format version {version}; this program knows {FORMAT}", hint, NEWER_FORMAT)


def field(values: dict[str, Any], name: str, kind: Any, low: int = 0, high: int = 1 << 63, form: str = "") -> Any:
    """Return one value, after a check of its type, range and form."""
    value: Any = values.get(name)
    if type(value) is not kind:
        raise Failure(f"{name} is missing or of another type")
    if (kind is int and not low <= value < high) or (form and not re.fullmatch(form, value)):
        raise Failure(f"{name} is out of range")
    return value


def read_manifest(key: str, values: dict[str, Any]) -> Snapshot:
    """Return the parts of a manifest that a restore needs, each of them checked."""
    page_size = field(values, "page_size", int, 512, 65537)
    if page_size & (page_size - 1):
        raise Failure("page_size is out of range")
    packs = field(values, "packs", list)
    for pack in packs:
        if not isinstance(pack, dict) or pack.get("encryption") not in (None, "age"):
            raise Failure("packs contains something other than packs")
        field(pack, "sha256", str, form=SHA256)
        most_bytes = MAX_ENCRYPTED_PACK_BYTES if pack.get("encryption") else MAX_PACK_BYTES
        field(pack, "stored_bytes", int, 1, most_bytes + 1)
        field(pack, "pages", int, 1, MAX_PACK_IMAGE_BYTES // 512 + 1)
        reject_invalid_proof(pack)
    if "private" not in values:
        reject_invalid_private(values)
    return Snapshot(
        key=key,
        database=field(values, "database", str, form=DATABASE),
        id=field(values, "id", str, form=SNAPSHOT_ID),
        sequence=field(values, "sequence", int, 1, 1 << 53),
        kind=field(values, "kind", str, form="regular|before-restore"),
        tags=[str(tag) for tag in field(values, "tags", list)],
        page_size=page_size,
        page_count=field(values, "page_count", int, 0, MAX_IMAGE_PAGES + 1),
        packs=packs,
        values=values,
    )


def reject_invalid_proof(pack: dict[str, Any]) -> None:
    """Raise unless a pack has what proves its index, and an encrypted one has not."""
    if pack.get("encryption"):
        if any(pack.get(key) is not None for key in ("index_bytes", "index_hash")):
            raise Failure("an encrypted pack shows the length or the digest of its index")
        return
    shortest = 28 + 20 * pack["pages"] + 4
    most_frames = min(pack["pages"], MAX_PACK_IMAGE_BYTES // MIN_FRAME_BYTES)
    field(pack, "index_bytes", int, shortest, shortest + 4 * most_frames)
    field(pack, "index_hash", str, form=INDEX_HASH)


def reject_invalid_private(values: dict[str, Any]) -> None:
    """Raise unless the part that an encrypted manifest keeps private is valid."""
    field(values, "image_digest", str, form=SHA256)
    field(values, "page_map", str)


def pack_key(snapshot: Snapshot, pack: dict[str, Any]) -> str:
    """Return the key of a pack."""
    suffix = ".zst.age" if pack.get("encryption") else ".zst"
    return f"{snapshot.database}/packs/{pack['sha256']}{suffix}"


# ---------------------------------------------------------------- the programs zstd and age


def filtered(command: list[str], data: bytes, limit: int, refusal: Callable[[str], Failure]) -> bytes:
    """Return the output of a program for `data`; one with more than `limit` bytes is stopped.

    `refusal` turns the messages of a program that failed into an error.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as messages:
        given.write(data)
        given.seek(0)
        try:
            process = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=messages)
        except FileNotFoundError:
            hint = f"install it: apt install {command[0]}, or similar; it must be found on PATH"
            raise Failure(f"the program {command[0]} is not installed", hint, USAGE) from None
        with process:
            output: bytes = process.stdout.read(limit + 1)  # type: ignore[union-attr]
            if len(output) > limit:
                process.kill()
                raise Failure(f"{command[0]} gives more than the {limit} bytes that are possible")
        if process.returncode:
            messages.seek(0)
            raise refusal(messages.read(500).decode(errors="replace"))
    return output


def decrypted(data: bytes, identity: str | None) -> bytes:
    """Return the content of an age file, which is never longer than the file."""
    if identity is None:
        raise Failure("it is encrypted", "name the file with the secret key: --identity FILE", USAGE)
    if not os.path.exists(identity) or os.path.isdir(identity):
        raise Failure(f"there is no file {identity}", "name the file with the secret key: --identity FILE", USAGE)
    command = ["age", "--decrypt", "--identity", identity]
    return filtered(command, data, len(data), lambda words: refusal_of_age(words, identity))


def refusal_of_age(words: str, identity: str) -> Failure:
    """Explain a refusal of age. Its input has the right SHA-256: the key is wrong, or it was not written by age."""
    lines = [line for line in words.splitlines() if "age/report" not in line]
    words = printable(" ".join(lines)).replace("age: error: ", "").replace("age: ", "")
    if re.search("(?i)no identity matched|no matching keys|incorrect identity", words):
        hint = "it was encrypted to other keys: find another file, and name that with --identity"
        return Failure(f"no secret key in {identity} decrypts it", hint, USAGE)
    if re.search('(?i)reading "|no secret keys|unknown identity', words):
        hint = "it must have a line that begins with AGE-SECRET-KEY-1, or be an SSH key, and be readable for this user"
        return Failure(f"age finds no secret key in {identity}", hint, USAGE)
    if re.search("(?i)passphrase|identity", words):
        return Failure(f"age cannot use {identity}: {words}", "try it by itself: age --decrypt --identity FILE", USAGE)
    return Failure(f"age refuses: {words}")


def decompressed(frames: list[tuple[memoryview, int]]) -> bytes:
    """Return the content of `frames`, each of which must be exactly one zstd frame that declares the size beside it."""
    for frame, size in frames:
        reject_wrong_frame(frame, size)
    whole = sum(size for _, size in frames)
    try:
        zstd = importlib.import_module("compression.zstd")  # Python 3.14
    except ImportError:
        command, data = ["zstd", "--decompress", "--stdout", "--quiet"], b"".join(frame for frame, _ in frames)
        # One process for all: zstd itself refuses a frame that does not have the size that it declares.
        content = filtered(command, data, whole, lambda words: Failure(f"zstd refuses: {printable(words)}"))
    else:
        try:
            content = b"".join(zstd.ZstdDecompressor().decompress(frame, size + 1) for frame, size in frames)
        except zstd.ZstdError as error:
            raise Failure(f"zstd refuses: {error}") from error
    if len(content) != whole:
        raise Failure(f"the compressed frames have a size other than {whole} bytes")
    return content


def declared_size(frame: bytes | memoryview) -> int:
    """Return the size that a zstd frame declares for its content; 0 if it declares none."""
    if len(frame) < 14:
        return 0
    flags = frame[4]
    width, at = (flags >> 5 & 1, 2, 4, 8)[flags >> 6], 5 if flags >> 5 & 1 else 6
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def reject_wrong_frame(frame: bytes | memoryview, size: int) -> None:
    """Raise unless `frame` is one whole zstd frame of `size` bytes without a dictionary (RFC 8878, section 3.1.1)."""
    try:
        magic, descriptor = struct.unpack_from("<IB", frame)
        is_single, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        if magic != 0xFD2FB528 or descriptor & 0b1011:
            raise Failure("there is no zstd frame, or it needs a dictionary")
        at = 5 if is_single else 6
        width = (is_single, 2, 4, 8)[descriptor >> 6]
        declared = int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)
        if not width or declared != size:
            raise Failure(f"the compressed frame declares a size other than {size} bytes")
        at, is_last = at + width, 0
        while not is_last:
            block = frame[at] | frame[at + 1] << 8 | frame[at + 2] << 16
            is_last, kind, length = block & 1, block >> 1 & 3, block >> 3
            at += 3 + (1 if kind == 1 else length)
    except (struct.error, IndexError):
        raise Failure("the compressed frame is cut off") from None
    if at + 4 * has_checksum != len(frame):
        raise Failure("the compressed frame is cut off, or something follows it")
    if not has_checksum and size:
        raise Failure("the compressed frame has no checksum")


# ---------------------------------------------------------------- BLAKE3, thousands of chunks at once

# A long integer serves as many lanes of 64 bits, each with one 32-bit word: one addition of two such integers adds the
# words of all lanes. This is fifty times faster than one word at a time, and needs no module.
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def compress(chaining: list[int], block: list[int], counters: int, length: int, flags: int, ones: int) -> list[int]:
    """Apply the compression function to all lanes at once; `ones` has a 1 in each lane."""
    mask = ones * 0xFFFFFFFF
    v = chaining + [word * ones for word in IV[:4]] + [counters, 0, length * ones, flags * ones]
    for turn in range(7):
        if turn:
            block = [block[i] for i in PERMUTATION]
        for n, (a, b, c, d) in enumerate((*COLUMNS, *DIAGONALS)):
            for word, right_d, right_b in ((block[2 * n], 16, 12), (block[2 * n + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & mask
                x = v[d] ^ v[a]
                v[d] = (x >> right_d | x << (32 - right_d)) & mask
                v[c] = (v[c] + v[d]) & mask
                x = v[b] ^ v[c]
                v[b] = (x >> right_b | x << (32 - right_b)) & mask
    return [v[i] ^ v[i + 8] for i in range(8)]


def hash_blocks(data: bytes, size: int, counters: list[int], first: int, last: int) -> bytes:
    """Return 32 bytes for each piece of `data`, one per counter. A piece has `size` bytes, then zeros.

    `first` and `last` are the flags of the first and the last block of 64 bytes.
    """
    lanes, words = len(counters), memoryview(data).cast("I")
    width, blocks = len(words) // lanes, max(1, (size + 63) // 64)
    spread = memoryview(bytearray(8 * lanes)).cast("I")
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")
    numbers = int.from_bytes(struct.pack(f"<{lanes}Q", *counters), "little")
    chaining = [word * ones for word in IV]
    for n in range(blocks):
        block = []
        for i in range(16):
            spread[::2] = words[16 * n + i :: width]
            block.append(int.from_bytes(spread, "little"))
        flags = (first if n == 0 else 0) | (last if n == blocks - 1 else 0)
        chaining = compress(chaining, block, numbers, min(64, size - 64 * n), flags, ones)
    result = memoryview(bytearray(32 * lanes)).cast("I")
    for i, word in enumerate(chaining):
        result[i::8] = memoryview(word.to_bytes(8 * lanes, "little")).cast("I")[::2]
    return result.tobytes()


def hash_parents(nodes: bytes, flags: int) -> bytes:
    """Return the parents of an even number of `nodes`."""
    return hash_blocks(nodes, 64, [0] * (len(nodes) // 64), PARENT | flags, PARENT | flags)


def page_hashes(images: bytes, page_size: int) -> bytes:
    """Return the page hashes (16 bytes each) of consecutive pages."""
    count, chunks = len(images) // page_size, max(1, page_size // 1024)
    numbers = list(range(chunks)) * count
    nodes = hash_blocks(images, min(page_size, 1024), numbers, CHUNK_START, CHUNK_END | (ROOT if chunks == 1 else 0))
    while chunks > 1:
        chunks //= 2
        nodes = hash_parents(nodes, ROOT if chunks == 1 else 0)
    return b"".join(nodes[i : i + 16] for i in range(0, len(nodes), 32))


def blake3(message: bytes) -> str:
    """Return the BLAKE3 of one message, in hexadecimal."""
    whole = max(0, len(message) - 1) // 1024
    rest = message[1024 * whole :]
    padded = rest + bytes(-len(rest) % 64 if rest else 64)
    nodes = b""
    if whole:
        nodes = hash_blocks(message[: 1024 * whole], 1024, list(range(whole)), CHUNK_START, CHUNK_END)
    nodes += hash_blocks(padded, len(rest), [whole], CHUNK_START, CHUNK_END | (0 if whole else ROOT))
    while len(nodes) > 32:
        pairs = len(nodes) // 64 * 64
        nodes = hash_parents(nodes[:pairs], ROOT if len(nodes) == 64 else 0) + nodes[pairs:]
    return nodes.hex()


# ---------------------------------------------------------------- restoring


def private_part(snapshot: Snapshot, identity: str | None) -> dict[str, Any]:
    """Return the private part of a manifest, decrypted if it is encrypted."""
    sealed = snapshot.values.get("private")
    if sealed is None:
        return snapshot.values
    if not isinstance(sealed, dict):
        raise Failure("the private part of the manifest is not an object")
    secret = from_base64("the private part of the manifest", field(sealed, "age", str))
    try:
        plain = decrypted(secret, identity)
    except Failure as error:
        raise Failure(f"snapshot {snapshot.database}@{snapshot.id}: {error}", error.hint, error.code) from error
    if hashlib.sha256(plain).hexdigest() != field(sealed, "sha256", str, form=SHA256):
        raise Failure("the private part of the manifest does not have its SHA-256")
    values = parsed("the private part of the manifest", plain)
    reject_invalid_private(values)
    return values


def from_base64(what: str, text: str) -> bytes:
    """Decode base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Failure(f"{what} cannot be read: {error}") from error


def read_page_map(snapshot: Snapshot, private: dict[str, Any]) -> array.array[int]:
    """Return for each page the position of its pack, from 1; 0 for the page with byte 2^30, which SQLite locks."""
    frame = from_base64("the page map", private["page_map"])
    try:
        page_map = integers(decompressed([(memoryview(frame), 4 * snapshot.page_count)]))
    except Failure as error:
        raise Failure(f"the page map cannot be read: {error}", error.hint, error.code) from error
    lock_page = (1 << 30) // snapshot.page_size + 1
    holes = 1 if lock_page <= snapshot.page_count else 0
    if page_map and max(page_map) > len(snapshot.packs):
        raise Failure("the page map names packs that the manifest does not")
    if page_map.count(0) != holes or (holes and page_map[lock_page - 1]):
        raise Failure("the page map has a hole other than the lock-byte page, or no hole there")
    return page_map


def integers(data: bytes) -> array.array[int]:
    """Return integers of 4 bytes, little-endian, as an array."""
    numbers = array.array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class Pack(NamedTuple):
    """A pack: page numbers, page hashes (16 bytes each) and page images, in the same order."""

    numbers: array.array[int]
    hashes: bytes
    images: bytes


def read_pack(data: bytes, page_size: int, entry: dict[str, Any]) -> Pack:
    """Read the pack that `entry` of a manifest describes, of pages of `page_size` bytes."""
    if len(data) < 28:
        raise Failure("the pack is cut off")
    magic, index_bytes, tag, version, size, count, step = struct.unpack_from("<II4sIIII", data)
    if (magic, tag) != (0x184D2A5B, b"bkpd"):
        raise Failure("the object does not begin with a pack index")
    reject_version("the pack", version)
    pages = entry["pages"]
    if (size, count) != (page_size, pages) or not 1 <= count * size <= MAX_PACK_IMAGE_BYTES:
        raise Failure(f"the pack has {count} pages of {size} bytes, and should have {pages} of {page_size}")
    if not 1 <= step <= count or (step < count and step * size < MIN_FRAME_BYTES):
        raise Failure(f"the pack has {step} pages of {count} in each frame")
    sizes = [size * min(step, count - first) for first in range(0, count, step)]
    table = 28 + 20 * count
    end = table + 4 * len(sizes)
    if index_bytes != end - 8 or len(data) < end:
        raise Failure("the index of the pack does not have the length for its pages")
    if entry.get("index_bytes") not in (None, end):
        raise Failure("its index is not the one in the manifest")
    numbers = integers(data[28 : 28 + 4 * count])
    if numbers[0] < 1 or numbers[-1] > MAX_IMAGE_PAGES or list(numbers) != sorted(set(numbers)):
        raise Failure("the page numbers of the pack do not ascend, or are out of range")
    frames = []
    for i, length in enumerate(integers(data[table:end])):
        frames.append((memoryview(data)[end : end + length], sizes[i]))
        end += length
    if end != len(data):
        raise Failure("the frames of the pack end elsewhere than the pack")
    return Pack(numbers, data[28 + 4 * count : table], decompressed(frames))


class Segment(NamedTuple):
    """A segment: its head, its commits (time in milliseconds, pages of the database, number), and its page images.

    The number of a commit is counted from that of the first one in the head. `table` has page number and index of the
    commit of each image.
    """

    head: dict[str, Any]
    commits: list[tuple[int, int, int]]
    table: list[tuple[int, int]]
    images: memoryview


def read_segment(repository: Repository, name: SegmentName, identity: str | None) -> Segment:
    """Read a segment, and check that it is the one that its name says."""
    try:
        data = repository.read(name.key, MAX_SEGMENT_BYTES)
        if hashlib.sha256(data).hexdigest() != name.key.rpartition("-")[2][:64]:
            raise Failure("it does not have the SHA-256 that names it")
        segment = parsed_segment(decrypted(data, identity) if name.key.endswith(".age") else data)
        reject_other_segment(segment, name)
    except Failure as error:
        raise Failure(f"segment {name.key}: {error}", error.hint, error.code) from error
    return segment


def reject_other_segment(segment: Segment, name: SegmentName) -> None:
    """Raise unless `segment` is the one that its name says."""
    head = segment.head
    place = (head["database"], head["window"], head["first"], head["last"])
    if place != name[1:5] or id_time(segment.commits[-1][0]) != name.seen_at:
        raise Failure("it is not the one that its name says")


def parsed_segment(data: bytes) -> Segment:
    """Parse a segment, which is not encrypted."""
    if len(data) < 16 or struct.unpack_from("<II4s", data) != (0x184D2A5B, 8, b"bksg"):
        raise Failure("it does not begin as a segment")
    reject_version("the segment", struct.unpack_from("<I", data, 12)[0])
    frame = memoryview(data)[16:]
    size = declared_size(frame)
    if not 4 <= size <= MAX_SEGMENT_CONTENT_BYTES:
        raise Failure(f"its content declares {size} bytes")
    content = memoryview(decompressed([(frame, size)]))
    start = 4 + struct.unpack_from("<I", content)[0]
    if start > min(size, 4 + (1 << 20)):
        raise Failure("its head is too long")
    head = parsed("the head of the segment", bytes(content[4:start]))
    reject_invalid_head(head)
    table_start = start + 16 * head["commits"]
    images_start = table_start + 8 * head["images"]
    if images_start + head["images"] * head["page_size"] != size:
        raise Failure("its content has another size than its head says")
    commits = list(struct.iter_unpack("<QII", content[start:table_start]))
    table = list(struct.iter_unpack("<II", content[table_start:images_start]))
    times, page_counts, numbers = ([commit[i] for commit in commits] for i in range(3))
    if times != sorted(times) or times[-1] > 253402300799999 or numbers != sorted(set(numbers)):
        raise Failure("its commits are out of order")
    if head["first"] + numbers[-1] != head["last"]:
        raise Failure("its last commit is not the one that its head says")
    if not all(1 <= page_count <= MAX_IMAGE_PAGES for page_count in page_counts):
        raise Failure("a commit has a number of pages that is out of range")
    if table != sorted(set(table)) or not 1 <= table[0][0] <= table[-1][0] <= MAX_IMAGE_PAGES:
        raise Failure("its images are out of order")
    if any(page == (1 << 30) // head["page_size"] + 1 or commit >= head["commits"] for page, commit in table):
        raise Failure("an image is of the lock page, or of no commit")
    return Segment(head, commits, table, content[images_start:])


def reject_invalid_head(head: dict[str, Any]) -> None:
    """Raise unless the head of a segment has all keys, with values in their range."""
    reject_version("the head of the segment", head.get("format"))
    field(head, "database", str, form=DATABASE)
    field(head, "window", str, form=SNAPSHOT_ID)
    first, page_size = field(head, "first", int, 1, 10**12), field(head, "page_size", int)
    last = field(head, "last", int, first, 10**12)
    images = field(head, "images", int, 1, MAX_SEGMENT_IMAGE_BYTES // 512 + 1)
    field(head, "commits", int, 1, min(images, last - first + 1) + 1)
    if page_size not in [512 << shift for shift in range(8)] or images * page_size > MAX_SEGMENT_IMAGE_BYTES:
        raise Failure("its page size or its number of images is out of range")
    anchors = head.setdefault("anchors", [])
    if not isinstance(anchors, list):
        raise Failure("its anchors are not a list")
    for anchor in anchors:
        if not isinstance(anchor, dict):
            raise Failure("an anchor is not an object")
        field(anchor, "snapshot", str, form=SNAPSHOT_ID)
        field(anchor, "after", int, 0, field(anchor, "by", int, 0, last + 1) + 1)


class Replay(NamedTuple):
    """The commits `after + 1` to `until` of `segments`, which follow a snapshot."""

    segments: list[SegmentName]
    after: int
    until: int
    page_count: int
    seen_at: int


def replay_until(
    repository: Repository, snapshots: list[Snapshot], database: str, at: int, identity: str | None
) -> tuple[Snapshot, Replay]:
    """Find the last commit of `database` that was seen by `at` (milliseconds), and the newest snapshot before it."""
    hint = "restore a snapshot: python3 rescue.py lists them"
    chains = repository.chains(database)[::-1]
    # What was written while the clock was behind may have begun last, and ended first.
    for chain in sorted(chains, key=lambda chain: min(chain[-1].seen_at, id_time(at)), reverse=True):
        if chain[0].window[: len(id_time(at))] > id_time(at):
            continue  # it began later
        # The first segment that ended later may have begun before.
        end = sum(name.seen_at <= id_time(at) for name in chain)
        for name in reversed(chain[max(0, end - 1) : end + 1]):
            segment = read_segment(repository, name, identity)
            count = sum(seen_at <= at for seen_at, _, _ in segment.commits)
            if not count:
                continue
            seen_at, page_count, number = segment.commits[count - 1]
            until = name.first + number
            found = find_base(repository, snapshots, chain, until, identity)
            if found is None:
                raise Failure(f"no snapshot here can begin the commit of {id_time(seen_at)}", hint, NO_SUCH_SNAPSHOT)
            base, after = found
            reject_broken(repository, name, until)
            needed = [each for each in chain if each.last > after and each.first <= until]
            return base, Replay(needed, after, until, page_count, seen_at)
    raise Failure(f"no commit of {database} up to that time is stored", hint, NO_SUCH_SNAPSHOT)


def reject_broken(repository: Repository, name: SegmentName, until: int) -> None:
    """Raise if a check has found that commit `until` of the window is not what was committed."""
    key = f"{name.database}/continuity/{name.window}.json"
    try:
        record = unsealed("continuity", repository.read(key, MAX_MANIFEST_BYTES))
        is_broken = field(record, "outcome", str) == "broken" and field(record, "window", str) == name.window
        after = field(record, "after", int, 0, 10**12)
    except (FileNotFoundError, Failure):
        return  # no check, or a record that says nothing
    if is_broken and until > after:
        hint = f"restore a snapshot: python3 rescue.py lists them; to have that commit anyway, move {key} away"
        raise Failure(
            f"a check found that commits after {after} of window {name.window} are not what was committed", hint
        )


def find_base(
    repository: Repository, snapshots: list[Snapshot], chain: list[SegmentName], until: int, identity: str | None
) -> tuple[Snapshot, int] | None:
    """Find the newest snapshot that commit `until` of `chain` can be rebuilt from, and the commit that it is after."""
    known = {each.id: each for each in snapshots if each.database == chain[0].database}
    place = sum(name.last < until for name in chain)
    for name in [*reversed(chain[: place + 1]), *chain[place + 1 :]]:
        for anchor in reversed(read_segment(repository, name, identity).head["anchors"]):
            base, after = known.get(anchor["snapshot"]), anchor["after"]
            if base and anchor["by"] <= until and after + 1 >= chain[0].first:
                return base, after
    return None


def id_time(milliseconds: int) -> str:
    """Return a time as the ids of snapshots and the names of segments have it."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}{rest:03}Z"


class Image:
    """The image of one of the `snapshots`, which is written into an empty file."""

    def __init__(
        self,
        repository: Repository,
        snapshots: list[Snapshot],
        snapshot: Snapshot,
        file: Any,
        arguments: argparse.Namespace,
    ) -> None:
        self.repository, self.file, self.identity = repository, file, arguments.identity
        self.check_pages, self.snapshots, self.snapshot = arguments.check_pages, snapshots, snapshot
        private = private_part(snapshot, self.identity)
        self.digest = private["image_digest"]
        self.page_map = read_page_map(snapshot, private)
        self.wanted = collections.Counter(self.page_map)
        self.hashes = bytearray(16 * snapshot.page_count)

    def write(self) -> None:
        """Write the whole image, and verify it."""
        size = self.snapshot.page_size
        self.file.truncate(size * self.snapshot.page_count)
        if self.wanted[0]:
            lock_page = (1 << 30) // size
            self.hashes[16 * lock_page : 16 * lock_page + 16] = page_hashes(bytes(size), size)
        for position, pack in enumerate(self.snapshot.packs, 1):
            if self.wanted[position]:
                progress(f"pack {position} of {len(self.snapshot.packs)}")
                key = pack_key(self.snapshot, pack)
                try:
                    self.place(position, self.read(key, pack))
                except FileNotFoundError:
                    raise missing(self.snapshots, self.snapshot, [key]) from None
                except Failure as error:
                    hint = error.hint or without(self.snapshots, self.snapshot, [key])
                    raise Failure(f"pack {key}: {error}", hint, error.code) from error
        progress("the digest of the image")
        if blake3(bytes(self.hashes)) != self.digest:
            hint = "try another snapshot"
            raise Failure(f"the packs of snapshot {self.snapshot.id} do not make up its image", hint)

    def replay(self, replay: Replay) -> None:
        """Turn the image, which is complete, into the state after the last commit of `replay`."""
        size, after = self.snapshot.page_size, replay.after
        zeros = page_hashes(bytes(size), size)
        del self.hashes[16 * replay.page_count :]
        self.hashes += zeros * (replay.page_count - len(self.hashes) // 16)
        for position, name in enumerate(replay.segments, 1):
            progress(f"segment {position} of {len(replay.segments)}")
            segment = read_segment(self.repository, name, self.identity)
            if segment.head["page_size"] != size or name.first > after + 1:
                raise Failure(f"segment {name.key} does not continue what comes before it")
            low, high = after - name.first, replay.until - name.first
            chosen = {i for i, (_, _, number) in enumerate(segment.commits) if low < number <= high}
            newest = {page: i for i, (page, commit) in enumerate(segment.table) if commit in chosen}
            for page, i in newest.items():
                if page <= replay.page_count:
                    image = bytes(segment.images[i * size : (i + 1) * size])
                    self.file.seek((page - 1) * size)
                    self.file.write(image)
                    self.hashes[16 * page - 16 : 16 * page] = page_hashes(image, size)
            after = max(after, name.last)
        self.file.truncate(size * replay.page_count)
        self.complete_first_page()

    def complete_first_page(self) -> None:
        """Give page 1 the change counter that stands for the content of the image, as a snapshot has it."""
        self.file.seek(0)
        page = bytearray(self.file.read(self.snapshot.page_size))
        page[24:28] = page[92:96] = bytes(4)
        counter = bytes.fromhex(blake3(bytes(page) + bytes(self.hashes[16:]))[:8])
        page[24:28] = page[92:96] = counter if any(counter) else b"\0\0\0\1"
        self.file.seek(0)
        self.file.write(page)

    def read(self, key: str, pack: dict[str, Any]) -> Pack:
        """Return a pack, after a check that it is the one that the manifest names."""
        data = self.repository.read(key, pack["stored_bytes"])
        if hashlib.sha256(data).hexdigest() != pack["sha256"]:
            raise Failure("it does not have the SHA-256 that names it")
        if len(data) != pack["stored_bytes"]:
            raise Failure(f"it has {len(data)} bytes, and the manifest says {pack['stored_bytes']}")
        if pack.get("encryption"):
            data = decrypted(data, self.identity)
        elif self.check_pages and blake3(data[: pack["index_bytes"]])[:32] != pack["index_hash"]:
            raise Failure("its index does not have the digest in the manifest")
        return read_pack(data, self.snapshot.page_size, pack)

    def place(self, position: int, pack: Pack) -> None:
        """Write the pages that the page map assigns to the pack at `position`."""
        size, written = self.snapshot.page_size, 0
        if self.check_pages and page_hashes(pack.images, size) != pack.hashes:
            raise Failure("its pages do not match its index")
        for i, number in enumerate(pack.numbers):
            if number <= self.snapshot.page_count and self.page_map[number - 1] == position:
                self.file.seek((number - 1) * size)
                self.file.write(pack.images[i * size : (i + 1) * size])
                self.hashes[16 * number - 16 : 16 * number] = pack.hashes[16 * i : 16 * i + 16]
                written += 1
        if written != self.wanted[position]:
            raise Failure("it lacks pages that the snapshot needs from it")


def missing(snapshots: list[Snapshot], snapshot: Snapshot, keys: list[str]) -> Failure:
    """Return the failure for objects that were not copied, or no longer exist."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    hint = f"copy what this prints, then try again: python3 rescue.py needs {snapshot.database}@{snapshot.id}"
    hint += f"; if it is missing in the source of the copy too: {without(snapshots, snapshot, keys)}"
    return Failure(f"{keys[0]}{more} is missing here, and snapshot {snapshot.id} needs it", hint)


def without(snapshots: list[Snapshot], snapshot: Snapshot, keys: list[str]) -> str:
    """Return the hint for packs (`keys`) that `snapshot` needs, and that are lost."""
    for each in reversed(snapshots):
        if each.database == snapshot.database and not set(keys) & set(needs(each)):
            return f"the newest snapshot that does not need it is {each.database}@{each.id}"
    return "all snapshots here need it: find another copy of this repository"


def sqlite_findings(file: Path) -> tuple[list[str], str]:
    """Return the problems that SQLite finds in a database, or why it could not check it. Leaves no other files."""
    try:
        import sqlite3  # not every Python has it
    except ImportError:
        return [], "this Python has no sqlite3"
    connection = sqlite3.connect(f"file:{urllib.parse.quote(str(file))}?mode=ro&immutable=1", uri=True)
    try:
        # A schema can call functions; a check needs none.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        # Values that do not fit the type or constraint of their column are not damage, and may be many.
        rows = connection.execute(f"PRAGMA integrity_check({10**6})")
        damage = (str(text) for (text,) in rows if text != "ok" and not OF_VALUES.match(str(text)))
        return list(itertools.islice(damage, 20)), ""
    except sqlite3.DatabaseError as error:
        # For example, a collation, function or module of the application is missing in this Python.
        is_damage = "malformed" in str(error) or "not a database" in str(error)
        return ([str(error)], "") if is_damage else ([], str(error))
    finally:
        connection.close()


def restore(
    repository: Repository,
    snapshots: list[Snapshot],
    snapshot: Snapshot,
    target: Path,
    arguments: argparse.Namespace,
    replay: Replay | None = None,
) -> None:
    """Create a new file with the image of one of the `snapshots`, and what was committed after it, or no file."""
    reject_target(target)
    if repository.root.resolve() in target.resolve().parents:
        raise Failure(f"{target} would be in the repository", "name a file elsewhere: ../restored.db", USAGE)
    absent = [key for key in needs(snapshot)[1:] if not os.path.lexists(repository.root / key)]
    if absent:
        raise missing(snapshots, snapshot, absent)
    image_bytes = snapshot.page_size * snapshot.page_count
    disk = shutil.disk_usage(target.parent)
    if disk.total and image_bytes > disk.free:  # some file systems do not report their size
        hint = "name a file on another disk"
        raise Failure(f"{target} needs {image_bytes} bytes, and {disk.free} are free there", hint, USAGE)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    partial = Path(name)
    try:
        with open(descriptor, "r+b") as file:
            image = Image(repository, snapshots, snapshot, file, arguments)
            image.write()
            if replay:
                image.replay(replay)
            file.flush()
            os.fsync(file.fileno())
        progress("SQLite checks the database")
        findings, unchecked = sqlite_findings(partial) if snapshot.page_count else ([], "")
        reject_target(target)
        os.rename(partial, target)
        flush_name(target)
    finally:
        if partial.exists():
            partial.unlink()
    progress("")
    more = f" and the commits after it up to {id_time(replay.seen_at)}" if replay else ""
    print(f"restored {snapshot.database}@{snapshot.id}{more} to {target} ({os.path.getsize(target)} bytes)")
    if unchecked:
        say(f"note: all bytes are as captured, but SQLite could not check them: {printable(unchecked)}")
    if findings:
        raise Failure(
            f"{target} is as it was captured, byte for byte, but SQLite finds the database damaged: "
            f"{printable(findings[0])}",
            "the file is kept; try an older snapshot too",
        )


def reject_target(target: Path) -> None:
    """Raise when the file exists, or an old -wal or -journal, which SQLite would apply to the new file."""
    for path in (target, *(target.with_name(target.name + end) for end in ("-wal", "-journal", "-shm"))):
        if os.path.lexists(path):
            raise Failure(f"{path} already exists", "name a new file; nothing is ever overwritten", USAGE)
    if not target.parent.is_dir():
        raise Failure(f"{target.parent} is not a directory", "create it, or name another file", USAGE)


def flush_name(file: Path) -> None:
    """Make a name durable, if its file system can flush directories."""
    if os.name == "posix":
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems cannot: they write names through.
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- the command line


def needs(snapshot: Snapshot) -> list[str]:
    """Return the keys of the objects that a restore reads: the manifest, then the packs."""
    return [snapshot.key, *dict.fromkeys(pack_key(snapshot, pack) for pack in snapshot.packs)]


def chosen(snapshots: list[Snapshot], reference: str) -> Snapshot:
    """Return the snapshot of a reference: an id, its beginning, `latest`, or a time; DATABASE@ may precede it."""
    database, at, name = reference.rpartition("@")
    among = [each for each in snapshots if not at or each.database == database]
    last_id = last_before(name)
    if name == "latest" or last_id:
        if len({each.database for each in among}) > 1:
            raise Failure("there are several databases", f"write the name of one in front: NAME@{name}", USAGE)
        regular = [each for each in among if each.kind == "regular"]
        found = [each for each in regular if not last_id or each.id <= last_id][-1:]
    else:
        found = [each for each in among if name and each.id.startswith(name)]
    if len(found) != 1:
        how_many = "several snapshots match" if found else "no snapshot matches"
        hint = f"{REFERENCES}; python3 rescue.py lists them"
        if reference in {each.database for each in snapshots}:
            hint = f"that is a database; its newest snapshot is {reference}@latest"
        raise Failure(f"{how_many} {reference!r}", hint, NO_SUCH_SNAPSHOT)
    return found[0]


def last_before(text: str) -> str:
    """Return a text above the ids of all snapshots up to a time (local, if not UTC); "" if `text` is not a time."""
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}", text):
        return ""
    return f"{id_time(milliseconds_of(text))}~"


def milliseconds_of(text: str) -> int:
    """Return a time (local, if not UTC) in milliseconds since 1970."""
    try:
        moment = datetime.fromisoformat(re.sub(" ?(UTC|Z)$", "+00:00", text))
        return max(0, round(moment.timestamp() * 1000))
    except (ValueError, OverflowError, OSError) as error:
        hint = "write 2026-11-22T08:00, by the clock of this machine, or 2026-11-22T08:00Z"
        raise Failure(f"{text!r} is not a time: {error}", hint, USAGE) from error


def listed(snapshot: Snapshot) -> str:
    """Return the line of a snapshot in the list."""
    day, time = snapshot.id[:8], snapshot.id[9:15]
    taken = f"{day[:4]}-{day[4:6]}-{day[6:]} {time[:2]}:{time[2:4]}:{time[4:]} UTC"
    size = f"{snapshot.page_size * snapshot.page_count / 1e6:>10.1f} MB"
    notes = [*snapshot.tags, *(["before-restore"] if snapshot.kind != "regular" else [])]
    notes += ["encrypted"] if "private" in snapshot.values else []
    notes += ["in the trash"] if "/trash/" in snapshot.key else []
    return printable(f"{snapshot.database}@{snapshot.id}  {taken}  {size}  {', '.join(notes)}")


def printable(text: str) -> str:
    """Return a text on one line, without control characters for a terminal."""
    return "".join(each if each.isprintable() else " " for each in text).strip()


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def progress(text: str) -> None:
    """Show the present step on a terminal, on a line that the next one replaces; "" clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def parsed_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], epilog="RESTORE.md says more.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--repository", type=Path, default=here, metavar="DIR", help="default: where this file is")
    parser.add_argument("--trash", action="store_true", help="use the snapshots in the trash, which were removed")
    verbs = parser.add_subparsers(dest="verb", metavar="restore | needs")
    restoring = verbs.add_parser("restore", help="write one snapshot to a new file")
    restoring.add_argument("snapshot", help="DATABASE@latest, DATABASE@ID, the beginning of an id, or a local time")
    restoring.add_argument("target", type=Path, help="a new file")
    restoring.add_argument("--identity", metavar="FILE", help="secret key of age, for encrypted snapshots")
    restoring.add_argument("--at", metavar="TIME", help="the last commit at or before this time; SNAPSHOT is DATABASE")
    restoring.add_argument("--check-pages", action="store_true", help="also compare each page with its hash: slow")
    needing = verbs.add_parser("needs", help="print the names of the objects that one snapshot needs")
    needing.add_argument("snapshot", help="as for restore")
    needing.add_argument("--identity", metavar="FILE", help="also check that this secret key decrypts it")
    return parser.parse_args()


def run() -> int:
    """Carry out the command, and return the exit code."""
    arguments = parsed_arguments()
    repository = Repository(arguments.repository)
    snapshots, damaged = repository.snapshots(removed=arguments.trash)
    for each in damaged:
        say(f"damaged: {printable(str(each))}")
    if arguments.verb is None:
        print("\n".join(map(listed, snapshots)) or "no snapshots")
        return DAMAGE if damaged else 0
    target = Path(os.path.abspath(arguments.target)) if arguments.verb == "restore" else None
    if target and arguments.at:
        database, at = arguments.snapshot, milliseconds_of(arguments.at)
        base, replay = replay_until(repository, snapshots, database, at, arguments.identity)
        restore(repository, snapshots, base, target, arguments, replay)
        newer = [each.id for each in snapshots if each.database == database and each.kind == "regular"]
        newer = [each for each in newer if id_time(replay.seen_at) < each <= id_time(at)]
        if newer:
            say(f"note: a snapshot was taken after that commit and before {arguments.at}: {database}@{newer[-1]}")
        return 0
    snapshot = chosen(snapshots, arguments.snapshot)
    if arguments.verb == "needs":
        if arguments.identity is not None:
            private_part(snapshot, arguments.identity)
        print("\n".join(needs(snapshot)))
    elif target:
        restore(repository, snapshots, snapshot, target, arguments)
    return 0


def main() -> int:
    """Run, and turn each failure into two lines and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a tag may have letters that this terminal lacks
    try:
        return run()
    except Failure as error:
        progress("")
        say(f"error: {printable(str(error))}")
        if error.hint:
            say(f"hint: {error.hint}")
        return error.code
    except OSError as error:
        progress("")
        say(f"error: {error.filename or 'this machine'}: {error.strerror or error}")
        return UNAVAILABLE
    except KeyboardInterrupt:
        say("\nerror: interrupted; no new file was created")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
