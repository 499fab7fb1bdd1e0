"""The two ways to do the same: backupd, and the usual method of sqlite3, zstd and cp."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BACKUP_BY_STDLIB = (
    "import sqlite3, sys; sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).backup(sqlite3.connect(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Usual:
    """A copy made by SQLite, compressed, copied to where backups are kept, and flushed to the disk."""

    work: Path

    @staticmethod
    def has_zstd() -> bool:
        """Whether the program `zstd` is installed."""
        return shutil.which("zstd") is not None

    @staticmethod
    def description() -> str:
        """What it runs, for the head of the report."""
        copier = "sqlite3 .backup" if shutil.which("sqlite3") else "Python's sqlite3 backup() (no sqlite3 program here)"
        return f"{copier}, zstd -3 -T2, cp, fsync"

    @property
    def archive(self) -> Path:
        """What `backup` leaves."""
        return self.work / "kept" / "image.db.zst"

    def backup(self, database: Path) -> list[str]:
        """Back `database` up, as a command."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.archive.parent.mkdir(parents=True)
        image = self.work / "image.db"
        if shutil.which("sqlite3"):
            copy = ["sqlite3", str(database), f".backup {image}"]
        else:
            copy = [sys.executable, "-c", _BACKUP_BY_STDLIB, str(database), str(image)]
        return _script(
            copy,
            ["zstd", "-3", "-T2", "-q", str(image), "-o", f"{image}.zst"],
            ["cp", f"{image}.zst", str(self.archive)],
            ["sync", str(self.archive), str(self.archive.parent)],
        )

    def restore(self, target: Path) -> list[str]:
        """Bring the image back, as a command."""
        return _script(["zstd", "-d", "-q", "-f", str(self.archive), "-o", str(target)], ["sync", str(target)])


@dataclass(frozen=True, slots=True)
class Backupd:
    """The program of this environment, with a store and a state directory of its own."""

    work: Path
    level: int | None = None

    @property
    def program(self) -> Path:
        """What a user types."""
        return Path(sys.executable).parent / "backupd"

    @property
    def environment(self) -> dict[str, str]:
        """That of this process, without any configuration of its user."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKUPD_")}
        environment["BACKUPD_STATE_DIR"] = str(self.work / "state")
        if self.level is not None:
            environment["BACKUPD_PACKS__COMPRESSION_LEVEL"] = str(self.level)
        return environment

    def backup(self, database: Path) -> list[str | Path]:
        """Take a snapshot, as a command."""
        return [self.program, "now", database, "--store", self.work / "store", "--quiet"]

    def restore(self, target: Path) -> list[str | Path]:
        """Restore the newest snapshot, as a command; an old target is removed now."""
        target.unlink(missing_ok=True)
        return [self.program, "restore", "latest", "--store", self.work / "store", "--to", target, "--quiet"]

    def restore_live(self, database: Path, tag: str, *options: str) -> list[str | Path]:
        """Restore a tagged snapshot into a database that may be in use, as a command that prints JSON."""
        where = ["--store", self.work / "store", "--database", database]
        return [self.program, "restore", tag, *where, *options, "--json", "--quiet"]

    def snapshots(self) -> list[dict[str, Any]]:
        """What the store holds, newest last."""
        command = [self.program, "list", "--store", self.work / "store", "--json"]
        listed = subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE)
        return list(json.loads(listed.stdout)["snapshots"])

    def remove(self) -> None:
        """Remove store and state."""
        shutil.rmtree(self.work, ignore_errors=True)


def _script(*commands: list[str]) -> list[str]:
    return ["sh", "-ec", "\n".join(map(shlex.join, commands))]
