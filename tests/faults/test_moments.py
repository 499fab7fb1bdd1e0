"""The judge of following: it says nothing of what is right, and finds each lie that is planted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from harness.following import Followed
from msgspec.structs import replace

import faults.moments
from backupd.errors import DamageError
from backupd.format.segment import encode_segment, thinned
from backupd.repository.moments import find_restore_point, window_spans
from backupd.restore import restore_to_file
from faults.images import read_state
from faults.ledger import Ledger, Scribe, State, body, digest_of, touched
from faults.moments import Disturbance, Moments, Restored, Span
from faults.writer import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.format.segment import Commit
    from backupd.repository.archive import Archive
    from faults.images import Seen

STORE = "/backups"
_WITHIN_SECONDS = 0.2


class Application:
    """Commits states of the soak to a database that is followed, and notes them in a ledger."""

    def __init__(self, home: Path) -> None:
        self.followed = Followed(home)
        self.ledger = Ledger(home / "app.ledger")
        self._scribe = Scribe(home / "app.ledger")
        self._cells: dict[int, int] = {}
        self._number = -1
        self.commit()

    def close(self) -> None:
        self._scribe.close()
        self.followed.close()

    def commit(self, *, is_noted: bool = True, is_followed: bool = True) -> State:
        """Commit the next state."""
        self._number += 1
        state = State("app-1", self._number)
        written = touched(state)
        self._cells.update(dict.fromkeys(written, state.number))
        digest = f"{digest_of(self._cells.items()):064x}"
        rows = [f"REPLACE INTO cell VALUES ({each}, {state.number}, X'{body(state, each).hex()}')" for each in written]
        now = f"REPLACE INTO state VALUES (1, '{state.generation}', {state.number}, '{digest}')"
        schema = [each for each in SCHEMA.split(";") if each.strip()] if state.number == 0 else []
        if is_noted:
            self._scribe.begin(state, digest)
        statements = ["BEGIN", *schema, *rows, now, "COMMIT"]
        if is_followed:
            self.followed.execute(*statements)
        else:
            for statement in statements:
                self.followed.miss(statement)
        if is_noted:
            self._scribe.done(state)
        return state


@dataclass
class _Reader:
    """Reads the store as `backupd list` and `restore` do; or `answers` in place of a restore."""

    followed: Followed
    scratch: Path
    answers: Callable[[datetime], Restored] | None = None
    broken: str | None = None

    def archive(self, store: str, database: str) -> Archive:
        assert (store, database) == (STORE, "app")
        return self.followed.archive

    def spans(self, store: str, database: str) -> list[Span]:
        archive = self.archive(store, database)
        listing = archive.listing()
        spans = window_spans(archive, listing, listing.manifests.keys(), {})
        return [Span(span.began_at, span.window.ended_at, self.broken) for span in spans]

    def restore_moment(self, store: str, database: str, at: datetime) -> Restored:
        assert (store, database) == (STORE, "app")
        if self.answers is not None:
            return self.answers(at)
        self.scratch.unlink(missing_ok=True)
        point = find_restore_point([self.followed.repository], at.isoformat(), database="app", now=at)
        restore_to_file(point, self.scratch, force=False, as_source=False, on_progress=lambda _: None)
        return Restored(read_state(self.scratch), point.replay is not None, point.gap and point.gap.reason)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Application]:
    """An application with a snapshot of its first state."""
    application = Application(tmp_path)
    application.followed.snapshot()
    yield application
    application.close()


def judge(
    app: Application,
    moments: Moments | None = None,
    *,
    answers: Callable[[datetime], Restored] | None = None,
    point: datetime | None = None,
    followed: datetime | None = None,
    broken: str | None = None,
    may_lose: bool = False,
) -> list[str]:
    """What the judge says of what is stored."""
    moments = moments or new_judge(app)
    return moments.judge(
        _Reader(app.followed, app.followed.path.with_name("scratch.db"), answers, broken),
        Random(1),
        points={} if point is None else {(STORE, "app"): point},
        snapshots={},
        followed={} if followed is None else {(STORE, "app"): followed},
        may_lose=[STORE] if may_lose else [],
    )


def new_judge(app: Application, *disturbances: Disturbance) -> Moments:
    """A judge who has seen nothing yet."""
    return Moments({"app": app.ledger}, [STORE], disturbances, seen_within_seconds=_WITHIN_SECONDS)


def restored(app: Application, at: datetime) -> Seen:
    """What a restore of a moment gives."""
    answer = _Reader(app.followed, app.followed.path.with_name("scratch.db")).restore_moment(STORE, "app", at)
    assert answer.seen is not None
    return answer.seen


def change(app: Application, change: Callable[[list[Commit]], list[Commit]], **head: Any) -> None:
    """Store the newest segment with other commits in its place, and what `head` says."""
    archive = app.followed.archive
    stored = [each for segments in archive.segments().segments.values() for each in segments][-1]
    segment = archive.segment(stored)
    archive.delete_segment(stored)
    archive.put_segment(encode_segment(replace(segment.head, **head), change(segment.with_images()), level=1))


def test_what_is_stored_of_an_application_is_accepted(app: Application):
    """Commits, a gap that is named, and a recovery point: all of it is looked at, and nothing is wrong."""
    for _ in range(6):
        app.commit()
    app.followed.cut()
    app.commit(is_followed=False)
    app.followed.begin_window("on purpose")
    app.commit()
    app.followed.snapshot()
    app.commit()
    app.followed.cut()
    moments = new_judge(app)
    assert judge(app, moments, point=datetime.now(UTC)) == []
    assert moments.counts["commits checked"] == 7 + 2
    assert moments.counts["commits in gaps"] == 1
    assert moments.counts["moments restored"] >= 4
    assert moments.counts["moments in gaps"] == 1
    assert moments.counts["recovery points"] == 1
    app.commit()
    app.followed.cut()
    assert judge(app, moments) == []
    assert moments.counts["commits checked"] == 10


def test_a_commit_that_is_missing_in_a_window_is_found(app: Application):
    """A window in which a commit was not seen has states that there never were, or leaves one out."""
    app.commit()
    app.followed.cut()
    app.commit(is_followed=False)
    app.commit()
    app.followed.cut()
    assert "they do not make up number 3" in judge(app)[0]


def test_a_commit_that_is_left_out_in_a_window_is_found(app: Application):
    """Two commits in the place of one."""
    app.commit()
    app.followed.cut()
    app.commit()
    app.commit()
    app.followed.cut()
    change(app, lambda commits: [thinned(commits, 10**15)[0]._replace(others=0)])
    assert "number=3), and the one before it State(generation='app-1', number=1)" in judge(app)[0]


def test_a_commit_that_was_never_made_is_found(app: Application):
    """A state that no application has committed."""
    app.commit(is_noted=False)
    app.followed.cut()
    assert "which was never committed" in judge(app)[0]


def test_a_wrong_bit_is_found(app: Application):
    """One bit of one page image of one commit, in what that has written."""
    written = body(app.commit(), touched(State("app-1", 1))[0])

    def flip(commits: list[Commit]) -> list[Commit]:
        images = bytearray(commits[-1].images)
        images[images.index(written) + 20] ^= 1
        return [*commits[:-1], commits[-1]._replace(images=bytes(images))]

    app.followed.cut()
    change(app, flip)
    assert "the content of 1 cells is wrong" in judge(app)[0]


@pytest.mark.parametrize(("seconds", "words"), [(-10, "before State"), (20, "after State")])
def test_a_wrong_time_is_found(app: Application, seconds: int, words: str):
    """A commit that was seen before it was made, or long after it was over, unless the clock was wrong."""
    app.commit()
    app.commit()
    app.followed.cut()
    change(app, lambda commits: [each._replace(seen_at_ms=each.seen_at_ms + seconds * 1000) for each in commits])
    assert words in judge(app)[0]
    app.ledger.read()
    entry = app.ledger.entries[1]
    wrong_clock = Disturbance(entry.begun_at, entry.begun_at + 1, ahead_seconds=float(seconds))
    assert judge(app, new_judge(app, wrong_clock)) == []


def test_a_commit_that_is_gone_is_found(app: Application):
    """What was stored once has to be there, unless the store was replaced by an older copy."""
    app.commit()
    key = app.followed.cut()
    moments, other = new_judge(app), new_judge(app)
    assert judge(app, moments) == judge(app, other) == []
    app.followed.repository.store.delete(str(key))
    assert "were stored, and are not any more" in judge(app, moments)[0]
    assert judge(app, other, may_lose=True) == []


def test_a_moment_that_restores_to_another_state_is_found(app: Application):
    """The state of another commit, a moment of a window that cannot be restored, or is said to be in a gap."""
    state = app.commit()
    seen_at = app.followed.states[-1].seen_at
    app.followed.cut()
    newest = restored(app, seen_at)
    assert newest.state == state
    oldest = newest._replace(state=State("app-1", 0))
    wrong = judge(app, answers=lambda at: Restored(oldest if at >= seen_at else newest, has_commit=True))
    assert wrong
    assert all("the last commit that was seen by then" in each for each in wrong)
    assert "as is listed" in judge(app, answers=lambda _: Restored(None, problem="a pack is gone"))[0]
    assert "as is listed" in judge(app, answers=lambda _: Restored(newest, gap="on purpose"))[0]


def test_a_gap_that_is_not_named_is_found(app: Application):
    """A restore of a time at which something was committed that is in no window must not give what was there before."""
    before = app.commit()
    app.followed.cut()
    app.commit(is_followed=False)
    app.followed.begin_window("on purpose")
    app.followed.snapshot()
    app.commit()
    app.followed.cut()
    seen = restored(app, app.followed.states[-1].seen_at)._replace(state=before)
    moments = new_judge(app)
    moments.seen_within_seconds = 0.0
    assert "and no gap is named" in judge(app, moments, answers=lambda _: Restored(seen))[-1]


def test_a_recovery_point_that_promises_too_much_is_found(app: Application):
    """What was acknowledged long before the recovery point has to be stored, but for half a minute."""
    app.commit()
    app.followed.cut()
    app.commit()
    assert judge(app, point=datetime.now(UTC)) == []
    assert "the newest state that is stored" in judge(app, point=datetime.now(UTC) + timedelta(seconds=60))[0]


def test_windows_that_name_no_snapshot_are_found(app: Application):
    """Commits that nothing leads to: no moment can be restored, and no commit be put together."""
    before = datetime.now(UTC)
    app.commit()
    app.followed.cut()
    change(app, lambda commits: commits, anchors=())
    moments = new_judge(app)
    assert [each.partition(" after ")[0] for each in judge(app, moments, followed=before)] == [
        f"app in {STORE}: no moment",
        f"app in {STORE}: no commit that was seen",
    ]
    assert moments.counts["commits checked"] == moments.counts["moments restored"] == 0
    app.followed.snapshot()
    app.commit()
    app.followed.cut()
    assert judge(app, moments, followed=before) == []
    assert moments.counts["commits checked"] == 2  # the state of the snapshot is one of them


def test_following_that_ends_is_found(app: Application):
    """Nothing is stored of what was committed after a time."""
    app.commit()
    app.followed.cut()
    found = judge(app, followed=datetime.now(UTC) + timedelta(seconds=1))
    assert [each.partition(" after ")[0] for each in found] == [
        f"app in {STORE}: no moment",
        f"app in {STORE}: no commit that was seen",
    ]


def test_a_judge_without_base_images_is_found(app: Application, monkeypatch: pytest.MonkeyPatch):
    """Moments can be restored, and the judge has put no commit together."""

    def fail(*_: object) -> bytes:
        raise DamageError("no image")

    monkeypatch.setattr(faults.moments, "base_image", fail)
    before = datetime.now(UTC)
    app.commit()
    app.followed.cut()
    (found,) = judge(app, followed=before)
    assert "could be put together" in found


def test_a_broken_window_is_found(app: Application):
    """A window whose commits a drill has found wrong; nothing in it is restored."""
    app.commit()
    app.followed.cut()
    moments = new_judge(app)
    (found,) = judge(app, moments, broken="on purpose")
    assert found.endswith("is broken: on purpose")
    assert moments.counts["moments restored"] == 0
