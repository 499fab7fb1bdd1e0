"""Bring rows of a table back into the live database: what is missing, on demand what differs. Nothing is deleted."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import apsw

from backupd.errors import BusyError, UsageError
from backupd.inside.diff import Kind
from backupd.inside.dump import reject_condition
from backupd.inside.tables import is_same, joined, placeholder, quoted, rows_of
from backupd.live.destination import LiveDatabase
from backupd.live.intent import announced_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.inside.diff import Difference, RowChange, TablePair
    from backupd.inside.tables import Row
    from backupd.state import StateDirectory

_TRIES = 5
_MOST_CONFLICTS = 100
_SAMPLES = 20
_STEPS_BETWEEN_SIGNALS = 10_000


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that cannot be brought back, by its key, and why."""

    key: Row
    reason: str


@dataclass(slots=True)
class RecoveryPlan:
    """What a recovery would do to the live database, tried on a copy of it; the first rows are `samples`."""

    missing: int = 0
    """Rows of the snapshot that the live table lacks, which are inserted."""
    different: int = 0
    """Rows that differ, which are overwritten if that was asked for."""
    only_live: int = 0
    """Rows that only the live table has, which stay."""
    by_triggers: int = 0
    """Further rows that triggers of the database write."""
    conflicts: list[Conflict] = field(default_factory=list)
    """At most 100."""
    samples: list[RowChange] = field(default_factory=list)


class Recovery:
    """A recovery of a table from `difference.before` into the live database, which is `difference.after`."""

    def __init__(self, difference: Difference, pair: TablePair, *, where: str | None, overwrites: bool) -> None:
        """Raises `UsageError` where the rows of the two tables cannot be matched, or have other columns.

        SQLite's error says what is wrong with the condition `where`.
        """
        if pair.why_not is not None:
            raise UsageError(
                f"rows of {pair.after.name} cannot be recovered: {pair.why_not}",
                hint="get them as SQL: backupd dump SNAPSHOT TABLE",
            )
        lacking = [column for column in pair.before.columns if column not in pair.columns]
        if lacking:
            raise UsageError(
                f"the live table {pair.after.name} has no column {', '.join(lacking)}, which the snapshot has",
                hint="get the rows as SQL, and fit them by hand: backupd dump SNAPSHOT TABLE",
            )
        if where is not None:
            reject_condition(difference.before.connection, [pair.before], where)
        self._difference = difference
        self._pair = pair
        self._where = where
        self._overwrites = overwrites

    def plan(self, copy: Path) -> RecoveryPlan:
        """Find the rows, and bring them back into `copy`, a copy of the live database in a private directory.

        They are kept beside it for `carry_out`, which so asks no store while the application waits.
        """
        plan = RecoveryPlan()
        self._rows = copy.with_suffix(".rows")
        connection = apsw.Connection(os.fspath(copy))
        try:
            connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            connection.set_progress_handler(lambda: False, _STEPS_BETWEEN_SIGNALS)  # a trigger may never end
            for name, value in (("foreign_keys", False), ("journal_mode", "delete"), ("synchronous", "off")):
                connection.pragma(name, value)
            before, rows_before = self._violations(connection), self._row_count(connection)
            connection.execute("BEGIN")
            total_before, written = connection.total_changes(), 0
            with self._rows.open("wb") as rows:
                for change in self._difference.row_changes(self._pair):
                    # After so many conflicts, or a trigger that has rolled everything back, the rest is only counted.
                    is_over = len(plan.conflicts) >= _MOST_CONFLICTS or not connection.in_transaction
                    if not self._count(plan, change) or is_over:
                        continue
                    try:
                        self._apply(connection, change)
                    except (apsw.ConstraintError, apsw.SQLError) as error:
                        plan.conflicts.append(Conflict(change.key, str(error)))
                        continue
                    pickle.dump(change, rows)
                    written += 1
                    if len(plan.samples) < _SAMPLES:
                        plan.samples.append(change)
            if connection.in_transaction:
                plan.by_triggers = connection.total_changes() - total_before - written
                inserted = 0 if plan.conflicts else plan.missing
                plan.conflicts += self._side_effects(connection, before, rows_before + inserted)
                connection.execute("ROLLBACK")
        finally:
            connection.close(force=True)
        return plan

    def carry_out(
        self,
        path: Path,
        state: StateDirectory,
        take_safety_snapshot: Callable[[], SnapshotId] | None,
        *,
        lock_timeout: float,
    ) -> SnapshotId | None:
        """Do what was planned in one transaction, after a safety snapshot, which is returned. `plan` comes before.

        Raises `UsageError`, and changes nothing, when a row has a conflict by now; `BusyError` when the application
        writes too often for a safety snapshot; and what that raises.
        """
        safety: SnapshotId | None = None
        with LiveDatabase(path, lock_timeout=lock_timeout) as database:
            for _ in range(_TRIES):
                version = database.version()
                if take_safety_snapshot is not None:
                    safety = take_safety_snapshot()
                with announced_transaction(path, state):
                    if database.change(self._apply_all, version):
                        return safety
        raise BusyError(
            f"{path} was written again before each of {_TRIES} safety snapshots was stored",
            hint="stop the application for a moment, or try again; nothing was changed",
        )

    def _count(self, plan: RecoveryPlan, change: RowChange) -> bool:
        """Count a row, and return whether it is brought back."""
        if change.kind is Kind.ADDED:
            plan.only_live += 1
            return False
        is_wanted, is_missing = self._is_wanted(change), change.kind is Kind.REMOVED
        plan.missing += is_wanted and is_missing
        plan.different += is_wanted and not is_missing
        return is_wanted and (is_missing or self._overwrites)

    def _planned(self) -> Iterator[RowChange]:
        """Yield the rows that `plan` has kept."""
        with self._rows.open("rb") as rows:
            while rows.peek(1):
                yield pickle.load(rows)  # noqa: S301  (this process wrote it, into a directory of its own)

    def _is_wanted(self, change: RowChange) -> bool:
        if self._where is None:
            return True
        table, encoding = self._pair.before, self._difference.before.schema.encoding
        condition = self._pair.condition(change, table, encoding)
        sql = f"SELECT 1 FROM main.{quoted(table.name)} WHERE {condition} AND ({self._where})"  # noqa: S608
        return bool(self._difference.before.connection.execute(sql).fetchall())

    def _apply_all(self, connection: apsw.Connection) -> None:
        try:
            rows = self._row_count(connection)
        except apsw.SQLError as error:
            raise _conflicting(self._pair, Conflict(("*",), str(error))) from error
        before = self._violations(connection)
        for change in self._planned():
            try:
                self._apply(connection, change)
            except (apsw.ConstraintError, apsw.SQLError) as error:
                raise _conflicting(self._pair, Conflict(change.key, str(error))) from error
            rows += change.kind is Kind.REMOVED
        for conflict in self._side_effects(connection, before, rows):
            raise _conflicting(self._pair, conflict)

    def _apply(self, connection: apsw.Connection, change: RowChange) -> None:
        """Insert or overwrite a row, and nothing else. Raises `apsw.ConstraintError`, and then it is as it was.

        What the table says about conflicts (ON CONFLICT REPLACE, IGNORE) does not count.
        """
        row, table = change.before or (), self._pair.after
        name = f"main.{quoted(table.name)}"
        if change.kind is Kind.CHANGED:
            condition = self._pair.condition(change, table, self._difference.after.schema.encoding)
            columns = [quoted(column) for column in self._pair.columns]
            now = next(rows_of(connection, columns, f"FROM {name} WHERE {condition}"), None)
            if now is None or change.after is None or not is_same(now, change.after):
                raise apsw.ConstraintError("the live row is another one by now")
            pairs = zip(columns, map(placeholder, row), strict=True)
            values = ", ".join(f"{column} = {mark}" for column, mark in pairs)
            sql, bound = f"UPDATE OR ABORT {name} SET {values} WHERE {condition}", row  # noqa: S608
        else:
            # Without a key, or with NULL in it, its rowid is all that tells it from another row.
            rowid = () if change.rowid is None or table.is_key_rowid or table.rowid is None else (table.rowid,)
            names, bound = joined((*rowid, *self._pair.columns)), (change.rowid, *row) if rowid else row
            sql = f"INSERT OR ABORT INTO {name} ({names}) VALUES ({', '.join(map(placeholder, bound))})"  # noqa: S608
        connection.execute(sql, bound)
        if connection.changes() != 1:
            raise apsw.ConstraintError("a trigger keeps it from being written")

    def _row_count(self, connection: apsw.Connection) -> int:
        found = connection.execute(f"SELECT count(*) FROM main.{quoted(self._pair.after.name)}").fetchall()  # noqa: S608
        return int(str(found[0][0]))

    def _violations(self, connection: apsw.Connection) -> Counter[tuple[object, ...]]:
        """Count the rows of all tables whose foreign key names no row: table, rowid, and the table it should be in.

        There are none where foreign keys cannot be checked: then they do not work for the application either.
        """
        try:
            found = connection.execute("PRAGMA main.foreign_key_check").fetchall()
        except apsw.SQLError:
            return Counter()
        return Counter((table, rowid, parent) for table, rowid, parent, _ in found)

    def _side_effects(
        self, connection: apsw.Connection, before: Counter[tuple[object, ...]], rows: int
    ) -> list[Conflict]:
        """Return what stands against all of it together: foreign keys, and rows that a trigger has removed."""
        new = self._violations(connection) - before
        found = [
            Conflict((f"{rowid}",), f"a foreign key of {table} names a row that {parent} does not have")
            for table, rowid, parent in [*new][:_MOST_CONFLICTS]
        ]
        if self._row_count(connection) < rows:
            found.append(Conflict(("*",), "a trigger removes other rows of the table"))
        return found


def _conflicting(pair: TablePair, conflict: Conflict) -> UsageError:
    key = ", ".join(map(str, conflict.key))
    return UsageError(
        f"row {key} of {pair.after.name} cannot be recovered any more: {conflict.reason}; nothing was changed",
        hint="the application has written since the plan was made: run the same command again",
    )
