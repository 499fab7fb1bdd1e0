"""The databases that a configuration stands for, where a test wants no problem among them."""

from collections.abc import Iterable, Mapping

from backupd.config import Database, DatabaseSettings, discover_databases


def find_databases(entries: Iterable[DatabaseSettings]) -> tuple[Database, ...]:
    """Return all databases of `entries`; raise the first problem."""
    found = discover_databases(entries)
    for _, problem in found.problems:
        raise problem
    return tuple(database for _, database in found.databases)


def entries_by_name(entries: Iterable[DatabaseSettings]) -> Mapping[str, DatabaseSettings]:
    """Return the entry that each database comes from."""
    return discover_databases(entries).entries_by_name
