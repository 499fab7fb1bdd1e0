"""How the outcome of pruning is told: by `prune`, and in fewer words by `now`, which prunes after a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupd.cli import output, quantities
from backupd.store.keys import REPOSITORY_KEY
from backupd.upkeep.rotation import is_news

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.cli.session import Session
    from backupd.prune import PruneResult
    from backupd.retention import Decision

_STRANGERS_SHOWN = 3


def pruned_values(result: PruneResult) -> dict[str, Any]:
    """One database in one store, as JSON shows it."""
    hold = result.hold and {
        "message": result.hold.message,
        "hint": output.completed_hint(result.hold.hint, store=result.store),
    }
    decisions = [
        {
            "id": str(decision.manifest.id),
            "decision": decision_word(decision, result),
            "reasons": list(decision.reasons),
        }
        for decision in result.decisions
    ]
    error = None if result.error is None else output.error_values(result.error, store=result.store)
    return {**result.values(), "decisions": decisions, "hold": hold, "error": error}


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
    """`2 objects not of backupd, left alone: notes.txt, photo.jpg`; and which of them are another store's."""
    others = [key.removesuffix(REPOSITORY_KEY) for key in keys if key.endswith(f"/{REPOSITORY_KEY}")]
    strange = [key for key in keys if not key.startswith(tuple(others))]
    told = []
    if others:
        objects = quantities.count(len(keys) - len(strange), "object")
        told.append(f"{objects} of another backupd store that lies below this one, left alone: {_first_of(others)}")
    if strange:
        told.append(f"{quantities.count(len(strange), 'object')} not of backupd, left alone: {_first_of(strange)}")
    return "; ".join(told)


def _first_of(keys: Sequence[str]) -> str:
    more = len(keys) - _STRANGERS_SHOWN
    return ", ".join(keys[:_STRANGERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def packs(number: int, size_bytes: int) -> str:
    """`12 packs (4.1 MB)`."""
    return f"{quantities.count(number, 'pack')} ({quantities.size(size_bytes)})"


def print_hold(result: PruneResult) -> None:
    """Say loudly that nothing is removed for now, why, and what to do."""
    if result.hold is not None:
        output.print_warning(f"{result.database}: nothing is removed from {result.store}: {result.hold.message}")
        output.print_hint(result.hold.hint, store=result.store)


def print_after(result: PruneResult, session: Session) -> None:
    """Say what a prune after a snapshot did, if that is anything, and what kept it from doing more."""
    changes = done(result)
    if changes:
        output.print_result(output.printable(f"{result.database}: {', '.join(changes)}  -> {result.store}"))
    print_hold(result)
    if is_news(result, session.state) and result.error is not None:
        output.print_warning(f"{result.database}: nothing more is removed: {result.error.message}")
        if result.error.hint:
            output.print_hint(result.error.hint, store=result.store)
