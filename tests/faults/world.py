"""All that runs in a soak: two applications, a daemon, commands beside it, a directory store and an S3 server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli import CommandLine, Finished, Runner
from harness.clock import Clock, settable_clock
from harness.daemon import Daemon, wait_until
from harness.killing import kill
from harness.ports import reserved_port
from harness.restarting import RestartingServer, restarting_server
from harness.site import TOKEN, Site

from backupd.encryption import Encryption, generate_identity
from backupd.errors import TargetUnwritableError
from faults.images import NotAStateError, read_state
from faults.moments import Disturbance
from faults.proxy import Proxy, proxy
from faults.watch import Taken
from faults.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta
    from random import Random

    from mypy_boto3_s3 import S3Client

SCHEDULE_SECONDS = 60
GRACE_SECONDS = 20
KEPT = 5
INTERVAL_SECONDS = 2
SMALL_DISKS = {"state": "512m", "disk": "256m", "targets": "100m"}
"""Each a file system of its own, where that is permitted. A drill wants 256 MiB for itself."""
_BEGINNING_SECONDS = 5.0
_GREEN_WITHIN_SECONDS = 150.0
_COMMANDS_END_WITHIN_SECONDS = 90
_SLEEPING = Path(__file__).with_name("sleeping")
# apprise imports a module that newer Pythons do not have. A process that fails and ends closes its files by that.
_WARNINGS = "error,ignore:'imghdr' is deprecated:DeprecationWarning,ignore::ResourceWarning"


@dataclass(slots=True)
class World:
    """`home` holds the databases in app/, the state, a directory store in disk/, and room for restores in targets/."""

    home: Path
    site: Site
    writers: dict[str, Writer]
    server: RestartingServer
    proxy: Proxy
    bucket: str
    clock: Clock | None
    """None where faketime is missing: then no clock can be set."""
    disks: bool
    """Whether state, store and targets are file systems of their own."""
    encryption: Encryption
    configuration: dict[str, Any]
    daemon: Daemon | None = None
    ahead_until: float = 0.0
    """Until then (monotonic) a snapshot may be dated in the future."""
    taken: list[Taken] = field(default_factory=list)
    """Snapshots that were reported as stored."""
    bugs: list[str] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    """When commits were not seen, or by a wrong clock."""
    blind_since: float | None = None
    """Since when (monotonic) no daemon runs."""
    mends: list[Callable[[], None]] = field(default_factory=list)
    """What an operator does by hand in the end, about damage that backupd reports and does not mend."""

    @property
    def store(self) -> Path:
        """The directory store, a directory on a disk of its own."""
        return self.home / "disk/backups"

    @property
    def targets(self) -> Path:
        """The directory of restored files."""
        return self.home / "targets"

    @property
    def disk(self) -> str:
        """The URL of the directory store."""
        return str(self.store)

    @property
    def s3(self) -> str:
        """The URL of the store in the bucket."""
        return f"s3://{self.bucket}/site"

    @property
    def backupd(self) -> CommandLine:
        """Commands beside the daemon."""
        return self.site.backupd

    @property
    def by_the_clock(self) -> Runner:
        """Runs commands that see the time of `clock`. They take ten times as long."""
        assert self.clock is not None
        runner = self.clock.runner()
        return replace(runner, environ={**self.site.runner.environ, **runner.environ, "PYTHONPATH": str(_SLEEPING)})

    def start_daemon(self, runner: Runner | None = None) -> None:
        """Start it, as a supervisor would."""
        assert self.daemon is None
        command = CommandLine(self.home, runner=runner or self.site.runner)
        self.daemon = Daemon(self.site, command.start("run"))
        self.daemon.wait_for("backupd has started")
        if self.blind_since is not None:
            self.disturbed(self.blind_since)
            self.blind_since = None

    def stop_daemon(self) -> None:
        """SIGTERM, and what it ends with."""
        assert self.daemon is not None
        self._note_end()
        self.daemon.stop()
        self._end_of_daemon()

    def kill_daemon(self) -> None:
        """SIGKILL, of every process of it."""
        if self.daemon is not None:
            self._note_end()
            self.daemon.kill()
            self._end_of_daemon()

    def look_for_death(self) -> None:
        """Note that the daemon has ended by itself, if it has."""
        daemon = self.daemon
        if daemon is not None and daemon.process.poll() is not None and daemon is self.daemon:
            self._note_end()

    def _note_end(self) -> None:
        if self.blind_since is None:  # it may have ended before it was to
            self.blind_since = time.monotonic()

    def _end_of_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        if self.daemon.stderr:
            self.bugs.append(f"the daemon wrote to stderr: {self.daemon.stderr}")
        self.bugs += [line for line in self.daemon.lines if "this is a bug" in line or "Traceback" in line]
        self.daemon = None

    def disturbed(self, since: float, *, ahead_seconds: float = 0.0) -> None:
        """Note that commits are seen again, and at their time, a few seconds from now."""
        self.disturbances.append(Disturbance(since, time.monotonic() + _BEGINNING_SECONDS, ahead_seconds))

    def take_bugs(self) -> list[str]:
        """Forbidden output (tracebacks, bugs) that appeared since the last call."""
        found, self.bugs = self.bugs, []
        if self.daemon is not None:
            found += [line for line in self.daemon.lines if "this is a bug" in line and line not in found]
        return found

    def run(self, *arguments: str | Path) -> Finished:
        """Run a command to its end, whatever that is; a traceback is a bug."""
        return self.run_as(self.backupd, *arguments)

    def run_as(self, backupd: CommandLine, *arguments: str | Path) -> Finished:
        """Run a command, started by `backupd`, to its end."""
        process = backupd.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=_COMMANDS_END_WITHIN_SECONDS)
        finally:
            kill(process)
        if process.returncode == 1 or "Traceback" in stderr:
            self.bugs.append(f"{arguments} ended with {process.returncode}: {stdout}{stderr}")
        return Finished(process.returncode, stdout, stderr)

    def snapshot(self, *arguments: str) -> Finished:
        """`backupd now`, noted as taken."""
        after = time.monotonic()
        finished = self.run("now", "--json", *arguments)
        before = time.monotonic()
        if finished.stdout.startswith("{"):
            self.taken += [
                Taken(each["database"], each["store"], each["id"], after, before)
                for each in finished.document.get("snapshots", [])
                if each["outcome"] == "created"
            ]
        return finished

    def try_restore(self, store: str, chosen: Random) -> None:
        """Restore something from `store`: whether that succeeds or not, what is there then must be right."""
        target = self.targets / "tried.db"
        database = chosen.choice(sorted(self.writers))
        finished = self.run("restore", f"{database}@latest", "--store", store, "--to", target)
        if (finished.code == 0) != target.exists():
            self.bugs.append(f"a restore ended with {finished.code}, and its target exists: {target.exists()}")
        self.take_restored(target)

    def take_restored(self, target: Path) -> None:
        """Look at what a restore left, which is a whole state or nothing, and remove it."""
        left = [path.name for path in self.targets.iterdir() if path != target and path.name != "ballast"]
        if left and not any("partial" in name for name in left):
            self.bugs.append(f"a restore left {left}")
        for name in left:
            shutil.rmtree(self.targets / name)
        if target.exists():
            try:
                read_state(target)
            except NotAStateError as error:
                self.bugs.append(f"a restore gave a file that is no state: {error}")
            target.unlink()

    def stored_objects(self, client: S3Client) -> dict[str, bytes]:
        """Every object in the bucket."""
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def wait_for_green(self) -> None:
        """Wait until the daemon says that all is well."""
        daemon = self.daemon
        assert daemon is not None
        wait_until(lambda: daemon.ask("/healthz").code == 200, patience_seconds=_GREEN_WITHIN_SECONDS)

    def request_snapshots(self) -> None:
        """Have the daemon take snapshots now, as a migration does; not waited for."""
        if self.daemon is not None:
            self.daemon.ask("/snapshots", body="wait=false", token=TOKEN)

    def miss_a_round(self) -> None:
        """Let the daemon find that more than an hour has passed since its last round.

        In a state directory that is full, that cannot be written: then it is asked for snapshots.
        """
        if self.daemon is not None:
            try:
                self.daemon.run_again()
            except TargetUnwritableError:
                self.request_snapshots()

    def age_stores(self, by: timedelta) -> None:
        """Let time pass for everything in the stores, but for packs: with another time they are other packs."""
        for file in [*self.store.rglob("*.json"), *self.store.glob(".incoming/*")]:
            status = file.stat()
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - int(by.total_seconds()) * 10**9))
        self.proxy.age(by)

    def configure(self) -> None:
        """Write the configuration."""
        self.site.configure(
            *self.configuration["databases"],
            stores=self.configuration["stores"],
            **{name: table for name, table in self.configuration.items() if name not in {"databases", "stores"}},
        )


@contextmanager
def new_world(home: Path, *, is_encrypted: bool) -> Iterator[World]:
    """Everything runs within the block, and nothing after it; the files stay."""
    with ExitStack() as stack:
        disks = _mount_disks(home, stack)
        clock = settable_clock(home) if shutil.which("faketime") else None
        server = stack.enter_context(restarting_server())
        way = stack.enter_context(proxy(server.server.endpoint_url))
        bucket = server.server.new_bucket()
        writers = _writers(home)
        encryption = _encryption(home) if is_encrypted else Encryption()
        site = Site(home, reserved_port(), _runner(encryption))
        world = World(home, site, writers, server, way, bucket, clock, disks, encryption, {})
        world.configuration = _configuration(world)
        world.configure()
        stack.callback(world.kill_daemon)
        for writer in writers.values():
            stack.callback(writer.kill)
            writer.create()
            writer.start()
        world.start_daemon()
        yield world


def _encryption(home: Path) -> Encryption:
    recipient, identity = generate_identity(datetime.now(UTC))
    (home / "identity").write_text(identity)
    return Encryption([recipient], home / "identity")


def _runner(encryption: Encryption) -> Runner:
    identity = {"BACKUPD_IDENTITY_FILE": str(encryption.identity_file)} if encryption.is_on else {}
    return Runner(environ={"PYTHONWARNINGS": _WARNINGS, **identity})


def _writers(home: Path) -> dict[str, Writer]:
    (home / "app").mkdir()
    return {
        name: Writer(home / f"app/{name}.db", home / f"{name}.ledger", journal_mode=journal_mode)
        for name, journal_mode in (("wal", "wal"), ("rollback", "delete"))
    }


def _mount_disks(home: Path, stack: ExitStack) -> bool:
    for name, size in SMALL_DISKS.items():
        directory = home / name
        directory.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", directory], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            return False
        stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)
    return True


def _configuration(world: World) -> dict[str, Any]:
    server = world.server.server
    bucket = {
        "url": world.s3,
        "endpoint_url": world.proxy.endpoint_url,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        "max_attempts": 2,
        "time_limit": "6s",
        "read_timeout": "2s",
        "connect_timeout": "2s",
    }
    return {
        "encryption": {"recipients": [*world.encryption.recipients]},
        "databases": [f"app/{name}.db" for name in world.writers],
        "stores": ["disk/backups", bucket],
        "schedule": {"snapshots": "every 1m", "drills": "every 2m", "prunes": "every 3m"},
        "daemon": {"retry_after": "1s", "stop_timeout": "5s"},
        "health": {"grace": f"{GRACE_SECONDS}s"},
        "retention": {"keep_last": KEPT, "daily": 0, "weekly": 0, "monthly": 0, "grace": "1h", "after_snapshot": True},
        "capture": {"lock_timeout": "5s", "deadline": "1m"},
        "follow": {"enabled": True, "interval": f"{INTERVAL_SECONDS}s", "max_age": "1m"},
        "http": {"listen": f"127.0.0.1:{world.site.port}", "token": TOKEN},
    }
