"""Every call of a store fails once, before and after it was done: of snapshots, prunes, drills, verification, restores.

After each: what is listed restores to a state that the application had, the same command then succeeds without help,
and nothing stays that no snapshot needs.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from harness.checks import check_context
from harness.extent import in_parts, part_of
from harness.faults import FaultyStore
from harness.place import content_digest
from harness.rotation import Rotation, make_ripe

from backupd.backup import Outcome
from backupd.errors import BackupdError
from backupd.format.records import CheckOutcome as Drilled
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.store import Store
from backupd.verify import Level, VerifyRequest, drill, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _now(rotation: Rotation, store: FaultyStore) -> bool:
    rotation.become("after")
    return rotation.back_up(store=store).outcome is not Outcome.FAILED


def _now_elsewhere(rotation: Rotation, store: FaultyStore) -> bool:
    """Back up another state on a host that has to find out everything from the store."""
    rotation.become("elsewhere")
    return rotation.back_up("b", store).outcome is not Outcome.FAILED


def _prune(rotation: Rotation, store: FaultyStore) -> bool:
    return rotation.prune(store=store).error is None


def _drill(rotation: Rotation, store: FaultyStore) -> bool:
    result = drill(rotation.repository(store=store).archive("app"), check_context())
    return result.outcome is Drilled.PROVEN


def _verify(level: Level) -> Callable[[Rotation, FaultyStore], bool]:
    def verified(rotation: Rotation, store: FaultyStore) -> bool:
        request = VerifyRequest(wants_all=True, level=level)
        found = verify([rotation.repository(store=store)], request, check_context())
        assert not any(finding.is_damage for finding in found.findings), "what cannot be read is not damaged"
        return found.problems == ()

    return verified


def _restore(rotation: Rotation, store: FaultyStore) -> bool:
    target = rotation.home / "restored.db"
    repository = rotation.repository("b", store)
    newest = repository.archive("app").history().manifests[-1]
    try:
        restore_to_file(
            RestorePoint(repository.archive(newest.database), newest),
            target,
            force=True,
            as_source=False,
            on_progress=lambda _: None,
        )
    except BackupdError:
        assert not target.exists(), "a failure leaves no target"
        raise
    return True


_ACTIONS: dict[str, Callable[[Rotation, FaultyStore], bool]] = {
    "now": _now,
    "now on another host": _now_elsewhere,
    "prune": _prune,
    "drill": _drill,
    "verify packs": _verify(Level.PACKS),
    "verify receipt": _verify(Level.UPLOAD_CHECK),
    "restore": _restore,
}
_READING = {_restore, _ACTIONS["verify packs"], _ACTIONS["verify receipt"]}
"""What writes next to nothing, and so leaves nothing."""


@pytest.fixture(scope="module")
def ripe(tmp_path_factory: pytest.TempPathFactory) -> Rotation:
    """A store with something to do for everyone; only to be copied from."""
    home = tmp_path_factory.mktemp("ripe") / "home"
    rotation = make_ripe(home).rotation
    for content in ("after", "elsewhere", "base"):
        rotation.become(content)
    return rotation


def _succeeds(action: Callable[[Rotation, FaultyStore], bool], rotation: Rotation, store: FaultyStore) -> bool:
    try:
        return action(rotation, store)
    except BackupdError:
        return False


def _require_promises(
    rotation: Rotation, action: Callable[[Rotation, FaultyStore], bool], tidied: set[tuple[object, ...]]
) -> None:
    """What holds after a failure, and after what mends it.

    That prunes leave nothing is tried once for each make-up of the store, of which `tidied` has those before.
    """
    states = {content_digest(file) for file in rotation.home.glob("content-*.db")}
    for is_mended in (False, True):
        for manifest in rotation.manifests():
            target = rotation.home / "looked-at.db"
            restore_to_file(
                RestorePoint(rotation.repository().archive(manifest.database), manifest),
                target,
                force=True,
                as_source=False,
                on_progress=lambda _: None,
            )
            assert content_digest(target) in states
        # Once more, without help.
        assert is_mended or _succeeds(action, rotation, FaultyStore(rotation.store))
    make_up = _make_up(rotation)
    if action not in _READING and make_up not in tidied:
        rotation.assert_no_leftovers()
        tidied.add(make_up)


def _make_up(rotation: Rotation) -> tuple[object, ...]:
    """The number of objects of each kind, and of packs that no manifest names."""
    kinds = Counter(key.rpartition("/")[0] for key in rotation.objects())
    return (*sorted(kinds.items()), len(rotation.unnamed_packs()))


@pytest.mark.parametrize("name", _ACTIONS)
@in_parts
def test_each_call_fails_once(ripe: Rotation, tmp_path: Path, name: str, part: int):
    """Each store call fails once before it is done, and once when only its answer is lost."""
    action = _ACTIONS[name]
    tidied: set[tuple[object, ...]] = set()
    for after in (False, True):
        calls = len(_calls_of(action, ripe, tmp_path / f"clean-{after}"))
        for number in part_of(range(calls + 1), part):
            was_made = _fails(action, ripe.copy(tmp_path / f"{number}-{after}"), number, after=after, tidied=tidied)
            assert was_made == (number < calls)


def _fails(
    action: Callable[[Rotation, FaultyStore], bool],
    rotation: Rotation,
    number: int,
    *,
    after: bool,
    tidied: set[tuple[object, ...]],
) -> bool:
    """Let one call fail; whether there was such a call. The promises hold."""
    store = FaultyStore(rotation.store, fail_at=number, after=after)
    _succeeds(action, rotation, store)
    if len(store.calls) <= number:
        return False
    _require_promises(rotation, action, tidied)
    return True


_COUNTED_AS = {"facts": "head", "survey": "list", "look": "list"}


def test_each_kind_of_call_is_among_them(ripe: Rotation, tmp_path: Path):
    """The commands above make every call that a store knows; one that is new has to be made by one of them."""
    made = [_calls_of(action, ripe, tmp_path / name) for name, action in _ACTIONS.items()]
    known = {name for name in vars(Store) if not name.startswith("_")} - {"url"}
    assert {call for calls in made for call in calls} == {_COUNTED_AS.get(name, name) for name in known}


def _calls_of(action: Callable[[Rotation, FaultyStore], bool], ripe: Rotation, home: Path) -> list[str]:
    """The calls of a run in which nothing fails."""
    rotation = ripe.copy(home)
    store = FaultyStore(rotation.store)
    assert action(rotation, store)
    assert store.calls
    return store.calls
