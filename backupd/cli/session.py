"""What a verb works with once it runs: the configuration, the state directory, and the stores that are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.cli import output
from backupd.config import find_databases, load, store_from_url
from backupd.logs import log
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import canonical_url, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from backupd.cli.options import Invocation
    from backupd.config import Database, RetentionSettings, StoreSettings
    from backupd.store import Store

Place = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class RotatedStore:
    """A store's snapshots, and how long those of each database are kept in it."""

    repository: Repository
    _policies: Mapping[str, RetentionSettings]
    _grace: timedelta

    def policy(self, database: str) -> RetentionSettings | None:
        """The policy for `database` here; None when it is not configured."""
        return self._policies.get(database)

    def grace(self, database: str) -> timedelta:
        """How long `database`'s snapshots stay in the trash here."""
        policy = self.policy(database)
        return policy.grace if policy else self._grace


class Session:
    """One run of one verb. Making it reads the configuration and touches nothing else. Raises `UsageError`."""

    def __init__(self, invocation: Invocation) -> None:
        log.configure(is_quiet=invocation.is_quiet)
        self.is_json = invocation.is_json
        self.is_quiet = invocation.is_quiet
        self.settings = load(invocation.config_file)
        self.state = StateDirectory(self.settings.state_dir)
        self._has_told_of_twins = False

    def databases(self) -> tuple[Database, ...]:
        """The configured databases that there are now. Raises `UsageError`."""
        return find_databases(self.settings.databases)

    def stores(self, urls: Sequence[str]) -> list[Store]:
        """The stores at `urls`, with their configured settings where they have some; without `urls`, all configured.

        Each is there once. Raises `UsageError`.
        """
        return [open_store(store) for store in self._chosen(urls)]

    def rotated(self, urls: Sequence[str]) -> list[RotatedStore]:
        """The same stores, each with its policies. Raises `UsageError`."""
        self._tell_of_twins()
        return [
            RotatedStore(
                Repository(open_store(store), self.state), self.settings.policies(store), self.settings.grace(store)
            )
            for store in self._chosen(urls)
        ]

    def repositories(self, url: str | None) -> list[Repository]:
        """The repositories in the store at `url`, or in all configured stores. Raises `UsageError`."""
        self._tell_of_twins()
        return [Repository(store, self.state) for store in self.stores([url] if url else [])]

    def _tell_of_twins(self) -> None:
        """Warn of two configured stores that are one, once in a run: whoever has one copy is not to think it is two."""
        told, self._has_told_of_twins = self._has_told_of_twins, True
        by_place: dict[Place, StoreSettings] = {}
        for store in () if told else self.settings.stores:
            first = by_place.setdefault(_place(store), store)
            if first is not store:
                output.print_warning(f"the stores {first.url} and {store.url} are one directory, and count as one")

    def _chosen(self, urls: Sequence[str]) -> list[StoreSettings]:
        usual = self.settings.stores_or_default
        if not urls:
            return _each_once(usual)
        chosen = []
        for url in urls:
            given = store_from_url(url)
            chosen += [store for store in usual if _is_same(store, given)] or [given]
        chosen = _each_once(chosen)
        output.remember_unusual_stores(store.url for store in chosen if store not in usual)
        return chosen


def _place(store: StoreSettings) -> Place:
    """The same for each spelling of a store: it has one lock, and one policy."""
    return canonical_url(store.url), store.endpoint_url


def _each_once(stores: Iterable[StoreSettings]) -> list[StoreSettings]:
    found: dict[Place, StoreSettings] = {}
    for store in stores:
        found.setdefault(_place(store), store)
    return [*found.values()]


def _is_same(store: StoreSettings, given: StoreSettings) -> bool:
    # Whoever names a bucket does not wait for a directory on a server that hangs.
    return store.is_s3 == given.is_s3 and canonical_url(store.url) == canonical_url(given.url)
