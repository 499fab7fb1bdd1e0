"""`backupd forget`: remove snapshots by hand."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, quantities
from backupd.cli.options import (
    Invocation,
    Verb,
    complete_snapshots,
    database_option,
    global_options,
    store_option,
)
from backupd.errors import BackupdError, ExitCode, NoSuchSnapshotError, PutOnlyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.cli.session import Session
    from backupd.format.ids import SnapshotId
    from backupd.upkeep.stores import RotatedStore


@click.command(
    "forget",
    cls=Verb,
    short_help="Remove snapshots by hand.",
    examples=("backupd forget app@latest~1",),
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, shell_complete=complete_snapshots)
@database_option
@store_option
@global_options
@click.pass_obj
def command(invocation: Invocation, snapshots: tuple[str, ...], database: str | None, store: str | None) -> int:
    """Move each SNAPSHOT to the trash of every store that has it.

    SNAPSHOT is an id or its unique beginning, `latest~2` (two before the newest), a time (2026-11-22T08:00: the newest
    at or before it), an age (2h, 3d) or a tag. NAME@ before it chooses the database.

    `backupd undelete` brings it back within the grace, three days if nothing else is configured. The newest snapshot,
    and the newest that was proven to be restorable, cannot be removed.
    """
    from backupd.cli.session import Session
    from backupd.cli.sought import sought_snapshot

    session = Session(invocation)
    # All of them first: after one has gone, `latest~2` would be another.
    found = [sought_snapshot(session, text, database, store).manifest for text in snapshots]
    stores = session.rotated([store] if store else [])
    results = [
        result
        for name, snapshot_id in dict.fromkeys((manifest.database, manifest.id) for manifest in found)
        for result in _forget(name, snapshot_id, stores)
    ]
    if session.is_json:
        output.print_document({"forgotten": [result.values() for result in results]})
    else:
        for result in results:
            result.print()
        _print_way_back(results, session)
    return _exit_code(results)


@dataclass(frozen=True, slots=True)
class _Forgotten:
    """What became of one snapshot in one store. `until` is when its grace ends, None when it was not removed."""

    id: SnapshotId
    database: str
    store: str
    until: datetime | None
    error: BackupdError | None

    def values(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "id": str(self.id),
            "database": self.database,
            "store": self.store,
            "gone_after": None if self.until is None else quantities.utc_time(self.until),
            "error": None if self.error is None else output.error_values(self.error),
        }

    def print(self) -> None:
        """A line on stdout, or the error on stderr."""
        if self.error is not None:
            output.print_error(self.error, subject=self.database)
        elif self.until is not None:
            until = quantities.local_time(self.until)
            line = f"{self.database}  forgotten  {self.id}  can be undeleted until {until}  -> {self.store}"
            output.print_result(output.printable(line))


def _print_way_back(results: Sequence[_Forgotten], session: Session) -> None:
    """The commands that bring back what has been forgotten, each once: `undelete` looks into every store."""
    if session.is_quiet:
        return
    for name in dict.fromkeys(f"{result.database}@{result.id}" for result in results if result.until is not None):
        output.print_hint(f"to have it back: backupd undelete {name}")


def _forget(database: str, snapshot_id: SnapshotId, stores: Sequence[RotatedStore]) -> list[_Forgotten]:
    """Move one snapshot to the trash of each store that has it. An error in one does not spare it in the others."""
    from backupd.prune import forget

    results = []
    for rotated in stores:
        until, error = None, None
        now = datetime.now(UTC)
        try:
            if snapshot_id not in rotated.repository.survey(database).manifests:
                continue
            if rotated.is_put_only:
                raise PutOnlyError(
                    f"{snapshot_id} cannot be removed from {rotated.url} by the keys of this machine, which may only "
                    "put (put_only)",
                    hint="run this elsewhere: no put_only, and keys that may delete (docs/s3-providers.md)",
                )
            forget(rotated.repository, database, snapshot_id, now=now)
            until = now + rotated.grace(database)
        except BackupdError as failure:
            error = failure
        results.append(_Forgotten(snapshot_id, database, rotated.repository.url, until, error))
    if not results:
        raise NoSuchSnapshotError(f"{database}@{snapshot_id} is gone already", hint="see: backupd list --trash")
    return results


def _exit_code(results: Sequence[_Forgotten]) -> int:
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return ExitCode.DONE
    return errors[0].exit_code if len(errors) == len(results) else ExitCode.PARTLY_DONE
