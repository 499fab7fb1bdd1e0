"""Which databases the configuration stands for at a moment: one file for each name, and one name for each file."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backupd.config.databases import Database, DatabaseSettings, reject_led_away
from backupd.config.values import InvalidValueError
from backupd.errors import BackupdError, SourceUnusableError, UsageError
from backupd.trust import Way, is_anothers, status_of, way_of


@dataclass(frozen=True, slots=True)
class Found:
    """Databases, and why other files are none, with the entry that each comes from.

    `entries_by_name` has the names of files that another one with the same name keeps out, too. `problems_by_name` has
    the names that files would have if they were databases.
    """

    databases: tuple[tuple[DatabaseSettings, Database], ...]
    problems: tuple[tuple[DatabaseSettings, BackupdError], ...]
    problems_by_path: Mapping[Path, BackupdError]
    problems_by_name: Mapping[str, BackupdError]
    entries_by_name: Mapping[str, DatabaseSettings]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A path that an entry stands for, and where it leads."""

    entry: DatabaseSettings
    path: Path
    way: Way
    within: Path | None

    @property
    def file_id(self) -> tuple[int, int] | None:
        """What tells whether two names lead to one file; None where there is no regular file."""
        status = self.way.status
        return (status.st_dev, status.st_ino) if status is not None and stat.S_ISREG(status.st_mode) else None

    def is_less_likely_meant(self) -> tuple[bool, bool, bool]:
        """By which of several names of one file that counts comes first: least for the one that is surely meant."""
        links = self.way.links if self.entry.is_glob else [link for link in self.way.links if is_anothers(link)]
        directory = status_of(os.path.dirname(self.way.real))  # noqa: PTH120  (a plain string)
        status = self.way.status
        is_out_of_place = status is None or directory is None or directory.st_uid != status.st_uid
        return bool(links), self.entry.is_glob, is_out_of_place


def look_for_databases(entries: Iterable[DatabaseSettings], known: Callable[[], Mapping[str, str]] = dict) -> Found:
    """Every database that `entries` stand for at this moment, in their order; call it again, as files come and go.

    A file that has an entry of its own is left out of what patterns find, and a path that two patterns find belongs to
    the first. A pattern that finds nothing adds nothing: `unmatched_patterns` tells which.

    Each of the others is a problem of its own, and takes nothing from any other: a file that cannot have its name; one
    that a link leads to which is not followed; the further names of one file, by device and inode; and of two with one
    name (upper and lower case are the same, because some stores' file systems say so) the one that is not at the path
    that `known` gives for its name: `known` are the databases that have been backed up before, with their paths.
    """
    candidates = [*_candidates(tuple(entries))]
    problems: dict[int, BackupdError] = {}
    named: dict[int, Database] = {}
    problems_by_name: dict[str, BackupdError] = {}
    for position, candidate in enumerate(candidates):
        try:
            named[position] = candidate.entry.database_at(candidate.path, candidate.within)
            reject_led_away(candidate.path, candidate.way, candidate.within)
        except UsageError as problem:
            problems[position] = problem
        except SourceUnusableError as problem:
            problems[position] = problems_by_name[named.pop(position).name] = problem
    for winner, position in _further_names(candidates, named):
        second = named.pop(position)
        problems[position] = problems_by_name[second.name] = _one_file(named[winner], second)
    entries_by_name: dict[str, DatabaseSettings] = {}
    for position, database in named.items():
        entries_by_name.setdefault(database.name, candidates[position].entry)
    for winner, position in _shared_names(named, known):
        problems[position] = _one_name(named[winner], named.pop(position))
    ordered = sorted(problems.items())
    return Found(
        tuple((candidates[position].entry, database) for position, database in named.items()),
        tuple((candidates[position].entry, problem) for position, problem in ordered),
        {candidates[position].path: problem for position, problem in ordered},
        problems_by_name,
        entries_by_name,
    )


def find_databases(entries: Iterable[DatabaseSettings]) -> tuple[Database, ...]:
    """As `look_for_databases`, for callers that cannot go on without all of them: raises the first problem."""
    found = look_for_databases(entries)
    for _, problem in found.problems:
        raise problem
    return tuple(database for _, database in found.databases)


def entries_by_name(entries: Iterable[DatabaseSettings]) -> Mapping[str, DatabaseSettings]:
    """The entry that each database comes from at this moment. Of two with one name, the first."""
    return look_for_databases(entries).entries_by_name


def ways_to_databases(entries: Iterable[DatabaseSettings], uid: int) -> Iterator[tuple[Path, Way]]:
    """The paths that `entries` stand for at this moment, and where they lead, in their order.

    Those are left out that `uid` had better not follow.
    """
    for candidate in _candidates(tuple(entries)):
        with suppress(SourceUnusableError):
            reject_led_away(candidate.path, candidate.way, candidate.within, uid)
            yield candidate.path, candidate.way


def reject_twins(entries: Iterable[DatabaseSettings]) -> None:
    """Raise `InvalidValueError` when two entries without wildcards have one path or one name. Looks at no file."""
    by_name: dict[str, Database] = {}
    by_path: dict[Path, Database] = {}
    for entry in entries:
        for database in [entry.database_at(path) for path in entry.paths()]:
            if database.path in by_path:
                raise InvalidValueError(f"{database.path} has two entries", hint="take one of them out")
            if (other := by_name.get(database.name.lower())) is not None:
                raise _one_name(other, database)
            by_path[database.path] = by_name[database.name.lower()] = database


def _candidates(entries: tuple[DatabaseSettings, ...]) -> Iterator[_Candidate]:
    taken = {path for entry in entries if not entry.is_glob for path in entry.paths()}
    for entry in entries:
        fixed = entry.fixed_part()
        if fixed is None:
            yield from (_Candidate(entry, path, way_of(path), None) for path in entry.paths())
            continue
        way = way_of(fixed)
        # Who may lead the fixed part elsewhere may do so with each of its files.
        start = None if any(map(is_anothers, way.links)) else (fixed, way.real)
        for path in entry.paths():
            if path not in taken:
                taken.add(path)
                yield _Candidate(entry, path, way_of(path, start), Path(way.real))


def _further_names(candidates: list[_Candidate], named: Iterable[int]) -> list[tuple[int, int]]:
    """Positions of candidates that lead to a file which another one counts for, each behind that one's."""
    by_file: dict[tuple[int, int], list[int]] = {}
    for position in named:
        if (file_id := candidates[position].file_id) is not None:
            by_file.setdefault(file_id, []).append(position)
    found = []
    for positions in by_file.values():
        if len(positions) > 1:
            winner = min(positions, key=lambda position: candidates[position].is_less_likely_meant())
            found += [(winner, position) for position in positions if position != winner]
    return found


def _shared_names(named: Mapping[int, Database], known: Callable[[], Mapping[str, str]]) -> list[tuple[int, int]]:
    """Positions of databases whose name another one has, each behind the one that keeps it."""
    by_name: dict[str, list[int]] = {}
    for position, database in named.items():
        by_name.setdefault(database.name.lower(), []).append(position)
    shared = [positions for positions in by_name.values() if len(positions) > 1]
    paths = known() if shared else {}

    def is_new(position: int) -> tuple[bool, bool]:
        database = named[position]
        return paths.get(database.name) != str(database.path), database.name not in paths

    found = []
    for positions in shared:
        winner = min(positions, key=is_new)
        found += [(winner, position) for position in positions if position != winner]
    return found


def _one_file(first: Database, second: Database) -> UsageError:
    return UsageError(
        f"two databases in one file: {second.name!r} ({second.path}) is the file of {first.name!r} ({first.path})",
        hint=f"{first.name} is backed up, and {second.name} is not: take one of the two names out",
    )


def _one_name(first: Database, second: Database) -> InvalidValueError:
    return InvalidValueError(
        f"two databases with one name: {first.name!r} ({first.path}) and {second.name!r} ({second.path})",
        hint=f"set `name` in an entry for one of them: until then {first.path} has the name"
        + ("" if first.name == second.name else ", as upper and lower case are the same to some stores"),
    )
