from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from harness.packs import decode_pack, encode_pack
from msgspec.structs import replace

import backupd.format
from backupd.capture.facts import schema_digest
from backupd.encryption import Encryption
from backupd.errors import BackupdError, DamageError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError, SnapshotId
from backupd.format.manifest import (
    Manifest,
    SealedManifest,
    SnapshotKind,
    decode_manifest,
    encode_manifest,
    highest_sequence,
    open_manifest,
)
from backupd.format.pack import (
    MAX_ENCRYPTED_PACK_BYTES,
    MAX_PACK_BYTES,
    MAX_RAW_BYTES,
    MIN_FRAME_BYTES,
    index_hash,
    page_hash,
    parse_index,
)
from backupd.format.pagemap import find_pages, image_digest
from backupd.format.records import (
    EMPTY_RETENTION_RECORD,
    MAX_RECORD_BYTES,
    RECORDED_OUTCOMES,
    CheckOutcome,
    Continuity,
    DeletionRecord,
    Drill,
    FoundPack,
    Moment,
    RetentionRecord,
    SweepRecord,
    TrashEntry,
)
from backupd.format.segment import (
    MAX_ENCRYPTED_SEGMENT_BYTES,
    MAX_SEGMENT_BYTES,
    MAX_SEGMENT_RAW_BYTES,
    Anchor,
    decode_segment,
)
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.repository.windows import read_continuity
from backupd.rescue import rescue
from backupd.restore import restore_to_file
from backupd.restore.image import fetch_image
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VECTORS = Path(__file__).parent.parent / "vectors"
_VALID = _VECTORS / "valid"
_INVALID = _VECTORS / "invalid"
_FORMAT_MD = Path(backupd.format.__file__).with_name("FORMAT.md").read_text()
_LARGEST_SUM_BYTES = 260_000

_VALID_PACKS = {
    "pack-512-one-page.zst": (512, [1]),
    "pack-4096-not-contiguous.zst": (4096, [1, 2, 7, 4000, 262144]),
    "pack-65536-two-pages.zst": (65536, [3, 4]),
    "pack-highest-page-number.zst": (512, [1 << 26]),
    "pack-16-mib.zst": (65536, list(range(1, 257))),
    "pack-4096-three-frames.zst": (4096, list(range(1, 41))),
    "pack-256-frames.zst": (65536, list(range(1, 257))),
}
_DIVIDED_BY_OTHERS = {"pack-16-mib.zst", "pack-4096-three-frames.zst", "pack-256-frames.zst"}

_NOT_READ = "the compressed pages cannot be read: "
_INVALID_PACKS = {
    "byte-after-frames": "the pack has 104 bytes, and its frames end at 103",
    "byte-in-frame": "1 bytes of unused data",
    "checksum-wrong": f"{_NOT_READ}decompression error: Restored data doesn't match checksum",
    "content-flipped": f"{_NOT_READ}decompression error: Restored data doesn't match checksum",
    "content-size-too-large": "a compressed frame declares a size other than 1024 bytes",
    "content-size-too-small": "a compressed frame declares a size other than 1024 bytes",
    "dictionary": "a compressed frame needs a dictionary",
    "empty": "the pack is shorter than an empty index",
    "empty-frame-in-frame": "13 bytes of unused data",
    "frame-not-listed": "the pack has 134 bytes, and its frames end at 103",
    "frame-without-end": f"{_NOT_READ}decompression error: did not decompress full frame",
    "frames-too-short": "the pack has several frames of 512 bytes, less than 64 KiB",
    "holds-less-than-declared": _NOT_READ,
    "holds-more-than-declared": _NOT_READ,
    "index-frame-size": "the index frame has 65 bytes, 2 pages need 64",
    "lengths-of-other-frames": f"{_NOT_READ}decompression error: did not decompress full frame",
    "lengths-overflow": "and its frames end at 4294967",
    "more-pages-in-frames": "the pack claims 3 pages in each frame, outside 1 to 2",
    "more-than-16-mib": "257 pages of 65536 bytes, outside 1 page to 16 MiB",
    "no-checksum": "a compressed frame has no checksum",
    "no-checksum-in-last-frame": "a compressed frame has no checksum",
    "no-content-size": "a compressed frame declares a size other than 1024 bytes",
    "no-frame": "the pack has 72 bytes, and its frames end at 103",
    "no-pages": "0 pages of 512 bytes, outside 1 page to 16 MiB",
    "no-pages-in-frames": "the pack claims 0 pages in each frame, outside 1 to 2",
    "not-zstd": _NOT_READ,
    "page-number-0": "page numbers must be from 1 to 67108864",
    "page-number-too-high": "page numbers must be from 1 to 67108864",
    "page-size-1000": "1000 is not a page size",
    "page-size-131072": "131072 is not a page size",
    "page-size-256": "256 is not a page size",
    "page-twice": "page numbers do not ascend strictly",
    "pages-of-other-frame": "a compressed frame declares a size other than 65536 bytes",
    "pages-out-of-order": "page numbers do not ascend strictly",
    "second-index": "a compressed frame declares a size other than 1024 bytes",
    "truncated-frame": "the pack has 102 bytes, and its frames end at 103",
    "truncated-head": "the pack is shorter than an empty index",
    "truncated-index": "the pack ends inside its index",
    "version-0": "the pack claims format version 0",
    "version-2": "the pack is of format version 2, this reader knows 1",
    "wrong-magic": "the object does not begin with a pack index",
    "wrong-tag": "the object does not begin with a pack index",
}

_NOT_SEALED = "the object is not a sealed manifest"
_NO_VERSION = "format: the manifest does not name its version"
_INVALID_MANIFESTS = {
    "array": _NO_VERSION,
    "base-malformed": "base: 'none' is not a snapshot id",
    "byte-after-the-end": _NOT_SEALED,
    "byte-order-mark": "not JSON: Unexpected UTF-8 BOM",
    "changed-pages-negative": "changed_pages: Expected `int` >= 0",
    "database-101-characters": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "database-dots": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "database-empty": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "database-line-feed": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "database-slash": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "format-0": _NO_VERSION,
    "format-2": "the manifest is of format version 2",
    "format-fraction": _NO_VERSION,
    "format-text": _NO_VERSION,
    "format-true": _NO_VERSION,
    "id-impossible-date": "'20260229T085557123Z-7f3a91c2' is not a snapshot id: no such date",
    "id-leap-second": "'20161231T235960000Z-7f3a91c2' is not a snapshot id: no such date",
    "id-malformed": "id: '20261122T085557Z-7f3a91c2' is not a snapshot id",
    "id-number": "id: 20261122 is not text",
    "id-upper-case": "id: '20261122T085557123Z-7F3A91C2' is not a snapshot id",
    "image-digest-short": "image_digest: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "image-digest-upper-case": "image_digest: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "kind-unknown": "kind: Invalid enum value 'irregular'",
    "lone-surrogate": "not JSON: JSON is malformed: unexpected end of escaped utf-16 surrogate pair",
    "missing-key": "Object missing required field `base`",
    "not-a-number": "not JSON: NaN is not a number",
    "not-json": "not JSON: Expecting ',' delimiter",
    "not-sealed": _NOT_SEALED,
    "not-utf-8": "not JSON: 'utf-8' codec can't decode byte 0xff",
    "pack-index-bytes-too-few": "packs[0]: the index of 1 pages cannot have 48 bytes",
    "pack-index-bytes-too-many": "packs[0]: the index of 1 pages cannot have 56 bytes",
    "pack-index-hash-malformed": "packs[0].index_hash: Expected `str` matching regex '^[0-9a-f]{32}\\\\Z'",
    "pack-no-index-bytes": "packs[0]: a pack needs the length and the digest of its index",
    "pack-no-index-hash": "packs[0]: a pack needs the length and the digest of its index",
    "pack-no-bytes": "packs[0].stored_bytes: Expected `int` >= 1",
    "pack-no-pages": "packs[0].pages: Expected `int` >= 1",
    "pack-sha256-malformed": "packs[0].sha256: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "pack-too-many-bytes": "packs[0]: a pack has at most 17564700 bytes",
    "pack-too-many-pages": "packs[0].pages: Expected `int` <= 32768",
    "packs-object": "packs: Expected `array`, got `object`",
    "page-count-negative": "page_count: Expected `int` >= 0",
    "page-count-too-high": "page_count: Expected `int` <= 67108864",
    "page-map-null": "page_map: Expected `str`, got `null`",
    "page-size-1000": "1000 is not a page size",
    "page-size-131072": "131072 is not a page size",
    "repeated-key": "a key is repeated in one object",
    "repeated-key-inside": "a key is repeated in one object",
    "seal-upper-case": _NOT_SEALED,
    "seal-wrong": "the manifest does not match the SHA-256 of its seal",
    "sealed-with-spaces": _NOT_SEALED,
    "sequence-0": "sequence: Expected `int` >= 1",
    "sequence-fraction": "sequence: Expected `int`, got `float`",
    "replayed-commit-0": "replayed.commit: Expected `int` >= 1",
    "replayed-window-malformed": "replayed.window: 'yesterday' is not a snapshot id",
    "replayed-without-commit": "replayed: Object missing required field `commit`",
    "sequence-text": "sequence: Expected `int`, got `str`",
    "sequence-too-high": "sequence: Expected `int` <= 9007199254740991",
    "source-null": "source: Expected `object`, got `null`",
    "source-schema-digest-malformed": "source.schema_digest: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "source-tables-number": "source.tables[0]: Expected `str`, got `int`",
    "source-user-version-33-bits": "source.user_version: Expected `int` <= 2147483647",
    "stored-bytes-2-to-63": "stored_bytes: Expected `int` <= 9223372036854775807",
    "tag-4097-characters": "tags[0]: Expected `str` of length <= 4096",
    "tags-text": "tags: Expected `array`, got `str`",
    "truncated": _NOT_SEALED,
    "writer-mode-too-high": "writer.mode: Expected `int` <= 4095",
    "writer-uid-negative": "writer.uid: Expected `int` >= 0",
}

_MAP_NOT_READ = "the page map cannot be read: "
_WRONG_HOLE = "the page map has a hole other than the lock-byte page, or no hole there"
_INVALID_MAPS = {
    "byte-after-frame": f"{_MAP_NOT_READ}compressed input contains 1 bytes of unused data",
    "declares-32-tib": "the page map declares 35184372088832 bytes, this image needs 16",
    "holds-more-than-declared": _MAP_NOT_READ,
    "hole-beside-the-lock-page": _WRONG_HOLE,
    "hole-elsewhere": _WRONG_HOLE,
    "no-content-size": "the page map declares 18446744073709551615 bytes, this image needs 16",
    "no-hole-at-the-lock-page": _WRONG_HOLE,
    "not-base64": f"{_MAP_NOT_READ}Only base64 data is allowed",
    "not-zstd": _MAP_NOT_READ,
    "pack-beyond-list": "the page map names pack 2 of 1",
    "too-long": "the page map declares 20 bytes, this image needs 16",
    "too-short": "the page map declares 12 bytes, this image needs 16",
    "truncated": f"{_MAP_NOT_READ}decompression error: did not decompress full frame",
}

_NO_TIME = "is not a time"
_INVALID_RECORDS = {
    "continuity-by-not-above-after": "by: 1 is not above 1, which after says",
    "continuity-by-null": "by: Expected `int`, got `null`",
    "continuity-by-too-high": "by: Expected `int` <= 999999999999",
    "continuity-missing-key": "Object missing required field `base`",
    "continuity-outcome-unknown": "outcome: Invalid enum value 'failed'",
    "continuity-window-malformed": "window: 'latest' is not a snapshot id",
    "deletion-format-2": "the deletion is of format version 2",
    "deletion-no-packs": "packs: Expected `array` of length >= 1",
    "deletion-not-json": "not JSON: Expecting ',' delimiter",
    "deletion-pack-object": "packs[0]: Expected `str`, got `object`",
    "deletion-pack-upper-case": "packs[0]: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "drill-database-slash": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "drill-format-0": "format: the drill does not name its version",
    "drill-missing-key": "Object missing required field `at`",
    "drill-not-sealed": "the object is not a sealed drill",
    "drill-outcome-unknown": "outcome: Invalid enum value 'perhaps'",
    "drill-damaged-pack-malformed": "damaged_packs[0]: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "drill-damaged-packs-null": "damaged_packs: Expected `array`, got `null`",
    "drill-snapshot-malformed": "snapshot: 'latest' is not a snapshot id",
    "retention-accepted-shrink-malformed": "'all' is not a snapshot id",
    "retention-accepted-shrink-sequence-0": "accepted_shrink.sequence: Expected `int` >= 1",
    "retention-format-2": "the retention is of format version 2",
    "retention-held-missing-key": "held: Object missing required field `reason`",
    "retention-held-text": "held: Expected `object | null`, got `str`",
    "retention-missing-key": "Object missing required field `held`",
    "retention-repeated-key": "a key is repeated in one object",
    "sweep-array": "format: the sweep does not name its version",
    "sweep-format-text": "format: the sweep does not name its version",
    "sweep-no-packs": "packs: Expected `array` of length >= 1",
    "sweep-pack-malformed": "packs[0].sha256: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
    "sweep-pack-without-time": "packs[0]: Object missing required field `modified_at`",
    "trash-format-2": "the trash is of format version 2",
    "trash-format-true": "format: the trash does not name its version",
    "trash-manifest-damaged": "manifest: the manifest does not match the SHA-256 of its seal",
    "trash-manifest-format-2": "the manifest is of format version 2",
    "trash-manifest-object": "manifest: Expected `str`, got `object`",
    "trash-missing-key": "Object missing required field `reason`",
    "trash-not-sealed": "the object is not a sealed trash",
    "trash-reason-4097-characters": "reason: Expected `str` of length <= 4096",
    "trash-removed-at-impossible": "removed_at: '2026-02-29T03:00:00.123456Z' is not a time: day is",
    "trash-removed-at-local": _NO_TIME,
    "trash-removed-at-number": "removed_at: 1795575600 is not text",
    "trash-removed-at-seconds": _NO_TIME,
    "trash-seal-wrong": "the trash does not match the SHA-256 of its seal",
    "trash-truncated": "the object is not a sealed trash",
}
_INVALID_PRIVATE = {
    "encryption-unknown": "packs[0].encryption: Invalid enum value 'none'",
    "missing-writer-id": "Object missing required field `writer_id`",
    "not-base64": "private: not base64: Only base64 data is allowed",
    "number": "private: Expected `object`, got `int`",
    "of-another-snapshot": "the private part does not belong to this manifest",
    "pack-index-bytes": "packs[0]: an encrypted pack shows neither",
    "pack-index-hash": "packs[0]: an encrypted pack shows neither",
    "pack-too-many-bytes": "packs[0].stored_bytes: Expected `int` <= 17634556",
    "part-missing-key": "private part: Object missing required field `source`",
    "part-nonce-malformed": "private part: nonce: Expected `str` matching regex '^[0-9a-f]{32}\\\\Z'",
    "part-not-json": "private part: not JSON",
    "part-page-map-number": "private part: page_map: Expected `str`, got `int`",
    "part-repeated-key": "private part: a key is repeated in one object",
    "sha256-malformed": "private.sha256: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z'",
}
_CODECS: dict[str, tuple[Callable[[bytes], object], Callable[[Any], bytes]]] = {
    "continuity": (Continuity.decode, Continuity.encode),
    "deletion": (DeletionRecord.decode, DeletionRecord.encode),
    "drill": (Drill.decode, Drill.encode),
    "retention": (RetentionRecord.decode, RetentionRecord.encode),
    "sweep": (SweepRecord.decode, SweepRecord.encode),
    "trash": (TrashEntry.decode, TrashEntry.encode),
}

_SEGMENT_NOT_READ = "the content cannot be read: "
_INVALID_SEGMENTS = {
    "anchor-beyond-the-end": "an anchor is not within the commits up to 2",
    "anchor-not-ascending": "an anchor is not within the commits up to 2",
    "anchor-snapshot-malformed": "anchors[0].snapshot: 'latest' is not a snapshot id",
    "byte-after-frame": f"{_SEGMENT_NOT_READ}compressed input contains 1 bytes of unused data",
    "checksum-wrong": f"{_SEGMENT_NOT_READ}decompression error: Restored data doesn't match checksum",
    "commit-beyond-the-last": "an image is of a commit beyond the last one, or of the lock-byte page",
    "declares-81-mib": "the content declares no size, or more than 80 MiB",
    "dictionary": "the content has no checksum, or needs a dictionary",
    "empty": "the segment is shorter than its prefix",
    "gap-number": "gap: Expected `str | null`, got `int`",
    "head-array": "format: the segment does not name its version",
    "head-database-slash": "database: Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\\\\Z'",
    "head-first-0": "first: Expected `int` >= 1",
    "head-format-2": "the segment is of format version 2",
    "head-format-text": "format: the segment does not name its version",
    "head-last-too-high": "last: Expected `int` <= 999999999999",
    "head-missing-key": "Object missing required field `window`",
    "head-more-commits-than-images": "4 commits from 1 to 4 with 3 images are out of range",
    "head-more-commits-than-numbers": "2 commits from 1 to 1 with 3 images are out of range",
    "head-no-commits": "0 commits from 1 to 2 with 3 images are out of range",
    "head-no-images": "2 commits from 1 to 2 with 0 images are out of range",
    "head-not-json": "not JSON: Expecting ',' delimiter",
    "head-page-size-1000": "page_size: 1000 is not a page size",
    "head-repeated-key": "a key is repeated in one object",
    "head-too-long": "is longer than the content or 1 MiB",
    "head-without-last": "2 commits from 1 to 0 with 3 images are out of range",
    "number-of-the-last-wrong": "its last commit is 2, and its head says 3",
    "number-twice": "the numbers of commits do not ascend strictly",
    "head-window-malformed": "window: '20261122' is not a snapshot id",
    "image-twice": "the images do not ascend strictly by page and commit",
    "images-out-of-order": "the images do not ascend strictly by page and commit",
    "images-too-long": "2 commits and 3 images do not make",
    "images-too-short": "2 commits and 3 images do not make",
    "lock-page": "an image is of a commit beyond the last one, or of the lock-byte page",
    "more-than-64-mib": "1 commits and 1025 images do not make",
    "no-checksum": "the content has no checksum, or needs a dictionary",
    "no-content-size": "the content declares no size, or more than 80 MiB",
    "no-head": "the content is shorter than the length of its head",
    "not-zstd": _SEGMENT_NOT_READ,
    "page-count-0": "a commit leaves a number of pages outside 1 to 67108864",
    "page-count-too-high": "a commit leaves a number of pages outside 1 to 67108864",
    "page-number-0": "page numbers must be from 1 to 67108864",
    "page-number-too-high": "page numbers must be from 1 to 67108864",
    "prefix-size": "the prefix of the segment is not that of format version 1",
    "second-frame": f"{_SEGMENT_NOT_READ}compressed input contains 13 bytes of unused data",
    "time-after-9999": "a commit was seen after the year 9999",
    "time-descending": "a commit was seen before the one that it follows",
    "truncated": f"{_SEGMENT_NOT_READ}decompression error: did not decompress full frame",
    "truncated-prefix": "the segment is shorter than its prefix",
    "version-0": "the prefix of the segment is not that of format version 1",
    "version-2": "the segment is of format version 2, this reader knows 1",
    "wrong-magic": "the object does not begin as a segment",
    "wrong-tag": "the object does not begin as a segment",
}

_UNREADABLE = "backupd.json in .* cannot be read"
_INVALID_REPOSITORY_OBJECTS = {
    "format-2": "was written by a newer backupd",
    "no-format": _UNREADABLE,
    "no-id": _UNREADABLE,
    "not-json": _UNREADABLE,
    "unsafe-id": _UNREADABLE,
}
_NOT_ITS_KEY = "it is not the one that its key names"
_MISPLACED_SEGMENTS = dict.fromkeys(["database", "window", "first", "last", "time"], _NOT_ITS_KEY) | {
    "sha256": "does not have the SHA-256 that names it"
}
_INVALID_REPOSITORIES = {
    "image-digest": "do not make up its image",
    "manifest-of-another-database": "is damaged: it is that of other@20261122T085557123Z-7f3a91c2",
    "manifest-of-another-id": "is damaged: it is that of app@20261122T085557123Z-7f3a91c2",
    "pack-index-bytes": "its index is not the one in the manifest",
    "pack-index-hash": "its index is not the one in the manifest",
    "pack-stored-bytes": "its frames end at 78, and the manifest says 79 bytes",
    "pack-pages": "it has 1 pages, and the manifest says 2",
    "pack-lacks-page": "lacks pages that the snapshot needs from it",
    "pack-missing": "pack .* is missing from",
    "pack-not-its-name": "does not have the SHA-256 that names it",
    "pack-page-size": "its pages have 1024 bytes",
}


def vectors(directory: Path, kind: str) -> dict[str, Path]:
    """All vectors of one kind, by the name of the rule."""
    return {file.stem.removeprefix(f"{kind}-"): file for file in sorted(directory.glob(f"{kind}-*"))}


def only_snapshot(repository: Repository) -> Manifest:
    """The manifest of the one snapshot in `app`, by the id in its key."""
    (snapshot_id,) = repository.archive("app").listing().manifests
    return repository.archive("app").opened(repository.archive("app").manifest(snapshot_id))


def repository_at(root: Path, scratch: Path) -> Repository:
    """The repository below `root`, with its cache in `scratch`."""
    return Repository(DirectoryStore(root), StateDirectory(scratch / "state"))


@pytest.mark.parametrize("name", _VALID_PACKS)
def test_valid_packs_hold_what_the_script_put_into_them(name: str):
    """A golden pack gives the pages back that were written years ago, and hashes them as they were hashed."""
    page_size, numbers = _VALID_PACKS[name]
    pages = [number.to_bytes(4, "big") + bytes(page_size - 4) for number in numbers]
    index, images = decode_pack((_VALID / name).read_bytes())
    assert (index.page_size, np.frombuffer(index.page_numbers, "<u4").tolist()) == (page_size, numbers)
    assert index.hashes == b"".join(map(page_hash, pages))
    assert images == b"".join(pages)


def test_pages_that_do_not_compress_are_read():
    """A golden pack of noise gives the noise back."""
    index, images = decode_pack((_VALID / "pack-1024-noise.zst").read_bytes())
    assert np.frombuffer(index.page_numbers, "<u4").tolist() == [9]
    assert images == hashlib.shake_256(b"noise").digest(1024)


@pytest.mark.parametrize("name", sorted({*_VALID_PACKS, "pack-1024-noise.zst"} - _DIVIDED_BY_OTHERS))
def test_todays_writer_writes_the_same_index(name: str):
    """Pages of a golden pack, written again, get the index of the golden one byte for byte, and read back equal."""
    golden = (_VALID / name).read_bytes()
    index, images = decode_pack(golden)
    numbers = np.frombuffer(index.page_numbers, "<u4").tolist()
    written = encode_pack(index.page_size, numbers, index.hashes, images, level=3)
    frame_lengths = 4 * len(index.frames)
    assert parse_index(written).encoded[:-frame_lengths] == index.encoded[:-frame_lengths]
    assert decode_pack(written) == (index, images)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the zstd command line tool")
@pytest.mark.parametrize("name", sorted(path.name for path in _VALID.glob("pack-*.zst")))
def test_the_zstd_tool_alone_prints_the_pages(name: str):
    """`zstd -d` alone prints the page images."""
    file = _VALID / name
    printed = subprocess.run(["zstd", "-dc", file], check=True, capture_output=True).stdout
    assert printed == decode_pack(file.read_bytes())[1]


def segment(name: str, **values: Any) -> object:
    """What a golden segment says: its head, its commits, and the page images by page."""
    data = (_VALID / f"segment-{name}.zst").read_bytes()
    found = decode_segment(data)
    return (
        {"anchors": found.head.anchors, "gap": found.head.gap, "commits": found.commits}
        | {"changes": found.changes(0, 10**12)}
        | values
    )


def test_valid_segments_hold_what_the_script_put_into_them():
    """A golden segment gives back the commits that were written years ago."""
    found = decode_segment((_VALID / "segment-minimal.zst").read_bytes())
    assert (found.head.database, str(found.head.window)) == ("app", "20261122T085000000Z-0badcafe")
    assert (found.first, found.last, found.head.page_size) == (1, 2, 512)
    assert found.commits == ((1795337757123, 2, 0), (1795337758123, 2, 1))
    first, later, second = (number.to_bytes(4, "big") + bytes(508) for number in (1, 101, 2))
    assert found.changes(0, 1) == ((1, 2), first + second)
    assert found.changes(0, 2) == ((1, 2), later + second)
    anchor = Anchor(snapshot=SnapshotId("20261122T085557123Z-7f3a91c2"), after=0, by=2)
    minimal = segment("minimal")
    assert segment("anchor-and-gap") == segment("minimal", anchors=(anchor,), gap="the log was truncated")
    assert segment("unknown-keys", anchors=()) == minimal
    highest = decode_segment((_VALID / "segment-highest-numbers.zst").read_bytes())
    assert (highest.last, highest.commits) == (10**12 - 1, ((253402300799999, 1 << 26, 0),))
    assert highest.pages_of(highest.last) == (1 << 26,)
    around = decode_segment((_VALID / "segment-around-the-lock-page.zst").read_bytes())
    assert around.pages_of(1) == (16384, 16386)
    thinned = decode_segment((_VALID / "segment-thinned.zst").read_bytes())
    assert (thinned.is_thinned, found.is_thinned) == (True, False)
    assert (thinned.first, thinned.numbers, thinned.last) == (1, [4, 1 << 32], 1 << 32)
    assert thinned.changes(0, 4) == found.changes(0, 1)
    assert thinned.changes(3, 1 << 32) == found.changes(0, 2)


def test_the_encrypted_segment_is_decrypted():
    """The golden key turns the encrypted segment into the plain one."""
    encryption = Encryption(identity_file=_VALID / "private.key")
    content = encryption.decrypt((_VALID / "segment-minimal.zst.age").read_bytes(), what="a vector")
    assert content == (_VALID / "segment-minimal.zst").read_bytes()


@pytest.mark.parametrize("name", vectors(_INVALID, "segment"))
def test_invalid_segments_are_rejected(name: str):
    """Each segment that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError) as raised:
        decode_segment(vectors(_INVALID, "segment")[name].read_bytes())
    assert _INVALID_SEGMENTS[name] in str(raised.value)
    assert type(raised.value) is (NewerFormatError if name in {"version-2", "head-format-2"} else FormatError)


@pytest.mark.parametrize("name", _MISPLACED_SEGMENTS)
def test_a_segment_belongs_to_its_key(tmp_path: Path, name: str):
    """A segment that is in order, under the key of another, is damage."""
    archive = repository_at(_INVALID / f"repository-segment-of-another-{name}", tmp_path).archive("app")
    ((stored,),) = archive.listing().segments.values()
    with pytest.raises(DamageError, match=_MISPLACED_SEGMENTS[name]):
        archive.segment(stored)


@pytest.mark.parametrize("name", vectors(_VALID, "manifest"))
def test_valid_manifests_are_read(name: str):
    """Every golden manifest and its page map are read, and what is written again says the same."""
    manifest = decode_manifest(vectors(_VALID, "manifest")[name].read_bytes())
    page_map = manifest.decode_map()
    assert page_map.shape == (manifest.page_count,)
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("name", ["minimal", "empty-image", "tags", "before-restore", "unread-schema", "hole-4096"])
def test_todays_writer_writes_the_same_manifest(name: str):
    """A golden manifest that was read and is written again is the same, byte for byte."""
    golden = vectors(_VALID, "manifest")[name].read_bytes()
    assert encode_manifest(decode_manifest(golden)) == golden


def test_valid_manifests_say_what_they_say():
    """The keys that a restore and a listing depend on have their golden values."""
    read = {name: decode_manifest(file.read_bytes()) for name, file in vectors(_VALID, "manifest").items()}
    assert str(read["minimal"].id) == "20261122T085557123Z-7f3a91c2"
    assert read["minimal"].source.alembic_revisions == ("6a1f0e3b9c2d",)
    assert read["minimal"].writer.mode == 0o640
    assert (read["empty-image"].image_bytes, read["empty-image"].packs) == (0, ())
    assert (read["tags"].tags, read["tags"].sequence) == (("v1.2", "before-migration"), (1 << 53) - 1)
    assert read["before-restore"].kind is SnapshotKind.BEFORE_RESTORE
    assert str(read["before-restore"].base) == "20261122T093000999Z-ffffffff"
    assert read["unread-schema"].source.tables is None
    assert read["utf-8"].tags == ("größer",)
    assert read["unknown-keys"] == read["other-order-and-spaces"] == read["minimal"]


@pytest.mark.parametrize(("name", "lock"), [("hole-4096", 262145), ("hole-last-page-65536", 16385)])
def test_the_hole_is_where_the_format_says(name: str, lock: int):
    """The lock-byte page is the only hole, and its hash in the image digest is that of zeros."""
    manifest = decode_manifest(vectors(_VALID, "manifest")[name].read_bytes())
    assert find_pages(manifest.decode_map(), {0}).tolist() == [lock - 1]
    zeros = page_hash(bytes(manifest.page_size)) * manifest.page_count
    assert image_digest(zeros) == manifest.image_digest


def test_an_empty_image_has_the_digest_of_nothing():
    """The digest that FORMAT.md prints is that of 0 pages."""
    manifest = decode_manifest((_VALID / "manifest-empty-image.json").read_bytes())
    assert image_digest(b"") == manifest.image_digest
    assert manifest.image_digest in _FORMAT_MD


@pytest.mark.parametrize("name", vectors(_INVALID, "pack"))
def test_invalid_packs_are_rejected(name: str):
    """Each pack that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError) as raised:
        decode_pack(vectors(_INVALID, "pack")[name].read_bytes())
    assert _INVALID_PACKS[name] in str(raised.value)
    assert type(raised.value) is (NewerFormatError if name == "version-2" else FormatError)


@pytest.mark.parametrize("name", vectors(_INVALID, "manifest"))
def test_invalid_manifests_are_rejected(name: str):
    """Each manifest that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError) as raised:
        decode_manifest(vectors(_INVALID, "manifest")[name].read_bytes())
    assert _INVALID_MANIFESTS[name] in str(raised.value)
    assert type(raised.value) is (NewerFormatError if name == "format-2" else FormatError)


def decrypted(file: Path) -> Manifest:
    """The manifest of a vector with a private part, opened with the key of the vectors."""
    found = decode_manifest(file.read_bytes())
    assert isinstance(found, SealedManifest)
    private = Encryption(identity_file=_VALID / "private.key").decrypt(found.private.ciphertext, what="a vector")
    return open_manifest(found, private)


@pytest.mark.parametrize("name", ["minimal", "unknown-keys"])
def test_manifests_with_a_private_part_are_opened(name: str):
    """A private part is read with the key; without it, the manifest has what is in clear."""
    golden = decode_manifest((_VALID / "manifest-minimal.json").read_bytes())
    assert decrypted(_VALID / f"private-{name}.json") == golden
    sealed = decode_manifest((_VALID / f"private-{name}.json").read_bytes())
    assert isinstance(sealed, SealedManifest)
    assert (sealed.order, sealed.packs, sealed.writer_id) == (golden.order, golden.packs, golden.writer_id)


@pytest.mark.parametrize("name", vectors(_INVALID, "private"))
def test_invalid_private_parts_are_rejected(name: str):
    """Each manifest with a private part that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError) as raised:
        decrypted(vectors(_INVALID, "private")[name])
    assert _INVALID_PRIVATE[name] in str(raised.value)
    assert type(raised.value) is FormatError


def test_the_encrypted_repository_is_restored(tmp_path: Path):
    """The golden page is restored with the key; without it the snapshot is listed and not damaged."""
    store, state = DirectoryStore(_VALID / "encrypted"), StateDirectory(tmp_path / "state")
    history = Repository(store, state).archive("app").history()
    assert ([type(each) for each in history.manifests], history.damaged) == ([SealedManifest], ())
    repository = Repository(store, state, Encryption(identity_file=_VALID / "private.key"))
    manifest = only_snapshot(repository)
    with (tmp_path / "image").open("w+b") as image:
        fetch_image(repository.archive(manifest.database), manifest, image.fileno(), lambda _: None)
    assert (tmp_path / "image").read_bytes() == bytes([0, 0, 0, 1]) + bytes(508)


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the age command line tool")
def test_the_tools_alone_print_encrypted_pages():
    """`age -d` and `zstd -d` with the key alone print the page images."""
    (pack,) = (_VALID / "encrypted/app/packs").iterdir()
    content = subprocess.run(["age", "-d", "-i", _VALID / "private.key", pack], check=True, capture_output=True).stdout
    assert content == (_VALID / "pack-512-one-page.zst").read_bytes()


@pytest.mark.parametrize("name", vectors(_INVALID, "map"))
def test_invalid_page_maps_are_rejected(name: str):
    """A manifest around a wrong page map is read; the map is not, because of the one rule that it breaks."""
    manifest = decode_manifest(vectors(_INVALID, "map")[name].read_bytes())
    with pytest.raises(FormatError) as raised:
        manifest.decode_map()
    assert _INVALID_MAPS[name] in str(raised.value)
    assert type(raised.value) is FormatError


def records(directory: Path) -> dict[str, Path]:
    """All vectors of records, by their names."""
    return {file.stem: file for kind in _CODECS for file in vectors(directory, kind).values()}


@pytest.mark.parametrize("name", records(_VALID))
def test_todays_writer_writes_the_same_record(name: str):
    """A golden record that was read and is written again is the same, byte for byte, but for unknown keys."""
    decode, encode = _CODECS[name.partition("-")[0]]
    golden = records(_VALID)[name].read_bytes()
    written = encode(decode(golden))
    assert (written == golden) == (not name.endswith("unknown-keys"))
    assert decode(written) == decode(golden)


def test_valid_records_say_what_they_say():
    """The values that retention and sweeps depend on are the golden ones."""
    files = {name: file.read_bytes() for name, file in records(_VALID).items()}
    trash = TrashEntry.decode(files["trash-minimal"])
    assert trash.content == (_VALID / "manifest-minimal.json").read_bytes()
    assert (trash.removed_at.isoformat(), trash.reason) == ("2026-11-25T03:00:00.123456+00:00", "no rule keeps it")
    assert TrashEntry.decode(files["trash-manifest-in-utf-8"]).manifest.tags == ("größer",)
    drill = Drill.decode(files["drill-proven"])
    assert (str(drill.snapshot), drill.database, drill.outcome) == (str(trash.manifest.id), "app", CheckOutcome.PROVEN)
    assert Drill.decode(files["drill-unknown-keys"]) == drill
    words = ("proven", "intact", "failed", "damaged-source")
    assert tuple(Drill.decode(files[f"drill-{word}"]).outcome for word in words) == RECORDED_OUTCOMES
    assert drill.damaged_packs == ()
    assert Drill.decode(files["drill-failed-packs"]).damaged_packs == (trash.manifest.packs[0].sha256, "0" * 64)
    continuity = Continuity.decode(files["continuity-proven"])
    assert (continuity.window, str(continuity.base)) == (drill.snapshot, "20261122T091500000Z-0badcafe")
    assert str(continuity.snapshot) == "20261122T093000999Z-ffffffff"
    assert (continuity.after, continuity.by, continuity.is_broken) == (0, 1, False)
    assert Continuity.decode(files["continuity-unknown-keys"]) == continuity
    assert Continuity.decode(files["continuity-broken"]).is_broken
    both = RetentionRecord.decode(files["retention-both"])
    assert both.accepted_order == (2, SnapshotId("20261122T091500000Z-0badcafe"))
    assert both.held is not None
    assert (str(both.held.snapshot), both.held.reason[:13]) == ("20261122T093000999Z-ffffffff", "has 4 kB in u")
    assert RetentionRecord.decode(files["retention-minimal"]) == EMPTY_RETENTION_RECORD
    (found,) = SweepRecord.decode(files["sweep-one-pack"]).packs
    assert (found.sha256, found.modified_at) == (
        trash.manifest.packs[0].sha256,
        "2026-11-22T12:00:00.000000Z",
    )
    assert DeletionRecord.decode(files["deletion-two-packs"]).packs == (found.sha256, "0" * 64)


@pytest.mark.parametrize("name", records(_INVALID))
def test_invalid_records_are_rejected(name: str):
    """Each record that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError) as raised:
        _CODECS[name.partition("-")[0]][0](records(_INVALID)[name].read_bytes())
    assert _INVALID_RECORDS[name] in str(raised.value)
    assert type(raised.value) is (NewerFormatError if name.endswith("format-2") else FormatError)


def test_damaged_packs_have_an_end():
    """The longest list of damaged packs is read; one that is longer by one is rejected."""
    drill = Drill.decode((_VALID / "drill-failed-packs.json").read_bytes())
    longest = replace(drill, damaged_packs=("0" * 64,) * 100_000)
    assert Drill.decode(longest.encode()) == longest
    with pytest.raises(FormatError, match="length <= 100000"):
        Drill.decode(replace(drill, damaged_packs=("0" * 64,) * 100_001).encode())


@pytest.mark.parametrize("codec", [(DeletionRecord, "0" * 64), (SweepRecord, None)], ids=["deletion", "sweep"])
def test_records_of_packs_have_an_end(codec: tuple[Any, str | None]):
    """The longest list is read; one that is longer by one is rejected."""
    kind, pack = codec
    decode, encode = _CODECS["deletion" if pack else "sweep"]
    packs = (pack or FoundPack(sha256="0" * 64, modified_at=Moment.of(datetime(2026, 11, 22, tzinfo=UTC))),) * 100_000
    longest = encode(kind(packs=packs))
    assert len(longest) <= MAX_RECORD_BYTES
    assert decode(longest) == kind(packs=packs)
    with pytest.raises(FormatError, match="length <= 100000"):
        decode(encode(replace(kind(packs=packs), packs=(*packs, packs[0]))))


def test_a_trash_entry_belongs_to_its_key(tmp_path: Path):
    """A trash entry that holds another snapshot is damaged, and does not count as that one."""
    root = shutil.copytree(_INVALID / "repository-trash-of-another-id", tmp_path / "store")
    trash = repository_at(root, tmp_path).archive("app").holdings().trash
    assert trash.entries == ()
    assert [(str(each.id), each.reason) for each in trash.damaged] == [
        ("20261122T091500000Z-0badcafe", "it is that of app@20261122T085557123Z-7f3a91c2")
    ]


def test_a_drill_belongs_to_its_key(tmp_path: Path):
    """A drill stored under another snapshot's key proves nothing, and that one is perhaps proven."""
    repository = repository_at(_INVALID / "repository-drill-of-another-id", tmp_path)
    proofs, manifests = repository.archive("app").proofs(), repository.archive("app").history().manifests
    assert proofs.newest_proven(manifests) is None
    assert {str(each) for each in proofs.perhaps_proven(manifests)} == {"20261122T085557123Z-7f3a91c2"}


def test_a_continuity_record_belongs_to_its_key(tmp_path: Path):
    """A record stored under another window's key says nothing of either."""
    repository = repository_at(_INVALID / "repository-continuity-of-another-id", tmp_path)
    assert repository.archive("app").listing().continuity
    assert read_continuity(repository.archive("app")) == {}


@pytest.mark.parametrize("name", _INVALID_REPOSITORY_OBJECTS)
def test_invalid_repository_objects_are_rejected(tmp_path: Path, name: str):
    """A wrong `backupd.json` is damage or a newer format, and no repository."""
    (tmp_path / "store").mkdir()
    shutil.copy(_INVALID / f"repository-{name}.json", tmp_path / "store" / "backupd.json")
    with pytest.raises(BackupdError, match=_INVALID_REPOSITORY_OBJECTS[name]) as raised:
        repository_at(tmp_path / "store", tmp_path).exists()
    assert type(raised.value) is (UnsupportedFormatError if name == "format-2" else DamageError)


@pytest.mark.parametrize("name", _INVALID_REPOSITORIES)
def test_objects_that_do_not_fit_together_are_rejected(tmp_path: Path, name: str):
    """A restore from a repository that breaks one rule fails because of it, and leaves nothing behind."""
    repository = repository_at(_INVALID / f"repository-{name}", tmp_path)
    target = tmp_path / "restored" / "app.db"
    target.parent.mkdir()
    with pytest.raises(DamageError, match=_INVALID_REPOSITORIES[name]):
        restore_to_file(
            RestorePoint(repository.archive("app"), only_snapshot(repository)),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
    assert list(target.parent.iterdir()) == []


def test_the_golden_repository_is_restored(tmp_path: Path):
    """Every snapshot of the golden repository restores to the image whose SHA-256 was recorded with it."""
    repository = repository_at(_VALID / "repository", tmp_path)
    expected = json.loads((_VALID / "repository.expected.json").read_text())
    assert repository.databases() == ["app"]
    restored = {}
    for found in repository.archive("app").history().manifests:
        manifest = repository.archive("app").manifest(found.id)
        target = tmp_path / f"{manifest.id}.db"
        restore_to_file(
            RestorePoint(repository.archive(manifest.database), manifest),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        image = target.read_bytes()
        restored[str(manifest.id)] = {"sha256": hashlib.sha256(image).hexdigest(), "size_bytes": len(image)}
    assert restored == expected


def test_todays_writer_digests_the_same_schema(tmp_path: Path):
    """The digest of the schema of a golden image is the one that was recorded with it."""
    repository = repository_at(_VALID / "repository", tmp_path)
    newest = repository.archive("app").history().manifests[-1]
    target = tmp_path / "app.db"
    restore_to_file(
        RestorePoint(repository.archive(newest.database), newest),
        target,
        force=False,
        as_source=False,
        on_progress=lambda _: None,
    )
    with closing(sqlite3.connect(target)) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    assert schema_digest(rows) == newest.source.schema_digest


def test_each_golden_snapshot_restores_without_the_others(tmp_path: Path):
    """Each snapshot of the golden repository restores when the manifests of both others are gone."""
    for kept, facts in json.loads((_VALID / "repository.expected.json").read_text()).items():
        root = shutil.copytree(_VALID / "repository", tmp_path / kept)
        for manifest in (root / "app" / "snapshots").iterdir():
            if manifest.stem != kept:
                manifest.unlink()
        repository = repository_at(root, tmp_path)
        restore_to_file(
            RestorePoint(repository.archive("app"), only_snapshot(repository)),
            tmp_path / f"{kept}.db",
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        assert hashlib.sha256((tmp_path / f"{kept}.db").read_bytes()).hexdigest() == facts["sha256"]


def names_in(text: str) -> set[str]:
    """The names of vectors in a part of FORMAT.md."""
    kinds = "|".join(("pack", "manifest", "private", "map", "repository", "segment", *_CODECS))
    return set(re.findall(rf"`((?:{kinds})-[a-z0-9-]+(?:\.zst|\.zst\.age|\.json|/)|(?:encrypted|followed)/)`", text))


def listed(directory: Path) -> Iterator[str]:
    """The vectors of a directory, as FORMAT.md writes them."""
    for path in directory.iterdir():
        if path.name not in {"repository", "repository.expected.json", "followed.expected.json", "private.key"}:
            yield f"{path.name}/" if path.is_dir() else path.name


def test_the_specification_names_every_vector_and_no_other():
    """FORMAT.md and the directories of vectors agree."""
    rejected, accepted = _FORMAT_MD.split("## 12. A reader MUST reject")[1].split("## 13. A reader MUST accept")
    assert names_in(rejected) == set(listed(_INVALID))
    assert names_in(accepted) == set(listed(_VALID))


def test_every_rule_has_a_vector():
    """Each numbered rule of FORMAT.md is shown by at least one vector, and the numbers have no gap."""
    rules = re.findall(r"^\| ([PMEGSRL])([0-9]+) \|(.*)$", _FORMAT_MD, re.MULTILINE)
    assert len(rules) >= 95
    assert [f"{letter}{number}" for letter, number, text in rules if not names_in(text)] == []
    for letter in "PMEGSRL":
        numbers = [int(number) for each, number, _ in rules if each == letter]
        assert numbers == list(range(1, len(numbers) + 1))


def test_the_example_in_the_specification_is_a_vector():
    """The bytes that FORMAT.md explains, its manifest and its page map are those of the golden files."""
    dump = re.search(r"^00  5b.*?(?=^```)", _FORMAT_MD, re.MULTILINE | re.DOTALL)
    assert dump is not None
    example = bytes.fromhex("".join(line[4:54].split("  ")[0] for line in dump[0].splitlines()))
    assert example == (_VALID / "pack-512-one-page.zst").read_bytes()
    golden = (_VALID / "manifest-minimal.json").read_bytes()
    assert golden.decode() in _FORMAT_MD
    assert hashlib.sha256(example).hexdigest() == decode_manifest(golden).packs[0].sha256
    frame = base64.b64decode(decode_manifest(golden).page_map)
    assert frame.hex(" ") in _FORMAT_MD
    assert zstandard.ZstdDecompressor().decompress(frame) == bytes([1, 0, 0, 0])


def test_a_sequence_counts_as_the_specification_shows():
    """Each sequence in the table of the specification counts as it shows, in backupd and in rescue.py."""
    rows = re.findall(r"^\| ([0-9]+) \| ([0-9T:.-]+Z) \| ([0-9T:.-]+Z) \| ([0-9]+) \|$", _FORMAT_MD, re.MULTILINE)
    assert len(rows) == 8
    for sequence, put_at, now, counts in rows:
        times = datetime.fromisoformat(put_at), datetime.fromisoformat(now)
        assert min(int(sequence), highest_sequence(*times)) == int(counts)
        milliseconds = (round(each.timestamp() * 1000) for each in times)
        assert min(int(sequence), rescue.highest_sequence(*milliseconds)) == int(counts)


def test_the_specification_has_the_limits_of_the_code():
    """The numbers of section 14 are those that the readers use."""
    limits = dict(re.findall(r"^\| ([a-z ]+) \| ([0-9]+)(?: bytes)? \|", _FORMAT_MD, re.MULTILINE))
    assert int(limits["a pack object"]) == MAX_PACK_BYTES
    assert int(limits["an encrypted pack object"]) == MAX_ENCRYPTED_PACK_BYTES
    assert int(limits["a segment object"]) == MAX_SEGMENT_BYTES
    assert int(limits["an encrypted segment object"]) == MAX_ENCRYPTED_SEGMENT_BYTES
    assert f"| images in a segment | {MAX_SEGMENT_RAW_BYTES >> 20} MiB |" in _FORMAT_MD
    assert int(limits["frames in a pack"]) == MAX_RAW_BYTES // MIN_FRAME_BYTES


def test_the_index_can_be_read_alone():
    """The first bytes of a pack, as many as its manifest says, are enough for the page hashes, and are proven."""
    (entry,) = decode_manifest((_VALID / "manifest-minimal.json").read_bytes()).packs
    golden = (_VALID / "pack-512-one-page.zst").read_bytes()
    assert parse_index(golden[: entry.index_bytes]) == decode_pack(golden)[0]
    assert index_hash(golden[: entry.index_bytes]) == entry.index_hash


def test_the_vectors_stay_small_and_are_all_explained():
    """The vectors are a small part of a clone, and README.md says what each group is."""
    files = [path for path in _VECTORS.rglob("*") if path.is_file() and path.suffix in {".zst", ".json"}]
    assert sum(path.stat().st_size for path in files) < _LARGEST_SUM_BYTES
    readme = (_VECTORS / "README.md").read_text()
    for path in [*_VALID.iterdir(), *_INVALID.iterdir()]:
        assert f"`{path.name}" in readme
