"""The limit that child and parent both watch: how long an application in rollback mode may be held up."""

from __future__ import annotations

from backupd.errors import BusyError


def held_too_long(path: str, seconds: float) -> BusyError:
    """The error for a copy that was given up to let the application write again."""
    return BusyError(
        f"{path} is not in WAL mode, and copying it held up its writers for {seconds:.1f} s",
        hint="raise capture.max_lock if the application can wait longer, "
        "or let it use WAL mode: PRAGMA journal_mode = WAL",
    )
