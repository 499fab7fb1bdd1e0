"""Checks of what is stored: whether snapshots restore, which objects are damaged, and what that affects.

A drill restores one snapshot to scratch and has SQLite check it; a verification checks any snapshots at one of three
levels, the last of which is drills. Every check gives a `CheckOutcome`, which is recorded in the store.

results        what is asked for, what checks need to run, what can be wrong, and what checks give
selection      which snapshots are checked
packs          each pack by itself, every byte and page; and the image that packs make up
continuity     whether commits, added to one snapshot, give a later one
drills         the drill: an image in scratch, examined by SQLite
inspection     the steps of a verification in one archive
journal        what an interrupted verification has read
metering       how much is read, and how fast
recording      the records in the stores, the report, and what the status records
verification   archive by archive, in all stores
"""

from backupd.verify.continuity import prove_continuity
from backupd.verify.drills import drill
from backupd.verify.results import (
    CheckContext,
    CheckResult,
    ContinuityResult,
    Depth,
    Finding,
    Kind,
    Level,
    Progress,
    Verification,
    VerifiedSnapshot,
    VerifyRequest,
)
from backupd.verify.verification import verify

__all__ = [
    "CheckContext",
    "CheckResult",
    "ContinuityResult",
    "Depth",
    "Finding",
    "Kind",
    "Level",
    "Progress",
    "Verification",
    "VerifiedSnapshot",
    "VerifyRequest",
    "drill",
    "prove_continuity",
    "verify",
]
