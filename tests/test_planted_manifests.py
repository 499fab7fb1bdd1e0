"""Snapshots beside a planted manifest, whatever it says, are taken, are the newest, and restore."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from harness.extent import sampled, slow
from harness.fuzzing import sealed
from harness.kept_workers import kept_workers

from backupd.backup import BackupResult, Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.format import SnapshotId
from backupd.health import Status
from backupd.health.alarms import find_alarms
from backupd.health.recording import with_snapshots
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.repository.references import find_snapshot, list_snapshots
from backupd.rescue import rescue
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.s3_server import S3Server

    from backupd.store import Store

    Change = Callable[[dict[str, Any]], None]

_EXTREMES: list[Any] = [0, -1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 53) - 2, (1 << 53) - 1, 1 << 53, 1 << 63]
_EXTREMES += [1.5, 1e300, 10**400, True, None, "1"]
_FIELDS = [
    *("format", "sequence", "page_size", "page_count", "changed_pages", "stored_bytes"),
    *("packs.0.stored_bytes", "packs.0.pages", "writer.uid", "writer.gid", "writer.mode"),
    *(f"source.{name}" for name in ("free_pages", "schema_version", "user_version", "application_id")),
]


class Place:
    """A small database, a store, and an attacker who may put anything into it."""

    def __init__(self, root: Path, store: Store | None = None) -> None:
        self.root, self.path = root, root / "app.db"
        self.store = store or DirectoryStore(root / "store")
        self.state = StateDirectory(root / "state")
        self.value = 0
        self.planted: list[str] = []
        self.change()

    def change(self) -> int:
        self.value += 1
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
            connection.execute("INSERT INTO t VALUES (?)", (self.value,))
        return self.value

    def back_up(self, *, state: StateDirectory | None = None, request: SnapshotRequest | None = None) -> BackupResult:
        (result,) = back_up(
            Database(name="app", path=self.path),
            [Repository(self.store, state or self.state)],
            Settings(),
            request=request or SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        return result

    def put(self, key: str, content: bytes) -> None:
        self.store.put(key, content, sha256=hashlib.sha256(content).digest())

    def newest_values(self) -> dict[str, Any]:
        newest = max(found.key for found in self.store.list("app/snapshots/") if "-dead" not in found.key)
        values: dict[str, Any] = json.loads(self.store.get(newest, limit_bytes=1 << 20))["manifest"]
        return values

    def plant(self, *changes: Change, taken_at: datetime | None = None) -> str:
        """Put a manifest like the newest, with `changes` and a right seal."""
        values = copy.deepcopy(self.newest_values())
        values["id"] = str(SnapshotId.new(taken_at or datetime.now(UTC), 0xDEADBE00 + len(self.planted)))
        for change in changes:
            change(values)
        self.put(f"app/snapshots/{values['id']}.json", sealed("manifest", json.dumps(values).encode()))
        self.planted.append(values["id"])
        return str(values["id"])

    def require_newest(self, result: BackupResult) -> None:
        """The snapshot of `result` exists, is the newest for a host without state, and has what the application has."""
        assert (result.error, result.outcome) == (None, Outcome.CREATED)
        repository = Repository(self.store, StateDirectory(self.root / f"other-{os.urandom(4).hex()}"))
        listed = [each.manifest for each in list_snapshots([repository], "app").snapshots]
        assert listed[-1].id == result.id
        found = RestorePoint.of(find_snapshot([repository], "latest", database="app", now=datetime.now(UTC)))
        assert found.manifest.id == result.id
        target = self.root / f"restored-{result.id}.db"
        restore_to_file(
            found,
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        with closing(sqlite3.connect(target)) as connection:
            assert connection.execute("SELECT max(x) FROM t").fetchone() == (self.value,)
        if isinstance(self.store, DirectoryStore):
            by_rescue, _ = rescue.Repository(self.root / "store").snapshots(removed=False)
            assert rescue.chosen(by_rescue, "app@latest").id == str(result.id)

    def require_next_snapshots(self) -> None:
        """Require that this host, one without its state, and a full snapshot get the newest snapshot."""
        for state, request in (
            (self.state, SnapshotRequest()),
            (StateDirectory(self.root / "new"), SnapshotRequest()),
            (self.state, SnapshotRequest(is_full=True)),
        ):
            self.change()
            self.require_newest(self.back_up(state=state, request=request))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place with one snapshot."""
    place = Place(tmp_path)
    assert place.back_up().error is None
    return place


def setting(field: str, value: Any) -> Change:
    """Give a field, `source.free_pages` say, another value."""

    def change(values: dict[str, Any]) -> None:
        *parents, name = field.split(".")
        inside: Any = values
        for parent in parents:
            inside = inside[int(parent) if parent.isdigit() else parent]
        inside[name] = value

    return change


@pytest.mark.parametrize("field", sampled(_FIELDS, fast=3))
def test_extremes_of_every_number_neither_stop_nor_steer(place: Place, field: str) -> None:
    """An extreme value of any number in a newer manifest does not stop later snapshots."""
    for value in _EXTREMES:
        place.plant(lambda values: values.update(sequence=values["sequence"] + 1), setting(field, value))
    place.require_next_snapshots()


@slow
@pytest.mark.parametrize(
    "sequence", sampled([1 << 31, 1 << 32, 1 << 41, (1 << 53) - 2, (1 << 53) - 1], fast={1 << 31, (1 << 53) - 1})
)
@pytest.mark.parametrize("year", sampled([9999, 1, 2026]))
def test_no_sequence_and_no_date_is_the_last(place: Place, sequence: int, year: int) -> None:
    """Planted again and again, each time by what counts most."""
    for _ in range(2):
        place.plant(setting("sequence", sequence), taken_at=datetime(year, 12, 30, tzinfo=UTC))
        place.change()
        place.require_newest(place.back_up())
    assert max(each.sequence for each in _history(place).manifests) < 1 << 42


@slow
def test_a_file_from_the_future_is_not_the_last(place: Place) -> None:
    """A planted file with any modification time does not stop later snapshots."""
    planted = place.plant(setting("sequence", (1 << 53) - 1), taken_at=datetime(9999, 12, 30, tzinfo=UTC))
    file = place.root / f"store/app/snapshots/{planted}.json"
    for moment in (time.time() + 10**8, 2.0**60, 0, -1):
        os.utime(file, (moment, moment))
        place.require_next_snapshots()


@slow
def test_planted_manifests_in_a_bucket_are_passed_over_too(tmp_path: Path, moto: S3Server) -> None:
    """A snapshot that is put into a bucket within the second of a planted one is newer."""
    place = Place(tmp_path, S3Store(moto.settings()))
    assert place.back_up().error is None
    for year in (2026, 9999):
        place.plant(setting("sequence", (1 << 53) - 1), taken_at=datetime(year, 11, 1, tzinfo=UTC))
        place.change()
        place.require_newest(place.back_up())


def _map_of(entries: list[int]) -> str:
    content = b"".join(entry.to_bytes(4, "little") for entry in entries)
    return base64.b64encode(zstandard.compress(content)).decode()


def _huge(values: dict[str, Any]) -> None:
    values["page_count"] = 1 << 26
    zeros = zstandard.ZstdCompressor().compress(b"\1\0\0\0" * (1 << 26))
    values["page_map"] = base64.b64encode(zeros).decode()


def _pack_of_nothing(values: dict[str, Any]) -> None:
    values["packs"] = [{"sha256": "0" * 64, "stored_bytes": 100, "pages": values["page_count"]}]
    values["page_map"] = _map_of([1] * values["page_count"])


def _pack_twice(values: dict[str, Any]) -> None:
    values["packs"] *= 5000


@pytest.mark.parametrize(
    "change",
    sampled(
        [
            setting("page_map", ""),
            setting("page_map", "AAAA"),
            setting("page_map", _map_of([7, 7])),
            setting("page_map", _map_of([0, 0])),
            setting("image_digest", "0" * 64),
            setting("page_size", 65536),
            setting("page_count", 1 << 26),
            setting("packs", []),
            setting("tags", ["\0" * 4096]),
            _huge,
            _pack_of_nothing,
            _pack_twice,
        ],
        fast=4,
    ),
    ids=range(12),
)
def test_what_cannot_be_built_upon_is_passed_over(place: Place, change: Change) -> None:
    """The next snapshot builds on the honest one before it, and stores no more than has changed."""
    place.change()
    place.back_up()
    place.plant(lambda values: values.update(sequence=values["sequence"] + 1), change)
    place.require_next_snapshots()


def test_unreadable_objects_do_not_stop_snapshots(place: Place) -> None:
    """Garbage, a newer format, and manifests and records of others do not stop snapshots, whatever their dates."""
    for number, year in enumerate((2026, 9999)):
        named = SnapshotId.new(datetime(year, 12, 31, tzinfo=UTC), 0xDEAD0000 + number)
        for kind in ("snapshots", "drills", "trash", "undeleted", "sweeps"):
            place.put(f"app/{kind}/{named}.json", b"garbage")
    place.plant(setting("format", 2), taken_at=datetime(9999, 1, 1, tzinfo=UTC))
    place.plant(setting("database", "other"))
    values = {"format": 2, "snapshot": place.newest_values()["id"]}
    place.put(f"app/drills/{values['snapshot']}.json", sealed("drill", json.dumps(values).encode()))
    place.put("app/retention.json", b"garbage")
    place.require_next_snapshots()


def test_passed_over_manifest_is_reported_once_and_is_an_alarm_until_it_is_gone(place: Place) -> None:
    """A warning of the first snapshot that finds it, and an alarm that is not red, with what to do."""
    planted = place.plant(setting("page_map", "AAAA"), setting("sequence", (1 << 53) - 1))
    warnings, alarms = [], []
    status = Status()
    for turn in range(4):
        place.change()
        if turn == 3:
            (place.root / f"store/app/snapshots/{planted}.json").unlink()
        result = place.back_up()
        warnings.append([each for each in result.warnings if planted in each])
        now = datetime.now(UTC)
        status = with_snapshots(status, [result], path=place.path, at=now, due_by=None, fingerprint=None)
        alarms.append(find_alarms(status, now=now, alive_at=None))
    assert [len(each) for each in warnings] == [1, 0, 0, 0]
    assert f"backupd forget app@{planted}" in warnings[0][0]
    assert [[each.kind for each in found] for found in alarms] == [["passed-over"]] * 3 + [[]]
    assert not alarms[0][0].is_red
    assert planted in alarms[2][0].message


def test_a_clock_that_was_ahead_loses_nothing(place: Place) -> None:
    """What was honestly dated in the future keeps its place: the sequence decides."""
    place.plant(setting("sequence", 2), taken_at=datetime.now(UTC) + timedelta(days=400))
    place.plant(setting("sequence", 3), taken_at=datetime.now(UTC) + timedelta(days=300))
    assert [str(each.id) for each in _history(place).manifests][1:] == place.planted


def _history(place: Place) -> Any:
    return Repository(place.store, StateDirectory(place.root / "looking")).archive("app").history()
