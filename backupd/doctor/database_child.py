"""The process that inspects one database, and prints the facts as one line of JSON.

It is a process of its own because a file system that hangs blocks every process that touches it, and because opening
and closing a database drops SQLite's locks in the process that does so. It reads the header, the schema and what the
file system says, and opens the database exactly as a capture does. Where writers wait for a capture, it does for a
moment what they wait for, and measures that.

Only `databases.inspect_database` starts it, with the arguments PATH, LOCK_TIMEOUT and MAX_LOCK. It ends by SIGALRM when
writers would wait for longer than MAX_LOCK seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backupd.capture import side_files, sink, source
from backupd.capture.database_files import read_header
from backupd.capture.facts import read_facts
from backupd.capture.limits import BYTES_PER_STEP, FACTS_SECONDS, WHOLE_BYTES, LockTimer, let_timers_end_this_process
from backupd.capture.unlocked import UnlockedFile
from backupd.doctor.databases import DatabaseFacts, FileFacts, Refusal
from backupd.errors import BackupdError, SourceUnusableError
from backupd.system.files import free_bytes
from backupd.system.processes import error_as_json

_SAMPLE_BYTES = 256 << 20


def inspect(path: str, *, lock_timeout: float, max_lock: float) -> DatabaseFacts:
    """Collect the facts of the database at `path`. Never raises an expected error: a refusal is a fact."""
    real_path = os.path.realpath(path)
    try:
        header = read_header(real_path)
    except BackupdError as error:
        return DatabaseFacts(real_path=real_path, refusal=_refusal(error), **_surroundings(real_path))
    refusal, image_bytes, sqlite_version = None, 0, header.sqlite_version
    facts: dict[str, Any] = {}
    waits: dict[str, Any] = {}
    timer = None if header.is_wal else LockTimer(max_lock)
    try:
        with source.pinned(real_path, lock_timeout=lock_timeout, timer=timer) as connection:
            pinned, facts = read_facts(connection, seconds=timer.facts_seconds if timer else FACTS_SECONDS)
            sqlite_version = pinned.sqlite_version
            image_bytes = connection.pragma("page_size") * connection.pragma("page_count")
        if timer is not None and image_bytes:
            waits = {
                "confirm_seconds": _confirm_seconds(real_path, image_bytes),
                "step_seconds": _step_seconds(real_path, lock_timeout, timer),
            }
    except BackupdError as error:
        refusal = _refusal(error)
    return DatabaseFacts(
        real_path=real_path,
        refusal=refusal,
        journal_mode=facts.get("journal_mode") or ("wal" if header.is_wal else "rollback"),
        sqlite_version=sqlite_version,
        is_schema_readable=facts.get("is_schema_readable", True),
        left_out=tuple(facts.get("left_out", ())),
        image_bytes=image_bytes,
        **waits,
        **_surroundings(real_path),
    )


def _confirm_seconds(path: str, image_bytes: int) -> float:
    """How long reading the file a second time takes, estimated by a sample. Call it before SQLite opens the file.

    A file larger than half of the memory does not stay cached: then the first reading counts.
    """
    sample_bytes = min(image_bytes, _SAMPLE_BYTES)
    stays_in_memory = image_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    seconds = 0.0
    with UnlockedFile(path) as file:
        for _ in range(2 if stays_in_memory else 1):
            started = time.monotonic()
            deque(file.changed_runs(sample_bytes), maxlen=0)
            seconds = time.monotonic() - started
    return seconds * image_bytes / sample_bytes


class _StepTakenError(Exception):
    """Raised after the first step, to stop the backup."""


def _step_seconds(path: str, lock_timeout: float, timer: LockTimer) -> float:
    """How long the backup API takes to copy as much as a capture copies under one lock."""

    def stop(_: int) -> None:
        raise _StepTakenError

    with source.pinned(path, lock_timeout=lock_timeout, timer=timer) as connection:
        started = time.monotonic()
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        is_whole = page_size * page_count <= WHOLE_BYTES
        with suppress(_StepTakenError):
            sink.stream_pages(
                connection,
                page_size=page_size,
                pages_per_step=page_count if is_whole else BYTES_PER_STEP // page_size,
                pages_written=lambda _, __: None,
                stepped=stop,
            )
        return time.monotonic() - started


def _surroundings(path: str) -> dict[str, Any]:
    """Collect what the file system says about the file and its directory, without opening anything."""
    directory = Path(path).parent
    around: dict[str, Any] = {
        "file": _facts(path),
        "wal": _facts(f"{path}-wal"),
        "index": _facts(f"{path}-shm"),
        "directory": _facts(str(directory)),
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "is_writable": os.access(path, os.W_OK),
        "is_directory_writable": os.access(directory, os.W_OK),
        "makes_files_of_owner": _makes_files_of_owner(path),
    }
    try:
        status = os.statvfs(directory)
        around["device"] = directory.stat().st_dev
    except OSError:
        return around
    return {
        **around,
        "is_read_only": bool(status.f_flag & os.ST_RDONLY),
        "free_bytes": free_bytes(directory),
        "has_free_inodes": not status.f_files or bool(status.f_favail),
    }


def _makes_files_of_owner(path: str) -> bool:
    try:
        side_files.reject_foreign_files(path)
    except OSError:
        pass  # there is no such file
    except SourceUnusableError:
        return False
    return True


def _facts(path: str) -> FileFacts | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return FileFacts(status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_size)


def _refusal(error: BackupdError) -> Refusal:
    return Refusal(**error_as_json(error))


def main() -> None:
    """Print the facts of the database that the arguments name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    let_timers_end_this_process()
    side_files.keep_sqlite_from_deleting()
    path, lock_timeout, max_lock = sys.argv[1:]
    facts = inspect(path, lock_timeout=float(lock_timeout), max_lock=float(max_lock))
    print(json.dumps(asdict(facts)))  # noqa: T201


if __name__ == "__main__":
    main()
