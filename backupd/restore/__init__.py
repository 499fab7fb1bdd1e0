"""Bring a snapshot back: to a file, or into the running service.

image     the image out of its packs, proven
placing   files beside the target, and how they come into place
to_file   a file that appears complete or not at all
"""

from backupd.restore.image import Progress
from backupd.restore.to_file import RestoreResult, reject_unusable_target, restore_to_file

__all__ = ["Progress", "RestoreResult", "reject_unusable_target", "restore_to_file"]
