"""The session of a verb: its configuration, state directory, and the databases, stores and snapshot that it names."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from backupd.cli import output
from backupd.config import Database, check_database_name, database_from_path, discover_databases, load, store_from_url
from backupd.config.values import absolute_path
from backupd.encryption import read_identities
from backupd.errors import UsageError
from backupd.jobs.configured import (
    ConfiguredDatabase,
    configured_stores,
    distinct_stores,
    duplicate_warnings,
    open_repositories,
)
from backupd.logs import log
from backupd.privileges import become_owner
from backupd.state import StateDirectory
from backupd.store import canonical_url
from backupd.system.processes import reject_unreachable_python

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.cli.verbs import Invocation
    from backupd.config import Settings, StoreSettings
    from backupd.config.discovery import DiscoveredDatabases
    from backupd.errors import BackupdError
    from backupd.health import StatusFile
    from backupd.jobs.configured import ConfiguredStore
    from backupd.repository import Repository
    from backupd.repository.moments import RestorePoint
    from backupd.repository.references import FoundSnapshot, Reference

# Names may have dots too, but hardly these endings.
_FILE_SUFFIXES = frozenset({".db", ".db3", ".sqlite", ".sqlite3"})
_NAMES_SHOWN = 8


class Session:
    """One run of one verb: configuration, state and stores. Making it reads the configuration, and nothing else.

    The file system is searched for databases once, when they are first asked for.
    """

    def __init__(self, invocation: Invocation) -> None:
        log.configure(is_quiet=invocation.is_quiet)
        self.is_json = invocation.is_json
        self.is_quiet = invocation.is_quiet
        self.settings = become_owner(_with_identity(load(invocation.config_file), invocation.identity_file))
        if self.settings.run_as_owner:
            reject_unreachable_python()  # before anything is loaded or started as the owner
        self.state = StateDirectory(self.settings.state_dir)
        self._has_warned_of_duplicates = False
        self._repositories: dict[str, Repository] = {}

    @cached_property
    def status(self) -> StatusFile:
        """The status file. Loaded late: most commands only need it when two files have one name."""
        from backupd.health import StatusFile

        return StatusFile(self.state)

    @cached_property
    def _found(self) -> DiscoveredDatabases:
        return discover_databases(self.settings.databases, lambda: self.status.read().paths)

    @cached_property
    def _databases(self) -> tuple[Database, ...]:
        for path, problem in self._found.problems_by_path.items():
            output.print_warning(f"{path} is left out: {problem.message}; {problem.hint}")
        return tuple(database for _, database in self._found.databases)

    def databases(self) -> tuple[Database, ...]:
        """The configured databases that exist.

        Warns, once in a run, of files that patterns find and that cannot have their name: one tenant with an odd name
        must not keep another from its snapshot or restore.
        """
        return self._databases

    def unmatched_patterns(self) -> tuple[str, ...]:
        """The configured patterns that match no file."""
        return self._found.unmatched_patterns

    def problems(self) -> list[BackupdError]:
        """Why files that the configuration stands for are not among `databases`."""
        return [*self._found.problems_by_path.values()]

    def selected(self, texts: Sequence[str]) -> list[Database]:
        """The databases that `texts` mean, found by `select_databases` among the configured ones."""
        for text in texts:
            self._reject_odd_file(text)
        return select_databases(texts, self.databases())

    def database_name(self, text: str) -> str:
        """The name of the database that `text` means, found by `database_name` among the configured ones."""
        self._reject_odd_file(text)
        return database_name(text, self.databases())

    def known_database(self, name: str, text: str | None) -> Database | None:
        """The database `name` at the path that `text` is, or the configured one of that name, if there is one."""
        if text is not None and text != name:
            return Database(name, self.selected([text])[0].path)
        return next((database for database in self.databases() if database.name == name), None)

    def database_to_restore(self, found: RestorePoint, text: str | None) -> Database:
        """The database to restore `found` into: the file whose path `text` is, or the configured one of its name.

        Raises `UsageError`, and the reason why a file of that name is not among `databases`.
        """
        name, writer = found.manifest.database, found.manifest.writer
        database = self.known_database(name, text)
        if database is not None:
            return database
        raise self._found.problems_by_name.get(name) or UsageError(
            f"where to restore {name} to is not known: it is not configured here",
            hint=f"name the file: --to FILE; it was {writer.path} on {writer.host}",
        )

    def _reject_odd_file(self, text: str) -> None:
        """Raise the reason why a file was left out: under another name it would be in another database's history."""
        given = os.path.realpath(os.path.expanduser(text))  # noqa: PTH111  (Path.expanduser raises)
        databases = [database for _, database in self._found.databases]
        if any(database.name == text or os.path.realpath(database.path) == given for database in databases):
            return
        for path, problem in self._found.problems_by_path.items():
            if os.path.realpath(path) == given:
                raise problem

    def configured(self, database: Database) -> ConfiguredDatabase:
        """A database that is among `databases`, with its schedule."""
        return ConfiguredDatabase(database, self.settings.schedule_of(self._found.entries_by_name[database.name]))

    def configured_stores(self, urls: Sequence[str]) -> list[ConfiguredStore]:
        """The stores at `urls`, or all configured ones, each once and with the policies of its databases.

        A store has its configured settings where it has some. Raises `UsageError`.
        """
        return configured_stores(self._opened(urls), self.settings, self._found.entries_by_name)

    def repositories(self, url: str | None) -> list[Repository]:
        """The repository in the store at `url`, or those in all configured stores. Raises `UsageError`."""
        return [repository for _, repository in self._opened([url] if url else [])]

    def _opened(self, urls: Sequence[str]) -> list[tuple[StoreSettings, Repository]]:
        """The stores that `urls` choose, each with its repository, which is the same object throughout a run."""
        self._warn_of_duplicates()
        chosen = self._chosen(urls)
        new = [store for store in chosen if store.url not in self._repositories]
        for store, repository in open_repositories(new, self.state, self.settings.open_encryption()):
            self._repositories[store.url] = repository
        return [(store, self._repositories[store.url]) for store in chosen]

    def reference(self, text: str, database: str | None) -> Reference:
        """The reference in `text`, with the name that `database` (a name or a path) means if there is none before `@`.

        Raises `UsageError`, also when two databases are named.
        """
        from backupd.repository.references import parse_reference

        name = None if database is None else self.database_name(database)
        reference = parse_reference(text)
        if name and reference.database and name != reference.database:
            raise UsageError(
                f"{text!r} names the database {reference.database}, and --database {name}", hint="leave one of them out"
            )
        return replace(reference, database=reference.database or name)

    def snapshot(self, text: str, database: str | None, store: str | None) -> FoundSnapshot:
        """The snapshot that `text` refers to; `database` (a name or a path) and `store` narrow it down.

        Raises what `find_snapshot` raises, and `UsageError` when two databases are named.
        """
        from backupd.repository.references import find_snapshot

        name = self.reference(text, database).database
        return find_snapshot(self.repositories(store), text, database=name, now=datetime.now().astimezone())

    def restore_point(self, text: str, database: str | None, store: str | None) -> RestorePoint:
        """The state that `text` refers to, a snapshot or a commit, with all that a restore needs.

        `database` (a name or a path) and `store` narrow it down. Raises what `find_restore_point` raises, and
        `UsageError` when two databases are named.
        """
        from backupd.repository.moments import find_restore_point

        name = self.reference(text, database).database
        return find_restore_point(self.repositories(store), text, database=name, now=datetime.now().astimezone())

    def _warn_of_duplicates(self) -> None:
        """Warn, once in a run, of two configured stores that are one: one copy must not be taken for two."""
        is_repeated, self._has_warned_of_duplicates = self._has_warned_of_duplicates, True
        for warning in () if is_repeated else duplicate_warnings(self.settings.stores):
            output.print_warning(warning)

    def _chosen(self, urls: Sequence[str]) -> list[StoreSettings]:
        usual = self.settings.stores_or_default
        if not urls:
            return distinct_stores(usual)
        chosen = []
        for url in urls:
            given = store_from_url(url)
            chosen += [store for store in usual if _is_same(store, given)] or [given]
        chosen = distinct_stores(chosen)
        output.remember_unusual_stores(store.url for store in chosen if store not in usual)
        return chosen


def _with_identity(settings: Settings, file: Path | None) -> Settings:
    """The settings with the key file that the command line names, if it names one. Raises `UsageError`."""
    if file is None:
        return settings
    identity_file = absolute_path(file)
    read_identities(identity_file)
    return settings.replaced(identity_file=identity_file)


def _is_same(store: StoreSettings, given: StoreSettings) -> bool:
    # A command that names a bucket must not wait for a directory on a server that hangs.
    return store.is_s3 == given.is_s3 and canonical_url(store.url) == canonical_url(given.url)


def select_databases(texts: Sequence[str], configured: Sequence[Database]) -> list[Database]:
    """The databases that `texts` mean, each once, in their order: configured names, paths, or `NAME=PATH`.

    Raises `UsageError` when one is none of these, or when two files would have one name.
    """
    selected: list[Database] = []
    for text in texts:
        database = _selected(text, configured)
        if database not in selected:
            _reject_shared_name(database, selected)
            selected.append(database)
    return selected


def database_name(text: str, configured: Sequence[Database]) -> str:
    """The name of the database that `text`, a name in a store or a path, means. Raises `UsageError`.

    The file need not exist any more: its snapshots are wanted most when it is gone.
    """
    looks_like_path = "/" in text or "=" in text or Path(text).suffix.lower() in _FILE_SUFFIXES or _is_file(text)
    if looks_like_path and _with_name(text, configured) is None:
        return _at_path(text, configured).name
    return check_database_name(text)


def _selected(text: str, configured: Sequence[Database]) -> Database:
    database = _with_name(text, configured)
    if database is not None:
        return database
    if "/" in text or "=" in text or Path(text).suffix or _is_file(text):
        return _at_path(text, configured)
    raise UsageError(f"no database is called {text!r}", hint=_hint_for_unknown(text, configured))


def _is_file(text: str) -> bool:
    return os.path.isfile(text)  # noqa: PTH113  (Path.is_file raises for a name that is too long)


def _with_name(name: str, databases: Iterable[Database]) -> Database | None:
    return next((database for database in databases if database.name == name), None)


def _at_path(text: str, configured: Sequence[Database]) -> Database:
    """The file at a path, under its configured name if it has one: another name would begin another history."""
    name, path = _named_path(text)
    same = (each for each in configured if each.path.resolve() == absolute_path(path).resolve())
    known = next(same, None)
    if known is not None:
        if name not in {None, known.name}:
            raise UsageError(
                f"{known.path} is configured as {known.name}, and {name} would begin another history",
                hint=f"leave the name out: {quote(str(path))}",
            )
        return known
    try:
        return database_from_path(path, name=name)
    except UsageError as error:
        if name is not None:
            raise
        likely = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "app"
        raise UsageError(
            error.message,
            hint=f"give it a name: {quote(f'{likely}={text}')}; or set `name` in an entry for it under [[databases]]",
        ) from error


def _named_path(text: str) -> tuple[str | None, Path]:
    """Name and path of `NAME=PATH`. What is a file as it stands, and what has no name there, is a path alone."""
    name, sign, path = text.partition("=")
    if not sign or not path or "/" in name or _is_file(text):
        return None, Path(text)
    return name, Path(path)


def _reject_shared_name(database: Database, others: Iterable[Database]) -> None:
    for other in others:
        if other.name.lower() == database.name.lower():
            raise UsageError(
                f"two databases with one name: {other.name!r} ({other.path}) and {database.name!r} ({database.path})",
                hint=f"give one another name: {quote(f'NAME={database.path}')}; or set `name` under [[databases]]",
            )


def _hint_for_unknown(text: str, configured: Sequence[Database]) -> str:
    names = [database.name for database in configured]
    if likely := difflib.get_close_matches(text, names, n=1):
        return f"did you mean {likely[0]}?"
    if not names:
        return "none is configured; give the path of the database file, such as ./app.db"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (" and more" if len(names) > _NAMES_SHOWN else "")
    return f"configured are: {shown}; a path has a slash or a suffix, such as ./app.db"
