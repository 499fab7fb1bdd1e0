"""What a few kilobytes may cost: bounded memory and time, whatever they claim. Measured in processes of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from backupd.format import MAX_IMAGE_PAGES

_MINIMAL = Path(__file__).parents[1] / "vectors/valid/manifest-minimal.json"
_ENDS_WITHIN_SECONDS = 60
_MEBIBYTE = 1 << 20

# The limit counts from what the process has when everything is imported.
_READ = """
import resource, sys
from backupd.format import FormatError, pagemap
from backupd.format.manifest import decode_manifest
from backupd.format.pack import decode_frame, parse_pack
data = open(sys.argv[1], "rb").read()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    if sys.argv[2] == "pack":
        index = parse_pack(data)
        for frame in index.frames:
            decode_frame(index, frame, data[frame.offset : frame.offset + frame.length])
    else:
        manifest = decode_manifest(data)
        if sys.argv[2] == "map":
            manifest.decode_map()
    print("read")
except FormatError as error:
    print("refused", str(error)[:200])
"""


def _sealed(body: bytes) -> bytes:
    return b'{"sha256":"%s","manifest":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body)


def _manifest(**values: object) -> bytes:
    return _sealed(json.dumps(json.loads(_MINIMAL.read_bytes())["manifest"] | values).encode())


def _read(tmp_path: Path, content: bytes, what: str, limit_bytes: int) -> str:
    file = tmp_path / "content"
    file.write_bytes(content)
    finished = subprocess.run(
        [sys.executable, "-c", _READ, str(file), what, str(limit_bytes)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_ENDS_WITHIN_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr[-1000:]
    return finished.stdout.strip()


def _map_of(pages: int) -> str:
    """A map of few bytes for an image of `pages` pages of 512 bytes, all of them in the first pack."""
    page_map = np.ones(pages, dtype="<u4")
    page_map[(1 << 30) // 512] = 0
    return base64.b64encode(zstandard.ZstdCompressor().compress(page_map.tobytes())).decode()


def test_the_largest_image_costs_nothing_before_it_is_restored(tmp_path: Path) -> None:
    """A manifest of some kilobytes claims 2^26 pages: it is listed for little, and only a restore makes the map."""
    content = _manifest(page_count=MAX_IMAGE_PAGES, page_map=_map_of(MAX_IMAGE_PAGES))
    assert len(content) < 100_000
    assert _read(tmp_path, content, "manifest", 16 * _MEBIBYTE) == "read"
    # The map itself, 256 MiB, and what is needed to look at it.
    assert _read(tmp_path, content, "map", 700 * _MEBIBYTE) == "read"


@pytest.mark.parametrize(
    "body",
    [
        b'{"format": 1, "x": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        b'{"a":' * 300_000 + b"1" + b"}" * 300_000,
        b'{"format": 1, "sequence": ' + b"9" * 1_000_000 + b"}",
        b'{"format": 1, "sequence": ' + b",".join([b"9" * 4000] * 250) + b"}",
        b'{"format": 1, "x": 1' + b"0" * 1_000_000 + b".0}",
        b'{"format": 1, "tags": "' + b"\\u0041" * 200_000 + b'"}',
    ],
    ids=["arrays", "objects", "a long number", "numbers", "a long fraction", "a long text"],
)
def test_a_megabyte_of_json_costs_little(tmp_path: Path, body: bytes) -> None:
    """Deep, long or both: refused, in no more than some times its own size."""
    assert _read(tmp_path, _sealed(body), "manifest", 64 * _MEBIBYTE).startswith("refused")


@pytest.mark.parametrize(
    "values",
    [
        {"tags": ["x"] * 100_000},
        {
            "packs": [{"sha256": "0" * 64, "stored_bytes": 1, "pages": 1, "index_bytes": 52, "index_hash": "0" * 32}]
            * 20_000
        },
    ],
    ids=["tags", "packs"],
)
def test_long_lists_cost_in_proportion(tmp_path: Path, values: dict[str, object]) -> None:
    """A real manifest may have thousands."""
    assert _read(tmp_path, _manifest(**values), "manifest", 64 * _MEBIBYTE) == "read"


def test_a_page_map_is_no_bomb(tmp_path: Path) -> None:
    """A page map that declares its right size and holds 4 GiB is refused within 16 MiB of memory."""
    block = (1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    frame = bytes.fromhex("28b52ffd2004") + block * 32_000 + last
    content = _manifest(page_map=base64.b64encode(frame).decode())
    assert _read(tmp_path, content, "map", 16 * _MEBIBYTE).startswith("refused the page map cannot be read")


def test_a_pack_is_no_bomb(tmp_path: Path) -> None:
    """A pack that declares one page and holds 12 GiB in 400 kB is refused within 16 MiB of memory."""
    golden = (_MINIMAL.parent / "pack-512-one-page.zst").read_bytes()
    block = (1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"\0"
    frame = bytes.fromhex("28b52ffd640001") + block * 100_000 + last + bytes(4)
    bomb = golden[:48] + len(frame).to_bytes(4, "little") + frame
    assert _read(tmp_path, bomb, "pack", 16 * _MEBIBYTE).startswith("refused the compressed pages cannot be read")
