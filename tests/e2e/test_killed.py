"""SIGKILL of `backupd now` at any moment: what the store lists is restorable, and the next run needs no help."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from harness.command_line import wait_until
from harness.extent import sampled
from harness.killing import processes_of
from harness.ledger import create_ledger, imbalance

from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.repository.references import list_snapshots
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path


def _run(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "BACKUPD_STATE_DIR": str(directory / "state")}
    return subprocess.Popen(
        [sys.executable, "-m", "backupd", *arguments],
        cwd=directory,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("journal_mode", "kills"), sampled([("wal", 4), ("delete", 4), ("wal", 12), ("delete", 12)]))
def test_killed_runs_leave_only_restorable_snapshots(tmp_path: Path, journal_mode: str, kills: int) -> None:
    """Random moments, the same store again and again; afterwards one ordinary run succeeds and tidies up."""
    database = tmp_path / "ledger.db"
    create_ledger(database, journal_mode=journal_mode)
    moments = random.Random(5)
    for number in range(kills):
        process = _run(tmp_path, "now", "ledger.db", "--tag", f"n{number}", "--full")
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0.2, 1.0))
        process.kill()
        process.wait()
        # The process that captures ends by itself.
        wait_until(lambda session=process.pid: not processes_of(session))  # type: ignore[misc]
    assert _run(tmp_path, "now", "ledger.db", "--tag", "last").wait() == 0
    state = StateDirectory(tmp_path / "state")
    listing = list_snapshots([Repository(DirectoryStore(tmp_path / "backups"), state)], "ledger")
    assert listing.problems == []
    assert listing.snapshots[-1].manifest.tags == ("last",)
    for each in listing.snapshots:
        target = tmp_path / f"{each.manifest.id}.db"
        restore_to_file(
            RestorePoint(each.archive, each.archive.manifest(each.manifest.id)),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        assert imbalance(target) == []
    assert list((tmp_path / "state" / "spool").iterdir()) == []
