"""How the daemon logs what came of its work: one event for each outcome, with the names that `--json` uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.backup import Outcome
from backupd.logs import log
from backupd.upkeep.rotation import is_news

if TYPE_CHECKING:
    from backupd.backup import BackupResult
    from backupd.drill import DrillResult
    from backupd.prune import PruneResult
    from backupd.state import StateDirectory


def log_result(result: BackupResult) -> None:
    """One database in one store."""
    tell = log.error if result.outcome is Outcome.FAILED else log.warning if result.warnings else log.info
    tell("snapshot", **result.values())


def log_prune(result: PruneResult, state: StateDirectory) -> None:
    """A prune that did something, was held, or failed; not that a bucket refuses deletions once more."""
    is_told = is_news(result, state)
    if result.hold is not None or (result.error is not None and is_told):
        log.warning("prune", **result.values())
    elif result.has_changed_anything:
        log.info("prune", **result.values())


def log_drill(result: DrillResult) -> None:
    """A drill of one database in one store."""
    tell = log.info if result.error is None else log.error
    tell("drill", **result.values())
