"""Remove the snapshots of one database in one store that no rule keeps, and free what nothing needs any more.

In slow steps, each of which can be seen and, for a while, undone: FORMAT.md, "Removing", is the protocol.
"""

from backupd.prune.by_hand import forget, trashed, undelete
from backupd.prune.notes import note_begun, note_failure, note_success, refusal_is_news
from backupd.prune.pruning import prune
from backupd.prune.results import PruneResult

__all__ = [
    "PruneResult",
    "forget",
    "note_begun",
    "note_failure",
    "note_success",
    "prune",
    "refusal_is_news",
    "trashed",
    "undelete",
]
