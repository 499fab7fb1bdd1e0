"""The process that looks at one database: facts as one line of JSON on stdout, for `looking`.

A process of its own, because a file system that hangs holds up whoever touches it, and because opening and closing a
database elsewhere would drop SQLite's locks in the process that does so. It reads nothing but the header, the schema
and what the file system says, and opens the database exactly as a capture does.

`python -m backupd.doctor.child PATH LOCK_TIMEOUT` is started by `looking.look_at` only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backupd.capture import source
from backupd.doctor.look import DatabaseLook, FileFacts, Refusal
from backupd.errors import BackupdError


def look(path: str, *, lock_timeout: float) -> DatabaseLook:
    """What there is to know of the database at `path`. Never raises an expected error: a refusal is a fact."""
    real_path = os.path.realpath(path)
    try:
        header = source.read_header(real_path)
    except BackupdError as error:
        return DatabaseLook(real_path=real_path, refusal=_refusal(error), **_around(real_path))
    refusal, image_bytes = None, 0
    facts: dict[str, Any] = {}
    try:
        if header.is_wal:
            source.reject_foreign_wal_files(real_path)
        with source.pinned(real_path, lock_timeout=lock_timeout) as connection:
            facts = source.read_facts(connection, header)
            image_bytes = connection.pragma("page_size") * connection.pragma("page_count")
    except BackupdError as error:
        refusal = _refusal(error)
    return DatabaseLook(
        real_path=real_path,
        refusal=refusal,
        journal_mode=facts.get("journal_mode") or ("wal" if header.is_wal else "rollback"),
        sqlite_version=header.sqlite_version,
        is_schema_readable=not facts or facts["tables"] is not None,
        image_bytes=image_bytes,
        **_around(real_path),
    )


def _around(path: str) -> dict[str, Any]:
    """What the file system says, without opening anything."""
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
    }
    try:
        status = os.statvfs(directory)
        around["device"] = directory.stat().st_dev
    except OSError:
        return around
    return {
        **around,
        "is_read_only": bool(status.f_flag & os.ST_RDONLY),
        "free_bytes": status.f_bavail * status.f_frsize,
        "has_free_inodes": not status.f_files or bool(status.f_favail),
    }


def _facts(path: str) -> FileFacts | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return FileFacts(status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_size)


def _refusal(error: BackupdError) -> Refusal:
    return Refusal(type(error).__name__, error.message, error.hint)


def main() -> None:
    """Print the facts of the database in the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    print(json.dumps(asdict(look(sys.argv[1], lock_timeout=float(sys.argv[2])))))  # noqa: T201


if __name__ == "__main__":
    main()
