"""How the outcome of pruning is told: by `prune`, and in fewer words by `now`, which prunes after a snapshot."""

# ruff: noqa: PLC0415  (imports are late: a snapshot comes first)

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backupd.cli import output, quantities
from backupd.errors import BackupdError, StoreRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.backup import BackupResult
    from backupd.cli.session import RotatedStore, Session
    from backupd.prune import PruneResult
    from backupd.retention import Decision

_STRANGERS_SHOWN = 3


def pruned_values(result: PruneResult) -> dict[str, Any]:
    """One database in one store, as JSON shows it."""
    hold = result.hold and {
        "message": result.hold.message,
        "hint": output.completed_hint(result.hold.hint, store=result.store),
    }
    return {
        "database": result.database,
        "store": result.store,
        "decisions": [
            {
                "id": str(decision.manifest.id),
                "decision": decision_word(decision, result),
                "reasons": list(decision.reasons),
            }
            for decision in result.decisions
        ],
        "hold": hold,
        "accepted": None if result.accepted is None else str(result.accepted),
        "removed": [str(snapshot_id) for snapshot_id in result.removed],
        "purged": [str(snapshot_id) for snapshot_id in result.purged],
        "deleted_packs": result.deleted_packs,
        "freed_bytes": result.freed_bytes,
        "waiting_packs": result.waiting_packs,
        "waiting_bytes": result.waiting_bytes,
        "unfinished": result.unfinished,
        "strangers": list(result.strangers),
        "error": None if result.error is None else output.error_values(result.error, store=result.store),
    }


def decision_word(decision: Decision, result: PruneResult) -> str:
    """What becomes of a snapshot: `keep`, `remove`, or `held` when it would go if nothing was in doubt."""
    if decision.is_kept:
        return "keep"
    return "remove" if result.hold is None else "held"


def done(result: PruneResult) -> list[str]:
    """What pruning did, or would do, in a few words each; empty when it was nothing."""
    told = []
    if result.removed:
        told.append(f"{quantities.count(len(result.removed), 'snapshot')} to the trash")
    if result.purged:
        told.append(f"{quantities.count(len(result.purged), 'snapshot')} gone from the trash")
    if result.deleted_packs:
        told.append(f"{packs(result.deleted_packs, result.freed_bytes)} freed")
    if result.unfinished:
        told.append(f"{quantities.count(result.unfinished)} more with the next prune")
    return told


def strangers_told(keys: Sequence[str]) -> str:
    """`2 objects not of backupd, left alone: notes.txt, photo.jpg`."""
    shown = ", ".join(keys[:_STRANGERS_SHOWN])
    more = len(keys) - _STRANGERS_SHOWN
    objects = quantities.count(len(keys), "object")
    return f"{objects} not of backupd, left alone: {shown}" + (f" and {more} more" if more > 0 else "")


def packs(number: int, size_bytes: int) -> str:
    """`12 packs (4.1 MB)`."""
    return f"{quantities.count(number, 'pack')} ({quantities.size(size_bytes)})"


def print_hold(result: PruneResult) -> None:
    """Say loudly that nothing is removed for now, why, and what to do."""
    if result.hold is not None:
        output.print_warning(f"{result.database}: nothing is removed from {result.store}: {result.hold.message}")
        output.print_hint(result.hold.hint, store=result.store)


def note_begun(database: str, stores: Iterable[RotatedStore], session: Session) -> None:
    """Leave to later prunes that a snapshot has begun: nobody could do that after a kill or a loss of power."""
    from backupd import prune

    for rotated in stores:
        try:
            prune.note_begun(session.state, database, rotated.repository.url, now=datetime.now(UTC))
        except BackupdError as error:
            output.print_warning(f"{database}: {error.message}")


def note_outcomes(results: Iterable[BackupResult], session: Session) -> None:
    """Leave to later prunes, by hand or not, whether the last snapshot of a database in a store failed."""
    from backupd.prune import note_failure, note_success

    for result in results:
        try:
            if result.error is None:
                note_success(session.state, result.database, result.store)
            else:
                note_failure(session.state, result.database, result.store, result.error, now=datetime.now(UTC))
        except BackupdError as error:
            # With a failed snapshot, whoever cannot write this note cannot take the lock of a prune either.
            if result.error is None:
                output.print_warning(f"{result.database}: {error.message}")


def prune_after(results: Iterable[tuple[BackupResult, RotatedStore]], session: Session) -> list[PruneResult]:
    """Prune what has just been backed up, in the stores where that succeeded; say what became of it.

    Whatever goes wrong here is told, and is no failure of the snapshot.
    """
    pruned = []
    for result, rotated in results:
        try:
            outcome = _prune_after(result, rotated, session)
        except BackupdError as error:
            output.print_warning(f"{result.database}: nothing is removed from {result.store}: {error.message}")
            continue
        if outcome is not None:
            pruned.append(outcome)
    return pruned


def _prune_after(result: BackupResult, rotated: RotatedStore, session: Session) -> PruneResult | None:
    from backupd.prune import prune

    policy = rotated.policy(result.database)
    if result.error is not None or policy is None or not policy.after_snapshot:
        return None
    outcome = prune(rotated.repository, result.database, policy, session.state, now=datetime.now(UTC))
    if not session.is_json:
        _print_after(outcome, session)
    return outcome


def _print_after(result: PruneResult, session: Session) -> None:
    changes = done(result)
    if changes and not session.is_quiet:
        output.print_result(output.printable(f"{result.database}: {', '.join(changes)}  -> {result.store}"))
    print_hold(result)
    if _is_news(result, session) and result.error is not None:
        output.print_warning(f"{result.database}: nothing more is removed: {result.error.message}")
        if result.error.hint:
            output.print_hint(result.error.hint, store=result.store)


def _is_news(result: PruneResult, session: Session) -> bool:
    """Whether an error is to be told. A bucket that refuses deletions does so at every run: once, until one works."""
    from backupd.prune import refusal_is_news

    if result.error is None and not done(result):
        return False
    try:
        is_news = refusal_is_news(session.state, result.store, result.error)
    except BackupdError:
        return True  # what cannot be remembered is told again
    return is_news or not isinstance(result.error, StoreRefusedError)
