"""The readers of bytes that an attacker may have written, each as a function of bytes that may raise what it documents.

Whatever else comes out of one of them is a bug: it would end a command with a traceback, at three in the morning.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from backupd.encryption import Encryption, read_identities
from backupd.errors import DamageError, IdentityNeededError, UnsupportedFormatError, UsageError
from backupd.format import FormatError, SnapshotId
from backupd.format.manifest import Manifest, SealedManifest, decode_manifest, encode_manifest, open_manifest
from backupd.format.pack import page_hash, parse_index
from backupd.format.pagemap import decode_page_map
from backupd.format.records import Continuity, DeletionRecord, Drill, RetentionRecord, SweepRecord, TrashEntry
from backupd.health import StatusFile
from backupd.repository import Repository
from backupd.repository.history import Listing
from backupd.rescue import rescue
from backupd.state import StateDirectory
from backupd.store import StoredObject
from backupd.store.directory import DirectoryStore
from backupd.store.keys import REPOSITORY_KEY, PackKey, RecordKey, SnapshotKey, is_object_key, require_safe_key
from harness.packs import decode_pack, encode_pack

if TYPE_CHECKING:
    from collections.abc import Callable

    Target = Callable[[bytes], None]

_VECTORS = Path(__file__).parents[1] / "vectors/valid"
_MOST_FUZZED_PAGES = 1 << 16
_SEAL_BYTES = 76
_PACK = encode_pack(512, [1, 2], page_hash(bytes(512)) * 2, bytes(1024), level=1)
_INDEX = parse_index(_PACK).encoded
_RECORDS: dict[str, Callable[[bytes], object]] = {
    "trash": TrashEntry.decode,
    "continuity": Continuity.decode,
    "drill": Drill.decode,
    "retention": RetentionRecord.decode,
    "sweep": SweepRecord.decode,
    "deletion": DeletionRecord.decode,
}
# A key of no use, so that age gets as far as it can.
_IDENTITY = "AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ".ljust(74, "Q")


def sealed(kind: str, body: bytes) -> bytes:
    """An object with the right SHA-256, so that what is behind the seal is reached."""
    return b'{"sha256":"%s","%s":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), kind.encode(), body)


def _manifest(data: bytes) -> None:
    with suppress(FormatError):
        _look_at(decode_manifest(data))


def _manifest_body(data: bytes) -> None:
    _manifest(sealed("manifest", data))


def _look_at(manifest: Manifest | SealedManifest) -> None:
    require_safe_key(str(SnapshotKey(manifest.database, str(manifest.id))))
    if isinstance(manifest, Manifest):
        assert decode_manifest(encode_manifest(manifest)) == manifest
        if manifest.page_count <= _MOST_FUZZED_PAGES:
            manifest.decode_map()


def _private_part(data: bytes) -> None:
    whole = decode_manifest((_VECTORS / "manifest-minimal.json").read_bytes())
    values = json.loads((_VECTORS / "manifest-minimal.json").read_bytes())["manifest"]
    for key in ("image_digest", "page_map", "source", "writer"):
        del values[key]
    values["writer_id"] = "a"
    values["private"] = {"sha256": hashlib.sha256(data).hexdigest(), "age": base64.b64encode(b"age").decode()}
    found = decode_manifest(sealed("manifest", json.dumps(values).encode()))
    assert isinstance(found, SealedManifest)
    with suppress(FormatError):
        opened = open_manifest(found, data)
        assert msgspec.structs.replace(opened, source=opened.source).id == whole.id
        opened.decode_map()


def _page_map(data: bytes) -> None:
    """The first bytes say the page size and how many pages and packs there are."""
    if len(data) < 4:
        return
    shift, pages, packs = struct.unpack_from("<BHB", data)
    with suppress(FormatError):
        text = base64.b64encode(data[4:]).decode()
        decode_page_map(text, page_size=512 << shift % 8, page_count=pages, packs=packs)


def _pack(data: bytes) -> None:
    with suppress(FormatError):
        parse_index(data)
    with suppress(FormatError):
        index, images = decode_pack(data)
        assert len(images) == index.pages * index.page_size


def _pack_frame(data: bytes) -> None:
    """One frame, whose length the index has right."""
    _pack(_INDEX[:-4] + struct.pack("<I", len(data)) + data)


def _records(data: bytes) -> None:
    """Read the data as each kind of record, as it is and sealed again."""
    for kind, decode in _RECORDS.items():
        for content in (data, sealed(kind, data)):
            with suppress(FormatError):
                decode(content)


def _repository_object(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "store").mkdir()
        (Path(home) / "store" / REPOSITORY_KEY).write_bytes(data)
        repository = Repository(DirectoryStore(Path(home) / "store"), StateDirectory(Path(home) / "state"))
        with suppress(DamageError, UnsupportedFormatError):
            assert repository.exists()
            snapshot = SnapshotId("20261122T085557123Z-7f3a91c2")
            assert repository.archive("app").catalog.hashes(snapshot).is_relative_to(Path(home) / "state/cache")


def _listing(data: bytes) -> None:
    """Each line is a key; what is recognized prints itself as it was, and leads nowhere else."""
    keys = data.decode(errors="surrogateescape").split("\n")
    at = datetime(2026, 11, 22, tzinfo=UTC)
    Listing.of("app", (StoredObject(key, 1, at) for key in keys))
    for key in keys:
        for parsed in (SnapshotKey.parse(key), PackKey.parse(key), RecordKey.parse(key)):
            if parsed is not None:
                assert str(parsed) == key
                require_safe_key(key)
        if is_object_key(key):
            require_safe_key(key)


def _status(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "status.json").write_bytes(data)
        with suppress(DamageError, UnsupportedFormatError):
            StatusFile(StateDirectory(Path(home))).find()


def _age(data: bytes) -> None:
    """A ciphertext, and a file of keys."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(UsageError):
            read_identities(Path(file.name))
    with tempfile.NamedTemporaryFile() as file:
        file.write(_IDENTITY.encode())
        file.flush()
        with suppress(IdentityNeededError, UsageError):
            Encryption((), Path(file.name)).decrypt(data, what="it")


def _rescue_manifest(data: bytes) -> None:
    """A manifest that rescue.py reads needs only safe keys, and is printable."""
    with suppress(rescue.Failure):
        snapshot = rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", sealed("manifest", data)))
        for key in rescue.needs(snapshot)[1:]:
            require_safe_key(key)
        assert all(map(str.isprintable, rescue.listed(snapshot)))


def _rescue_frame(data: bytes) -> None:
    """What rescue.py lets pass as one frame of 1024 bytes, zstd takes for one frame too, or refuses."""
    with suppress(rescue.Failure):
        rescue.reject_wrong_frame(data, 1024)


TARGETS: dict[str, Target] = {
    "manifest": _manifest,
    "manifest-body": _manifest_body,
    "private-part": _private_part,
    "page-map": _page_map,
    "pack": _pack,
    "pack-frame": _pack_frame,
    "records": _records,
    "repository-object": _repository_object,
    "listing": _listing,
    "status": _status,
    "age": _age,
    "rescue-manifest": _rescue_manifest,
    "rescue-frame": _rescue_frame,
}


def _body(file: Path) -> bytes:
    """What is behind the seal of a vector."""
    content = file.read_bytes()
    return content[content.index(b":", _SEAL_BYTES) + 1 : -2]


def seeds(name: str) -> list[bytes]:
    """Small right inputs of a reader, to begin with."""
    bodies = [_body(file) for file in sorted(_VECTORS.glob("manifest-*.json")) if file.stat().st_size < 5000]
    packs = [file.read_bytes() for file in sorted(_VECTORS.glob("pack-*.zst")) if file.stat().st_size < 5000]
    known = {
        "manifest": [sealed("manifest", body) for body in bodies],
        "manifest-body": bodies,
        "rescue-manifest": bodies,
        "private-part": [b'{"nonce": "%s",%s' % (b"0" * 32, body.lstrip(b" {")) for body in bodies],
        "page-map": [b"\0\1\0\1" + base64.b64decode("KLUv/SQEIQAAAQAAAFFTyx8=")],
        "pack": packs,
        "pack-frame": [_PACK[len(_INDEX) :]],
        "records": [
            content
            for kind in _RECORDS
            for file in sorted(_VECTORS.glob(f"{kind}-*.json"))
            for content in (file.read_bytes(), _body(file))
        ],
        "repository-object": [(_VECTORS / "repository/backupd.json").read_bytes()],
        "listing": [
            b"app/snapshots/20261122T085557123Z-7f3a91c2.json\napp/packs/%s.zst.age\nbackupd.json" % (b"0" * 64),
            b"app/trash/20261122T085557123Z-7f3a91c2.json\napp/sweeps/clock.json\n../x\n/etc/passwd\napp//x",
        ],
        "status": [b'{"version": 1, "written_at": "2026-11-22T08:55:57+00:00", "databases": {}}'],
        "age": [b"age-encryption.org/v1\n-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n"],
    }
    known["rescue-frame"] = known["pack-frame"]
    return known[name]
