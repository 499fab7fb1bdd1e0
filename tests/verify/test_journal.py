"""What an interrupted verification has noted, and how much of that is trusted."""

from __future__ import annotations

import hashlib
import os
import stat
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, finish
from harness.command_line import wait_until
from harness.damage import flip
from harness.extent import slow
from harness.killing import kill
from harness.packs import encode_pack
from harness.place import create_database

from backupd.errors import InterruptedByUserError, TargetUnwritableError
from backupd.format.pack import parse_index
from backupd.format.records import CheckOutcome
from backupd.repository.references import parse_reference
from backupd.verify import Level
from backupd.verify.journal import GOES_ON_FOR, Journal

if TYPE_CHECKING:
    from pathlib import Path

    from harness.stored import Stored

    from backupd.format.pack import PackIndex

NOW = datetime(2026, 11, 22, 8, 55, tzinfo=UTC)


def index(pages: int, page_size: int = 4096) -> PackIndex:
    """An index of pages with random hashes."""
    return parse_index(
        encode_pack(page_size, range(1, pages + 1), os.urandom(16 * pages), bytes(pages * page_size), level=1)
    )


def sha(number: int) -> str:
    """A SHA-256."""
    return hashlib.sha256(bytes([number])).hexdigest()


def journal(directory: Path, *, subject: str = "app", now: datetime = NOW, restart: bool = False) -> Journal:
    """A journal about `subject`."""
    return Journal(directory, subject, now=now, restart=restart)


def test_noted_packs_are_loaded_again(tmp_path: Path) -> None:
    """Noted packs are loaded again, even one that could not be decrypted and is known by its SHA-256 alone."""
    one, two = index(3), index(2000, 512)
    with journal(tmp_path) as first:
        first.note(sha(1), one)
        first.note(sha(2), None)
        first.note(sha(3), two)
    with journal(tmp_path, now=NOW + timedelta(days=1)) as again:
        assert [again.index(sha(number)) for number in (1, 2, 3)] == [one, None, two]
        assert (len(again), again.begun_at) == (3, NOW)
        assert sha(4) not in again


def test_journal_files_are_private(tmp_path: Path) -> None:
    """A page hash shows to others who has the page."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(1))
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_other_subject_has_another_journal(tmp_path: Path) -> None:
    """What one store holds says nothing of another."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(1))
    with journal(tmp_path, subject="other") as other:
        assert len(other) == 0


@pytest.mark.parametrize("lost", [1, 20, 150])
def test_torn_last_line_is_left_out(tmp_path: Path, lost: int) -> None:
    """A kill in the middle of a line loses that one, and what is written after it is whole."""
    one, two = index(5), index(6)
    with journal(tmp_path) as first:
        first.note(sha(1), one)
        first.note(sha(2), two)
    (file,) = tmp_path.glob("*.journal")
    os.truncate(file, file.stat().st_size - lost)
    with journal(tmp_path) as again:
        assert (sha(1) in again, sha(2) in again) == (True, False)
        again.note(sha(3), two)
    with journal(tmp_path) as last:
        assert [last.index(sha(number)) for number in (1, 3)] == [one, two]
        assert len(last) == 2


def test_index_that_has_changed_is_left_out(tmp_path: Path) -> None:
    """An index whose bytes have changed, as after a power cut, is not used."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(5))
        first.note(sha(2), index(5))
    (file,) = tmp_path.glob("*.indexes")
    flip(file, 10)
    with journal(tmp_path) as again:
        assert (sha(1) in again, sha(2) in again) == (False, True)
    file.unlink()
    with journal(tmp_path) as again:
        assert len(again) == 0


def test_index_that_changes_during_the_run_is_an_error(tmp_path: Path) -> None:
    """An index that the disk gives back with other bytes than before ends the run with an error that says so."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(5))
        (file,) = tmp_path.glob("*.indexes")
        os.truncate(file, 40)
        with pytest.raises(TargetUnwritableError, match="what was noted cannot be read again"):
            first.index(sha(1))


@pytest.mark.parametrize(
    "content", [b"\0" * 500 + b"\n", b"{}\n", b"[]\nx\n", b'{"version": 2, "begun_at": "never"}\n']
)
def test_unreadable_journal_is_started_again(tmp_path: Path, content: bytes) -> None:
    """An unreadable journal is not used, and is replaced by a new one."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(5))
    (file,) = tmp_path.glob("*.journal")
    file.write_bytes(content)
    with journal(tmp_path) as again:
        assert len(again) == 0
        again.note(sha(2), index(1))
    with journal(tmp_path) as last:
        assert sha(2) in last


def test_old_journals_are_removed(tmp_path: Path) -> None:
    """A journal is removed by when its run began, however often it was continued; a younger one stays."""
    for subject, begun_at in (("old", NOW), ("young", NOW + timedelta(days=1))):
        with journal(tmp_path, subject=subject, now=begun_at) as first:
            first.note(sha(1), index(5))
    with journal(tmp_path, subject="old", now=NOW + GOES_ON_FOR - timedelta(minutes=5)) as still:
        assert len(still) == 1
        still.note(sha(2), index(5))
    late = NOW + GOES_ON_FOR + timedelta(minutes=5)
    with journal(tmp_path, subject="third", now=late) as third:
        third.remove()
    assert len(list(tmp_path.glob("*.journal"))) == 1
    with journal(tmp_path, subject="old", now=late) as again, journal(tmp_path, subject="young", now=late) as young:
        assert (len(again), len(young)) == (0, 1)


def test_restart_forgets_the_journal(tmp_path: Path) -> None:
    """A restart forgets the journal, and a finished one leaves no file."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(5))
    with journal(tmp_path, restart=True) as again:
        assert len(again) == 0
        again.remove()
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_is_continued(stored: Stored) -> None:
    """Packs that were right are not read again, damaged ones are, and every snapshot gets its outcome."""
    ids = [stored.back_up(is_full=True) for _ in range(10)]
    looks = 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks > len(ids) + 7:  # after the manifests
            raise InterruptedByUserError("enough")

    first, *_ = sorted(stored.packs(), key=lambda file: file.stat().st_mtime_ns)
    flip(first)
    with pytest.raises(InterruptedByUserError):
        stored.verify(wants_all=True, should_stop=stop)
    store = stored.counting()
    found = stored.verify(store, wants_all=True)
    assert found.packs_known > 0
    assert found.packs_known + found.packs_read == 10
    assert stored.notes[0].startswith(f"app: continuing: {found.packs_known} of 10 packs were read since ")
    assert [each.outcome for each in found.snapshots] == [CheckOutcome.DAMAGED_STORE] + [CheckOutcome.INTACT] * 9
    assert stored.verify(wants_all=True).packs_known == 0


def test_pack_that_was_found_damaged_since_is_read_again(stored: Stored) -> None:
    """A pack that a drill has recorded as damaged, after it was noted as right, has to be read again."""
    ids = [stored.back_up(is_full=True) for _ in range(10)]
    looks = 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks == len(ids) + 9:
            raise InterruptedByUserError("enough")

    with pytest.raises(InterruptedByUserError):
        stored.verify(wants_all=True, should_stop=stop)
    first, *_ = sorted(stored.packs(), key=lambda file: file.stat().st_mtime_ns)
    flip(first)
    assert stored.verify(references=(parse_reference(str(ids[0])),), level=Level.DRILL).exit_code == 20
    found = stored.verify(wants_all=True)
    assert found.packs_known > 0
    assert [each.outcome for each in found.snapshots] == [CheckOutcome.DAMAGED_STORE] + [CheckOutcome.INTACT] * 9
    recorded = stored.recorded(ids[0])
    assert recorded is not None
    assert recorded.outcome is CheckOutcome.DAMAGED_STORE


def test_line_with_an_impossible_offset_is_left_out(tmp_path: Path) -> None:
    """A line with an impossible offset, as after a power cut, is ignored."""
    with journal(tmp_path) as first:
        first.note(sha(1), index(5))
    (file,) = tmp_path.glob("*.journal")
    written = file.read_bytes()
    for number in (b"-1", b"1" * 30):
        file.write_bytes(written.replace(b'"offset": 0', b'"offset": ' + number))
        with journal(tmp_path) as again:
            assert len(again) == 0


def test_only_the_same_selection_is_continued(stored: Stored) -> None:
    """Another selection, a sample and a restart read everything again."""
    for _ in range(10):
        stored.back_up(is_full=True)
    looks = 0

    def stop() -> None:
        nonlocal looks
        looks += 1
        if looks == 10 + 9:
            raise InterruptedByUserError("enough")

    with pytest.raises(InterruptedByUserError):
        stored.verify(wants_all=True, should_stop=stop)
    assert stored.verify().packs_known == 0
    assert stored.verify(wants_all=True, sample=0.5).packs_known == 0
    assert stored.verify(wants_all=True, restart=True).packs_known == 0


@slow
def test_killed_run_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """SIGKILL leaves no time for anything; Ctrl-C says how to continue. Damage is reported at the end."""
    backupd = CommandLine(tmp_path)
    create_database(tmp_path / "app.db", rows=21000)
    backupd.run("now", "app.db")
    packs = sorted((tmp_path / "backups/app/packs").iterdir())
    assert len(packs) > 2
    flip(packs[0])
    command = ("verify", "--all", "--bandwidth", "6MB")
    process = backupd.start(*command)
    try:
        wait_until(lambda: _noted(tmp_path) > 0)
    finally:
        kill(process)
    read_before = _noted(tmp_path)
    process = backupd.start(*command)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(
        f"app: continuing: {read_before} of {len(packs)} packs were read since "
    )
    process.terminate()
    finished = finish(process, code=130)
    assert finished.reported("error")[0].startswith("interrupted after ")
    assert "continues from there within 7 days" in finished.reported("hint")[0]
    last = backupd.json("verify", "--all", code=20)
    assert last["packs_read_before"] >= read_before
    assert last["packs_read_before"] + last["packs_read"] == len(packs)
    assert [each["key"] for each in last["findings"]] == [f"app/packs/{packs[0].name}"]
    assert list((tmp_path / "state/verifications").iterdir()) == []


def _noted(home: Path) -> int:
    """The number of packs in the journal, after its first line."""
    return sum(file.read_bytes().count(b"\n") - 1 for file in (home / "state/verifications").glob("*.journal"))
