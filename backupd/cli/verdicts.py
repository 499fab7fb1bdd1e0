"""What test restores found of snapshots, as lists and documents show it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backupd.cli import quantities
from backupd.errors import BackupdError
from backupd.format.records import DrillOutcome
from backupd.proofs import Proofs, Verdict, read_proofs

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot, Listing

_DAMAGE = {DrillOutcome.FAILED: "store", DrillOutcome.DAMAGED_SOURCE: "source"}


class Verdicts:
    """Of many snapshots: each database in each store is asked for its drills once, when the first one is looked up."""

    def __init__(self, listing: Listing) -> None:
        """Problems go to those of `listing`: what cannot be asked hides no snapshot."""
        self._listing = listing
        self._known: dict[tuple[str, str], Proofs] = {}

    def of(self, snapshot: ListedSnapshot) -> Verdict | None:
        """What is known of a snapshot, or None."""
        key = (snapshot.repository.url, snapshot.manifest.database)
        if key not in self._known:
            try:
                self._known[key] = read_proofs(snapshot.repository, snapshot.manifest.database)
            except BackupdError as error:
                self._listing.problems.append(error)
                self._known[key] = Proofs()
        return self._known[key].verdict(snapshot.manifest)


def verdict_values(verdict: Verdict | None) -> dict[str, Any]:
    """The part of a JSON document."""
    outcome, at = (verdict.outcome, quantities.utc_time(verdict.at)) if verdict else (None, None)
    return {
        "proven_at": at if outcome is DrillOutcome.PROVEN else None,
        "intact_at": at if outcome is DrillOutcome.INTACT else None,
        "damage": None if outcome is None else _DAMAGE.get(outcome),
    }


def verdict_cell(verdict: Verdict | None) -> str:
    """The column of a table."""
    if verdict is None:
        return "-"
    age = quantities.age(verdict.at, datetime.now(UTC))
    return {
        DrillOutcome.PROVEN: age,
        DrillOutcome.INTACT: f"intact {age}",
        DrillOutcome.FAILED: "DAMAGED",
        DrillOutcome.DAMAGED_SOURCE: "damaged source",
    }[verdict.outcome]


def verdict_text(verdict: Verdict | None) -> str:
    """One sentence."""
    if verdict is None:
        return "never: no test restore has looked at it"
    when = f"{quantities.local_time(verdict.at)}, {quantities.age(verdict.at, datetime.now(UTC))}"
    return {
        DrillOutcome.PROVEN: when,
        DrillOutcome.INTACT: f"no, but every stored byte was right ({when})",
        DrillOutcome.FAILED: f"DAMAGED in the store (found {when})",
        DrillOutcome.DAMAGED_SOURCE: f"DAMAGED when it was captured (found {when})",
    }[verdict.outcome]
