"""What the trash of each store holds, and how `list --trash` shows it."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from backupd.cli import output, quantities
from backupd.errors import BackupdError, DamageError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backupd.cli.session import Session
    from backupd.cli.tables import Cells
    from backupd.format.manifest import AnyManifest
    from backupd.format.records import TrashEntry
    from backupd.upkeep.stores import RotatedStore


@dataclass(frozen=True, slots=True)
class Trashed:
    """One removed snapshot in one store."""

    rotated: RotatedStore
    entry: TrashEntry

    @property
    def manifest(self) -> AnyManifest:
        """What the snapshot was, and is again once it is undeleted."""
        return self.entry.manifest

    @property
    def database(self) -> str:
        """Whose snapshot it is."""
        return self.entry.manifest.database

    @property
    def gone_after(self) -> datetime:
        """When its grace ends; the first prune after that frees its space."""
        return self.entry.removed_at + self.rotated.grace(self.database)

    def values(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "id": str(self.manifest.id),
            "database": self.database,
            "store": self.rotated.repository.url,
            "taken_at": quantities.utc_time(self.manifest.id.taken_at),
            "removed_at": quantities.utc_time(self.entry.removed_at),
            "gone_after": quantities.utc_time(self.gone_after),
            "kind": str(self.manifest.kind),
            "tags": list(self.manifest.tags),
            "image_bytes": self.manifest.image_bytes,
            "reason": self.entry.reason,
        }

    def cells(self) -> Cells:
        """As a table shows it."""
        return (
            str(self.manifest.id),
            quantities.local_time(self.manifest.id.taken_at),
            quantities.local_time(self.entry.removed_at),
            quantities.local_time(self.gone_after),
            quantities.size(self.manifest.image_bytes),
            self.entry.reason,
        )


@dataclass(slots=True)
class Trash:
    """What is in the trash of several stores, oldest first in each; what is damaged there; and stores that failed."""

    found: list[Trashed] = field(default_factory=list)
    damaged: list[DamageError] = field(default_factory=list)
    problems: list[BackupdError] = field(default_factory=list)


def read_trash(stores: Sequence[RotatedStore], database: str | None) -> Trash:
    """The trash of `stores`, of one database or of all. An error in one does not hide what others hold."""
    from backupd.prune import trashed

    trash = Trash()
    for rotated in stores:
        try:
            if not rotated.repository.exists():
                continue
            names = [database] if database else rotated.repository.databases(with_trash=True)
        except BackupdError as error:
            trash.problems.append(error)
            continue
        for name in names:
            try:
                entries, damaged = trashed(rotated.repository, name)
            except BackupdError as error:
                trash.problems.append(error)
                continue
            trash.found += [Trashed(rotated, entry) for entry in entries]
            trash.damaged += damaged
    return trash


def list_trash(session: Session, store: str | None, database: str | None) -> int:
    """Print the trash; the exit code."""
    from backupd.cli.tables import render

    stores = session.rotated([store] if store else [])
    trash = read_trash(stores, database)
    found, problems = trash.found, [*trash.damaged, *trash.problems]
    if session.is_json:
        output.print_document(
            {
                "trash": [trashed.values() for trashed in found],
                "problems": [output.error_values(problem) for problem in problems],
            }
        )
    else:
        groups = [
            (f"removed from {database} in {url}", [trashed.cells() for trashed in group])
            for (database, url), group in groupby(found, key=_group)
        ]
        if groups:
            output.print_result(render(("SNAPSHOT", "TAKEN", "REMOVED", "GONE AFTER", ">SIZE", "WHY"), groups))
        elif not problems:
            whose = f" of {database}" if database else ""
            places = ", ".join(rotated.repository.url for rotated in stores)
            output.print_result(output.printable(f"nothing{whose} is in the trash of {places}"))
        for problem in problems:
            output.print_error(problem)
    codes = [problem.exit_code for problem in problems]
    if not codes:
        return ExitCode.DONE
    if not found:
        return codes[0]
    return ExitCode.DAMAGE_FOUND if ExitCode.DAMAGE_FOUND in codes else ExitCode.PARTLY_DONE


def _group(trashed: Trashed) -> tuple[str, str]:
    return trashed.database, trashed.rotated.repository.url
