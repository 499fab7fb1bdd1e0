"""The configured databases with their schedules and deadlines, and the configured stores with their policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backupd.encryption import NO_ENCRYPTION
from backupd.repository import Repository
from backupd.store import canonical_url, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from backupd.config import Database, DatabaseSettings, RetentionSettings, ScheduleSettings, Settings, StoreSettings
    from backupd.encryption import Encryption
    from backupd.health import StatusFile
    from backupd.state import StateDirectory


class JobContext(Protocol):
    """The context of every job: a configuration, and the records of this machine."""

    @property
    def settings(self) -> Settings:
        """The configuration in force."""

    @property
    def state(self) -> StateDirectory:
        """Where notes for later jobs are kept."""

    @property
    def status(self) -> StatusFile:
        """Where the outcome is noted."""


@dataclass(frozen=True, slots=True)
class ConfiguredDatabase:
    """A database with its schedule."""

    database: Database
    schedule: ScheduleSettings

    @property
    def name(self) -> str:
        """The database's name."""
        return self.database.name

    def due_after(self, moment: datetime, grace: timedelta) -> datetime:
        """Return when it must be current again after it was so at `moment`: the next run, the jitter, and the grace."""
        next_run = self.schedule.snapshots.next_after(moment, self.schedule.zone)
        return next_run + self.schedule.latest_start + grace

    def proof_due_after(self, moment: datetime, grace: timedelta) -> datetime | None:
        """Return when a drill must have succeeded again after one did at `moment`: one may fail or be missed, not two.

        None when no drills are scheduled.
        """
        drills = self.schedule.drills
        if drills is None:
            return None
        for _ in range(2):
            moment = drills.next_after(moment, self.schedule.zone) + self.schedule.latest_start
        return moment + grace


class ProofDeadlines:
    """`proof_due_after` for all databases of one schedule: each span between two drills is worked out only once."""

    def __init__(self, configured: ConfiguredDatabase, grace: timedelta) -> None:
        self._configured = configured
        self._grace = grace
        self._known: list[tuple[datetime, datetime, datetime | None]] = []

    def after(self, moment: datetime) -> datetime | None:
        """Return when a drill must have succeeded again after one did at `moment` (aware)."""
        schedule = self._configured.schedule
        if schedule.drills is None:
            return None
        for begin, end, due in self._known:
            if begin <= moment < end:
                return due
        due = self._configured.proof_due_after(moment, self._grace)
        self._known.append((moment, schedule.drills.next_after(moment, schedule.zone), due))
        return due


@dataclass(frozen=True, slots=True)
class ConfiguredStore:
    """A repository with the retention policy of each database in it."""

    repository: Repository
    _policies: Mapping[str, RetentionSettings]
    _grace: timedelta
    is_put_only: bool = False
    """The keys of this machine can neither delete nor read packs: it prunes nothing there, and does no drills."""

    @property
    def url(self) -> str:
        """The store's URL, for people."""
        return self.repository.url

    def policy(self, database: str) -> RetentionSettings | None:
        """Return the policy for `database` here; None when it is not configured."""
        return self._policies.get(database)

    def grace(self, database: str) -> timedelta:
        """Return how long `database`'s snapshots stay in the trash here."""
        policy = self.policy(database)
        return policy.grace if policy else self._grace


def open_repositories(
    stores: Iterable[StoreSettings],
    state: StateDirectory,
    encryption: Encryption = NO_ENCRYPTION,
    *,
    before: Sequence[tuple[StoreSettings, Repository]] = (),
) -> list[tuple[StoreSettings, Repository]]:
    """Return a repository for each of `stores`. Sends no request yet.

    `before` are those of an earlier configuration: a store with the same settings is opened again, because its
    credentials may be others now, and still knows what was learned of it.
    """

    def opened(settings: StoreSettings) -> Repository:
        store = open_store(settings)
        known = next((repository for earlier, repository in before if earlier == settings), None)
        return Repository(store, state, encryption) if known is None else known.through(store, encryption)

    return [(settings, opened(settings)) for settings in stores]


def configured_stores(
    repositories: Iterable[tuple[StoreSettings, Repository]],
    settings: Settings,
    entries: Mapping[str, DatabaseSettings],
) -> list[ConfiguredStore]:
    """Return the repositories with the policies of the databases that exist: `entries` are theirs, by their names."""
    return [
        ConfiguredStore(repository, settings.policies(store, entries), settings.grace(store), store.put_only)
        for store, repository in repositories
    ]


def distinct_stores(stores: Iterable[StoreSettings]) -> list[StoreSettings]:
    """Return the first store of each place, in their order: however it is spelled, it has one lock and one policy."""
    found: dict[str, StoreSettings] = {}
    for store in stores:
        found.setdefault(canonical_url(store.url), store)
    return [*found.values()]


def duplicate_warnings(stores: Iterable[StoreSettings]) -> Iterator[str]:
    """Yield a warning for each store that is the same place as another one: one copy must not be taken for two."""
    found: dict[str, StoreSettings] = {}
    for store in stores:
        first = found.setdefault(canonical_url(store.url), store)
        if first is not store:
            yield f"the stores {first.url} and {store.url} are one directory, and count as one"
