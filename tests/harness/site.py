"""A directory in which a daemon runs: its configuration, what lies in it, and commands beside the daemon."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from backupd.health import StatusFile
from backupd.state import StateDirectory
from harness.cli import PLAIN, CommandLine, Finished
from harness.daemon import PATIENCE_SECONDS, Daemon
from harness.ports import reserved_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backupd.health import DatabaseHealth, Status, StoreHealth
    from harness.cli import Runner
    from harness.s3_server import S3Server

TOKEN = "a token of the tests, long enough"
_NOT_WITHIN_A_TEST = timedelta(minutes=30)
_A_MISSED_TIME = timedelta(minutes=61)

# apprise imports a module that newer Pythons do not have.
_WARNINGS = "error,ignore:'imghdr' is deprecated:DeprecationWarning"


@dataclass(frozen=True, slots=True)
class Site:
    """A directory `home` with a configuration, databases, stores, and the state in `home/state`."""

    home: Path
    port: int
    runner: Runner = PLAIN
    seen_state: Path | None = None
    """Where this process finds the state, when it is mounted where only `runner` sees it."""

    @property
    def backupd(self) -> CommandLine:
        """Commands beside the daemon."""
        return CommandLine(self.home, runner=self.runner)

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.seen_state or self.home / "state"

    @property
    def store(self) -> Path:
        """The directory store that is configured unless a test says otherwise."""
        return self.home / "backups"

    @property
    def status(self) -> StatusFile:
        """The status file, to be looked at and, for the sake of time, changed."""
        return StatusFile(StateDirectory(self.state))

    @property
    def status_text(self) -> str:
        """The status file as it is."""
        return (self.state / "status.json").read_text()

    def configure(
        self,
        *databases: str | Mapping[str, Any],
        stores: Sequence[str | Mapping[str, Any]] = ("backups",),
        **tables: Any,
    ) -> None:
        """Write backupd.toml. Nothing falls due within a test, failures are tried again soon, and little is late.

        `tables` win over that, key by key; lists of tables are written as they are.
        """
        usual = {
            "schedule": {"snapshots": not_within_a_test(), "drills": "never", "prunes": "never"},
            "daemon": {"retry_after": "200ms"},
            "health": {"grace": "2h"},
            "retention": {"after_snapshot": False},
            "http": {"listen": f"127.0.0.1:{self.port}"},
        }
        lists = {
            "databases": [{"path": each} if isinstance(each, str) else each for each in databases or ("app.db",)],
            "stores": [{"url": each} if isinstance(each, str) else each for each in stores],
        }
        singles = {**usual, **{name: value for name, value in tables.items() if isinstance(value, dict)}}
        lists |= {name: value for name, value in tables.items() if isinstance(value, list)}
        parts = [_table(f"[{name}]", {**usual.get(name, {}), **values}) for name, values in singles.items()]
        parts += [_table(f"[[{name}]]", entry) for name, entries in lists.items() for entry in entries]
        (self.home / "backupd.toml").write_text("\n".join(parts))

    @contextmanager
    def daemon(self, *arguments: str, **environ: str) -> Iterator[Daemon]:
        """A running daemon, gone with all its processes after the block. It may write to its log, and nowhere else."""
        environ = {"PYTHONWARNINGS": _WARNINGS, **environ}
        process = CommandLine(self.home, runner=self.runner, **environ).start("run", *arguments)
        running = Daemon(self, process)
        try:
            running.wait_for("backupd has started")
            yield running
        finally:
            running.kill()
        assert running.stderr == "", running.stderr
        bugs = [event for event in running.events if "bug" in event["event"]]
        assert bugs == [], bugs

    def make_due(self, *names: str) -> None:
        """Let the status say that these databases (all) were current an hour ago and more: a round was missed."""

        def earlier(health: StoreHealth) -> StoreHealth:
            current_at = health.current_at
            return replace(health, current_at=current_at and current_at - _A_MISSED_TIME)

        self.change_status(earlier, *names)

    def make_drills_due(self) -> None:
        """Let the status say that every snapshot and every drill was an hour earlier and more: a drill was missed."""

        def earlier(health: StoreHealth) -> StoreHealth:
            failure = health.drill_failure
            return replace(
                health,
                snapshot_at=health.snapshot_at and health.snapshot_at - _A_MISSED_TIME,
                proven_at=health.proven_at and health.proven_at - _A_MISSED_TIME,
                intact_at=health.intact_at and health.intact_at - _A_MISSED_TIME,
                drill_failure=failure and replace(failure, last_at=failure.last_at - _A_MISSED_TIME),
            )

        self.change_status(earlier)

    def change_status(self, change: Callable[[StoreHealth], StoreHealth], *names: str) -> None:
        """Put something else in place of what is known of these databases (all) in their stores."""

        def changed(status: Status) -> Status:
            return replace(
                status,
                databases={
                    name: _with_stores(known, change) if name in (names or status.databases) else known
                    for name, known in status.databases.items()
                },
            )

        self.status.update(changed)

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """The snapshots that `backupd list` shows, the oldest first."""
        found: list[dict[str, Any]] = self.backupd.json("list", *arguments)["snapshots"]
        return found

    def check(self) -> Finished:
        """`backupd status --check`, with its exit code."""
        process = self.backupd.start("status", "--check")
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
        assert stderr == ""
        return Finished(process.returncode, stdout, stderr)


def new_site(home: Path, *, runner: Runner = PLAIN) -> Site:
    """A directory without a configuration yet."""
    return Site(home, reserved_port(), runner)


def on_s3(server: S3Server, *, endpoint_url: str | None = None, **others: object) -> dict[str, object]:
    """The entry of a store in a new bucket of `server`, reached at another address if one is given."""
    return {
        "url": f"s3://{server.new_bucket()}/site",
        "endpoint_url": endpoint_url or server.endpoint_url,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        "max_attempts": 1,
        **others,
    }


def not_within_a_test() -> str:
    """A schedule, once an hour, whose next time is half an hour away."""
    return f"{(datetime.now(UTC) + _NOT_WITHIN_A_TEST).minute} * * * *"


def _with_stores(database: DatabaseHealth, change: Callable[[StoreHealth], StoreHealth]) -> DatabaseHealth:
    return replace(database, stores={url: change(health) for url, health in database.stores.items()})


def _table(heading: str, values: Mapping[str, Any]) -> str:
    return "".join([f"{heading}\n", *(f"{key} = {_toml(value)}\n" for key, value in values.items())])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
