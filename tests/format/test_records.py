from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import pytest
from harness.extent import examples
from harness.manifests import digests, manifests, snapshot_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.format import FormatError, SnapshotId
from backupd.format.manifest import Manifest, encode_manifest
from backupd.format.records import (
    RECORDED_OUTCOMES,
    Accepted,
    CheckOutcome,
    Continuity,
    ContinuityOutcome,
    DeletionRecord,
    Drill,
    FoundPack,
    Moment,
    RetentionRecord,
    Shrink,
    SweepRecord,
    TrashEntry,
)
from backupd.format.segment import MAX_COMMIT_NUMBER

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
moments = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=examples(50))
@given(moments, st.text(max_size=50), manifests)
def test_trash_entries_round_trip(removed_at: datetime, reason: str, manifest: Manifest):
    """Times to the microsecond, and the manifest byte for byte."""
    entry = TrashEntry(removed_at, reason, encode_manifest(manifest), manifest)
    assert TrashEntry.decode(entry.encode()) == entry


@given(snapshot_ids, st.sampled_from(RECORDED_OUTCOMES), moments, st.lists(digests, max_size=3))
def test_drills_round_trip(snapshot: SnapshotId, outcome: CheckOutcome, at: datetime, packs: list[str]):
    """A drill round-trips with each outcome that can be recorded, with and without damaged packs."""
    drill = Drill(snapshot=snapshot, database="app", outcome=outcome, at=at, damaged_packs=tuple(packs))
    assert Drill.decode(drill.encode()) == drill


@given(snapshot_ids, st.sampled_from(ContinuityOutcome), moments, st.integers(0, MAX_COMMIT_NUMBER - 1))
def test_continuity_round_trips(snapshot: SnapshotId, outcome: ContinuityOutcome, at: datetime, after: int):
    """The check of a window round-trips, with each number of a commit."""
    ids = {"window": snapshot, "base": snapshot, "snapshot": snapshot}
    record = Continuity(database="app", outcome=outcome, after=after, by=after + 1, at=at, **ids)
    assert Continuity.decode(record.encode()) == record


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (CheckOutcome.PROVEN, "proven"),
        (CheckOutcome.NOT_CHECKABLE, "proven"),
        (CheckOutcome.INTACT, "intact"),
        (CheckOutcome.DAMAGED_STORE, "failed"),
        (CheckOutcome.DAMAGED_SOURCE, "damaged-source"),
    ],
)
def test_records_of_drills_have_words_of_their_own(outcome: CheckOutcome, word: str):
    """A record keeps the words of format version 1, whatever the outcome is called elsewhere."""
    drill = Drill(snapshot=SnapshotId.new(NOON, 1), database="app", outcome=outcome, at=NOON)
    assert json.loads(drill.encode())["drill"]["outcome"] == word


@pytest.mark.parametrize("outcome", [CheckOutcome.PRESENT, CheckOutcome.INCONCLUSIVE])
def test_outcomes_that_say_too_little_cannot_be_recorded(outcome: CheckOutcome):
    """An outcome that neither proves a snapshot nor finds it damaged cannot be recorded."""
    drill = Drill(snapshot=SnapshotId.new(NOON, 1), database="app", outcome=outcome, at=NOON)
    with pytest.raises(KeyError):
        drill.encode()


@pytest.mark.parametrize("word", ["damaged-store", "not-checkable", "present", "unknown", ""])
def test_unknown_words_for_an_outcome_are_refused(word: str):
    """A word for an outcome that no record may have is refused, even one that is used elsewhere."""
    drill = Drill(snapshot=SnapshotId.new(NOON, 1), database="app", outcome=CheckOutcome.PROVEN, at=NOON)
    body = json.dumps(json.loads(drill.encode())["drill"] | {"outcome": word}).encode()
    sealed = b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","drill":' + body + b"}\n"
    with pytest.raises(FormatError, match="outcome"):
        Drill.decode(sealed)


@given(
    st.none() | st.builds(Accepted, snapshot=snapshot_ids, sequence=st.integers(1, 2**53 - 1)),
    st.none() | st.builds(Shrink, snapshot=snapshot_ids, reason=st.text(max_size=50)),
)
def test_verdicts_round_trip(accepted: Accepted | None, held: Shrink | None):
    """Verdicts round-trip with and without an accepted shrink and a hold."""
    verdicts = RetentionRecord(accepted_shrink=accepted, held=held)
    assert RetentionRecord.decode(verdicts.encode()) == verdicts


@given(st.lists(st.tuples(digests, moments), min_size=1, max_size=5))
def test_lists_of_packs_round_trip(packs: list[tuple[str, datetime]]):
    """The packs that a sweep found, and those that it deletes, round-trip."""
    finding = SweepRecord(packs=tuple(FoundPack(sha256=sha256, modified_at=Moment.of(at)) for sha256, at in packs))
    deletion = DeletionRecord(packs=tuple(sha256 for sha256, _ in packs))
    assert SweepRecord.decode(finding.encode()) == finding
    assert DeletionRecord.decode(deletion.encode()) == deletion


@given(st.binary(max_size=200))
def test_other_bytes_are_a_format_error(data: bytes):
    """Arbitrary bytes raise `FormatError` and no other exception."""
    for decode in (TrashEntry.decode, Drill.decode, RetentionRecord.decode, SweepRecord.decode, DeletionRecord.decode):
        with pytest.raises(FormatError):
            decode(data)
