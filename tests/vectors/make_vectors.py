"""Makes the golden vectors of repository format 1, once. A vector that exists is never written again.

Nothing of backupd is imported: this is a second implementation of format/FORMAT.md's writer, so that a mistake in the
first one does not hide in the vectors. Run it with the interpreter of the virtual environment, from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
import struct
import tempfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyrage
import zstandard
from blake3 import blake3

HERE = Path(__file__).parent
MAGIC = 0x184D2A5B
LOCK_BYTE = 1 << 30
MOST_BYTES = 17564700
MOST_ENCRYPTED_BYTES = 17634556
PRIVATE = ("image_digest", "page_map", "source", "writer")
# The key of the vectors, which protects nothing.
IDENTITY = "AGE-SECRET-KEY-1W52TX0GQ8ML337J9TMMLZEH2XM97RCFZ5DYZVZZ6WG7HKN33697Q7S0FXZ"
RECIPIENT = "age1jxs7xjt7vsvx70lju5qggrtw3qhl67maq5d4cg8aud59632yny3s65tte0"
ID_1 = "20261122T085557123Z-7f3a91c2"
ID_2 = "20261122T091500000Z-0badcafe"
ID_3 = "20261122T093000999Z-ffffffff"
WINDOW = "20261122T085000000Z-0badcafe"
SEEN_AT_MS = 1795337757123  # 2026-11-22T08:55:57.123Z


def page_hash(page: bytes) -> bytes:
    """The first 16 bytes of BLAKE3."""
    return blake3(page).digest(length=16)


def frame(content: bytes, *, checksum: bool = True, size: bool = True) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor(level=3, write_checksum=checksum, write_content_size=size).compress(content)


def raw_frame(content: bytes, *, declared: int) -> bytes:
    """One zstd frame with a single uncompressed block, no checksum, and a content size that may be wrong."""
    block = struct.pack("<I", len(content) << 3 | 1)[:3] + content
    return bytes.fromhex("28b52ffd") + b"\xe0" + struct.pack("<Q", declared) + block


def zero_page(number: int, size: int) -> bytes:
    """A page that compresses well and differs from all others."""
    return number.to_bytes(4, "big") + bytes(size - 4)


def packed(
    size: int,
    pages: dict[int, bytes],
    frames: list[bytes],
    *,
    step: int | None = None,
    lengths: list[int] | None = None,
    magic: int = MAGIC,
    tag: bytes = b"bkpd",
    version: int = 1,
) -> bytes:
    """A pack of `pages`, by number, in `frames` of `step` pages, whose `lengths` the index may have wrong."""
    counts = (len(pages), len(pages) if step is None else step)
    body = struct.pack(f"<4sIIII{len(pages)}I", tag, version, size, *counts, *pages)
    body += b"".join(map(page_hash, pages.values()))
    body += struct.pack(f"<{len(frames)}I", *(lengths or map(len, frames)))
    return struct.pack("<II", magic, len(body)) + body + b"".join(frames)


def pack(size: int, numbers: list[int], *, step: int | None = None, **fields: Any) -> bytes:
    """A pack of pages that compress well."""
    pages = {number: zero_page(number, size) for number in numbers}
    return packed(size, pages, frames_of([*pages.values()], step or len(pages)), step=step, **fields)


def frames_of(pages: list[bytes], step: int) -> list[bytes]:
    """The frames of pages, so many in each."""
    return [frame(b"".join(pages[start : start + step])) for start in range(0, len(pages), step)]


def sealed(body: bytes, *, name: str = "manifest") -> bytes:
    """A sealed object around the bytes of its JSON object."""
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","' + name.encode() + b'":' + body + b"}\n"


def record(name: str, values: dict[str, Any]) -> bytes:
    """A sealed object, one key a line."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return sealed(b"{\n" + lines.encode() + b"\n}", name=name)


def manifest(values: dict[str, Any]) -> bytes:
    """A manifest, one key a line."""
    return record("manifest", values)


def page_map(entries: list[int], **options: bool) -> str:
    """The text of a page map."""
    return base64.b64encode(frame(struct.pack(f"<{len(entries)}I", *entries), **options)).decode()


def image_digest(hashes: list[bytes]) -> str:
    """BLAKE3 over the page hashes."""
    return blake3(b"".join(hashes)).hexdigest()


def index_hash(index: bytes) -> str:
    """The digest of an index, as a manifest has it."""
    return blake3(index).hexdigest(length=16)


def entry(content: bytes) -> dict[str, Any]:
    """What a manifest says of a pack."""
    index_bytes = 8 + struct.unpack_from("<I", content, 4)[0]
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "stored_bytes": len(content),
        "pages": struct.unpack_from("<I", content, 20)[0],
        "index_bytes": index_bytes,
        "index_hash": index_hash(content[:index_bytes]),
    }


SOURCE = {
    "journal_mode": "wal",
    "encoding": "UTF-8",
    "free_pages": 0,
    "schema_version": 3,
    "user_version": 7,
    "application_id": 0,
    "sqlite_version": "3.45.1",
    "tables": ["alembic_version", "users"],
    "schema_digest": hashlib.sha256(b"").hexdigest(),
    "alembic_revisions": ["6a1f0e3b9c2d"],
}
WRITER = {
    "id": "5c1e0f6a7b8d9e2f",
    "host": "web-1",
    "path": "/data/app.db",
    "uid": 1000,
    "gid": 1000,
    "mode": 0o640,
    "backupd_version": "0.1.0",
}
ONE_PAGE = pack(512, [1])
VALUES: dict[str, Any] = {
    "format": 1,
    "id": ID_1,
    "sequence": 1,
    "base": None,
    "database": "app",
    "kind": "regular",
    "tags": [],
    "page_size": 512,
    "page_count": 1,
    "changed_pages": 1,
    "stored_bytes": len(ONE_PAGE),
    "image_digest": image_digest([page_hash(zero_page(1, 512))]),
    "packs": [entry(ONE_PAGE)],
    "page_map": page_map([1]),
    "source": SOURCE,
    "writer": WRITER,
}


def with_hole(size: int, beyond: int) -> dict[str, Any]:
    """Values of a manifest of an image that reaches `beyond` pages beyond the lock-byte page."""
    lock = LOCK_BYTE // size + 1
    hashes = [page_hash(bytes(size))] * (lock + beyond)
    return VALUES | {
        "page_size": size,
        "page_count": lock + beyond,
        "image_digest": image_digest(hashes),
        "page_map": page_map([1] * (lock - 1) + [0] + [1] * beyond),
    }


def age(content: bytes) -> bytes:
    """An age file that the key of the vectors decrypts; the bytes are others each time."""
    return bytes(pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(RECIPIENT)]))


def encrypted(values: dict[str, Any], *, packs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The values of a manifest with a private part, from those of one that anybody can read."""
    private = {"nonce": "0123456789abcdef" * 2} | {key: values[key] for key in PRIVATE}
    head = {key: value for key, value in values.items() if key not in PRIVATE}
    packs = values["packs"] if packs is None else packs
    return head | {"packs": packs, "writer_id": WRITER["id"], "private": private_part(json.dumps(private).encode())}


def private_part(plaintext: bytes) -> dict[str, str]:
    """What stands in a manifest for its private part."""
    return {"sha256": hashlib.sha256(plaintext).hexdigest(), "age": base64.b64encode(age(plaintext)).decode()}


def valid_private() -> dict[str, bytes]:
    """A manifest with a private part, and the key that decrypts everything here."""
    wrapped = age(ONE_PAGE)
    pack = {
        "sha256": hashlib.sha256(wrapped).hexdigest(),
        "stored_bytes": len(wrapped),
        "pages": 1,
        "encryption": "age",
    }
    return {
        "private.key": f"# public key: {RECIPIENT}\n{IDENTITY}\n".encode(),
        "private-minimal.json": manifest(encrypted(VALUES)),
        "private-unknown-keys.json": manifest(encrypted(VALUES | {"later": 1, "writer": WRITER | {"later": True}})),
        "encrypted/backupd.json": b'{"format": 1, "repository": "fedcba9876543210fedcba9876543210"}\n',
        f"encrypted/app/packs/{pack['sha256']}.zst.age": wrapped,
        f"encrypted/app/snapshots/{ID_1}.json": manifest(encrypted(VALUES, packs=[pack])),
    }


def invalid_private() -> dict[str, bytes]:
    """Manifests with a private part that a reader must reject, each for one reason."""
    good = encrypted(VALUES)
    plain = {"nonce": "0123456789abcdef" * 2} | {key: VALUES[key] for key in PRIVATE}
    text = json.dumps(plain).encode()
    private = good["private"]
    shown = entry(ONE_PAGE) | {"encryption": "age"}
    hidden = without(without(shown, "index_bytes"), "index_hash")
    wrong = {
        "number": good | {"private": 1},
        "sha256-malformed": good | {"private": private | {"sha256": "0" * 63}},
        "not-base64": good | {"private": private | {"age": "age-encryption.org/v1"}},
        "missing-writer-id": without(good, "writer_id"),
        "encryption-unknown": good | {"packs": [entry(ONE_PAGE) | {"encryption": "none"}]},
        "pack-too-many-bytes": good | {"packs": [hidden | {"stored_bytes": MOST_ENCRYPTED_BYTES + 1}]},
        "pack-index-bytes": good | {"packs": [without(shown, "index_hash")]},
        "pack-index-hash": good | {"packs": [without(shown, "index_bytes")]},
        "of-another-snapshot": good | {"private": private_part(text.replace(b"0123", b"4567")) | {"sha256": "0" * 64}},
        "part-not-json": good | {"private": private_part(b"{")},
        "part-missing-key": good | {"private": private_part(json.dumps(without(plain, "source")).encode())},
        "part-repeated-key": good | {"private": private_part(text[:-1] + b', "page_map": ""}')},
        "part-nonce-malformed": good | {"private": private_part(json.dumps(plain | {"nonce": "0"}).encode())},
        "part-page-map-number": good | {"private": private_part(json.dumps(plain | {"page_map": 1}).encode())},
    }
    return {f"private-{name}.json": manifest(values) for name, values in wrong.items()}


def valid_packs() -> dict[str, bytes]:
    """Packs that a reader must read."""
    noise = hashlib.shake_256(b"noise").digest(1024)
    return {
        "pack-512-one-page.zst": ONE_PAGE,
        "pack-1024-noise.zst": packed(1024, {9: noise}, [frame(noise)]),
        "pack-4096-not-contiguous.zst": pack(4096, [1, 2, 7, 4000, 262144]),
        "pack-65536-two-pages.zst": pack(65536, [3, 4]),
        "pack-highest-page-number.zst": pack(512, [1 << 26]),
        "pack-16-mib.zst": pack(65536, list(range(1, 257))),
        "pack-4096-three-frames.zst": pack(4096, list(range(1, 41)), step=16),
        "pack-256-frames.zst": pack(65536, list(range(1, 257)), step=1),
    }


def valid_manifests() -> dict[str, bytes]:
    """Manifests that a reader must read."""
    empty = {"page_count": 0, "changed_pages": 0, "stored_bytes": 0, "packs": [], "page_map": page_map([])}
    unread = dict.fromkeys(["tables", "schema_digest", "alembic_revisions"])
    compact = json.dumps(VALUES, separators=(",", ":")).encode()
    later = VALUES | {"later": {"key": [1, None]}, "writer": WRITER | {"later": True}}
    return {
        "manifest-minimal.json": manifest(VALUES),
        "manifest-empty-image.json": manifest(
            VALUES | empty | {"page_size": 4096, "image_digest": image_digest([]), "source": SOURCE | {"tables": []}}
        ),
        "manifest-tags.json": manifest(VALUES | {"tags": ["v1.2", "before-migration"], "sequence": (1 << 53) - 1}),
        "manifest-before-restore.json": manifest(VALUES | {"kind": "before-restore", "base": ID_3, "sequence": 8}),
        "manifest-replayed.json": manifest(
            VALUES | {"base": ID_3, "sequence": 9, "replayed": {"window": ID_3, "commit": 10**12 - 1}}
        ),
        "manifest-unread-schema.json": manifest(VALUES | {"source": SOURCE | unread}),
        "manifest-hole-4096.json": manifest(with_hole(4096, 3)),
        "manifest-hole-last-page-65536.json": manifest(with_hole(65536, 0)),
        "manifest-up-to-the-hole-65536.json": manifest(
            VALUES | {"page_size": 65536, "page_count": 16384, "page_map": page_map([1] * 16384)}
        ),
        "manifest-unknown-keys.json": manifest(later),
        "manifest-other-order-and-spaces.json": sealed(b" " + compact[:1] + b"\n" + compact[1:] + b" "),
        "manifest-utf-8.json": sealed(json.dumps(VALUES | {"tags": ["größer"]}, ensure_ascii=False).encode()),
    }


def invalid_packs() -> dict[str, bytes]:
    """Packs that a reader must reject, each for one reason."""
    good, size = pack(512, [1, 2]), 512
    end = 28 + 2 * 20 + 4
    head, two = good[:end], {number: zero_page(number, size) for number in (1, 2)}
    pages = b"".join(two.values())
    body = frame(pages)

    def of(*frames: bytes, **fields: Any) -> bytes:
        return packed(size, two, [*frames], **fields)

    large = [zero_page(number, 32768) for number in (1, 2, 3)]
    frames = frames_of(large, 2)
    ends = [len(frames[0]), len(frames[1])]

    def of_large(frames: list[bytes], **fields: Any) -> bytes:
        return packed(32768, dict(enumerate(large, 1)), frames, step=2, **fields)

    # A single segment, so that the header is magic, descriptor, content size: the dictionary id comes before the size.
    with_dictionary = body[:4] + bytes([body[4] | 1]) + b"\x2a" + body[5:]
    return {
        "pack-empty.zst": b"",
        "pack-truncated-head.zst": good[:23],
        "pack-wrong-magic.zst": pack(size, [1, 2], magic=MAGIC - 1),
        "pack-wrong-tag.zst": pack(size, [1, 2], tag=b"bkpe"),
        "pack-version-0.zst": pack(size, [1, 2], version=0),
        "pack-version-2.zst": pack(size, [1, 2], version=2),
        "pack-page-size-256.zst": pack(256, [1, 2]),
        "pack-page-size-1000.zst": pack(1000, [1, 2]),
        "pack-page-size-131072.zst": pack(131072, [1, 2]),
        "pack-no-pages.zst": packed(size, {}, [], step=1),
        "pack-more-than-16-mib.zst": pack(65536, list(range(1, 258))),
        "pack-no-pages-in-frames.zst": of(body, step=0),
        "pack-more-pages-in-frames.zst": of(body, step=3),
        "pack-frames-too-short.zst": pack(size, [1, 2], step=1),
        "pack-index-frame-size.zst": good[:4] + struct.pack("<I", end - 8 + 1) + head[8:] + b"\0" + body,
        "pack-truncated-index.zst": good[: end - 1],
        "pack-page-number-0.zst": pack(size, [0, 1]),
        "pack-page-number-too-high.zst": pack(size, [1, (1 << 26) + 1]),
        "pack-page-twice.zst": good[:32] + good[28:32] + good[36:],
        "pack-pages-out-of-order.zst": pack(size, [2, 1]),
        "pack-no-frame.zst": head,
        "pack-truncated-frame.zst": good[:-1],
        "pack-byte-after-frames.zst": good + b"\0",
        "pack-frame-not-listed.zst": good + body,
        "pack-lengths-overflow.zst": of_large(frames, lengths=[length + (1 << 31) for length in ends]),
        "pack-not-zstd.zst": head + b"\0" + body[1:],
        "pack-second-index.zst": of(good),
        "pack-frame-without-end.zst": of(body[:-1]),
        "pack-byte-in-frame.zst": of(body + b"\0"),
        "pack-empty-frame-in-frame.zst": of(body + frame(b"")),
        "pack-lengths-of-other-frames.zst": of_large(frames, lengths=[ends[0] - 1, ends[1] + 1]),
        "pack-no-content-size.zst": of(frame(pages, size=False)),
        "pack-content-size-too-small.zst": of(frame(pages[:size])),
        "pack-content-size-too-large.zst": of(frame(pages + pages[:size])),
        "pack-pages-of-other-frame.zst": of_large([frame(large[0]), frame(large[1] + large[2])]),
        "pack-holds-more-than-declared.zst": of(as_if_checked(raw_frame(pages * 2, declared=len(pages)), pages * 2)),
        "pack-holds-less-than-declared.zst": of(as_if_checked(raw_frame(pages[:size], declared=1024), pages[:size])),
        "pack-no-checksum.zst": of(frame(pages, checksum=False)),
        "pack-no-checksum-in-last-frame.zst": of_large([frames[0], frame(large[2], checksum=False)]),
        "pack-checksum-wrong.zst": good[:-1] + bytes([good[-1] ^ 1]),
        "pack-content-flipped.zst": of(flipped(as_if_checked(raw_frame(pages, declared=len(pages)), pages), at=99)),
        "pack-dictionary.zst": of(with_dictionary),
    }


def as_if_checked(unchecked: bytes, content: bytes) -> bytes:
    """A frame of `raw_frame` with the checksum of `content`, which zstd puts at the end of its own frame."""
    return unchecked[:4] + bytes([unchecked[4] | 4]) + unchecked[5:] + frame(content)[-4:]


def flipped(content: bytes, *, at: int) -> bytes:
    """`content` with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def invalid_manifests() -> dict[str, bytes]:
    """Manifests that a reader must reject, each for one reason."""
    good = manifest(VALUES)
    body = good[good.index(b'"manifest":') + 11 : -2]
    text = json.dumps(VALUES).encode()
    wrong: dict[str, dict[str, Any]] = {
        "format-0": {"format": 0},
        "format-2": {"format": 2},
        "format-text": {"format": "1"},
        "format-true": {"format": True},
        "format-fraction": {"format": 1.0},
        "id-malformed": {"id": "20261122T085557Z-7f3a91c2"},
        "id-upper-case": {"id": ID_1.upper()},
        "id-impossible-date": {"id": "20260229T085557123Z-7f3a91c2"},
        "id-leap-second": {"id": "20161231T235960000Z-7f3a91c2"},
        "id-number": {"id": 20261122},
        "sequence-0": {"sequence": 0},
        "sequence-too-high": {"sequence": 1 << 53},
        "sequence-text": {"sequence": "1"},
        "sequence-fraction": {"sequence": 1.0},
        "base-malformed": {"base": "none"},
        "database-empty": {"database": ""},
        "database-slash": {"database": "a/b"},
        "database-dots": {"database": ".."},
        "database-101-characters": {"database": "a" * 101},
        "database-line-feed": {"database": "app\n"},
        "kind-unknown": {"kind": "irregular"},
        "tags-text": {"tags": "v1"},
        "tag-4097-characters": {"tags": ["a" * 4097]},
        "page-size-1000": {"page_size": 1000},
        "page-size-131072": {"page_size": 131072},
        "page-count-negative": {"page_count": -1},
        "page-count-too-high": {"page_count": (1 << 26) + 1},
        "changed-pages-negative": {"changed_pages": -1},
        "stored-bytes-2-to-63": {"stored_bytes": 1 << 63},
        "image-digest-short": {"image_digest": "0" * 63},
        "image-digest-upper-case": {"image_digest": "A" * 64},
        "packs-object": {"packs": {}},
        "pack-sha256-malformed": {"packs": [entry(ONE_PAGE) | {"sha256": "g" * 64}]},
        "pack-no-bytes": {"packs": [entry(ONE_PAGE) | {"stored_bytes": 0}]},
        "pack-too-many-bytes": {"packs": [entry(ONE_PAGE) | {"stored_bytes": MOST_BYTES + 1}]},
        "pack-no-pages": {"packs": [entry(ONE_PAGE) | {"pages": 0}]},
        "pack-too-many-pages": {"packs": [entry(ONE_PAGE) | {"pages": 32769}]},
        "pack-no-index-bytes": {"packs": [without(entry(ONE_PAGE), "index_bytes")]},
        "pack-no-index-hash": {"packs": [without(entry(ONE_PAGE), "index_hash")]},
        "pack-index-bytes-too-few": {"packs": [entry(ONE_PAGE) | {"index_bytes": 48}]},
        "pack-index-bytes-too-many": {"packs": [entry(ONE_PAGE) | {"index_bytes": 56}]},
        "pack-index-hash-malformed": {"packs": [entry(ONE_PAGE) | {"index_hash": "0" * 64}]},
        "source-null": {"source": None},
        "source-tables-number": {"source": SOURCE | {"tables": [1]}},
        "source-schema-digest-malformed": {"source": SOURCE | {"schema_digest": "0"}},
        "source-user-version-33-bits": {"source": SOURCE | {"user_version": 1 << 31}},
        "writer-mode-too-high": {"writer": WRITER | {"mode": 0o10000}},
        "writer-uid-negative": {"writer": WRITER | {"uid": -1}},
        "replayed-window-malformed": {"replayed": {"window": "yesterday", "commit": 1}},
        "replayed-commit-0": {"replayed": {"window": ID_3, "commit": 0}},
        "replayed-without-commit": {"replayed": {"window": ID_3}},
        "page-map-null": {"page_map": None},
    }
    bodies = {
        "not-json": text[:-1],
        "not-utf-8": text.replace(b"web-1", b"web-\xff"),
        "byte-order-mark": b"\xef\xbb\xbf" + text,
        "not-a-number": text[:-1] + b', "later": NaN}',
        "lone-surrogate": text.replace(b"web-1", b"web-\\ud800"),
        "array": b"[" + text + b"]",
        "repeated-key": text[:-1] + b', "sequence": 1}',
        "repeated-key-inside": text.replace(b'"host"', b'"uid": 0, "host"'),
        "missing-key": json.dumps({key: value for key, value in VALUES.items() if key != "base"}).encode(),
    }
    envelopes = {
        "not-sealed": body + b"\n",
        "sealed-with-spaces": good.replace(b'"sha256":', b'"sha256": ', 1),
        "truncated": good[:-1],
        "byte-after-the-end": good + b"\n",
        "seal-wrong": good.replace(b'"sequence": 1', b'"sequence": 2'),
        "seal-upper-case": good[:11] + good[11:75].upper() + good[75:],
    }
    named = envelopes | {name: sealed(each) for name, each in bodies.items()}
    named |= {name: manifest(VALUES | each) for name, each in wrong.items()}
    return {f"manifest-{name}.json": content for name, content in named.items()}


def invalid_maps() -> dict[str, bytes]:
    """Manifests whose page map a reader must reject, each for one reason."""
    four = VALUES | {"page_count": 4}
    good = frame(struct.pack("<4I", 1, 1, 1, 1))
    hole = with_hole(65536, 1)
    lock = 16385
    frames = {
        "not-zstd": bytes(16),
        "truncated": good[:-1],
        "byte-after-frame": good + b"\0",
        "no-content-size": frame(struct.pack("<4I", 1, 1, 1, 1), size=False),
        "too-short": frame(struct.pack("<3I", 1, 1, 1)),
        "too-long": frame(struct.pack("<5I", 1, 1, 1, 1, 1)),
        "declares-32-tib": raw_frame(struct.pack("<4I", 1, 1, 1, 1), declared=1 << 45),
        "holds-more-than-declared": raw_frame(struct.pack("<400I", *[1] * 400), declared=16),
        "pack-beyond-list": frame(struct.pack("<4I", 1, 2, 1, 1)),
        "hole-elsewhere": frame(struct.pack("<4I", 1, 0, 1, 1)),
    }
    named = {name: four | {"page_map": base64.b64encode(each).decode()} for name, each in frames.items()}
    named["not-base64"] = four | {"page_map": "*" + base64.b64encode(good).decode()[1:]}
    named["no-hole-at-the-lock-page"] = hole | {"page_map": page_map([1] * (lock + 1))}
    named["hole-beside-the-lock-page"] = hole | {"page_map": page_map([1] * lock + [0])}
    return {f"map-{name}.json": manifest(values) for name, values in named.items()}


NOON = "2026-11-22T12:00:00.000000Z"
DIGEST = hashlib.sha256(ONE_PAGE).hexdigest()
TRASH: dict[str, Any] = {
    "format": 1,
    "removed_at": "2026-11-25T03:00:00.123456Z",
    "reason": "no rule keeps it",
    "manifest": manifest(VALUES).decode(),
}
DRILL = {"format": 1, "snapshot": ID_1, "database": "app", "outcome": "proven", "at": NOON}
CONTINUITY: dict[str, Any] = {
    "format": 1,
    "database": "app",
    "window": ID_1,
    "outcome": "proven",
    "base": ID_2,
    "after": 0,
    "snapshot": ID_3,
    "by": 1,
    "at": NOON,
}
RETENTION: dict[str, Any] = {"format": 1, "accepted_shrink": None, "held": None}
ACCEPTED: dict[str, Any] = {"snapshot": ID_2, "sequence": 2}
HELD = {"snapshot": ID_3, "reason": "has 4 kB in use, and 20261122T085557123Z-7f3a91c2 had 1 MB"}
SWEEP = {"format": 1, "packs": [{"sha256": DIGEST, "modified_at": NOON}]}
DELETION = {"format": 1, "packs": [DIGEST]}


def valid_records() -> dict[str, bytes]:
    """Trash entries, drills and the others that a reader must read."""
    odd = sealed(json.dumps(VALUES | {"tags": ["größer"], "later": 1}, ensure_ascii=False).encode()).decode()
    return {
        "trash-minimal.json": record("trash", TRASH),
        "trash-manifest-in-utf-8.json": record("trash", TRASH | {"manifest": odd, "reason": ""}),
        "drill-proven.json": record("drill", DRILL),
        "drill-intact.json": record("drill", DRILL | {"outcome": "intact"}),
        "drill-failed.json": record("drill", DRILL | {"outcome": "failed"}),
        "drill-failed-packs.json": record("drill", DRILL | {"outcome": "failed", "damaged_packs": [DIGEST, "0" * 64]}),
        "drill-damaged-source.json": record("drill", DRILL | {"outcome": "damaged-source"}),
        "drill-unknown-keys.json": record("drill", DRILL | {"damaged_packs": [], "later": {"key": [1, None]}}),
        "continuity-proven.json": record("continuity", CONTINUITY),
        "continuity-broken.json": record("continuity", CONTINUITY | {"outcome": "broken", "by": 10**12 - 1}),
        "continuity-unknown-keys.json": record("continuity", CONTINUITY | {"later": {"key": [1, None]}}),
        "retention-minimal.json": record("retention", RETENTION),
        "retention-both.json": record("retention", RETENTION | {"accepted_shrink": ACCEPTED, "held": HELD}),
        "retention-unknown-keys.json": record("retention", RETENTION | {"later": {"key": [1, None]}}),
        "sweep-one-pack.json": record("sweep", SWEEP),
        "deletion-two-packs.json": record("deletion", DELETION | {"packs": [DIGEST, "0" * 64]}),
    }


def invalid_records() -> dict[str, bytes]:
    """Trash entries, drills and the others that a reader must reject, each for one reason."""
    good = record("trash", TRASH)
    wrong: dict[str, dict[str, Any]] = {
        "trash-format-2": TRASH | {"format": 2},
        "trash-format-true": TRASH | {"format": True},
        "trash-missing-key": without(TRASH, "reason"),
        "trash-removed-at-local": TRASH | {"removed_at": "2026-11-25T03:00:00.123456+01:00"},
        "trash-removed-at-seconds": TRASH | {"removed_at": "2026-11-25T03:00:00Z"},
        "trash-removed-at-impossible": TRASH | {"removed_at": "2026-02-29T03:00:00.123456Z"},
        "trash-removed-at-number": TRASH | {"removed_at": 1795575600},
        "trash-reason-4097-characters": TRASH | {"reason": "a" * 4097},
        "trash-manifest-object": TRASH | {"manifest": VALUES},
        "trash-manifest-damaged": TRASH | {"manifest": manifest(VALUES).decode().replace("app", "apt", 1)},
        "trash-manifest-format-2": TRASH | {"manifest": manifest(VALUES | {"format": 2}).decode()},
        "drill-format-0": DRILL | {"format": 0},
        "drill-missing-key": without(DRILL, "at"),
        "drill-snapshot-malformed": DRILL | {"snapshot": "latest"},
        "drill-database-slash": DRILL | {"database": "a/b"},
        "drill-outcome-unknown": DRILL | {"outcome": "perhaps"},
        "drill-damaged-packs-null": DRILL | {"damaged_packs": None},
        "drill-damaged-pack-malformed": DRILL | {"damaged_packs": ["g" * 64]},
        "continuity-missing-key": without(CONTINUITY, "base"),
        "continuity-by-null": CONTINUITY | {"by": None},
        "continuity-by-not-above-after": CONTINUITY | {"after": 1},
        "continuity-by-too-high": CONTINUITY | {"by": 10**12},
        "continuity-outcome-unknown": CONTINUITY | {"outcome": "failed"},
        "continuity-window-malformed": CONTINUITY | {"window": "latest"},
        "retention-format-2": RETENTION | {"format": 2},
        "retention-missing-key": without(RETENTION, "held"),
        "retention-accepted-shrink-malformed": RETENTION | {"accepted_shrink": ACCEPTED | {"snapshot": "all"}},
        "retention-accepted-shrink-sequence-0": RETENTION | {"accepted_shrink": ACCEPTED | {"sequence": 0}},
        "retention-held-text": RETENTION | {"held": ID_1},
        "retention-held-missing-key": RETENTION | {"held": without(HELD, "reason")},
        "sweep-format-text": SWEEP | {"format": "1"},
        "sweep-no-packs": SWEEP | {"packs": []},
        "sweep-pack-malformed": SWEEP | {"packs": [{"sha256": "g" * 64, "modified_at": NOON}]},
        "sweep-pack-without-time": SWEEP | {"packs": [{"sha256": DIGEST}]},
        "deletion-format-2": DELETION | {"format": 2},
        "deletion-no-packs": DELETION | {"packs": []},
        "deletion-pack-upper-case": DELETION | {"packs": ["A" * 64]},
        "deletion-pack-object": DELETION | {"packs": SWEEP["packs"]},
    }
    named = {f"{name}.json": record(name.partition("-")[0], values) for name, values in wrong.items()}
    return named | {
        "trash-not-sealed.json": manifest(VALUES),
        "trash-truncated.json": good[:-1],
        "trash-seal-wrong.json": good.replace(b"no rule", b"no rude"),
        "drill-not-sealed.json": record("deletion", DRILL),
        "sweep-array.json": sealed(b"[1]", name="sweep"),
        "deletion-not-json.json": sealed(json.dumps(DELETION).encode()[:-1], name="deletion"),
        "retention-repeated-key.json": sealed(
            json.dumps(RETENTION).encode()[:-1] + b', "format": 1}', name="retention"
        ),
    }


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    """`values` without one key."""
    return {each: value for each, value in values.items() if each != key}


def tiny_repository(packs: dict[str, bytes], values: dict[str, Any], *, key: str = f"app/snapshots/{ID_1}.json") -> Any:
    """A repository with one manifest and `packs` by their names."""
    return {
        "backupd.json": b'{"format": 1, "repository": "0123456789abcdef0123456789abcdef"}\n',
        key: manifest(values),
    } | {f"app/packs/{name}.zst": content for name, content in packs.items()}


def invalid_repositories() -> dict[str, bytes]:
    """Repositories in which single objects are in order and do not belong together, and wrong `backupd.json`."""
    name = entry(ONE_PAGE)["sha256"]
    other, larger = pack(512, [2]), pack(1024, [1])
    good = {name: ONE_PAGE}
    two = pack(512, [1, 2])
    longer = {
        "index_bytes": entry(two)["index_bytes"] + 4,
        "index_hash": index_hash(two[: entry(two)["index_bytes"] + 4]),
    }
    repositories = {
        "pack-missing": tiny_repository({}, VALUES),
        "pack-not-its-name": tiny_repository({name: flipped(ONE_PAGE, at=30)}, VALUES),
        "pack-page-size": tiny_repository({entry(larger)["sha256"]: larger}, VALUES | {"packs": [entry(larger)]}),
        "pack-lacks-page": tiny_repository({entry(other)["sha256"]: other}, VALUES | {"packs": [entry(other)]}),
        "pack-index-hash": tiny_repository(good, VALUES | {"packs": [entry(ONE_PAGE) | {"index_hash": "0" * 32}]}),
        "pack-index-bytes": tiny_repository({entry(two)["sha256"]: two}, VALUES | {"packs": [entry(two) | longer]}),
        "pack-stored-bytes": tiny_repository(good, VALUES | {"packs": [entry(ONE_PAGE) | {"stored_bytes": 79}]}),
        "pack-pages": tiny_repository(good, VALUES | {"packs": [entry(ONE_PAGE) | {"pages": 2, "index_bytes": 72}]}),
        "image-digest": tiny_repository(good, VALUES | {"image_digest": image_digest([bytes(16)])}),
        "manifest-of-another-id": tiny_repository(good, VALUES, key=f"app/snapshots/{ID_2}.json"),
        "manifest-of-another-database": tiny_repository(good, VALUES | {"database": "other"}),
        "trash-of-another-id": tiny_repository(good, VALUES) | {f"app/trash/{ID_2}.json": record("trash", TRASH)},
        "drill-of-another-id": tiny_repository(good, VALUES)
        | {f"app/drills/{ID_1}.json": record("drill", DRILL | {"snapshot": ID_2})},
        "continuity-of-another-id": tiny_repository(good, VALUES)
        | {f"app/continuity/{ID_2}.json": record("continuity", CONTINUITY)},
    }
    files = {
        f"repository-{repository}/{key}": content
        for repository, objects in repositories.items()
        for key, content in objects.items()
    }
    return files | {
        "repository-format-2.json": b'{"format": 2, "repository": "0123456789abcdef0123456789abcdef"}\n',
        "repository-not-json.json": b'{"format": 1, "repository": "0123456789abcdef0123456789abcdef"\n',
        "repository-no-format.json": b'{"repository": "0123456789abcdef0123456789abcdef"}\n',
        "repository-no-id.json": b'{"format": 1}\n',
        "repository-unsafe-id.json": b'{"format": 1, "repository": "../../etc"}\n',
    }


SCRIPTS = (
    """
    PRAGMA page_size = 512;
    PRAGMA user_version = 7;
    CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120)
    INSERT INTO users SELECT i, printf('user %04d', i) FROM n;
    """,
    "UPDATE users SET name = 'Zoe' WHERE id IN (5, 100);",
    "DELETE FROM users WHERE id > 60; VACUUM;",
)


def states_of_a_database() -> list[bytes]:
    """Three images of one database: fresh, changed, and shrunk."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "app.db"
        connection = sqlite3.connect(file, isolation_level=None)
        images = []
        for script in SCRIPTS:
            connection.executescript(script)
            images.append(canonical(file.read_bytes()))
        connection.close()
        return images


def canonical(image: bytes) -> bytes:
    """The image with the change counter that FORMAT.md defines."""
    first, rest = bytearray(image[:512]), image[512:]
    first[24:28] = first[92:96] = bytes(4)
    hashes = b"".join(page_hash(rest[start : start + 512]) for start in range(0, len(rest), 512))
    first[24:28] = first[92:96] = blake3(bytes(first) + hashes).digest()[:4]
    return bytes(first) + rest


def golden_repository() -> dict[str, bytes]:
    """A whole repository with three snapshots, and what each of them is."""
    files: dict[str, bytes] = {}
    packs: list[dict[str, Any]] = []
    before: list[bytes] = []
    entries: list[int] = []
    expected: dict[str, Any] = {}
    for sequence, (image, snapshot_id) in enumerate(zip(states_of_a_database(), [ID_1, ID_2, ID_3], strict=True), 1):
        pages = [image[start : start + 512] for start in range(0, len(image), 512)]
        changed = [number for number, page in enumerate(pages, 1) if [page] != before[number - 1 : number]]
        stored = {number: pages[number - 1] for number in changed}
        content = packed(512, stored, [frame(b"".join(stored.values()))])
        packs.append(entry(content))
        entries = [len(packs) if number in changed else entries[number - 1] for number in range(1, len(pages) + 1)]
        used = sorted(set(entries))
        schema = sqlite_schema(image)
        values = VALUES | {
            "id": snapshot_id,
            "sequence": sequence,
            "base": [None, ID_1, ID_2][sequence - 1],
            "tags": ["v1"] if sequence == 2 else [],
            "page_count": len(pages),
            "changed_pages": len(changed),
            "stored_bytes": len(content),
            "image_digest": image_digest([page_hash(page) for page in pages]),
            "packs": [packs[position - 1] for position in used],
            "page_map": page_map([used.index(position) + 1 for position in entries]),
            "source": SOURCE
            | {
                "journal_mode": "delete",
                "schema_version": int.from_bytes(image[40:44], "big"),
                "sqlite_version": sqlite3.sqlite_version,
                "tables": ["users"],
                "schema_digest": hashlib.sha256("\n".join(sorted(map(json.dumps, schema))).encode()).hexdigest(),
                "alembic_revisions": None,
            },
        }
        files[f"app/packs/{packs[-1]['sha256']}.zst"] = content
        files[f"app/snapshots/{snapshot_id}.json"] = manifest(values)
        expected[snapshot_id] = {"sha256": hashlib.sha256(image).hexdigest(), "size_bytes": len(image)}
        before = pages
    files["backupd.json"] = b'{"format": 1, "repository": "0123456789abcdef0123456789abcdef"}\n'
    return {f"repository/{key}": content for key, content in files.items()} | {
        "repository.expected.json": json.dumps(expected, indent=2).encode() + b"\n"
    }


def sqlite_schema(image: bytes) -> list[tuple[Any, ...]]:
    """The rows that `schema_digest` covers."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "image.db"
        file.write_bytes(image)
        connection = sqlite3.connect(file)
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        connection.close()
        return rows


def segment(content: bytes, *, magic: int = MAGIC, size: int = 8, tag: bytes = b"bksg", version: int = 1) -> bytes:
    """A segment with this content."""
    return struct.pack("<II4sI", magic, size, tag, version) + frame(content)


def segment_content(
    head: dict[str, Any] | bytes,
    commits: list[tuple[int, ...]],
    table: list[tuple[int, int]],
    images: bytes,
    *,
    head_bytes: int | None = None,
) -> bytes:
    """The content of a segment: its head, commits (time, pages of the database), and images (page, index of commit).

    The number of a commit may be given as well, from 0; without it, none was left out.
    """
    text = head if isinstance(head, bytes) else json.dumps(head, separators=(",", ":")).encode()
    length = struct.pack("<I", len(text) if head_bytes is None else head_bytes)
    numbered = [commit if len(commit) == 3 else (*commit, index) for index, commit in enumerate(commits)]
    entries = [struct.pack("<QII", *commit) for commit in numbered] + [struct.pack("<II", *entry) for entry in table]
    return length + text + b"".join(entries) + images


SEGMENT_HEAD: dict[str, Any] = {
    "format": 1,
    "database": "app",
    "window": WINDOW,
    "first": 1,
    "last": 2,
    "page_size": 512,
    "commits": 2,
    "images": 3,
}
SEGMENT_COMMITS: list[tuple[int, ...]] = [(SEEN_AT_MS, 2), (SEEN_AT_MS + 1000, 2)]
SEGMENT_TABLE = [(1, 0), (1, 1), (2, 0)]
SEGMENT_IMAGES = zero_page(1, 512) + zero_page(101, 512) + zero_page(2, 512)
ANCHOR = {"snapshot": ID_1, "after": 0, "by": 2}


def small_segment(**values: Any) -> bytes:
    """A segment of two commits; the first writes the pages 1 and 2, the second page 1 again."""
    return segment(segment_content(SEGMENT_HEAD | values, SEGMENT_COMMITS, SEGMENT_TABLE, SEGMENT_IMAGES))


def valid_segments() -> dict[str, bytes]:
    """Segments that a reader must read."""
    highest = SEGMENT_HEAD | {"first": 10**12 - 1, "last": 10**12 - 1, "commits": 1, "images": 1}
    later = {"later": [1], "anchors": [ANCHOR | {"later": None}]}
    two = [(number, 0) for number in (16384, 16386)]
    around = SEGMENT_HEAD | {"page_size": 65536, "last": 1, "commits": 1, "images": 2}
    thinned = [(SEEN_AT_MS, 2, 3), (SEEN_AT_MS + 60000, 2, (1 << 32) - 1)]
    return {
        "segment-minimal.zst": small_segment(),
        "segment-anchor-and-gap.zst": small_segment(anchors=[ANCHOR], gap="the log was truncated"),
        "segment-unknown-keys.zst": small_segment(**later),
        "segment-highest-numbers.zst": segment(
            segment_content(highest, [(253402300799999, 1 << 26)], [(1 << 26, 0)], zero_page(1, 512))
        ),
        "segment-around-the-lock-page.zst": segment(
            segment_content(around, [(0, 16386)], two, zero_page(1, 65536) + zero_page(2, 65536))
        ),
        "segment-thinned.zst": segment(
            segment_content(SEGMENT_HEAD | {"last": 1 << 32}, thinned, SEGMENT_TABLE, SEGMENT_IMAGES)
        ),
        "segment-minimal.zst.age": age(small_segment()),
    }


def invalid_segments() -> dict[str, bytes]:
    """Segments that a reader must reject, each for one reason."""
    good = small_segment()
    content = segment_content(SEGMENT_HEAD, SEGMENT_COMMITS, SEGMENT_TABLE, SEGMENT_IMAGES)
    hole, body = LOCK_BYTE // 512 + 1, frame(content)

    def of(
        head: dict[str, Any] | bytes = SEGMENT_HEAD,
        commits: list[tuple[int, ...]] = SEGMENT_COMMITS,
        table: list[tuple[int, int]] = SEGMENT_TABLE,
        images: bytes = SEGMENT_IMAGES,
        **fields: int,
    ) -> bytes:
        return segment(segment_content(head, commits, table, images, **fields))

    late = {"first": 10**12 - 1, "last": 10**12}
    segments = {
        "empty": b"",
        "truncated-prefix": good[:15],
        "wrong-magic": segment(content, magic=MAGIC - 1),
        "wrong-tag": segment(content, tag=b"bkpd"),
        "version-0": segment(content, version=0),
        "version-2": segment(content, version=2),
        "prefix-size": segment(content, size=9),
        "not-zstd": good[:16] + b"\0" + good[17:],
        "truncated": good[:-1],
        "byte-after-frame": good + b"\0",
        "second-frame": good + frame(b""),
        "no-content-size": good[:16] + frame(content, size=False),
        "declares-81-mib": good[:16] + raw_frame(content, declared=81 << 20),
        "no-checksum": good[:16] + frame(content, checksum=False),
        "checksum-wrong": flipped(good, at=len(good) - 1),
        "dictionary": good[:16] + body[:4] + bytes([body[4] | 1]) + b"\x2a" + body[5:],
        "no-head": segment(b"\0\0\0"),
        "head-too-long": of(head_bytes=len(content)),
        "head-not-json": of(json.dumps(SEGMENT_HEAD).encode()[:-1]),
        "head-array": of(b"[1]"),
        "head-repeated-key": of(json.dumps(SEGMENT_HEAD).encode()[:-1] + b', "first": 1}'),
        "head-format-text": small_segment(format="1"),
        "head-format-2": small_segment(format=2),
        "head-missing-key": of(without(SEGMENT_HEAD, "window")),
        "head-database-slash": small_segment(database="a/b"),
        "head-window-malformed": small_segment(window="20261122"),
        "head-first-0": small_segment(first=0),
        "head-last-too-high": small_segment(**late),
        "head-page-size-1000": small_segment(page_size=1000),
        "head-no-commits": of(SEGMENT_HEAD | {"commits": 0}, commits=[]),
        "head-no-images": of(SEGMENT_HEAD | {"images": 0}, table=[], images=b""),
        "head-more-commits-than-images": of(
            SEGMENT_HEAD | {"last": 4, "commits": 4}, commits=[*SEGMENT_COMMITS, *[(SEEN_AT_MS + 1000, 2)] * 2]
        ),
        "head-more-commits-than-numbers": small_segment(last=1),
        "head-without-last": of(without(SEGMENT_HEAD, "last")),
        "number-of-the-last-wrong": small_segment(last=3),
        "number-twice": of(commits=[(*SEGMENT_COMMITS[0], 1), (*SEGMENT_COMMITS[1], 1)]),
        "anchor-not-ascending": small_segment(anchors=[ANCHOR | {"after": 2, "by": 1}]),
        "anchor-beyond-the-end": small_segment(anchors=[ANCHOR | {"by": 3}]),
        "anchor-snapshot-malformed": small_segment(anchors=[ANCHOR | {"snapshot": "latest"}]),
        "gap-number": small_segment(gap=1),
        "images-too-short": of(images=SEGMENT_IMAGES[:-1]),
        "images-too-long": of(images=SEGMENT_IMAGES + b"\0"),
        "more-than-64-mib": of(
            SEGMENT_HEAD | {"page_size": 65536, "last": 1, "commits": 1, "images": 1025},
            commits=SEGMENT_COMMITS[:1],
            table=[(number, 0) for number in range(1, 1026)],
            images=bytes(65536 * 1025),
        ),
        "time-descending": of(commits=SEGMENT_COMMITS[::-1]),
        "time-after-9999": of(commits=[SEGMENT_COMMITS[0], (253402300800000, 2)]),
        "page-count-0": of(commits=[SEGMENT_COMMITS[0], (SEEN_AT_MS + 1000, 0)]),
        "page-count-too-high": of(commits=[SEGMENT_COMMITS[0], (SEEN_AT_MS + 1000, (1 << 26) + 1)]),
        "images-out-of-order": of(table=[(1, 1), (1, 0), (2, 0)]),
        "image-twice": of(table=[(1, 0), (1, 0), (2, 0)]),
        "page-number-0": of(table=[(0, 0), (1, 1), (2, 0)]),
        "page-number-too-high": of(table=[(1, 0), (1, 1), ((1 << 26) + 1, 0)]),
        "commit-beyond-the-last": of(table=[(1, 0), (1, 2), (2, 0)]),
        "lock-page": of(table=[(1, 0), (1, 1), (hole, 0)]),
    }
    return {f"segment-{name}.zst": content for name, content in segments.items()}


def segment_key(content: bytes, *, last: int = 2, time: str = "20261122T085558123Z", **other: Any) -> str:
    """The key of a segment, right for the small one."""
    window, first, sha256 = other.get("window", WINDOW), other.get("first", 1), hashlib.sha256(content).hexdigest()
    return f"app/segments/{window}/{first:012}-{last:012}-{time}-{other.get('sha256', sha256)}.zst"


def misplaced_segments() -> dict[str, bytes]:
    """Segments that are in order by themselves, under keys that are not theirs."""
    good = small_segment()
    other = small_segment(database="other")
    keys = {
        "sha256": segment_key(good, sha256="0" * 64),
        "window": segment_key(good, window=ID_2),
        "first": segment_key(good, first=2),
        "last": segment_key(good, last=3),
        "time": segment_key(good, time="20261122T085558124Z"),
        "database": segment_key(other),
    }
    segments = {f"{name}/{key}": other if name == "database" else good for name, key in keys.items()}
    marks = {
        f"{name}/backupd.json": b'{"format": 1, "repository": "0123456789abcdef0123456789abcdef"}\n' for name in keys
    }
    return {f"repository-segment-of-another-{name}": content for name, content in (segments | marks).items()}


FOLLOWED = (
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)",
    """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
    INSERT INTO notes SELECT i, printf('note %04d', i) FROM n
    """,
    "UPDATE notes SET text = 'changed' WHERE id IN (3, 50)",
    "UPDATE notes SET text = 'again' WHERE id = 3",
    "DELETE FROM notes WHERE id > 30",
    "VACUUM",
    "INSERT INTO notes (text) VALUES ('after the vacuum')",
    "INSERT INTO notes VALUES (900, 'after that')",
    "UPDATE notes SET text = 'and later' WHERE id = 900",
    "PRAGMA user_version = 9",
)


def followed_states() -> tuple[list[bytes], list[tuple[int, dict[int, bytes]]]]:
    """A database in WAL mode after each commit: its image, the number of its pages, and the pages that were written."""
    images, ends = [], [0]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "app.db"
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA page_size = 512")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            for statement in FOLLOWED:
                connection.execute(statement)
                images.append(checkpointed(file))
                ends.append((Path(f"{file}-wal").stat().st_size - 32) // (24 + 512))
            log = Path(f"{file}-wal").read_bytes()
    frames = [log[start : start + 24 + 512] for start in range(32, len(log), 24 + 512)]
    commits = []
    for start, end in pairwise(ends):
        written = {int.from_bytes(each[:4], "big"): each[24:] for each in frames[start:end]}
        commits.append((int.from_bytes(frames[end - 1][4:8], "big"), dict(sorted(written.items()))))
    return images, commits


def checkpointed(file: Path) -> bytes:
    """The image of a database in WAL mode: a copy of it, after a checkpoint of the copy."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy.db"
        shutil.copy(file, copy)
        shutil.copy(f"{file}-wal", f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return copy.read_bytes()


def followed_segment(
    commits: list[tuple[int, dict[int, bytes]]], first: int, last: int, *, left_out: Any = (), **values: Any
) -> Any:
    """The key and the bytes of a segment with the commits `first` to `last`, one in each second, without some."""
    chosen, others = [], {}
    for number, (page_count, pages) in enumerate(commits[first - 1 : last], first):
        others |= pages
        if number not in left_out:
            chosen.append((page_count, dict(sorted(others.items())), number))
            others = {}
    images = sorted((page, index) for index, (_, pages, _) in enumerate(chosen) for page in pages)
    head = SEGMENT_HEAD | {"first": first, "last": last, "commits": len(chosen), "images": len(images)} | values
    content = segment(
        segment_content(
            head,
            [(SEEN_AT_MS + number * 1000, page_count, number - first) for page_count, _, number in chosen],
            images,
            b"".join(chosen[index][1][page] for page, index in images),
        )
    )
    return segment_key(content, first=first, last=last, time=f"20261122T0856{last - 3:02}123Z"), content


def followed_repository() -> dict[str, bytes]:
    """A repository with one snapshot, of commit 2, and segments of the commits 1 to 7; and what each commit is."""
    images, commits = followed_states()
    base = canonical(images[1])
    pages = [base[start : start + 512] for start in range(0, len(base), 512)]
    pack = packed(512, dict(enumerate(pages, 1)), [frame(base)])
    values = VALUES | {
        "page_count": len(pages),
        "changed_pages": len(pages),
        "stored_bytes": len(pack),
        "image_digest": image_digest([page_hash(page) for page in pages]),
        "packs": [entry(pack)],
        "page_map": page_map([1] * len(pages)),
        "source": SOURCE | {"tables": ["notes"]},
    }
    segments = [
        followed_segment(commits, 1, 3, gap="a new database", anchors=[ANCHOR | {"after": 1, "by": 2}]),
        followed_segment(commits, 4, 4),
        followed_segment(commits, 4, 6),
        followed_segment(commits, 7, 7),
        followed_segment(commits, 8, 10, left_out=[8]),
    ]
    files = tiny_repository({entry(pack)["sha256"]: pack}, values) | dict(segments)
    expected = {
        str(number): {"sha256": hashlib.sha256(canonical(image)).hexdigest(), "size_bytes": len(image)}
        for number, image in enumerate(images[1:], 2)
        if number != 8
    }
    return {f"followed/{key}": content for key, content in files.items()} | {
        "followed.expected.json": json.dumps(expected, indent=2).encode() + b"\n"
    }


def main() -> None:
    """Write every vector that does not exist."""
    vectors = {
        "valid": valid_packs()
        | valid_manifests()
        | valid_private()
        | valid_records()
        | valid_segments()
        | golden_repository()
        | followed_repository(),
        "invalid": invalid_packs()
        | invalid_manifests()
        | invalid_private()
        | invalid_maps()
        | invalid_records()
        | invalid_repositories()
        | invalid_segments()
        | misplaced_segments(),
    }
    for kind, files in vectors.items():
        for name, content in files.items():
            file = HERE / kind / name
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)


if __name__ == "__main__":
    main()
