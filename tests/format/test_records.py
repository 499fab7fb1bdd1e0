from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import digests, manifests, snapshot_ids

from backupd.format import FormatError
from backupd.format.manifest import Manifest, encode_manifest
from backupd.format.records import (
    Accepted,
    Deletion,
    Drill,
    DrillOutcome,
    Finding,
    FoundPack,
    Shrink,
    TrashEntry,
    Verdicts,
    decode_deletion,
    decode_drill,
    decode_finding,
    decode_trash,
    decode_verdicts,
    encode_deletion,
    encode_drill,
    encode_finding,
    encode_trash,
    encode_verdicts,
)

if TYPE_CHECKING:
    from backupd.format.ids import SnapshotId

moments = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=50)
@given(moments, st.text(max_size=50), manifests)
def test_trash_entries_round_trip(removed_at: datetime, reason: str, manifest: Manifest):
    """Times to the microsecond, and the manifest byte for byte."""
    entry = TrashEntry(removed_at, reason, encode_manifest(manifest), manifest)
    assert decode_trash(encode_trash(entry)) == entry


@given(snapshot_ids, st.sampled_from(DrillOutcome), moments, st.lists(digests, max_size=3))
def test_drills_round_trip(snapshot: SnapshotId, outcome: DrillOutcome, at: datetime, packs: list[str]):
    """With each outcome, with and without damaged packs."""
    drill = Drill(snapshot=snapshot, database="app", outcome=outcome, at=at, damaged_packs=tuple(packs))
    assert decode_drill(encode_drill(drill)) == drill


@given(
    st.none() | st.builds(Accepted, snapshot=snapshot_ids, sequence=st.integers(1, 2**53 - 1)),
    st.none() | st.builds(Shrink, snapshot=snapshot_ids, reason=st.text(max_size=50)),
)
def test_verdicts_round_trip(accepted: Accepted | None, held: Shrink | None):
    """With and without any."""
    verdicts = Verdicts(accepted_shrink=accepted, held=held)
    assert decode_verdicts(encode_verdicts(verdicts)) == verdicts


@given(st.lists(st.tuples(digests, moments), min_size=1, max_size=5))
def test_lists_of_packs_round_trip(packs: list[tuple[str, datetime]]):
    """What a sweep found, and what it deletes."""
    finding = Finding(packs=tuple(FoundPack(sha256=sha256, modified_at=at) for sha256, at in packs))
    deletion = Deletion(packs=tuple(sha256 for sha256, _ in packs))
    assert decode_finding(encode_finding(finding)) == finding
    assert decode_deletion(encode_deletion(deletion)) == deletion


@given(st.binary(max_size=200))
def test_anything_else_is_a_format_error(data: bytes):
    """Never another exception."""
    for decode in (decode_trash, decode_drill, decode_verdicts, decode_finding, decode_deletion):
        with pytest.raises(FormatError):
            decode(data)
