"""Where the image of a drill lies while it is checked."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.errors import TargetUnwritableError
from backupd.files import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.state import StateDirectory

_LEFT_FREE_BYTES = 256 << 20
_HINT = "free some space, or set state_dir (or BACKUPD_STATE_DIR) to a directory on a larger disk"


@contextmanager
def scratch_file(state: StateDirectory, image_bytes: int) -> Iterator[tuple[Path, int]]:
    """An empty private file with room for an image, and its descriptor. Gone at the end, or after a kill with the next.

    Some space is left to others on the disk. Raises `TargetUnwritableError`, for an OSError of the block too.
    """
    with state.spool() as directory:
        free = free_bytes(directory)
        if free is not None and free < image_bytes + _LEFT_FREE_BYTES:
            needed = image_bytes + _LEFT_FREE_BYTES
            raise TargetUnwritableError(
                f"the state directory {state.root} has {free >> 20} MiB free, a test restore needs {needed >> 20} MiB",
                hint=_HINT,
            )
        try:
            file = directory / "image.db"
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                yield file, descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TargetUnwritableError(
                f"a test restore cannot be written to the state directory {state.root}: {error.strerror}", hint=_HINT
            ) from error
