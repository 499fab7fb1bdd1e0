"""How long an application in rollback mode may be held up, and what is said when that does not do."""

from __future__ import annotations

import math

from backupd.errors import BusyError

WHOLE_BYTES = 32 << 20
"""Up to so much is copied under one lock: writers wait for about 15 ms on two cores. More is copied in steps."""

BYTES_PER_STEP = 2 << 20
"""What the backup API copies in one step."""


def held_too_long(path: str, seconds: float) -> BusyError:
    """The error for a copy that was given up to let the application write again."""
    return BusyError(
        f"{path} is not in WAL mode, and copying it held up its writers for {seconds:.1f} s",
        hint="try again when the machine is less busy, or let the application use WAL mode: PRAGMA journal_mode = WAL",
    )


def never_at_rest(path: str, expected_seconds: float, max_lock_seconds: float) -> BusyError:
    """The error for a database that is written to so much that no state of it could be confirmed in time."""
    if expected_seconds > max_lock_seconds:
        return BusyError(
            f"{path} is not in WAL mode and is written to all the time: to confirm what was read of it would hold its "
            f"writers up for about {expected_seconds:.1f} s, and capture.max_lock allows {max_lock_seconds:g} s",
            hint="let the application use WAL mode (PRAGMA journal_mode = WAL), where writers never wait, "
            f"or raise capture.max_lock to {math.ceil(expected_seconds * 1.5)}s if it can wait that long",
        )
    return BusyError(
        f"{path} is not in WAL mode, and so much of it was written meanwhile that no state of it could be confirmed",
        hint="take the snapshot when less is written, or let the application use WAL mode: PRAGMA journal_mode = WAL",
    )
