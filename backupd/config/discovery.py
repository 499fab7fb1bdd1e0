"""Find the databases that the configuration stands for now: one file for each name, and one name for each file."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from backupd.config.databases import Database, DatabaseSettings, reject_led_away
from backupd.config.values import InvalidValueError
from backupd.errors import BackupdError, SourceUnusableError, UsageError
from backupd.system.trust import Way, is_foreign, status_of, way_of


class DiscoveredDatabases(msgspec.Struct, frozen=True):
    """The databases that were found, and why other files are not used; each with the entry that it comes from.

    `entries_by_name` includes files that are not used because another one has their name. `problems_by_name` has the
    names that unused files would have.
    """

    databases: tuple[tuple[DatabaseSettings, Database], ...]
    problems: tuple[tuple[DatabaseSettings, BackupdError], ...]
    problems_by_path: Mapping[Path, BackupdError]
    problems_by_name: Mapping[str, BackupdError]
    entries_by_name: Mapping[str, DatabaseSettings]
    unmatched_patterns: tuple[str, ...]
    """The patterns that match no file."""


class _Candidate(msgspec.Struct, frozen=True):
    """A path that matches an entry, and where it leads."""

    entry: DatabaseSettings
    path: Path
    way: Way
    within: Path | None

    @property
    def file_id(self) -> tuple[int, int] | None:
        """The identity of the file, which all of its names share; None where there is no regular file."""
        status = self.way.status
        return (status.st_dev, status.st_ino) if status is not None and stat.S_ISREG(status.st_mode) else None

    def is_less_likely_meant(self) -> tuple[bool, bool, bool]:
        """Return a sort key for several names of one file: the least is the name that was most likely meant."""
        links = self.way.links if self.entry.is_glob else [link for link in self.way.links if is_foreign(link)]
        directory = status_of(os.path.dirname(self.way.real))  # noqa: PTH120  (a plain string)
        status = self.way.status
        is_out_of_place = status is None or directory is None or directory.st_uid != status.st_uid
        return bool(links), self.entry.is_glob, is_out_of_place


def discover_databases(
    entries: Iterable[DatabaseSettings], known: Callable[[], Mapping[str, str]] = dict
) -> DiscoveredDatabases:
    """Return all databases that `entries` stand for now, in their order. Files come and go: call it again.

    A file with an entry of its own does not count as a match of a pattern, and a path that two patterns match belongs
    to the first. Each pattern is searched once.

    These files are problems, each of which affects no other file: one whose name is not valid; one that is reached by a
    link which is not followed; the further names of one file, by device and inode; and all but one of several files
    with one name. (Upper and lower case are equal, as in some stores' file systems.) The file at the path that `known`
    has for the name keeps it: `known` returns the databases that have been backed up before, with their paths.
    """
    paths = [(entry, entry.paths()) for entry in entries]
    candidates = [*_candidates(paths)]
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
    return DiscoveredDatabases(
        tuple((candidates[position].entry, database) for position, database in named.items()),
        tuple((candidates[position].entry, problem) for position, problem in ordered),
        {candidates[position].path: problem for position, problem in ordered},
        problems_by_name,
        entries_by_name,
        tuple(entry.path for entry, found in paths if not found),
    )


def ways_to_databases(entries: Iterable[DatabaseSettings], uid: int) -> Iterator[tuple[Path, Way]]:
    """Return the paths that `entries` stand for now, and where they lead, in their order.

    Paths that `uid` cannot trust are left out.
    """
    for candidate in _candidates([(entry, entry.paths()) for entry in entries]):
        with suppress(SourceUnusableError):
            reject_led_away(candidate.path, candidate.way, candidate.within, uid)
            yield candidate.path, candidate.way


def reject_duplicates(entries: Iterable[DatabaseSettings]) -> None:
    """Raise `InvalidValueError` when two entries without wildcards share a path or a name. Examines no file."""
    by_name: dict[str, Database] = {}
    by_path: dict[Path, Database] = {}
    for entry in entries:
        for database in [entry.database_at(path) for path in entry.paths()]:
            if database.path in by_path:
                raise InvalidValueError(f"{database.path} has two entries", hint="remove one of them")
            if (other := by_name.get(database.name.lower())) is not None:
                raise _one_name(other, database)
            by_path[database.path] = by_name[database.name.lower()] = database


def _candidates(entries: Sequence[tuple[DatabaseSettings, Sequence[Path]]]) -> Iterator[_Candidate]:
    # As texts: a hash of a `Path` takes ten times as long, and a pattern may match thousands.
    taken = {str(path) for entry, paths in entries if not entry.is_glob for path in paths}
    for entry, paths in entries:
        fixed = entry.fixed_part()
        if fixed is None:
            yield from (_Candidate(entry, path, way_of(path), None) for path in paths)
            continue
        way = way_of(fixed)
        # A user who may redirect the fixed part may redirect each file below it.
        start = None if any(map(is_foreign, way.links)) else (fixed, way.real)
        within = Path(way.real)
        for path in paths:
            text = str(path)
            if text not in taken:
                taken.add(text)
                yield _Candidate(entry, path, way_of(text, start), within)


def _further_names(candidates: list[_Candidate], named: Iterable[int]) -> list[tuple[int, int]]:
    """Return the positions of candidates whose file has a better name, each after the position of that."""
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
    """Return the positions of databases whose name another one keeps, each after the position of that."""
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
        hint=f"{first.name} is backed up, and {second.name} is not: remove one of the two",
    )


def _one_name(first: Database, second: Database) -> InvalidValueError:
    return InvalidValueError(
        f"two databases with one name: {first.name!r} ({first.path}) and {second.name!r} ({second.path})",
        hint=f"set `name` in an entry for one of them: until then, {first.path} has the name"
        + ("" if first.name == second.name else ": some stores do not distinguish upper and lower case"),
    )
