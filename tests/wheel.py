"""The wheel by itself: installed into a clean environment, it takes a snapshot and restores it. Run as `wheel.py FILE`.

Nothing of the checkout is on its path, so that what the wheel lacks is missed here, and not by a user.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import venv
from contextlib import closing
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def main() -> None:
    """Install the wheel, use it, and exit with a status other than 0 when anything fails."""
    wheel = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory(prefix="backupd-wheel-") as name:
        scratch = Path(name)
        venv.create(scratch / "venv", with_pip=True)
        programs = scratch / "venv" / "bin"
        pip = [programs / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", _ROOT / "constraints.txt", wheel], check=True)
        _use(programs / "backupd", scratch)
    print(f"{wheel.name} works by itself")  # noqa: T201


def _use(backupd: Path, scratch: Path) -> None:
    database, restored = scratch / "app.db", scratch / "restored.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE payments (amount)")
        connection.executemany("INSERT INTO payments VALUES (?)", [(number,) for number in range(1000)])
        connection.commit()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BACKUPD"))}
    environment["BACKUPD_STATE_DIR"] = str(scratch / "state")
    for command in (
        ["--version"],
        ["now", database, "--store", scratch / "store"],
        ["verify", "--store", scratch / "store"],
        ["restore", "latest", "--store", scratch / "store", "--to", restored],
    ):
        subprocess.run([backupd, *command], cwd=scratch, env=environment, check=True)
    with closing(sqlite3.connect(restored)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM payments").fetchone()
    if count != 1000:
        sys.exit(f"error: the restored database has {count} of 1000 rows")


if __name__ == "__main__":
    main()
