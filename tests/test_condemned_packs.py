"""What one drill found of a pack that other snapshots need too, after the snapshot that was drilled has gone."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from harness.damage import flip
from harness.stored import Stored

from backupd.config import RetentionSettings, Settings
from backupd.drill import Outcome, drill
from backupd.errors import ExitCode
from backupd.format.records import DrillOutcome
from backupd.proofs import read_proofs
from backupd.prune import forget, prune
from backupd.repository.manifests import read_history
from backupd.verify import Level

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format.ids import SnapshotId

_POLICY = RetentionSettings(keep_last=10)


def drilled(stored: Stored) -> Outcome:
    """What a drill of the newest snapshot finds."""
    found = drill(stored.repository(), "app", stored.state, Settings(), now=datetime.now(UTC), should_stop=lambda: None)
    return found.outcome


def verdicts(stored: Stored) -> dict[SnapshotId, DrillOutcome]:
    """What is known of the snapshots that there are."""
    repository = stored.repository()
    return read_proofs(repository, "app").verdicts(read_history(repository, "app").manifests)


def test_damage_is_known_until_nothing_needs_the_pack(tmp_path: Path) -> None:
    """An older snapshot stays damaged when the one that was drilled is purged; the record goes with the last one."""
    stored = Stored(tmp_path)
    older, newer = stored.back_up(rows=200), stored.back_up(rows=1)
    flip(stored.packs()[0])
    assert drilled(stored) is Outcome.DAMAGED_STORE
    healed = stored.back_up(rows=1)
    assert drilled(stored) is Outcome.PROVEN
    damaged = {older: DrillOutcome.FAILED, newer: DrillOutcome.FAILED, healed: DrillOutcome.PROVEN}
    assert verdicts(stored) == damaged
    _purge(stored, newer)
    assert verdicts(stored) == {older: DrillOutcome.FAILED, healed: DrillOutcome.PROVEN}
    _purge(stored, older)
    assert verdicts(stored) == {healed: DrillOutcome.PROVEN}
    assert stored.recorded(newer) is None


def test_pack_that_was_put_again_is_not_blamed_again(tmp_path: Path) -> None:
    """What was found before, and is mended, is no part of what is found next."""
    stored = Stored(tmp_path)
    stored.back_up(rows=200)
    newer = stored.back_up(rows=1)
    first, second = stored.packs()
    flip(first)
    assert stored.verify(wants_all=True).exit_code == ExitCode.DAMAGE_FOUND
    flip(first)  # the right bytes again, and with a later time
    second.unlink()
    assert stored.verify(wants_all=True, level=Level.RECEIPT).exit_code == ExitCode.DAMAGE_FOUND
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
            assert drilled(stored) is Outcome.DAMAGED_STORE

    stored.verify(should_stop=look)
    assert looks >= 3
    recorded = stored.recorded(snapshot)
    assert recorded is not None
    assert recorded.outcome is DrillOutcome.FAILED


def _purge(stored: Stored, snapshot: SnapshotId) -> None:
    """Remove a snapshot, and let prunes find it in the trash long after that."""
    forget(stored.repository(), "app", snapshot, now=datetime.now(UTC))
    long_ago = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    os.utime(stored.store_root / "app" / "trash" / f"{snapshot}.json", (long_ago, long_ago))
    for _ in range(2):
        result = prune(stored.repository(), "app", _POLICY, stored.state, now=datetime.now(UTC))
        assert (result.error, result.hold) == (None, None)
    assert not (stored.store_root / "app" / "trash" / f"{snapshot}.json").exists()
