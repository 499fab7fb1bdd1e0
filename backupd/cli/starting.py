"""What a first configuration is to say: from options, and on a terminal from questions."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from pydantic import ValidationError

from backupd.cli import output, quantities
from backupd.config import DatabaseSettings, ScheduleSettings, StoreSettings, store_from_url
from backupd.errors import UsageError
from backupd.schedules import Schedule
from backupd.starting.entries import Entry, entries_for, entries_from
from backupd.starting.search import find_sqlite_files
from backupd.starting.writing import ConfigurationWish, StoreWish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_Table = TypeVar("_Table", ScheduleSettings, StoreSettings)
_DEFAULT_STORE = "./backups"
_DEFAULT_TIMES = "every 15m"
_FILES_SHOWN = 5
_LARGEST_SECRET_BYTES = 4096
_RANGE = re.compile(r" *([0-9]{1,9}) *(?:- *([0-9]{1,9}) *)?")
_ANY_BUCKET = "s3://bucket"


def questions_can_be_asked() -> bool:
    """Whether somebody sits there to answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


@dataclass(kw_only=True)
class Answers:
    """What the options say, and what is asked for where they do not and `may_ask`. `wish` gives all of it."""

    directory: Path | None
    databases: Sequence[str]
    stores: Sequence[str]
    endpoint_url: str | None
    region: str | None
    access_key_id: str | None
    secret_access_key_file: Path | None
    snapshots: str | None
    time_zone: str | None
    may_ask: bool
    state_dir: Path
    """Where backupd keeps files of its own: none of them is to be backed up."""
    skipped: list[Path] = field(default_factory=list)
    """Databases that were found and that no configuration can name."""

    def wish(self) -> ConfigurationWish:
        """Everything that the file is to say. Raises `UsageError`."""
        self._check_options()
        snapshots = self.snapshots if self.snapshots is None else str(Schedule.parse(self.snapshots))
        databases = self._databases()
        stores = self._stores()
        if self.snapshots is None and self.may_ask:
            told = _ask('How often? "every 15m", or five fields of cron', _DEFAULT_TIMES, Schedule.parse)
            snapshots = str(told)
        return ConfigurationWish(
            databases=databases, stores=stores, snapshots=snapshots or _DEFAULT_TIMES, time_zone=self.time_zone
        )

    def _check_options(self) -> None:
        """Before anybody answers questions for nothing."""
        for url in self.stores:
            store_from_url(url)
        if self.endpoint_url is not None:
            _endpoint(self.endpoint_url)
        if self.time_zone is not None:
            _checked(ScheduleSettings, time_zone=self.time_zone)

    def _databases(self) -> list[Entry]:
        return entries_from(self.databases) or self._found()

    def _found(self) -> list[Entry]:
        directory = self.directory
        if directory is None and self.may_ask:
            directory = _ask("In which directory are the databases?", ".", _directory)
        directory = (directory or Path()).absolute()
        if Path(os.path.realpath(directory)).is_relative_to(os.path.realpath(self.state_dir)):
            raise UsageError(
                f"{directory} is where backupd keeps files of its own (state_dir): no database there is looked for",
                hint="name the directory that the databases are in, or a file itself with --database PATH",
            )
        without = [settings.directory for url in self.stores if not (settings := store_from_url(url)).is_s3]
        found = find_sqlite_files(directory, without=[*without, self.state_dir])
        for path in found.unreadable:
            output.print_note(f"note: {path} could not be looked into")
        if found.unfinished is not None:
            output.print_warning(f"{found.unfinished}; name what is missing with --database")
        entries, self.skipped = entries_for(found.files)
        for path in self.skipped:
            output.print_warning(f"{path} is left out: its name is not UTF-8 text, and TOML knows nothing else")
        if not entries:
            raise UsageError(
                f"no SQLite database was found below {directory}",
                hint="name another directory, or the file itself with --database PATH",
            )
        return self._chosen(entries) if self.may_ask else entries

    def _chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        for number, entry in enumerate(entries, start=1):
            output.print_note(f"{number:4}  {_told(entry)}")
        numbers = _ask(
            "Which of them are to be backed up? all, or numbers such as 1,3-5",
            "all",
            lambda text: _numbers(text, len(entries)),
        )
        return [entries[number - 1] for number in numbers]

    def _stores(self) -> list[StoreWish]:
        urls = list(self.stores)
        if not urls and self.may_ask:
            first = _ask("Where do snapshots go? s3://bucket/prefix, or a directory", _DEFAULT_STORE, _store_url)
            urls = [first]
            while url := _ask("And where else? (nothing: nowhere)", "", _store_url_if_any):
                urls.append(url)
        # Absolute, because a relative one would start at the directory of the file that is written.
        return [self._store(store_from_url(url).url) for url in dict.fromkeys(urls or [_DEFAULT_STORE])]

    def _store(self, url: str) -> StoreWish:
        if not url.startswith("s3://"):
            return StoreWish(url=url)
        endpoint_url, region, key, secret = self.endpoint_url, self.region, self.access_key_id, self._secret()
        if self.may_ask and endpoint_url is None:
            endpoint_url = _ask(f"{url}: the URL of the service (nothing: AWS)", "", _endpoint_if_any)
        if self.may_ask and key is None:
            key = _ask(f"{url}: the access key id (nothing: from the environment)", "", str) or None
        if self.may_ask and key is not None and secret is None:
            secret = click.prompt(f"{url}: the secret access key (it is not shown)", hide_input=True, err=True)
        if (key is None) != (secret is None):
            raise UsageError(
                "an access key id and a secret access key need each other",
                hint="give --access-key-id and --secret-access-key-file, or leave both to the environment",
            )
        return StoreWish(url=url, endpoint_url=endpoint_url, region=region, access_key_id=key, secret_access_key=secret)

    def _secret(self) -> str | None:
        file = self.secret_access_key_file
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


def _ask(question: str, default: str, parse: Callable[[str], _T]) -> _T:
    """Ask until the answer can be read."""
    while True:
        text = click.prompt(question, default=default, err=True, show_default=bool(default))
        try:
            return parse(str(text).strip())
        except UsageError as error:
            output.print_error(error)


def _directory(text: str) -> Path:
    directory = Path(text).expanduser()
    if not os.path.isdir(directory):  # noqa: PTH112  (Path.is_dir raises where nobody may look)
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
    """The table with these values. Raises the `UsageError` that one of our rules has for them."""
    try:
        return kind(**values)
    except ValidationError as error:
        reason = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(reason, UsageError):
            raise UsageError(reason.message, hint=reason.hint) from None
        raise


def _numbers(text: str, most: int) -> list[int]:
    if text == "all":
        return list(range(1, most + 1))
    numbers: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= most:
            raise UsageError(
                f"{text!r} is not a list of numbers from 1 to {most}", hint="write all, or numbers such as 1,3-5"
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def _told(entry: Entry) -> str:
    if len(entry.files) == 1:
        size_bytes = entry.files[0].stat().st_size
        name = f", called {entry.name}" if entry.name else ""
        return f"{entry.files[0]} ({quantities.size(size_bytes)}{name})"
    settings = DatabaseSettings(path=entry.pattern)
    names = [settings.database_at(path).name for path in entry.files]
    rest = len(names) - _FILES_SHOWN
    shown = ", ".join(names[:_FILES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{entry.pattern} ({quantities.count(len(names), 'file')}: {shown})"
