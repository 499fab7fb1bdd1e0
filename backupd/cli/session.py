"""What a verb works with once it runs: the configuration, the state directory, and the stores that are meant."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backupd.children import reject_unreachable_python
from backupd.cli import output
from backupd.cli.selection import name_meant, select_databases
from backupd.config import load, look_for_databases, store_from_url
from backupd.config.values import absolute_path
from backupd.encryption import read_identities
from backupd.health import StatusFile
from backupd.logs import log
from backupd.owner import run_as_owner
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import canonical_url, open_store
from backupd.upkeep.configured import Configured
from backupd.upkeep.stores import each_once, open_repositories, rotated_stores, twin_warnings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backupd.cli.options import Invocation
    from backupd.config import Database, Settings, StoreSettings
    from backupd.config.discovery import Found
    from backupd.errors import BackupdError
    from backupd.store import Store
    from backupd.upkeep.stores import RotatedStore


class Session:
    """One run of one verb. Making it reads the configuration and touches nothing else. Raises `UsageError`."""

    def __init__(self, invocation: Invocation) -> None:
        log.configure(is_quiet=invocation.is_quiet)
        self.is_json = invocation.is_json
        self.is_quiet = invocation.is_quiet
        self.settings = run_as_owner(_with_identity(load(invocation.config_file), invocation.identity_file))
        if self.settings.run_as_owner:
            reject_unreachable_python()  # before anything is loaded or started as the owner
        self.state = StateDirectory(self.settings.state_dir)
        self.status = StatusFile(self.state)
        self._has_told_of_twins = False
        self._has_told_of_odd_files = False

    def databases(self) -> tuple[Database, ...]:
        """The configured databases that there are now.

        Warns once in a run of files that patterns find and that cannot have their name: one tenant with an odd name is
        to stop no other's snapshot or restore.
        """
        found = self._found()
        told, self._has_told_of_odd_files = self._has_told_of_odd_files, True
        for path, problem in () if told else found.problems_by_path.items():
            output.print_warning(f"{path} is left out: {problem.message}; {problem.hint}")
        return tuple(database for _, database in found.databases)

    def problems(self) -> list[BackupdError]:
        """Why files that the configuration means now are not among `databases`."""
        return [*self._found().problems_by_path.values()]

    def problem_of(self, name: str) -> BackupdError | None:
        """Why the file that would have this name is not among `databases`; None when none would."""
        return self._found().problems_by_name.get(name)

    def _found(self) -> Found:
        return look_for_databases(self.settings.databases, lambda: self.status.read().paths)

    def selected(self, texts: Sequence[str]) -> list[Database]:
        """The databases that `texts` mean, as `select_databases` finds them among the configured ones."""
        for text in texts:
            self._reject_odd_file(text)
        return select_databases(texts, self.databases())

    def name_meant(self, text: str) -> str:
        """The name of the database that `text` means, as `name_meant` finds it among the configured ones."""
        self._reject_odd_file(text)
        return name_meant(text, self.databases())

    def _reject_odd_file(self, text: str) -> None:
        """Raise why a file that was left out cannot have its name: by another, it would be in another's history."""
        found = self._found()
        given = os.path.realpath(os.path.expanduser(text))  # noqa: PTH111  (Path.expanduser raises)
        if any(database.name == text or os.path.realpath(database.path) == given for _, database in found.databases):
            return
        for path, problem in found.problems_by_path.items():
            if os.path.realpath(path) == given:
                raise problem

    def configured(self, database: Database) -> Configured:
        """A database that is among `databases`, with its schedule."""
        entry = self._found().entries_by_name[database.name]
        return Configured(database, self.settings.schedule_of(entry))

    def stores(self, urls: Sequence[str]) -> list[Store]:
        """The stores at `urls`, with their configured settings where they have some; without `urls`, all configured.

        Each is there once. Raises `UsageError`.
        """
        return [open_store(store) for store in self._chosen(urls)]

    def rotated(self, urls: Sequence[str]) -> list[RotatedStore]:
        """The same stores, each with its policies. Raises `UsageError`."""
        self._tell_of_twins()
        return rotated_stores(
            open_repositories(self._chosen(urls), self.state, self.settings.open_encryption()), self.settings
        )

    def repositories(self, url: str | None) -> list[Repository]:
        """The repositories in the store at `url`, or in all configured stores. Raises `UsageError`."""
        self._tell_of_twins()
        encryption = self.settings.open_encryption()
        return [Repository(store, self.state, encryption) for store in self.stores([url] if url else [])]

    def _tell_of_twins(self) -> None:
        """Warn of two configured stores that are one, once in a run: whoever has one copy is not to think it is two."""
        told, self._has_told_of_twins = self._has_told_of_twins, True
        for warning in () if told else twin_warnings(self.settings.stores):
            output.print_warning(warning)

    def _chosen(self, urls: Sequence[str]) -> list[StoreSettings]:
        usual = self.settings.stores_or_default
        if not urls:
            return each_once(usual)
        chosen = []
        for url in urls:
            given = store_from_url(url)
            chosen += [store for store in usual if _is_same(store, given)] or [given]
        chosen = each_once(chosen)
        output.remember_unusual_stores(store.url for store in chosen if store not in usual)
        return chosen


def _with_identity(settings: Settings, file: Path | None) -> Settings:
    """The settings with the key that was named on the command line, if one was. Raises `UsageError` for none."""
    if file is None:
        return settings
    identity_file = absolute_path(file)
    read_identities(identity_file)
    return settings.model_copy(update={"identity_file": identity_file})


def _is_same(store: StoreSettings, given: StoreSettings) -> bool:
    # Whoever names a bucket does not wait for a directory on a server that hangs.
    return store.is_s3 == given.is_s3 and canonical_url(store.url) == canonical_url(given.url)
