"""A prune on one host and a whole snapshot on another, one inside the other at every step of either."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from harness.extent import in_parts, part_of, sampled
from harness.faults import HookedStore, come_last
from harness.kept_workers import kept_workers
from harness.rotation import Ripe, Rotation, make_ripe

from backupd.backup import BackupResult, Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.errors import LostPacksError
from backupd.format.manifest import encode_manifest
from backupd.format.records import DeletionRecord
from backupd.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.prune import PruneResult

pytestmark = pytest.mark.usefixtures("_hooks_come")

_FEWEST_STEPS_OF_PRUNE = 45
_FEWEST_STEPS_OF_BACKUP = 20


@pytest.fixture(scope="module")
def ripe(tmp_path_factory: pytest.TempPathFactory) -> Ripe:
    """A store in which a prune removes, purges, deletes and finds; the database is about to need what it deletes."""
    made = make_ripe(tmp_path_factory.mktemp("interleaving") / "ripe")
    made.rotation.become("x")
    return made


def _steps_of_part(total: int, fewest: int, part: int) -> list[int]:
    assert total >= fewest
    return part_of(range(total), part)


@dataclass(slots=True)
class _Snapshot:
    """What another host does as a hook: one whole snapshot."""

    rotation: Rotation
    results: list[BackupResult] = field(default_factory=list)
    was_deleting: bool = False

    def __call__(self) -> None:
        self.was_deleting = bool(self.rotation.names("deletions"))
        self.results.append(self.rotation.back_up("b"))


@dataclass(slots=True)
class _Prune:
    """A hook that runs one whole prune."""

    rotation: Rotation
    results: list[PruneResult] = field(default_factory=list)

    def __call__(self) -> None:
        self.results.append(self.rotation.prune("c"))


@dataclass(slots=True)
class _Weeks:
    """Everything that is older than a new full snapshot goes, and every grace passes."""

    rotation: Rotation
    newest: list[BackupResult] = field(default_factory=list)

    def __call__(self) -> None:
        rotation = self.rotation
        self.newest = back_up(
            Database("app", rotation.home / "content-y.db"),
            [Repository(rotation.store, rotation.host("a"))],
            Settings(),
            request=SnapshotRequest(is_full=True),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        for _ in range(3):
            rotation.age()
            assert rotation.prune().error is None
        assert rotation.ids() == [self.newest[0].id]


@in_parts
def test_a_snapshot_at_any_step_of_a_prune_is_safe(tmp_path: Path, ripe: Ripe, part: int) -> None:
    """A snapshot at any step of a prune is made, or refused because its packs are being deleted; all restore."""
    counting = ripe.copy(tmp_path / "count").rotation
    counted = HookedStore(counting.store)
    assert counting.prune(store=counted).error is None
    for step in _steps_of_part(len(counted.steps), _FEWEST_STEPS_OF_PRUNE, part):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Snapshot(rotation)
        pruned = rotation.prune(store=HookedStore(rotation.store, at=step, hook=hook))
        if not hook.results:
            come_last(hook)
        (result,) = hook.results
        assert pruned.error is None, step
        if result.outcome is Outcome.FAILED:
            assert isinstance(result.error, LostPacksError)
            assert hook.was_deleting
            result = rotation.back_up("b")
        _check(ripe, rotation, result)


@in_parts
def test_a_prune_at_any_step_of_a_snapshot_is_safe(tmp_path: Path, ripe: Ripe, part: int) -> None:
    """The snapshot is made, by a second try where the prune deleted what was just put; everything listed restores."""
    counting = ripe.copy(tmp_path / "count").rotation
    counted = HookedStore(counting.store)
    assert counting.back_up("b", counted).outcome is Outcome.CREATED
    for step in _steps_of_part(len(counted.steps), _FEWEST_STEPS_OF_BACKUP, part):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Prune(rotation)
        result = rotation.back_up("b", HookedStore(rotation.store, at=step, hook=hook))
        if not hook.results:
            come_last(hook)
        assert [pruned.error for pruned in hook.results] == [None], step
        _check(ripe, rotation, result)


def _check(ripe: Ripe, rotation: Rotation, result: BackupResult) -> None:
    """The snapshot was made of the very bytes that were being swept; it restores, now and after all sweeps to come."""
    assert result.outcome is Outcome.CREATED, result.error
    manifests = {manifest.id: manifest for manifest in rotation.manifests()}
    assert ripe.swept <= {pack.sha256 for pack in manifests[result.id].packs}
    assert rotation.assert_every_snapshot_restores() == [*manifests]
    rotation.assert_no_leftovers()
    assert rotation.assert_every_snapshot_restores() == [result.id]


class _Pausing:
    """A snapshot on another host that stops before the step numbered `at` until `go_on`. It starts when called."""

    def __init__(self, rotation: Rotation, at: int) -> None:
        self._rotation = rotation
        self._store = HookedStore(rotation.store, at=at, hook=self._pause)
        self._is_stopped = threading.Event()
        self._may_go_on = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[BackupResult] | None = None

    def __call__(self) -> None:
        self._running = self._thread.submit(self._rotation.back_up, "b", self._store)
        self._running.add_done_callback(lambda _: self._is_stopped.set())
        assert self._is_stopped.wait(timeout=60)

    def _pause(self) -> None:
        self._is_stopped.set()
        assert self._may_go_on.wait(timeout=60)

    def go_on(self) -> BackupResult:
        assert self._running is not None
        with self._thread:
            self._may_go_on.set()
            return self._running.result()


@pytest.mark.parametrize("pause", sampled(["its pack", "its listing", "its manifest"]))
@in_parts
def test_a_snapshot_that_pauses_at_any_step_of_a_prune_is_safe(
    tmp_path: Path, ripe: Ripe, pause: str, part: int
) -> None:
    """A snapshot that begins during a prune, pauses, and continues after it, is made or refused; all restore."""
    counting = ripe.copy(tmp_path / "count").rotation
    prune_steps, own = HookedStore(counting.store), HookedStore(ripe.copy(tmp_path / "own").rotation.store)
    assert counting.prune(store=prune_steps).error is None
    assert Rotation(tmp_path / "own").back_up("b", own).outcome is Outcome.CREATED
    listing = max(index for index, step in enumerate(own.steps) if step == "list")
    at = {"its pack": own.steps.index("put"), "its listing": listing, "its manifest": len(own.steps) - 1}[pause]
    assert own.steps[at] == ("list" if at == listing else "put")
    for step in part_of(range(len(prune_steps.steps)), part):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Pausing(rotation, at)
        pruned = rotation.prune(store=HookedStore(rotation.store, at=step, hook=hook))
        assert pruned.error is None, step
        result = hook.go_on()
        if result.outcome is Outcome.FAILED:
            assert isinstance(result.error, LostPacksError), step
            result = rotation.back_up("b")
        _check(ripe, rotation, result)


def test_a_writer_looks_again_when_a_sweep_ends_while_it_looks(ripe: Ripe, tmp_path: Path) -> None:
    """The listing showed a pack and the deletion of it; when the deletion has gone, the pack may have."""
    rotation = ripe.copy(tmp_path / "place").rotation
    (swept,) = ripe.swept
    deletion = "app/deletions/20261122T000000000Z-00000000.json"
    counted = HookedStore(ripe.copy(tmp_path / "count").rotation.store)
    assert Rotation(tmp_path / "count").back_up("b", counted).outcome is Outcome.CREATED

    def end_sweep() -> None:
        for key in (f"app/packs/{swept}.zst", deletion):
            rotation.store.delete(key)

    rotation.put(deletion, DeletionRecord(packs=(swept,)).encode())
    result = rotation.back_up("b", HookedStore(rotation.store, at=len(counted.steps) - 1, hook=end_sweep))
    _check(ripe, rotation, result)


def test_a_manifest_that_appears_before_the_second_look_is_respected(ripe: Ripe, tmp_path: Path) -> None:
    """A manifest that appears before the second look keeps its packs, even if they were not put again."""
    rotation = ripe.copy(tmp_path / "place").rotation
    steps = HookedStore(ripe.copy(tmp_path / "count").rotation.store)
    assert Rotation(tmp_path / "count").prune(store=steps).error is None
    second_look = [index for index, step in enumerate(steps.steps) if step == "list"][-2]
    rotation.become("x")
    named = rotation.copy(tmp_path / "other")
    assert named.back_up().outcome is Outcome.CREATED
    manifest = named.manifests()[-1]
    content = encode_manifest(manifest)

    def appear() -> None:
        rotation.put(f"app/snapshots/{manifest.id}.json", content)

    result = rotation.prune(store=HookedStore(rotation.store, at=second_look, hook=appear))
    assert (result.error, result.deleted_packs) == (None, 0)
    assert manifest.id in rotation.assert_every_snapshot_restores()


@in_parts
def test_base_that_is_removed_meanwhile_is_detected(tmp_path: Path, ripe: Ripe, part: int) -> None:
    """A writer that slept for weeks finds its base and all packs of it deleted, until it commits: it starts again."""
    counting = ripe.copy(tmp_path / "count").rotation
    counted = HookedStore(counting.store)
    assert counting.back_up("b", counted).outcome is Outcome.CREATED
    last_listing = max(index for index, step in enumerate(counted.steps) if step == "list")
    for step in part_of(range(counted.steps.index("get") + 1, last_listing + 1), part):
        rotation = ripe.copy(tmp_path / str(step)).rotation
        hook = _Weeks(rotation)
        result = rotation.back_up("b", HookedStore(rotation.store, at=step, hook=hook))
        assert result.outcome is Outcome.CREATED, (step, result.error)
        assert {*rotation.assert_every_snapshot_restores()} == {hook.newest[0].id, result.id}, step
        sequences = {manifest.id: manifest.sequence for manifest in rotation.manifests()}
        assert sequences[result.id] >= sequences[hook.newest[0].id], step
