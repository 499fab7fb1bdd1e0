"""Prunes on two hosts, and people who take snapshots back and remove them, one inside the other at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.extent import in_parts, part_of, sampled, slow
from harness.faults import HookedStore, come_last
from harness.rotation import LAST_ONE, Ripe, Rotation, make_ripe

from backupd.errors import BackupdError, BusyError, NoSuchSnapshotError
from backupd.format.manifest import decode_manifest
from backupd.format.records import TrashEntry
from backupd.prune import forget, undelete

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.config import RetentionSettings
    from backupd.format import SnapshotId
    from backupd.prune import PruneResult
    from backupd.store import Store

pytestmark = pytest.mark.usefixtures("_hooks_come")

_KEEP_ALL = LAST_ONE.replaced(keep_last=100)
_FEWEST_STEPS_OF_PRUNE = 45


@dataclass(slots=True)
class _Prune:
    """A hook that runs one whole prune, on a host that keeps its cache."""

    rotation: Rotation
    host: str = "c"
    policy: RetentionSettings = LAST_ONE
    results: list[PruneResult] = field(default_factory=list)

    def __call__(self, store: Store | None = None) -> None:
        self.results.append(self.rotation.prune(self.host, store, policy=self.policy))

    @property
    def error(self) -> BackupdError | None:
        if not self.results:
            come_last(self)
        (result,) = self.results
        return result.error


@dataclass(slots=True)
class _Undelete:
    """A hook with which another host takes a snapshot out of the trash, if it is still there."""

    rotation: Rotation
    snapshot_id: SnapshotId
    error: BackupdError | None = None

    def __call__(self, store: Store | None = None) -> None:
        try:
            undelete(self.rotation.repository("b", store).archive("app"), self.snapshot_id)
        except BackupdError as error:
            self.error = error


@dataclass(slots=True)
class _Forget:
    """A hook with which another host removes a snapshot, if it is there."""

    rotation: Rotation
    snapshot_id: SnapshotId
    error: BackupdError | None = None

    def __call__(self, store: Store | None = None) -> None:
        try:
            forget(self.rotation.repository("d", store).archive("app"), self.snapshot_id, now=datetime.now(UTC))
        except BackupdError as error:
            self.error = error


@pytest.fixture(scope="module")
def ripe(tmp_path_factory: pytest.TempPathFactory) -> Ripe:
    """A store in which a prune removes, purges, deletes and finds."""
    return make_ripe(tmp_path_factory.mktemp("by-hand") / "ripe")


@pytest.fixture(scope="module")
def simple(tmp_path_factory: pytest.TempPathFactory) -> Rotation:
    """Two snapshots, of which a prune removes one; nothing is in the trash, and nothing to sweep."""
    home = tmp_path_factory.mktemp("by-hand") / "simple"
    home.mkdir()
    rotation = Rotation(home)
    rotation.snapshot("base")
    rotation.snapshot("x")
    rotation.age()
    return rotation


def _leave_stale_entry(rotation: Rotation, snapshot_id: SnapshotId) -> None:
    """What a removal leaves that a bucket refused, days ago."""
    content = (rotation.root / f"app/snapshots/{snapshot_id}.json").read_bytes()
    entry = TrashEntry(datetime.now(UTC), "no rule keeps it", content, decode_manifest(content))
    rotation.put(f"app/trash/{snapshot_id}.json", entry.encode())
    rotation.age()


def _steps(run: Callable[[Store], object], rotation: Rotation) -> int:
    """The number of steps that an undisturbed operation takes."""
    counted = HookedStore(rotation.store)
    run(counted)
    return len(counted.steps)


def _steps_of_a_prune(rotation: Rotation, policy: RetentionSettings = LAST_ONE) -> int:
    return _steps(_Prune(rotation, "a", policy), rotation)


@in_parts
def test_a_prune_at_any_step_of_a_prune_is_safe(tmp_path: Path, ripe: Ripe, part: int) -> None:
    """Two hosts do the same at once: what has to stay does, and all is done in the end."""
    steps = _steps_of_a_prune(ripe.copy(tmp_path / "count").rotation)
    assert steps >= _FEWEST_STEPS_OF_PRUNE
    for step in part_of(range(steps), part):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Prune(rotation)
        result = rotation.prune(store=HookedStore(rotation.store, at=step, hook=hook))
        assert hook.error is None, step
        assert result.error is None or isinstance(result.error, BusyError), step
        assert rotation.assert_every_snapshot_restores() == [ripe.newest], step
        assert rotation.names("trash") == {str(each) for each in ripe.removed}
        rotation.assert_no_leftovers()
        assert rotation.assert_every_snapshot_restores() == [ripe.newest], step


@pytest.mark.parametrize("inner", [LAST_ONE, _KEEP_ALL], ids=["same policy", "other policy"])
@in_parts
def test_a_stale_entry_loses_nothing_at_any_step_of_a_prune(
    tmp_path: Path, simple: Rotation, inner: RetentionSettings, part: int
) -> None:
    """Another prune at any step makes a stale entry a fresh one or leaves it, and never purges it."""
    first, newest = simple.ids()
    stale = simple.copy(tmp_path / "stale")
    _leave_stale_entry(stale, first)
    for outer in (LAST_ONE, _KEEP_ALL):
        steps = _steps_of_a_prune(stale.copy(tmp_path / f"count-{outer.keep_last}"), outer)
        for step in part_of(range(steps), part, every=5):
            rotation = stale.copy(tmp_path / f"{outer.keep_last}-{step}")
            hook = _Prune(rotation, policy=inner)
            result = rotation.prune(store=HookedStore(rotation.store, at=step, hook=hook), policy=outer)
            assert hook.error is None, step
            assert result.error is None or isinstance(result.error, BusyError), step
            assert str(first) in rotation.names("trash"), step
            rotation.age(LAST_ONE.grace / 2)
            assert rotation.prune("late", policy=_KEEP_ALL).purged == ()
            if first not in rotation.ids():
                undelete(rotation.repository("late").archive("app"), first)
            assert rotation.assert_every_snapshot_restores() == [first, newest], step


def _assert_back(rotation: Rotation, snapshot_id: SnapshotId, newest: SnapshotId, step: int) -> None:
    """Assert that the snapshot is there, and stays whatever time passes."""
    assert snapshot_id in rotation.ids(), step
    assert rotation.prune("late").error is None, step
    assert rotation.assert_every_snapshot_restores() == [snapshot_id, newest], step
    rotation.assert_no_leftovers()
    assert rotation.assert_every_snapshot_restores() == [snapshot_id, newest], step


@pytest.mark.parametrize("has_stale_entry", sampled([True, False]))
def test_what_comes_back_while_it_is_removed_stays(tmp_path: Path, simple: Rotation, *, has_stale_entry: bool) -> None:
    """A snapshot that is undeleted at any step of its removal stays, or is still in the trash."""
    first, newest = simple.ids()
    start = simple.copy(tmp_path / "start")
    if has_stale_entry:
        _leave_stale_entry(start, first)
    for name in ("prune", "forget"):
        count = start.copy(tmp_path / f"count-{name}")
        run: _Prune | _Forget = _Prune(count, "a") if name == "prune" else _Forget(count, first)
        came_back = 0
        for step in range(_steps(run, count)):
            rotation = start.copy(tmp_path / f"{name}-{step}")
            hook = _Undelete(rotation, first)
            outer: _Prune | _Forget = _Prune(rotation, host="a") if name == "prune" else _Forget(rotation, first)
            outer(HookedStore(rotation.store, at=step, hook=hook))
            assert outer.error is None or isinstance(outer.error, BusyError), step
            if hook.error is None:
                came_back += 1
                if name == "prune":
                    _assert_back(rotation, first, newest, step)
            else:
                assert isinstance(hook.error, NoSuchSnapshotError)
            assert str(first) in rotation.names("trash") | rotation.names("snapshots"), step
        assert came_back > 1


@slow
def test_a_removal_at_any_step_of_coming_back_is_safe(tmp_path: Path, simple: Rotation) -> None:
    """A removal at any step of an undeletion, by a rule or by hand, loses no snapshot."""
    first, newest = simple.ids()
    trashed, stale = simple.copy(tmp_path / "trashed"), simple.copy(tmp_path / "stale")
    assert trashed.prune().removed == (first,)
    _leave_stale_entry(stale, first)
    for name, start in (("trashed", trashed), ("stale", stale)):
        for removal in ("prune", "forget"):
            count = start.copy(tmp_path / f"count-{name}-{removal}")
            for step in range(_steps(_Undelete(count, first), count)):
                rotation = start.copy(tmp_path / f"{name}-{removal}-{step}")
                hook: _Prune | _Forget = _Prune(rotation) if removal == "prune" else _Forget(rotation, first)
                back = _Undelete(rotation, first)
                back(HookedStore(rotation.store, at=step, hook=hook))
                assert back.error is None or isinstance(back.error, NoSuchSnapshotError), step
                assert str(first) in rotation.names("trash") | rotation.names("snapshots"), step
                if removal == "prune" and back.error is None:
                    _assert_back(rotation, first, newest, step)


def test_what_comes_back_and_is_removed_again_before_a_purge_has_its_whole_grace(
    tmp_path: Path, simple: Rotation
) -> None:
    """The purge looks again before it deletes anything: the entry is another one by then."""
    first, _ = simple.ids()
    due = simple.copy(tmp_path / "due")
    assert due.prune().removed == (first,)
    due.age()
    counted = HookedStore(due.copy(tmp_path / "count").store)
    assert Rotation(tmp_path / "count").prune(store=counted).purged == (first,)
    last_look = max(step for step in range(counted.steps.index("delete")) if counted.steps[step] == "list")
    for step in range(last_look + 1):
        rotation = due.copy(tmp_path / str(step))

        def come_and_go(rotation: Rotation = rotation) -> None:
            undelete(rotation.repository("b").archive("app"), first)
            rotation.forget(first)

        result = rotation.prune("c", HookedStore(rotation.store, at=step, hook=come_and_go))
        assert result.error is None or isinstance(result.error, BusyError), step
        assert rotation.names("trash") == {str(first)}, step
        undelete(rotation.repository("b").archive("app"), first)
        assert first in rotation.assert_every_snapshot_restores()


@in_parts
def test_a_snapshot_that_comes_back_at_any_step_of_a_purge_stays(tmp_path: Path, ripe: Ripe, part: int) -> None:
    """An undelete that comes too late is an error."""
    came_back = 0
    steps = part_of(range(_steps_of_a_prune(ripe.copy(tmp_path / "count").rotation)), part)
    for step in steps:
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Undelete(rotation, ripe.purged)
        result = rotation.prune(store=HookedStore(rotation.store, at=step, hook=hook))
        assert result.error is None or isinstance(result.error, BusyError), step
        rotation.assert_no_leftovers()
        restored = rotation.assert_every_snapshot_restores()
        assert restored == [ripe.newest] if hook.error else [ripe.purged, ripe.newest], step
        came_back += hook.error is None
    assert came_back > len(steps) / 4


@slow
def test_a_purge_at_any_step_of_coming_back_is_safe(tmp_path: Path, ripe: Ripe) -> None:
    """The snapshot is there for good, unless it was purged before anybody looked into the trash."""
    count = ripe.copy(tmp_path / "count").rotation
    steps = _steps(_Undelete(count, ripe.purged), count)
    came_back = 0
    for step in range(steps):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook, back = _Prune(rotation), _Undelete(rotation, ripe.purged)
        back(HookedStore(rotation.store, at=step, hook=hook))
        assert back.error is None or isinstance(back.error, NoSuchSnapshotError)
        assert hook.error is None
        rotation.assert_no_leftovers()
        restored = rotation.assert_every_snapshot_restores()
        assert restored == [ripe.newest] if back.error else [ripe.purged, ripe.newest], step
        came_back += back.error is None
    assert came_back > steps / 2
