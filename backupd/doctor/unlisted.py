"""SQLite files beside the databases that no entry has: everything looks well, and they are not backed up."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import look_for_databases
from backupd.doctor.configuration import CONFIGURATION
from backupd.starting.search import find_sqlite_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backupd.config import Settings
    from backupd.doctor.findings import Finding

_SHOWN = 5


def find_unlisted(settings: Settings) -> tuple[Path, ...]:
    """The SQLite files in the directories that entries name, and not below them, which belong to no entry; in order.

    Reads the beginning of every file there, which may take long or hang.
    """
    found = look_for_databases(settings.databases)
    listed = {database.path for _, database in found.databases} | {*found.problems_by_path}
    directories = {path.parent for path in listed}
    for entry in settings.databases:
        # Also where it finds nothing: perhaps because the file is called otherwise.
        directories.update(Path(each) for each in glob.glob(os.path.dirname(entry.path)))  # noqa: PTH207, PTH120  (a pattern is no path)
    known = {os.path.realpath(path) for path in listed}
    # Copies that a restore leaves in the state directory are nobody's databases.
    own = os.path.realpath(settings.state_dir)
    unlisted = {
        os.path.realpath(path): path
        for directory in sorted(directories)
        if os.path.realpath(directory) != own
        for path in find_sqlite_files(directory, most_levels=0).files
    }
    return tuple(sorted(path for real_path, path in unlisted.items() if real_path not in known))


def judge_unlisted(unlisted: Sequence[Path]) -> Iterator[Finding]:
    """One warning for all of them. Pure."""
    if not unlisted:
        return
    rest = len(unlisted) - _SHOWN
    shown = ", ".join(map(str, unlisted[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
    yield CONFIGURATION.warning(
        "other files",
        f"no entry has {shown}: {'it is' if len(unlisted) == 1 else 'they are'} not backed up",
        "give what is to be kept an entry under [[databases]], or a pattern that finds it too "
        "(BACKUPD_DATABASES__1__PATH, say, or another ending); move what is not elsewhere",
    )
