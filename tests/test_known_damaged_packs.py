"""Damaged packs of other snapshots that a drill or verification found, after the snapshot that was checked has gone."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from harness.checks import check_context
from harness.damage import flip
from harness.stored import Stored

from backupd.config import RetentionSettings
from backupd.errors import ExitCode
from backupd.format.records import CheckOutcome
from backupd.prune import forget, prune
from backupd.verify import Level, drill

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId

_POLICY = RetentionSettings(keep_last=10)


def drilled(stored: Stored) -> CheckOutcome:
    """What a drill of the newest snapshot finds."""
    found = drill(stored.repository().archive("app"), check_context())
    return found.outcome


def verdicts(stored: Stored) -> dict[SnapshotId, CheckOutcome]:
    """What is known of the snapshots that there are."""
    repository = stored.repository()
    return repository.archive("app").proofs().known_outcomes(repository.archive("app").history().manifests)


def test_damage_is_known_until_nothing_needs_the_pack(tmp_path: Path) -> None:
    """An older snapshot stays damaged when the one that was drilled is purged; the record goes with the last one."""
    stored = Stored(tmp_path)
    older, newer = stored.back_up(rows=200), stored.back_up(rows=1)
    flip(stored.packs()[0])
    assert drilled(stored) is CheckOutcome.DAMAGED_STORE
    healed = stored.back_up(rows=1)
    assert drilled(stored) is CheckOutcome.PROVEN
    damaged = {older: CheckOutcome.DAMAGED_STORE, newer: CheckOutcome.DAMAGED_STORE, healed: CheckOutcome.PROVEN}
    assert verdicts(stored) == damaged
    _purge(stored, newer)
    assert verdicts(stored) == {older: CheckOutcome.DAMAGED_STORE, healed: CheckOutcome.PROVEN}
    _purge(stored, older)
    assert verdicts(stored) == {healed: CheckOutcome.PROVEN}
    assert stored.recorded(newer) is None


def test_pack_that_was_put_again_is_not_blamed_again(tmp_path: Path) -> None:
    """A pack that was damaged, and is right again, is not among the damaged packs found next."""
    stored = Stored(tmp_path)
    stored.back_up(rows=200)
    newer = stored.back_up(rows=1)
    first, second = stored.packs()
    flip(first)
    assert stored.verify(wants_all=True).exit_code == ExitCode.DAMAGE_FOUND
    flip(first)  # the right bytes again, and with a later time
    second.unlink()
    assert stored.verify(wants_all=True, level=Level.UPLOAD_CHECK).exit_code == ExitCode.DAMAGE_FOUND
    recorded = stored.recorded(newer)
    assert recorded is not None
    assert recorded.damaged_packs == (second.stem,)


def test_what_a_drill_finds_meanwhile_counts(tmp_path: Path) -> None:
    """A verification has read a pack when it rots again: it was right then, and is not now."""
    stored = Stored(tmp_path)
    snapshot = stored.back_up(rows=200)
    (pack,) = stored.packs()
    flip(pack)
    stored.verify()
    flip(pack)
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:  # the manifest and the pack were read
            flip(pack)
            assert drilled(stored) is CheckOutcome.DAMAGED_STORE

    stored.verify(should_stop=look)
    assert looks >= 3
    recorded = stored.recorded(snapshot)
    assert recorded is not None
    assert recorded.outcome is CheckOutcome.DAMAGED_STORE


def _purge(stored: Stored, snapshot: SnapshotId) -> None:
    """Remove a snapshot, and let prunes find it in the trash long after that."""
    forget(stored.repository().archive("app"), snapshot, now=datetime.now(UTC))
    long_ago = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    os.utime(stored.store_root / "app" / "trash" / f"{snapshot}.json", (long_ago, long_ago))
    for _ in range(2):
        result = prune(stored.repository().archive("app"), _POLICY, now=datetime.now(UTC))
        assert (result.error, result.hold) == (None, None)
    assert not (stored.store_root / "app" / "trash" / f"{snapshot}.json").exists()
