"""Files that a restore keeps beside a database while it works, locked by it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.errors import AnotherRunError
from backupd.files import try_lock

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE_MODE = 0o600


def open_locked(file: Path, database: Path) -> int:
    """`file`, made if it is missing, open and locked, and still the one of that name: another may just have removed it.

    Raises `AnotherRunError` when another restore of `database` holds it, and OSError.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE_MODE)
        try:
            is_locked = try_lock(descriptor, file)
            if is_locked and is_named(descriptor, file):
                return descriptor
        except OSError:
            if not os.fstat(descriptor).st_size:
                file.unlink(missing_ok=True)  # made here: without locks nothing is begun
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not is_locked:
            raise AnotherRunError(f"another restore to {database} is running", hint="wait until it has finished")


def partial_name(target: Path) -> Path:
    """Where a restore writes a file before it gets its name: always the same place, so that none is ever left over."""
    return target.with_name(f".{target.name}.backupd-partial")


def remove_abandoned(file: Path, database: Path) -> None:
    """Remove a file that a killed restore of `database` left, if that may be done; not one that somebody works on."""
    if not os.path.lexists(file):
        return
    with suppress(AnotherRunError, OSError):  # it takes space and does no harm: whoever may write there removes it
        descriptor = open_locked(file, database)
        try:
            file.unlink()
        finally:
            os.close(descriptor)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is the name of the open file."""
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)
