"""Remove the snapshots of one database in one store that no rule keeps, and delete packs that nothing needs.

This takes several slow steps, each of which can be seen and, for a while, undone: see FORMAT.md, "Removing".
"""

from backupd.prune.pruning import PruneOptions, PruneResult, prune
from backupd.prune.trash import forget, trashed, undelete

__all__ = [
    "PruneOptions",
    "PruneResult",
    "forget",
    "prune",
    "trashed",
    "undelete",
]
