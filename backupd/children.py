"""What processes that backupd starts may know of it: nothing that somebody could want to steal."""

from __future__ import annotations

import os

_NAMES = frozenset(
    ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SQLITE_TMPDIR", "OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH")
)
# FAKETIME comes with LD_PRELOAD: whoever gives a process another clock or allocator means its children too.
_BEGINNINGS = ("LC_", "PYTHON", "LD_PRELOAD", "FAKETIME")


def child_environment(**more: str) -> dict[str, str]:
    """The variables for a process that only looks at a database, and `more`.

    Those that are needed to run are listed, and not those that are secret: what else the environment holds (keys of
    backupd and of the AWS tools, passwords of the application beside it) nobody here can know.
    """
    passed = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_BEGINNINGS)}
    return {**passed, **more}
