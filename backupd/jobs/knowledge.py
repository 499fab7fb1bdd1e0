"""What this machine knows of the configured databases and of what the stores hold, gathered for the status page.

Everything comes from the state directory: the status, past runs, and what objects said when they were last read. No
store is asked, and no file of a database is looked at.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import UsageError
from backupd.format import FormatError
from backupd.format.records import Continuity, Drill, TrashEntry
from backupd.page.overview import MOST_WITH_PICTURES
from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, RemovedSnapshot
from backupd.repository.proofs import recalled_proofs
from backupd.repository.windows import noted_windows
from backupd.retention import decide
from backupd.state import UNUSABLE_STATE
from backupd.state.catalog import Recalled, recall
from backupd.state.runs import read_runs
from backupd.store import canonical_url
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backupd.config import DatabaseSettings, RetentionSettings, Settings
    from backupd.health.values import DatabaseHealth, StoreHealth
    from backupd.page.values import Situation
    from backupd.repository.windows import NotedWindow
    from backupd.state import StateDirectory
    from backupd.state.runs import Run

_T = TypeVar("_T")
_NO_TIME = timedelta(0)
_NEVER = datetime.min.replace(tzinfo=UTC)
_BEFORE_FIRST_COMMIT = timedelta(hours=1)
_LASTING = timedelta(hours=1)


def known_database(name: str, situation: Situation, settings: Settings, state: StateDirectory) -> KnownDatabase | None:
    """Return what is known of one database; None when the status does not have it.

    What cannot be read of the state directory counts as unknown.
    """
    health = situation.status.databases.get(name)
    if health is None:
        return None
    entry = _entry_of(name, health, settings)
    runs = _runs(name, health, state)
    stores = [
        _known_store(
            name, url, store, state, policy=_policy(entry, url, settings), now=situation.now, runs=runs.get(url, [])
        )
        for url, store in health.stores.items()
    ]
    return KnownDatabase(name, health, tuple(stores))


def recent_runs(situation: Situation, state: StateDirectory) -> dict[str, list[tuple[datetime, str]]]:
    """Return when the last runs of each database were begun, and their outcomes, where there are few databases."""
    databases = situation.status.databases
    if len(databases) > MOST_WITH_PICTURES:
        return {}
    places = [(name, url) for name, database in databases.items() for url in database.stores]
    found: dict[str, list[tuple[datetime, str]]] = {name: [] for name in databases}
    with suppress(*UNUSABLE_STATE):
        for run in read_runs(state, places=places):
            found[run.database].append((run.started_at, run.outcome))
    return found


def _known_store(
    name: str,
    url: str,
    health: StoreHealth,
    state: StateDirectory,
    *,
    policy: RetentionSettings | None,
    now: datetime,
    runs: Sequence[Run],
) -> KnownStore:
    recalled, windows = Recalled(), None
    with suppress(*UNUSABLE_STATE):
        recalled = recall(state.database, url, name)
        windows = noted_windows(state, name, url).read()
    noted = windows.windows if windows else ()
    return KnownStore(
        url=url,
        health=health,
        snapshots=tuple(_snapshots(recalled, health, policy, noted, now)),
        removed=tuple(_removed(recalled)),
        windows=noted,
        broken=_broken(recalled, health),
        runs=tuple(runs),
        policy=policy,
    )


def _snapshots(
    recalled: Recalled,
    health: StoreHealth,
    policy: RetentionSettings | None,
    windows: Sequence[NotedWindow],
    now: datetime,
) -> Iterator[KnownSnapshot]:
    manifests = sorted(recalled.summaries, key=lambda summary: summary.order)
    drills = [(drill, put_at) for put_at, drill in _decoded(recalled, RecordKind.DRILL, Drill.decode)]
    proofs = recalled_proofs(drills, has_damage=health.is_damaged)
    if policy is None or policy.is_empty:
        yield from (KnownSnapshot(each, proofs.known(each), None) for each in manifests)
        return
    if windows:
        # A prune keeps what the commits that it keeps are restored from: see `backupd.prune.pruning`.
        policy = policy.replaced(within=max(policy.within or _NO_TIME, policy.commits + _BEFORE_FIRST_COMMIT))
    lasting = [window for window in windows if window.ended_at - window.began_at >= _LASTING]
    known = proofs.known_outcomes(manifests)
    for each in decide(manifests, policy, now=now, known=known, undeleted=()):
        reasons = each.reasons if each.is_kept else ()
        taken_at = each.manifest.id.taken_at
        if not reasons and any(window.began_at <= taken_at <= window.ended_at for window in lasting):
            reasons = ("a recovery window may begin with it",)
        yield KnownSnapshot(each.manifest, proofs.known(each.manifest), reasons)


def _broken(recalled: Recalled, health: StoreHealth) -> dict[str, datetime]:
    """Return the recovery windows that checks found broken, and up to when their commits are right."""
    checks = _decoded(recalled, RecordKind.CONTINUITY, Continuity.decode)
    broken = {str(check.window): check.base.taken_at for _, check in checks if check.is_broken}
    if health.is_window_broken and health.continuity_window is not None:
        broken.setdefault(health.continuity_window, health.continuity_at or _NEVER)
    return broken


def _removed(recalled: Recalled) -> Iterator[RemovedSnapshot]:
    present = {each.id for each in recalled.summaries}
    for _, entry in _decoded(recalled, RecordKind.TRASH, TrashEntry.decode):
        if entry.manifest.id not in present:
            yield RemovedSnapshot(entry.manifest.id, entry.removed_at, entry.reason)


def _decoded(recalled: Recalled, kind: RecordKind, decode: Callable[[bytes], _T]) -> Iterator[tuple[datetime, _T]]:
    """Yield the records of one kind, each with the time when the store got it; what is damaged counts as absent."""
    for stored, content in recalled.records:
        key = RecordKey.parse(stored.key)
        if key is not None and key.kind is kind:
            with suppress(FormatError):
                yield stored.modified_at, decode(content)


def _runs(name: str, health: DatabaseHealth, state: StateDirectory) -> dict[str, list[Run]]:
    """Return the past runs of a database by the URL of the store, oldest first."""
    found: dict[str, list[Run]] = {}
    with suppress(*UNUSABLE_STATE):
        for run in read_runs(state, places=[(name, url) for url in health.stores]):
            found.setdefault(run.store, []).append(run)
    return found


def _entry_of(name: str, health: DatabaseHealth, settings: Settings) -> DatabaseSettings | None:
    """Find the entry that a database belongs to, without looking for files."""
    for entry in settings.databases:
        with suppress(UsageError):
            is_its = entry.is_glob or entry.shown_path == health.path
            if is_its and entry.database_at(Path(health.path)).name == name:
                return entry
    return None


def _policy(entry: DatabaseSettings | None, url: str, settings: Settings) -> RetentionSettings | None:
    """Return the retention policy of the databases of `entry` in the store at `url`; None without either."""
    place = canonical_url(url)
    store = next((each for each in settings.stores if canonical_url(each.url) == place), None)
    if entry is None or store is None:
        return None
    return settings.retention.overridden_by(entry.retention, store.retention)
