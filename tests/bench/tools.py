"""Ways to back a database up, each as command lines: backupd, and those that it is compared with."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BACKUP_BY_STDLIB = (
    "import sqlite3, sys; sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).backup(sqlite3.connect(sys.argv[2]))"
)
# All snapshots that a scenario takes stay, and `now` applies the rules as it does by default.
_KEEPS = 1_000_000
_TABLES: dict[str, dict[str, object]] = {
    "retention": {"keep_last": _KEEPS},
    "schedule": {"drills": "never", "prunes": "never"},
    "http": {"listen": ""},
}


def plain_environment() -> dict[str, str]:
    """The environment of this process, without a configuration of its user and without the path of this program."""
    left_out = ("BACKUPD_", "LITESTREAM_", "RESTIC_", "PYTHONPATH", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def sqlite_copy(database: Path, image: Path) -> list[str]:
    """A copy by SQLite's backup API, as a command."""
    if shutil.which("sqlite3"):
        return ["sqlite3", str(database), f".backup {image}"]
    return [sys.executable, "-c", _BACKUP_BY_STDLIB, str(database), str(image)]


@dataclass(frozen=True, slots=True)
class Usual:
    """A copy made by SQLite, compressed, copied to where backups are kept, and flushed to the disk."""

    work: Path

    @staticmethod
    def is_installed() -> bool:
        """Whether the program `zstd` is there."""
        return shutil.which("zstd") is not None

    @property
    def archive(self) -> Path:
        """What `backup` leaves."""
        return self.work / "kept" / "image.db.zst"

    def backup(self, database: Path) -> list[str]:
        """Back `database` up, as a command; what it left before is removed now."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.archive.parent.mkdir(parents=True)
        image = self.work / "image.db"
        return _script(
            sqlite_copy(database, image),
            ["zstd", "-3", "-T2", "-q", str(image), "-o", f"{image}.zst"],
            ["cp", f"{image}.zst", str(self.archive)],
            ["sync", str(self.archive), str(self.archive.parent)],
        )

    def restore(self, target: Path) -> list[str]:
        """Bring the image back, as a command."""
        target.unlink(missing_ok=True)
        return _script(["zstd", "-d", "-q", "-f", str(self.archive), "-o", str(target)], ["sync", str(target)])


@dataclass(frozen=True, slots=True)
class Backupd:
    """The program of this environment, with a configuration, a store and a state directory of its own."""

    work: Path
    level: int | None = None

    @property
    def program(self) -> Path:
        """What a user types."""
        return Path(sys.executable).parent / "backupd"

    @property
    def store(self) -> Path:
        """The directory where snapshots go."""
        return self.work / "store"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands."""
        own = {"BACKUPD_STATE_DIR": str(self.work / "state"), "BACKUPD_CONFIG": str(self.work / "backupd.toml")}
        if self.level is not None:
            own["BACKUPD_PACKS__COMPRESSION_LEVEL"] = str(self.level)
        return {**plain_environment(), **own}

    def configure(
        self,
        databases: Sequence[Path | str],
        *,
        store: Mapping[str, object] | None = None,
        **tables: Mapping[str, object],
    ) -> None:
        """Write the configuration. `tables` win over what is usual here, key by key. `store` replaces the directory."""
        lines = [_table("[[stores]]", store or {"url": str(self.store)})]
        lines += [f'[[databases]]\npath = "{database}"' for database in databases]
        for name in {**_TABLES, **tables}:
            values = {**_TABLES.get(name, {}), **tables.get(name, {})}
            lines.append(_table(f"[{name}]", values))
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "backupd.toml").write_text("\n".join(lines) + "\n")

    def now(self) -> list[str | Path]:
        """Take a snapshot of all configured databases, as a command."""
        return [self.program, "now", "--quiet"]

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """Any other command."""
        return [self.program, *arguments]

    def restore(self, target: Path) -> list[str | Path]:
        """Restore the newest snapshot, as a command; an old target is removed now."""
        target.unlink(missing_ok=True)
        return [self.program, "restore", "latest", "--to", target, "--quiet"]

    def run(self, *arguments: str | Path) -> bytes:
        """Run a command that is not measured; its output. Raises when it fails."""
        return subprocess.run(
            [self.program, *arguments], env=self.environment, check=True, stdout=subprocess.PIPE
        ).stdout

    def json(self, *arguments: str | Path) -> Any:
        """Run a command that is not measured, and return the document that it prints."""
        return json.loads(self.run(*arguments, "--json"))

    def remove(self) -> None:
        """Remove store, state and configuration."""
        shutil.rmtree(self.work, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Restic:
    """A copy made by SQLite, which restic puts into a local repository."""

    work: Path

    @staticmethod
    def is_installed() -> bool:
        """Whether the program `restic` is there."""
        return shutil.which("restic") is not None

    @property
    def repository(self) -> Path:
        """The directory of the repository."""
        return self.work / "repository"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands."""
        return {
            **plain_environment(),
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "of a benchmark",
            "RESTIC_CACHE_DIR": str(self.work / "cache"),
        }

    def prepare(self) -> None:
        """Make an empty repository."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        subprocess.run(["restic", "init", "--quiet"], env=self.environment, check=True)

    def backup(self, database: Path) -> list[str]:
        """Back `database` up, as a command."""
        image = self.work / "image.db"
        image.unlink(missing_ok=True)
        return _script(sqlite_copy(database, image), ["restic", "backup", "--quiet", str(image)])

    def restore(self, target: Path) -> list[str]:
        """Bring the newest image back, as a command."""
        shutil.rmtree(target, ignore_errors=True)
        return _script(["restic", "restore", "latest", "--quiet", "--target", str(target)], ["sync", str(target)])


@dataclass(frozen=True, slots=True)
class Litestream:
    """A replica in a local directory. Litestream changes the database, so it gets one of its own."""

    work: Path
    database: Path

    @staticmethod
    def is_installed() -> bool:
        """Whether the program `litestream` is there."""
        return shutil.which("litestream") is not None

    @property
    def replica(self) -> Path:
        """The directory of the replica."""
        return self.work / "replica"

    @property
    def configuration(self) -> Path:
        """The configuration file, which `prepare` writes."""
        return self.work / "litestream.yml"

    def remove(self) -> None:
        """Remove the replica, and its local state."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.database.with_name(f".{self.database.name}-litestream"), ignore_errors=True)

    def prepare(self, *, syncs_by_itself: bool = True) -> None:
        """Begin without a replica and without its local state.

        Unless it `syncs_by_itself`, it replicates when `sync` asks for it, and keeps all files of that.
        """
        self.remove()
        self.work.mkdir(parents=True)
        socket = f"socket:\n  enabled: true\n  path: {self._socket}\n"
        kept, seldom, never = "", "", ""
        if not syncs_by_itself:
            kept, seldom, never = "l0-retention: 24h\n", "    monitor-interval: 1h\n", "      sync-interval: 1h\n"
        replica = f"dbs:\n  - path: {self.database}\n{seldom}    replica:\n      url: file://{self.replica}\n{never}"
        self.configuration.write_text(f"logging:\n  level: warn\n{kept}{socket}{replica}")

    @property
    def _socket(self) -> Path:
        return self.work / "socket"

    def once(self) -> list[str]:
        """Replicate what there is and end, as a command."""
        return ["litestream", "replicate", "-once", "-config", str(self.configuration)]

    def follow(self) -> list[str]:
        """Replicate until it is stopped, as a command."""
        return ["litestream", "replicate", "-config", str(self.configuration)]

    def sync(self) -> list[str]:
        """Wait until the running process has replicated everything, as a command."""
        return ["litestream", "sync", "-wait", "-timeout", "600", "-socket", str(self._socket), str(self.database)]

    def replicated(self) -> dict[Path, int]:
        """The files that it has replicated and not yet compacted, with their sizes in bytes."""
        return {file: file.stat().st_size for file in self.replica.glob("ltx/0/*.ltx")}

    def has_settled(self) -> bool:
        """Whether a running process has written the first snapshot of its own, and no file is being written."""
        snapshots = self.replica.glob("ltx/9/*.ltx")
        return any(snapshots) and not any(self.replica.rglob("*.tmp"))

    def restore(self, target: Path) -> list[str]:
        """Bring the newest state back, as a command."""
        target.unlink(missing_ok=True)
        return _script(
            ["litestream", "restore", "-config", str(self.configuration), "-o", str(target), str(self.database)],
            ["sync", str(target)],
        )


def _table(head: str, values: Mapping[str, object]) -> str:
    """A table of a configuration."""
    return "\n".join([head, *(f"{key} = {json.dumps(value)}" for key, value in values.items())])


def _script(*commands: list[str]) -> list[str]:
    return ["sh", "-ec", "\n".join(map(shlex.join, commands))]
