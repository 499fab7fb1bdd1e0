from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from harness.extent import examples
from harness.manifests import manifests
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backupd.format import FormatError, NewerFormatError, SnapshotId
from backupd.format.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
)

"""A busy machine is no reason to fail."""

_GOLDEN = (Path(__file__).parent.parent / "vectors" / "valid" / "manifest-minimal.json").read_bytes()
_VALUES: dict[str, Any] = json.loads(_GOLDEN)["manifest"]


def sealed(values: object) -> bytes:
    """Any JSON value in the envelope of a manifest, under the right seal."""
    body = json.dumps(values).encode()
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"


@given(manifests)
def test_a_manifest_comes_back(manifest: Manifest):
    """What was encoded is decoded, whatever its texts and numbers are; the object is ASCII and valid JSON."""
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert data.isascii()
    assert json.loads(data)["manifest"]["id"] == str(manifest.id)


def test_every_flipped_bit_is_found():
    """Each single flipped bit of a manifest is found."""
    for bit in range(8 * len(_GOLDEN)):
        damaged = bytearray(_GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"not a sealed manifest|does not match the SHA-256"):
            decode_manifest(bytes(damaged))


@pytest.mark.parametrize("end", [0, 1, 11, 75, 88, len(_GOLDEN) - 2, len(_GOLDEN) - 1])
def test_a_truncated_manifest_is_rejected(end: int):
    """A manifest that ends early is rejected wherever it ends."""
    with pytest.raises(FormatError, match=r"not a sealed manifest|does not match the SHA-256"):
        decode_manifest(_GOLDEN[:end])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_format_error(data: bytes):
    """Arbitrary bytes raise `FormatError` and no other exception."""
    with pytest.raises(FormatError):
        decode_manifest(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


@given(json_values)
def test_any_sealed_json_is_a_manifest_or_a_format_error(values: object):
    """A right seal around anything else is rejected too, without another exception."""
    with pytest.raises(FormatError):
        decode_manifest(sealed(values))


@given(st.sampled_from(["", "source", "writer"]), st.data())
def test_any_value_of_any_key_is_right_or_a_format_error(inside: str, data: st.DataObject):
    """A forged value under any key is rejected, or is one of the values that this key may have."""
    values: dict[str, Any] = json.loads(json.dumps(_VALUES))
    table = values[inside] if inside else values
    key = data.draw(st.sampled_from(sorted(table)))
    table[key] = data.draw(json_values)
    try:
        manifest = decode_manifest(sealed(values))
    except FormatError:
        return
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("inside", [None, "source", "writer"])
def test_no_key_may_be_missing(inside: str | None):
    """Each key of the format is required, in each of its objects."""
    for key in _VALUES[inside] if inside else _VALUES:
        values = json.loads(json.dumps(_VALUES))
        del (values[inside] if inside else values)[key]
        with pytest.raises(FormatError, match=r"missing required field|does not name its version"):
            decode_manifest(sealed(values))


@pytest.mark.parametrize("key", ["sha256", "stored_bytes", "pages"])
def test_no_key_of_a_pack_may_be_missing(key: str):
    """Each key of an entry of the list of packs is required."""
    pack = {each: value for each, value in _VALUES["packs"][0].items() if each != key}
    with pytest.raises(FormatError, match=rf"packs\[0\]: Object missing required field `{key}`"):
        decode_manifest(sealed(_VALUES | {"packs": [pack]}))


@pytest.mark.parametrize("version", [2, 3, 1 << 40])
def test_a_newer_format_is_not_reported_as_damage(version: int):
    """A higher version is reported as such, even when nothing else is as expected."""
    with pytest.raises(NewerFormatError, match=f"format version {version}"):
        decode_manifest(sealed({"format": version, "something": "else"}))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"format": ' + b"9" * 5000 + b"}"])
def test_hostile_json_is_rejected(body: bytes):
    """Nesting and numbers that the parser refuses are format errors."""
    data = b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"
    with pytest.raises(FormatError, match="not JSON"):
        decode_manifest(data)


def test_snapshots_are_ordered_by_sequence_then_id():
    """A clock that was wrong does not make a snapshot newer; ids decide between two writers of one sequence."""
    early, late = SnapshotId("20200101T000000000Z-00000000"), SnapshotId("20260101T000000000Z-00000000")
    golden = decode_manifest(_GOLDEN)
    oldest, middle, newest = (
        replace(golden, id=late, sequence=1),
        replace(golden, id=early, sequence=2),
        replace(golden, id=late, sequence=2),
    )
    assert sorted([newest, oldest, middle], key=lambda each: each.order) == [oldest, middle, newest]


@settings(max_examples=examples(20))
@given(manifests)
def test_one_key_stands_on_one_line(manifest: Manifest):
    """People can read a manifest, and `diff` shows what changed between two."""
    lines = encode_manifest(manifest).decode().splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == [f'"{key}"' for key in _VALUES]
