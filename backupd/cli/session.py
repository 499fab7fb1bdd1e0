"""What a verb works with once it runs: the configuration, the state directory, and the stores that are meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.config import find_databases, load, store_from_url
from backupd.logs import log
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.cli.options import Invocation
    from backupd.config import Database, StoreSettings
    from backupd.store import Store


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
        chosen: list[StoreSettings] = []
        for store in self._named(urls) if urls else self.settings.stores_or_default:
            if store not in chosen:
                chosen.append(store)
        return [open_store(store) for store in chosen]

    def repositories(self, url: str | None) -> list[Repository]:
        """The repositories in the store at `url`, or in all configured stores. Raises `UsageError`."""
        return [Repository(store, self.state) for store in self.stores([url] if url else [])]

    def _named(self, urls: Sequence[str]) -> list[StoreSettings]:
        named = []
        for url in urls:
            given = store_from_url(url)
            named += [store for store in self.settings.stores if store.url == given.url] or [given]
        return named
