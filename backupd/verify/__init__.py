"""Looking at what is stored, on demand: which snapshots would not restore, and which objects are to blame.

findings   what can be wrong, and how it is told
results    what was asked for, and what became of it
choosing   which snapshots of which databases in which stores are meant
watch      who is told how it goes on
metering   how much is read, and no faster than allowed
journal    what was read already, when a long run is broken off
inspection one database in one store, step by step
drilled    the same by test restores
verdicts   what the status of this machine is to know
recording  damage in the stores, where every later run sees it
verifying  all of it together
"""

from backupd.verify.findings import Finding, Kind
from backupd.verify.results import Level, Outcome, Verification, VerifiedSnapshot, VerifyWish
from backupd.verify.verifying import verify
from backupd.verify.watch import Progress, Watch

__all__ = [
    "Finding",
    "Kind",
    "Level",
    "Outcome",
    "Progress",
    "Verification",
    "VerifiedSnapshot",
    "VerifyWish",
    "Watch",
    "verify",
]
