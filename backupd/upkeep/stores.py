"""The stores that are meant, each with how long the snapshots of each database are kept in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.encryption import NO_ENCRYPTION
from backupd.repository import Repository
from backupd.store import canonical_url, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import timedelta

    from backupd.config import RetentionSettings, Settings, StoreSettings
    from backupd.encryption import Encryption
    from backupd.state import StateDirectory


@dataclass(frozen=True, slots=True)
class RotatedStore:
    """A store's snapshots, and how long those of each database are kept in it."""

    repository: Repository
    _policies: Mapping[str, RetentionSettings]
    _grace: timedelta
    is_put_only: bool = False
    """The keys of this machine neither delete nor read packs: it prunes nothing there, and restores nothing to test."""

    @property
    def url(self) -> str:
        """The store's URL, for people."""
        return self.repository.url

    def policy(self, database: str) -> RetentionSettings | None:
        """The policy for `database` here; None when it is not configured."""
        return self._policies.get(database)

    def grace(self, database: str) -> timedelta:
        """How long `database`'s snapshots stay in the trash here."""
        policy = self.policy(database)
        return policy.grace if policy else self._grace


def open_repositories(
    stores: Iterable[StoreSettings], state: StateDirectory, encryption: Encryption = NO_ENCRYPTION
) -> list[tuple[StoreSettings, Repository]]:
    """A repository in each of `stores`. Asks them for nothing yet."""
    return [(store, Repository(open_store(store), state, encryption)) for store in stores]


def rotated_stores(repositories: Iterable[tuple[StoreSettings, Repository]], settings: Settings) -> list[RotatedStore]:
    """The repositories with the policies of the databases that are there at this moment."""
    return [
        RotatedStore(repository, settings.policies(store), settings.grace(store), store.put_only)
        for store, repository in repositories
    ]


def each_once(stores: Iterable[StoreSettings]) -> list[StoreSettings]:
    """The first of each place, in their order: however it is spelled, it has one lock, and one policy."""
    found: dict[str, StoreSettings] = {}
    for store in stores:
        found.setdefault(canonical_url(store.url), store)
    return [*found.values()]


def twin_warnings(stores: Iterable[StoreSettings]) -> Iterator[str]:
    """A warning for each store that is another one besides: whoever has one copy is not to think that it is two."""
    found: dict[str, StoreSettings] = {}
    for store in stores:
        first = found.setdefault(canonical_url(store.url), store)
        if first is not store:
            yield f"the stores {first.url} and {store.url} are one directory, and count as one"
