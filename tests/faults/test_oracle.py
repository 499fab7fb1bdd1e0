"""The judge of the soak: it says nothing of what is right, and finds each lie that is planted."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from faults.images import NotAStateError, read_state
from faults.ledger import Ledger, Scribe, State
from faults.oracle import Known, Named, Oracle, Standing
from faults.watch import Sample, Taken
from faults.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STORE = "/backups"
SNAPSHOT = Named(STORE, "app", "20261122T085557123Z-7f3a91c2")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Writer, Path]:
    """An application that has committed for a while and was stopped, and its database as it was in the middle."""
    home = tmp_path_factory.mktemp("written")
    writer = Writer(home / "app.db", home / "app.ledger", journal_mode="delete")
    writer.create()
    writer.start()
    for _ in range(3):
        writer.tell("SELECT 1")
    writer.tell(f"VACUUM INTO '{home / 'middle.db'}'")
    writer.tell("SELECT 1")
    writer.stop()
    writer.ledger.read()
    return writer, home / "middle.db"


def _oracle(written: tuple[Writer, Path], scratch: Path) -> Oracle:
    return Oracle({"app": written[0].ledger}, scratch, allowed_seconds=10)


@dataclass
class _Stored:
    """A store with one snapshot, which restores to a copy of `restored`, or (None) does not restore."""

    restored: Path | None
    says_damaged: bool = False
    becomes: Standing = Standing.LISTED

    def restore(self, snapshot: Named, target: Path) -> str | None:
        assert snapshot == SNAPSHOT
        if self.restored is None:
            return "a pack is gone"
        shutil.copy(self.restored, target)
        return None

    def standing(self, snapshot: Named) -> Standing:
        assert snapshot == SNAPSHOT
        return self.becomes

    def is_reported(self, snapshot: Named) -> bool:
        assert snapshot == SNAPSHOT
        return self.says_damaged


def _judge(
    oracle: Oracle,
    restored: Path | None,
    *,
    is_reported: bool = False,
    becomes: Standing = Standing.LISTED,
    window: tuple[float, float] = (0, 10**9),
) -> list[str]:
    """What the judge says of one snapshot that is listed and then meanwhile `becomes` something."""
    taken = [Taken("app", STORE, SNAPSHOT.id, *window)]
    oracle.judge([SNAPSHOT], _Stored(restored, is_reported, becomes), taken=taken, listed_at=0)
    return oracle.violations


def test_what_was_committed_is_accepted(written: tuple[Writer, Path], tmp_path: Path):
    """A state of the ledger that was current in time is one snapshot, restored and checked, and no violation."""
    oracle = _oracle(written, tmp_path)
    assert _judge(oracle, written[1]) == []
    assert (oracle.counts["snapshots"], oracle.counts["checked"], oracle.counts["lost"]) == (1, 1, 0)


def test_what_does_not_restore_has_to_be_reported(written: tuple[Writer, Path], tmp_path: Path):
    """Reported, it is counted as that; unreported, it is lost, and a violation."""
    oracle = _oracle(written, tmp_path)
    assert _judge(oracle, None, is_reported=True) == []
    assert oracle.reported == {SNAPSHOT}
    assert "that was not reported: a pack is gone" in _judge(oracle, None)[0]
    assert oracle.counts["lost"] == 1


def test_snapshot_removed_by_retention_is_not_lost(written: tuple[Writer, Path], tmp_path: Path):
    """What is in the trash when its restore fails is neither lost nor reported, and gone from then on."""
    oracle = _oracle(written, tmp_path)
    assert _judge(oracle, written[1]) == []
    assert _judge(oracle, None, becomes=Standing.REMOVED) == []
    assert (oracle.counts["removed meanwhile"], oracle.counts["lost"], oracle.reported) == (1, 0, set())
    assert oracle.known[SNAPSHOT].gone_at is not None
    assert _judge(unseen := _oracle(written, tmp_path), None, becomes=Standing.REMOVED) == []
    assert unseen.known == {}


@pytest.mark.parametrize("is_reported", [False, True])
def test_what_vanishes_is_lost(written: tuple[Writer, Path], tmp_path: Path, *, is_reported: bool):
    """What was listed, and when its restore fails is neither listed nor in the trash, is lost whatever is reported."""
    oracle = _oracle(written, tmp_path)
    assert "is not in the trash" in _judge(oracle, None, is_reported=is_reported, becomes=Standing.VANISHED)[0]
    assert oracle.counts["lost"] == 1


def _change(*statements: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return change


def _flip_in_a_body(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        ((body,),) = connection.execute("SELECT body FROM cell WHERE id = 100").fetchall()
    content = bytearray(file.read_bytes())
    content[content.index(body) + 20] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_change("UPDATE cell SET number = number + 1 WHERE id = 3"), "of different commits"),
        (_change("DELETE FROM cell WHERE id = 3"), "has 239 of 240 cells"),
        (_change("DELETE FROM state"), "0 rows say which state"),
        (_change("DROP TABLE cell"), "no such table"),
        (_flip_in_a_body, "content of 1 cells is wrong"),
        (lambda file: file.write_bytes(b""), "no such table"),
        (lambda file: file.write_bytes(file.read_bytes()[:-4096]), "malformed"),
        (lambda file: file.write_bytes(bytes(8192)), "SQLite cannot read it"),
    ],
)
def test_a_file_that_is_no_state_is_recognised(
    written: tuple[Writer, Path], tmp_path: Path, damage: Callable[[Path], object], words: str
):
    """A file that is no committed state is recognised, even if only one bit of one row is wrong."""
    file = shutil.copy(written[1], tmp_path / "damaged.db")
    read_state(file)
    damage(file)
    with pytest.raises(NotAStateError, match=words):
        read_state(file)
    assert "that was not reported" in _judge(_oracle(written, tmp_path), file)[0]


def test_a_state_that_was_never_committed(written: tuple[Writer, Path], tmp_path: Path):
    """A consistent database of another application is no state of this ledger."""
    other_writer = Writer(tmp_path / "other.db", tmp_path / "other.ledger", journal_mode="delete")
    other_writer.create()
    assert "was never committed" in _judge(_oracle(written, tmp_path), other_writer.path)[0]


def test_a_state_of_another_time(written: tuple[Writer, Path], tmp_path: Path):
    """An older state than the last one acknowledged when the capture began, or a newer one than at its end."""
    writer, middle = written
    (entry,) = writer.ledger.entries_of(read_state(middle).state)
    assert entry.ended_at is not None
    late = _judge(_oracle(written, tmp_path), middle, window=(entry.ended_at + 0.001, entry.ended_at + 5))
    early = _judge(_oracle(written, tmp_path), middle, window=(0, entry.begun_at - 0.001))
    assert ["was not current while it was captured" in each[0] for each in (late, early)] == [True, True]
    assert _judge(_oracle(written, tmp_path), middle, window=(entry.begun_at, entry.ended_at)) == []


def test_a_snapshot_that_changes_is_a_violation(written: tuple[Writer, Path], tmp_path: Path):
    """A snapshot that restores to another state than before is a violation."""
    oracle = _oracle(written, tmp_path)
    assert _judge(oracle, written[1]) == []
    assert "restored to" in _judge(oracle, written[0].path)[0]


def test_green_health_without_a_current_snapshot_is_a_violation(tmp_path: Path):
    """The health check may be green while the newest snapshot is current, and some time after; red is never a lie."""
    scribe = Scribe(tmp_path / "ledger")
    for number in range(3):
        scribe.begin(State("a", number), "0")
        scribe.done(State("a", number))
    scribe.close()
    ledger = Ledger(tmp_path / "ledger")
    ledger.read()
    ended_at = ledger.entries[1].ended_at
    assert ended_at is not None

    def violations(known: dict[Named, Known], *samples: tuple[float, bool | None]) -> int:
        oracle = Oracle({"app": ledger}, tmp_path, allowed_seconds=10, known=known)
        oracle.judge_health([Sample(ended_at + after, is_green, ()) for after, is_green in samples], [STORE])
        return len(oracle.violations)

    newest = {SNAPSHOT: Known(State("a", 2), ended_at)}
    older = {SNAPSHOT: Known(State("a", 1), 0)}
    gone = {SNAPSHOT: Known(State("a", 2), ended_at, gone_at=ended_at + 20)}
    broken = {SNAPSHOT: Known(None, ended_at)}
    assert violations(newest, (1000, True)) == 0
    assert violations(older, (9, True), (1000, False), (1000, None)) == 0
    assert violations(older, (11, True)) == 1
    assert violations(gone, (19, True)) == 0
    assert violations(gone, (21, True)) == 1
    assert violations(broken, (11, True)) == 1
    assert violations({}, (11, True)) == 1
