"""rescue.py takes nothing from a repository on trust: the same vectors are refused that backupd refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import struct
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3
from harness.packs import decode_pack, encode_pack
from harness.rescuing import RESCUE

from backupd.format import is_page_size, manifest, pack, segment
from backupd.format.pack import page_hash
from backupd.format.pagemap import encode_page_map, image_digest
from backupd.format.segment import decode_segment
from backupd.rescue import rescue, rescue_objects
from backupd.store.keys import RESCUE_KEY, RESTORE_KEY

if TYPE_CHECKING:
    from harness.rescuing import Bare

_VECTORS = Path(__file__).parents[1] / "vectors"
_DAMAGE, _NO_SUCH_SNAPSHOT, _NEWER = 20, 12, 21

# What a restore does not need, and so does not look at.
_NOT_LOOKED_AT = {"base", "changed-pages", "stored-bytes", "source", "writer", "tag-4097-characters"}
_NOT_LOOKED_AT |= {"replayed", "id-impossible-date", "id-leap-second", "lone-surrogate", "missing-key"}

_PRIVATE_NOT_LOOKED_AT = {"private-missing-writer-id", "private-part-nonce-malformed", "private-part-missing-key"}
_KEY = _VECTORS / "valid/private.key"
_INDEX_BYTES = 28 + 20 + 4
"""Of a pack of one page."""


def _vectors(kind: str, where: str = "invalid") -> list[Path]:
    return sorted((_VECTORS / where).glob(f"{kind}-*"))


def _names(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 3072, 5 * 1024 + 1, 100_000])
def test_blake3_is_blake3(size: int) -> None:
    """The script's BLAKE3 is right at the boundaries of blocks and chunks, and for incomplete trees."""
    message = hashlib.shake_256(b"message").digest(size)
    assert rescue.blake3(message) == blake3(message).hexdigest()


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_page_hashes_are_page_hashes(size: int) -> None:
    """The script's hashes of several pages at once are those of backupd, for every page size."""
    pages = [hashlib.shake_256(bytes([number])).digest(size) for number in range(5)]
    assert rescue.page_hashes(b"".join(pages), size) == b"".join(map(page_hash, pages))


def test_limits_are_those_of_the_format() -> None:
    """Two programs, one format."""
    assert rescue.MAX_PACK_BYTES == pack.MAX_PACK_BYTES
    assert rescue.MAX_ENCRYPTED_PACK_BYTES == pack.MAX_ENCRYPTED_PACK_BYTES
    assert rescue.MAX_PACK_IMAGE_BYTES == pack.MAX_RAW_BYTES
    assert rescue.MIN_FRAME_BYTES == pack.MIN_FRAME_BYTES
    assert rescue.MAX_SEGMENT_BYTES == segment.MAX_ENCRYPTED_SEGMENT_BYTES
    assert rescue.MAX_SEGMENT_IMAGE_BYTES == segment.MAX_SEGMENT_RAW_BYTES
    assert rescue.MAX_MANIFEST_BYTES == manifest.MAX_MANIFEST_BYTES
    assert rescue.ALWAYS_COUNTED_SEQUENCES == manifest.ALWAYS_COUNTED_SEQUENCES


@pytest.mark.parametrize("path", _names(_vectors("pack", "valid")))
def test_valid_packs_are_read(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The script reads valid packs as backupd does."""
    monkeypatch.setenv("PATH", str(bare.path))
    index, images = decode_pack(path.read_bytes())
    found = rescue.read_pack(path.read_bytes(), index.page_size, {"pages": index.pages})
    assert (found.hashes, found.images) == (index.hashes, images)
    assert list(found.numbers) == list(struct.unpack(f"<{index.pages}I", index.page_numbers))


def test_all_frames_of_a_pack_take_one_process(bare: Bare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process for each frame would take longer than the decompression."""
    noting = tmp_path / "zstd"
    noting.write_text(f'#!/bin/sh\necho started >> {tmp_path}/started\nexec {bare.path}/zstd "$@"\n')
    noting.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{bare.path}")
    content = (_VECTORS / "valid/pack-256-frames.zst").read_bytes()
    assert len(rescue.read_pack(content, 65536, {"pages": 256}).images) == 1 << 24
    assert (tmp_path / "started").read_text() == "started\n"


@pytest.mark.parametrize("path", _names(_vectors("pack")))
def test_invalid_packs_are_refused(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Each pack that breaks one rule of the format is refused."""
    monkeypatch.setenv("PATH", str(bare.path))
    content = path.read_bytes()
    size, pages = struct.unpack_from("<II", content, 16) if len(content) >= 28 else (512, 1)
    size = size if is_page_size(size) else 512  # no manifest asks for another
    with pytest.raises(rescue.Failure) as caught:
        rescue.read_pack(content, size, {"pages": pages})
    assert caught.value.code == (_NEWER if path.stem == "pack-version-2" else _DAMAGE)


@pytest.mark.parametrize("path", _names(_vectors("manifest")))
def test_invalid_manifests_are_refused(path: Path) -> None:
    """Invalid manifests are refused, except for those whose damage does not concern a restore."""
    content = path.read_bytes()
    if any(path.stem.removeprefix("manifest-").startswith(name) for name in _NOT_LOOKED_AT):
        assert rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", content)).page_size == 512
        return
    with pytest.raises(rescue.Failure):
        rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", content))


@pytest.mark.parametrize("path", _names(_vectors("private", "valid")))
def test_valid_private_parts_are_read(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """A valid private part is read with the key of the vectors."""
    if path.suffix == ".json":
        monkeypatch.setenv("PATH", str(bare.path))
        assert _private_part(path)["page_map"]


@pytest.mark.parametrize("path", _names(_vectors("private")))
def test_invalid_private_parts_are_refused(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Invalid private parts are refused, except for those that are wrong where a restore does not look."""
    monkeypatch.setenv("PATH", str(bare.path))
    if path.stem in _PRIVATE_NOT_LOOKED_AT:
        assert _private_part(path)["page_map"]
        return
    with pytest.raises(rescue.Failure):
        _private_part(path)


def _private_part(path: Path) -> dict[str, Any]:
    snapshot = rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", path.read_bytes()))
    return rescue.private_part(snapshot, str(_KEY))


def test_the_golden_encrypted_snapshot_is_restored(bare: Bare, tmp_path: Path) -> None:
    """The golden encrypted snapshot restores byte for byte with its key."""
    repository = shutil.copytree(_VECTORS / "valid/encrypted", tmp_path / "repository")
    shutil.copy(RESCUE, repository)
    finished = bare.start("rescue.py", "restore", "latest", "../x.db", "--identity", _KEY, cwd=repository)
    assert "restored " in finished.stdout, finished
    assert (tmp_path / "x.db").read_bytes() == bytes([0, 0, 0, 1]) + bytes(508)


@pytest.mark.parametrize("path", _names(_vectors("map")))
def test_invalid_page_maps_are_refused(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Each page map that breaks one rule of the format is refused."""
    monkeypatch.setenv("PATH", str(bare.path))
    snapshot = rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", path.read_bytes()))
    with pytest.raises(rescue.Failure):
        rescue.read_page_map(snapshot, snapshot.values)


@pytest.mark.parametrize("path", _names(_vectors("segment")))
def test_invalid_segments_are_refused(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Each segment that breaks one rule of the format is refused, before it is replayed; a gap is not looked at."""
    monkeypatch.setenv("PATH", str(bare.path))
    if path.stem == "segment-gap-number":
        rescue.parsed_segment(path.read_bytes())
        return
    with pytest.raises(rescue.Failure) as raised:
        rescue.parsed_segment(path.read_bytes())
    is_newer = path.stem in {"segment-version-2", "segment-head-format-2"}
    assert raised.value.code == (_NEWER if is_newer else _DAMAGE)


@pytest.mark.parametrize("path", _names(_vectors("segment", "valid")))
def test_valid_segments_are_read(bare: Bare, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The script reads valid segments as backupd does."""
    monkeypatch.setenv("PATH", str(bare.path))
    data = path.read_bytes()
    found = rescue.parsed_segment(rescue.decrypted(data, str(_KEY)) if path.suffix == ".age" else data)
    expected = decode_segment(path.with_suffix("").read_bytes() if path.suffix == ".age" else data)
    assert found.commits == [*expected.commits]
    images = {
        page: bytes(found.images[i * expected.head.page_size :][: expected.head.page_size])
        for i, (page, _) in enumerate(found.table)
    }
    changes = expected.changes(0, 10**12)
    assert (tuple(images), b"".join(images.values())) == (changes.pages, changes.images)


@pytest.mark.parametrize("path", _names(_vectors("repository-segment")))
def test_segments_under_another_key_are_refused(path: Path) -> None:
    """A segment that is in order, under the key of another, is refused before anything is written."""
    repository = rescue.Repository(path)
    ((name,),) = repository.chains("app")
    with pytest.raises(rescue.Failure, match=r"it is not the one|does not have the SHA-256"):
        rescue.read_segment(repository, name, None)


@pytest.mark.parametrize("path", _names([path for path in _vectors("repository") if path.is_dir()]))
def test_invalid_repositories_are_refused(bare: Bare, tmp_path: Path, path: Path) -> None:
    """An invalid repository restores nothing, unless only a record is invalid, which no restore needs."""
    if not list(path.glob("app/snapshots/*")):
        assert re.search("trash|drill|continuity|segment", path.stem)
        return
    copied = shutil.copytree(path, tmp_path / "repository")
    shutil.copy(RESCUE, copied)
    (tmp_path / "out").mkdir()
    # The SHA-256 of the pack proves the index too, so that its own digest is compared on demand only.
    options = ["--check-pages"] if path.stem == "repository-pack-index-hash" else []
    refused = bare.start("rescue.py", "restore", "app@latest", tmp_path / "out/x.db", *options, cwd=copied)
    if re.search("trash|drill|continuity", path.stem):
        assert (tmp_path / "out/x.db").stat().st_size == 512  # a restore needs no record
        return
    assert refused.returncode in {_DAMAGE, _NO_SUCH_SNAPSHOT}, refused
    assert "error: " in refused.stderr
    assert list((tmp_path / "out").iterdir()) == []


def _forged(
    root: Path, pack_content: bytes, *, tags: tuple[str, ...] = (), digest: str = "0" * 64, pages: int = 1
) -> None:
    """A repository of one snapshot of `pages` pages of 512 bytes, all of them in one pack."""
    sha256 = hashlib.sha256(pack_content).hexdigest()
    golden = json.loads((_VECTORS / "valid/manifest-minimal.json").read_bytes())["manifest"]
    values = golden | {
        "tags": list(tags),
        "image_digest": digest,
        "packs": [
            {
                "sha256": sha256,
                "stored_bytes": len(pack_content),
                "pages": 1,
                "index_bytes": _INDEX_BYTES,
                "index_hash": pack.index_hash(pack_content[:_INDEX_BYTES]),
            }
        ],
        "page_map": encode_page_map(array("I", [1])),
    }
    body = json.dumps(values).encode()
    sealed = b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"
    for key, content in {
        "backupd.json": b'{"format": 1, "repository": "a"}',
        f"app/snapshots/{golden['id']}.json": sealed,
        f"app/packs/{sha256}.zst": pack_content,
        RESCUE_KEY: RESCUE.read_bytes(),
    }.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(content)


def test_a_bomb_is_stopped(bare: Bare, tmp_path: Path) -> None:
    """A frame that declares 512 bytes, has the name that fits, and holds 128 KiB in each of 100,000 blocks."""
    index = encode_pack(512, [1], page_hash(bytes(512)), bytes(512), level=1)[: _INDEX_BYTES - 4]
    block = struct.pack("<I", 1 << 1 | (1 << 17) << 3)[:3] + b"\0"
    last = struct.pack("<I", 1 | 1 << 1 | (1 << 17) << 3)[:3] + b"\0"
    frame = bytes.fromhex("28b52ffd640001") + block * 99_999 + last + bytes(4)
    _forged(tmp_path / "store", index + struct.pack("<I", len(frame)) + frame)
    refused = bare.rescue("restore", "latest", tmp_path / "x.db", repository=tmp_path / "store", code=_DAMAGE)
    assert re.search("zstd (refuses|gives more)", refused.stderr)
    assert not (tmp_path / "x.db").exists()


def test_pages_are_compared_on_demand(bare: Bare, tmp_path: Path) -> None:
    """A writer that put a wrong hash into an index is found by hashing the pages, and by nothing else."""
    wrong = page_hash(b"something else")
    _forged(tmp_path / "store", encode_pack(512, [1], wrong, bytes(512), level=1), digest=image_digest(wrong))
    refused = bare.rescue("restore", "latest", "../x.db", "--check-pages", repository=tmp_path / "store", code=_DAMAGE)
    assert "its pages do not match its index" in refused.stderr
    assert not (tmp_path / "x.db").exists()


def test_a_terminal_gets_no_orders(bare: Bare, tmp_path: Path) -> None:
    """Tags are text of users."""
    _forged(tmp_path, b"x", tags=("\x1b[2Jgone\r\n\u202efdp",))
    listed = bare.rescue(repository=tmp_path).stdout
    assert "[2Jgone   fdp" in listed
    assert listed.isascii()
    assert "\x1b" not in listed


@pytest.mark.parametrize("kind", ["fifo", "link", "link to nothing", "directory", "device"])
def test_what_is_no_plain_file_is_missing(bare: Bare, tmp_path: Path, kind: str) -> None:
    """A link, a pipe, a device or a directory counts as a missing object, and none blocks the restore."""
    repository = tmp_path / "store"
    _forged(repository, b"x")
    (file,) = (repository / "app/packs").iterdir()
    file.rename(tmp_path / "elsewhere")
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "link":
            file.symlink_to(tmp_path / "elsewhere")
        case "link to nothing":
            file.symlink_to(tmp_path / "nothing")
        case "directory":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
    refused = bare.rescue("restore", "latest", tmp_path / "x.db", repository=repository, code=_DAMAGE)
    assert "is missing here" in refused.stderr


def test_a_database_that_is_a_link_is_none(bare: Bare, tmp_path: Path) -> None:
    """A database that is a link out of the repository is not listed."""
    _forged(tmp_path, b"x")
    (tmp_path / "app").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "app").symlink_to(tmp_path.parent / "elsewhere")
    assert bare.rescue(repository=tmp_path).stdout == "no snapshots\n"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 1, "packs": 1e999}',
        b'{"format": 1, "format": 1}',
        b'{"format": true}',
        b"null",
        b"",
    ],
    ids=lambda body: body[:20].decode(),
)
def test_odd_json_is_refused(body: bytes) -> None:
    """Odd JSON is refused with no other exception."""
    sealed = b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"
    with pytest.raises(rescue.Failure):
        rescue.read_manifest("app/snapshots/x.json", rescue.unsealed("manifest", sealed))


def test_odd_base64_is_refused() -> None:
    """Text that is not base64 is refused as damage."""
    with pytest.raises(rescue.Failure):
        rescue.from_base64("the page map", "no base64!")
    assert rescue.from_base64("the page map", base64.b64encode(b"fine").decode()) == b"fine"


def test_both_objects_are_in_the_package() -> None:
    """The package has both objects, as they are put into a repository."""
    objects = rescue_objects()
    assert list(objects) == [RESTORE_KEY, RESCUE_KEY]
    assert objects[RESCUE_KEY] == RESCUE.read_bytes()
