"""What the status of a machine is to know of one database in one store after a verification, in the words of drills."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.drill import DrillResult
from backupd.drill import Outcome as Verdict
from backupd.drill.results import found_before
from backupd.errors import DamageError
from backupd.format.records import DrillOutcome
from backupd.verify.results import Looked

if TYPE_CHECKING:
    from backupd.verify.findings import Finding
    from backupd.verify.inspection import Inspection


def verdict_on(inspection: Inspection, *, began_at: datetime) -> DrillResult | None:
    """Damage first, then what a drill of the newest snapshot found, then that every byte of that one is right.

    Bytes that are right take nothing back of what a drill found of the database in them. Damage of older snapshots that
    an earlier run has recorded is no news: whoever verifies every night is not to be alarmed every night of what can
    not be mended any more. None when there is nothing to know.
    """
    newest, drilled = inspection.holding.history.newest_id, inspection.newest_drill
    news = [each for each in inspection.findings.damage if _is_news(each, inspection)]
    if news and (drilled is None or drilled.outcome is not Verdict.DAMAGED_STORE):
        found = _result(inspection, Verdict.DAMAGED_STORE, datetime.now(UTC), _damage(inspection, news))
        return replace(found, damaged_snapshots=tuple(sorted(inspection.findings.touched())))
    if drilled is not None:
        return None if drilled.outcome is Verdict.FAILED else drilled
    if newest not in inspection.looked or inspection.error is not None or newest in inspection.findings.touched():
        return None
    if inspection.looked[newest] not in {Looked.PAGES, Looked.CIPHERTEXT}:
        return None
    known = inspection.known_of_newest
    if known is None or known.outcome is not DrillOutcome.DAMAGED_SOURCE:
        return _result(inspection, Verdict.INTACT, began_at, None)
    manifest = inspection.manifests[newest]
    error = found_before(inspection.database, inspection.repository.url, newest, known)
    return replace(_result(inspection, Verdict.DAMAGED_SOURCE, began_at, error), earlier=known, manifest=manifest)


def _is_news(finding: Finding, inspection: Inspection) -> bool:
    if not finding.kind.is_of_store:
        return False
    newest = inspection.holding.history.newest_id
    return newest in finding.snapshots or not inspection.known_damaged.issuperset(finding.snapshots)


def _damage(inspection: Inspection, news: list[Finding]) -> DamageError:
    touched = len({snapshot for each in news for snapshot in each.snapshots})
    first, more = news[0], f" (and {len(news) - 1} more findings)" if len(news) > 1 else ""
    what = first.reason if first.key in first.reason else f"{first.key}: {first.reason}"
    name = inspection.database
    return DamageError(
        f"a verification found damage that touches {touched} snapshot{'' if touched == 1 else 's'}: {what}{more}",
        hint=f"store the damaged pages again: backupd now {name}; then look at the new snapshot: "
        f"backupd verify {name}@latest --level drill",
    )


def _result(inspection: Inspection, outcome: Verdict, at: datetime, error: DamageError | None) -> DrillResult:
    return DrillResult(
        database=inspection.database,
        store=inspection.repository.url,
        id=inspection.holding.history.newest_id,
        outcome=outcome,
        started_at=at.astimezone(UTC),
        duration_seconds=0,
        error=error,
    )
