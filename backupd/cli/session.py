"""What a verb works with once it runs: the configuration, the state directory, and the stores that are meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.config import find_databases, load, store_from_url
from backupd.logs import log
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from backupd.cli.options import Invocation
    from backupd.config import Database, RetentionSettings, StoreSettings
    from backupd.store import Store


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
        return [
            RotatedStore(
                Repository(open_store(store), self.state), self.settings.policies(store), self.settings.grace(store)
            )
            for store in self._chosen(urls)
        ]

    def repositories(self, url: str | None) -> list[Repository]:
        """The repositories in the store at `url`, or in all configured stores. Raises `UsageError`."""
        return [Repository(store, self.state) for store in self.stores([url] if url else [])]

    def _chosen(self, urls: Sequence[str]) -> list[StoreSettings]:
        chosen: list[StoreSettings] = []
        for store in self._named(urls) if urls else self.settings.stores_or_default:
            if store not in chosen:
                chosen.append(store)
        return chosen

    def _named(self, urls: Sequence[str]) -> list[StoreSettings]:
        named = []
        for url in urls:
            given = store_from_url(url)
            named += [store for store in self.settings.stores if store.url == given.url] or [given]
        return named
