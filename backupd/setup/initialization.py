"""The use case of `backupd init`: gather a first configuration from options and answers, and write it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from backupd.config import ScheduleSettings, StoreSettings, load, store_from_url
from backupd.config.tables import InvalidTableError
from backupd.errors import UsageError
from backupd.schedules import Schedule
from backupd.setup.entries import Entry, entries_for, entries_from, moved_names
from backupd.setup.search import find_sqlite_files
from backupd.setup.writing import (
    ConfigurationRequest,
    StoreRequest,
    exists_already,
    overriding_variables,
    state_directory,
    usual_place,
    write_configuration,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backupd.config import Settings

_T = TypeVar("_T")
_Table = TypeVar("_Table", ScheduleSettings, StoreSettings)
_DEFAULT_STORE = "./backups"
_DEFAULT_TIMES = "every 15m"
_LARGEST_SECRET_BYTES = 4096
_ANY_BUCKET = "s3://bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """The options of the command line; None, or nothing, for those that are not given."""

    directory: Path | None
    databases: Sequence[str]
    stores: Sequence[str]
    endpoint_url: str | None
    region: str | None
    access_key_id: str | None
    secret_access_key_file: Path | None
    snapshots: str | None
    time_zone: str | None


class Console(Protocol):
    """The dialogue of `init` with the user. Without `may_ask`, no question is asked, and defaults are taken."""

    @property
    def may_ask(self) -> bool:
        """Whether there is a user to answer."""

    def ask(self, question: str, default: str, parse: Callable[[str], _T]) -> _T:
        """Ask until `parse`, which raises `UsageError`, accepts the answer."""

    def ask_secret(self, question: str) -> str:
        """Ask without showing what is typed."""

    def choose(self, entries: Sequence[Entry]) -> list[Entry]:
        """Let the user choose some of `entries`."""

    def note(self, message: str) -> None:
        """Report what is good to know."""

    def warn(self, message: str) -> None:
        """Report what needs attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialized:
    """A configuration that was written to `file`: what it says, and the settings that every command reads from it."""

    file: Path
    request: ConfigurationRequest
    settings: Settings
    overriding: tuple[str, ...]
    """Variables that are set and override values of the file."""


def initialize(
    options: InitOptions, console: Console, environ: Mapping[str, str], *, file: Path | None, is_forced: bool
) -> Initialized:
    """Gather a configuration and write it to `file`, or to the usual place.

    Raises `UsageError` for wrong options, and the errors of `write_configuration`.
    """
    file = (file or usual_place(environ)).expanduser().absolute()
    if not is_forced and os.path.lexists(file):
        raise exists_already(file)  # before the user answers questions for nothing
    own_files = state_directory(environ, is_root=os.geteuid() == 0)
    request = _Gathering(options, console, own_files).request()
    _warn_of_moved_names(console, file, request)
    return Initialized(
        file=file,
        request=request,
        settings=write_configuration(file, request, environ, is_forced=is_forced),
        overriding=tuple(overriding_variables(request, environ)),
    )


def _warn_of_moved_names(console: Console, file: Path, request: ConfigurationRequest) -> None:
    """Warn of names that change their file: a store knows a database by its name alone, so two histories would mix."""
    if not os.path.lexists(file):
        return
    try:
        before = load(file)
    except UsageError:
        return  # no database has been backed up by an invalid configuration
    for name, old, new in moved_names(request.databases, before):
        console.warn(
            f"{name} was {old}, and is now {new}, which continues the same history: if that is another database, "
            f"change its `name` in {file} before the next snapshot"
        )


class _Gathering:
    """Takes what the options say, and asks for the rest where it may."""

    def __init__(self, options: InitOptions, console: Console, own_files: Path) -> None:
        """`own_files` is the directory of backupd's own files, which are not backed up."""
        self._options = options
        self._console = console
        self._own_files = own_files

    def request(self) -> ConfigurationRequest:
        options = self._options
        self._check_options()
        snapshots = None if options.snapshots is None else str(Schedule.parse(options.snapshots))
        skipped: tuple[Path, ...] = ()
        if not (databases := entries_from(options.databases)):
            databases, skipped = self._find_databases()
        stores = self._stores()
        if snapshots is None and self._console.may_ask:
            question = 'How often? "every 15m", or five fields of cron'
            snapshots = str(self._console.ask(question, _DEFAULT_TIMES, Schedule.parse))
        return ConfigurationRequest(
            databases=databases,
            stores=stores,
            snapshots=snapshots or _DEFAULT_TIMES,
            time_zone=options.time_zone,
            skipped=skipped,
        )

    def _check_options(self) -> None:
        """Refuse wrong options before the first question."""
        for url in self._options.stores:
            store_from_url(url)
        if self._options.endpoint_url is not None:
            _endpoint(self._options.endpoint_url)
        if self._options.time_zone is not None:
            _checked(ScheduleSettings, time_zone=self._options.time_zone)

    def _find_databases(self) -> tuple[list[Entry], tuple[Path, ...]]:
        """Entries for the files that are found, and the files that no entry can name."""
        directory = self._options.directory
        if directory is None and self._console.may_ask:
            directory = self._console.ask("In which directory are the databases?", ".", _directory)
        directory = (directory or Path()).absolute()
        if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(self._own_files)):
            raise UsageError(
                f"{directory} is where backupd keeps files of its own (state_dir): no database is searched there",
                hint="name the directory that the databases are in, or a file itself with --database PATH",
            )
        without = [settings.directory for url in self._options.stores if not (settings := store_from_url(url)).is_s3]
        found = find_sqlite_files(directory, without=[*without, self._own_files])
        for path in found.unreadable:
            self._console.note(f"note: {path} could not be read")
        if found.unfinished is not None:
            self._console.warn(f"{found.unfinished}; name what is missing with --database")
        entries, unnameable = entries_for(found.files)
        for path in unnameable:
            self._console.warn(f"{path} is left out: its name is not UTF-8 text, so TOML cannot contain it")
        if not entries:
            raise UsageError(
                f"no SQLite database was found below {directory}",
                hint="name another directory, or the file itself with --database PATH",
            )
        return self._console.choose(entries) if self._console.may_ask else entries, tuple(unnameable)

    def _stores(self) -> list[StoreRequest]:
        urls = list(self._options.stores)
        if not urls and self._console.may_ask:
            question = "Where do snapshots go? s3://bucket/prefix, or a directory"
            urls = [self._console.ask(question, _DEFAULT_STORE, _store_url)]
            while url := self._console.ask("To which other store? (empty: none)", "", _store_url_if_any):
                urls.append(url)
        # Absolute, because a relative path would start at the directory of the file that is written.
        return [self._store(store_from_url(url).url) for url in dict.fromkeys(urls or [_DEFAULT_STORE])]

    def _store(self, url: str) -> StoreRequest:
        if not url.startswith("s3://"):
            return StoreRequest(url=url)
        endpoint_url, key, secret = self._options.endpoint_url, self._options.access_key_id, self._secret()
        if self._console.may_ask and endpoint_url is None:
            endpoint_url = self._console.ask(f"{url}: the URL of the service (empty: AWS)", "", _endpoint_if_any)
        if self._console.may_ask and key is None:
            key = self._console.ask(f"{url}: the access key id (empty: from the environment)", "", str) or None
        if self._console.may_ask and key is not None and secret is None:
            secret = self._console.ask_secret(f"{url}: the secret access key (it is not shown)")
        if (key is None) != (secret is None):
            raise UsageError(
                "an access key id and a secret access key need each other",
                hint="give --access-key-id and --secret-access-key-file, or leave both to the environment",
            )
        return StoreRequest(
            url=url,
            endpoint_url=endpoint_url,
            region=self._options.region,
            access_key_id=key,
            secret_access_key=secret,
        )

    def _secret(self) -> str | None:
        file = self._options.secret_access_key_file
        if file is None:
            return None
        try:
            with file.open("rb") as opened:
                secret = opened.read(_LARGEST_SECRET_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UsageError(
                f"the secret access key cannot be read from {file}: {reason}",
                hint="put the key, and nothing else, there",
            ) from error
        if not secret:
            raise UsageError(f"{file} is empty", hint="put the secret access key, and nothing else, there")
        return secret


def _directory(text: str) -> Path:
    directory = Path(text).expanduser()
    if not os.path.isdir(directory):  # noqa: PTH112  (Path.is_dir raises where it may not look)
        raise UsageError(
            f"{directory} is not a directory", hint="name the directory that the databases are in, or above"
        )
    return directory


def _store_url(text: str) -> str:
    return store_from_url(text).url


def _store_url_if_any(text: str) -> str:
    return store_from_url(text).url if text else ""


def _endpoint(text: str) -> str:
    try:
        return _checked(StoreSettings, url=_ANY_BUCKET, endpoint_url=text).endpoint_url or ""
    except UsageError as error:
        raise UsageError(
            f"the URL of the service {error.message}", hint=error.hint or "write it like https://s3.example.org"
        ) from None


def _endpoint_if_any(text: str) -> str | None:
    return _endpoint(text) if text else None


def _checked(kind: type[_Table], **values: str) -> _Table:
    """Validate the values of a table. Raises the `UsageError` of the rule that they break."""
    try:
        return kind.read(values)
    except InvalidTableError as error:
        reason = error.problems[0].error
        raise UsageError(reason.message, hint=reason.hint) from None
