"""Bring a snapshot back: to a file, or into the configured database.

image      the image out of its packs, proven
placing    files beside the target, and how they come into place
to_file    a file that appears complete or not at all
plan       what a restore into the configured database would change
in_place   that restore: live, beside the running application, or by another file in place of the old one
"""

from backupd.restore.image import Progress
from backupd.restore.in_place import InPlaceRestore, InPlaceResult
from backupd.restore.placing import led_to
from backupd.restore.plan import Plan, TableChange, Way
from backupd.restore.to_file import RestoreResult, reject_unusable_target, restore_to_file

__all__ = [
    "InPlaceRestore",
    "InPlaceResult",
    "Plan",
    "Progress",
    "RestoreResult",
    "TableChange",
    "Way",
    "led_to",
    "reject_unusable_target",
    "restore_to_file",
]
