from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    alarms_of,
    created,
    drilled,
    failed,
    healthy,
    recorded,
)
from msgspec.structs import replace

from backupd.errors import DamageError, StoreUnavailableError, TargetUnwritableError, UnsupportedFormatError
from backupd.health import Status, StatusFile
from backupd.health.codec import values
from backupd.health.notifications import notice_for, with_alarms, with_delivered
from backupd.health.planning import with_config_problem, with_daemon_stopped, with_entry_problem, with_running
from backupd.health.recording import with_drill, with_prune
from backupd.health.recovery import with_following
from backupd.health.values import DatabaseHealth, FollowHealth, Gap, Problem, SegmentsHealth, StoreHealth
from backupd.prune.pruning import PruneResult
from backupd.retention.holds import Hold
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ADD_DATABASES = """
import sys
from pathlib import Path
from msgspec.structs import replace
from backupd.health import DatabaseHealth, StatusFile
from backupd.state import StateDirectory
file = StatusFile(StateDirectory(Path(sys.argv[1])))
for number in range(20):
    name = f"{sys.argv[2]}-{number}"
    file.update(lambda s: replace(s, databases={**s.databases, name: DatabaseHealth(path=name)}))
"""
_DIE_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from msgspec.structs import replace
from backupd.health import StatusFile
from backupd.state import StateDirectory
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
StatusFile(StateDirectory(Path(sys.argv[1]))).update(lambda status: replace(status, databases={}))
"""


_FOLLOW = FollowHealth(
    max_age_seconds=300.0,
    lag_seconds=4.0,
    window="20261122T120000000Z-7f3a91c2",
    window_since=NOON,
    last_gap=Gap(at=NOON, reason="the log was removed", is_blind=True),
    gaps=(NOON - HOUR, NOON),
    gaps_total=2,
)
_LACKING = SegmentsHealth(
    waiting_since=NOON,
    waiting_bytes=100,
    problem=Problem(since=NOON, message="down", hint="wait"),
    lost_since=NOON,
    lost_until=NOON + HOUR,
)


def full_status() -> Status:
    """A status in which every field of every value is set."""
    status = recorded(healthy(), failed(), at=NOON + HOUR)
    status = recorded(status, failed(), at=NOON + HOUR)
    status = with_prune(status, PruneResult(database="app", store=DISK, hold=Hold("shrunk", hint="look")), at=NOON)
    status = with_prune(status, PruneResult(database="app", store=BUCKET, error=DOWN), at=NOON)
    status = with_drill(status, drilled("proven"), at=NOON)
    status = with_drill(status, drilled("damaged-store", findings=("page 3",)), at=NOON)
    status = with_running(status, "app", since=NOON)
    status = with_config_problem(status, DOWN, at=NOON)
    status = with_entry_problem(status, "/data/*.db", DOWN, at=NOON)
    status = with_following(status, {"app": _FOLLOW}, {("app", BUCKET): _LACKING}, blind_since=NOON)
    app = replace(status.databases["app"], is_scheduled=True, next_run_at=NOON, next_drill_at=NOON)
    status = replace(status, databases={"app": app, "größer": replace(app, vanished_at=NOON)}, written_at=NOON)
    alarms = alarms_of(status, NOON)
    status = with_alarms(status, alarms, {"mail"}, now=NOON)
    notice = notice_for("mail", status, alarms, now=NOON, remind_after=HOUR)
    assert notice is not None
    status = with_alarms(with_delivered(status, "mail", notice, now=NOON), (), {"mail"}, now=NOON)
    return with_daemon_stopped(status, at=NOON)


@pytest.fixture
def file(tmp_path: Path) -> StatusFile:
    """A status file that does not exist yet."""
    return StatusFile(StateDirectory(tmp_path / "state"))


def reopened(file: StatusFile) -> StatusFile:
    """Open the status file as a process does that has not read it yet."""
    return StatusFile(file._state)


def forgetting_when(status: Status | None) -> Status:
    """The status without the time when it was written."""
    assert status is not None
    return replace(status, written_at=None)


@contextmanager
def small_disk(target: Path) -> Iterator[None]:
    """A disk of 100 kB for a while."""
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"x")


def test_everything_comes_back_as_it_was_written(file: StatusFile) -> None:
    """Every field of every value, times included."""
    written = file.update(lambda _: full_status())
    assert reopened(file).read() == written
    assert replace(written, written_at=NOON) == full_status()
    assert written.written_at is not None
    assert abs((datetime.now(UTC) - written.written_at).total_seconds()) < 30


def test_json_has_every_key_whether_it_is_known_or_not() -> None:
    """Scripts need not ask whether a key is there."""
    full, bare = (values(status)["databases"]["app"]["stores"] for status in (full_status(), healthy()))
    assert full[DISK].keys() == bare[DISK].keys()
    assert bare[DISK]["failure"] is None
    assert bare[DISK]["is_damaged"] is False
    assert bare[DISK]["current_at"] == "2026-11-22T12:00:00.000Z"
    assert full[BUCKET]["failure"] == {
        "since": "2026-11-22T13:00:00.000Z",
        "count": 2,
        "last_at": "2026-11-22T13:00:00.000Z",
        "message": "s3://bucket/creditrobot does not answer",
        "hint": "check the network",
        "exit_code": 10,
        "is_transient": True,
        "is_refusal": False,
    }


def test_json_has_what_is_known_of_following() -> None:
    """Times are in UTC, as everywhere."""
    app = values(full_status())["databases"]["app"]
    assert app["follow"]["gaps"] == ["2026-11-22T11:00:00.000Z", "2026-11-22T12:00:00.000Z"]
    assert app["follow"]["last_gap"] == {
        "at": "2026-11-22T12:00:00.000Z",
        "reason": "the log was removed",
        "is_blind": True,
    }
    assert app["stores"][BUCKET]["segments"]["waiting_bytes"] == 100
    assert app["stores"][DISK]["segments"] is None


def test_reading_creates_nothing(file: StatusFile, tmp_path: Path) -> None:
    """A reader may be another user."""
    assert (file.find(), file.read(), file.alive_at()) == (None, Status(), None)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_private_and_alone(file: StatusFile, tmp_path: Path) -> None:
    """The status file is private, because it contains paths, and no partial file stays beside it."""
    file.update(lambda _: healthy())
    file.touch()
    assert (tmp_path / "state/status.json").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"alive", "locks", "status.json"}


def test_updates_of_several_processes_are_never_lost(file: StatusFile) -> None:
    """Updates by several processes at once are all in the status file."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _ADD_DATABASES, str(file._state.root), name]) for name in "abcd"
    ]
    for number in range(20):
        file.update(lambda status, n=number: recorded(status, created(f"here-{n}")))
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    expected = {f"{name}-{number}" for name in ("a", "b", "c", "d", "here") for number in range(20)}
    assert set(file.read().databases) == expected
    assert reopened(file).read() == file.read()


def test_a_kill_while_writing_leaves_the_old_content(file: StatusFile) -> None:
    """The next update cleans up."""
    before = file.update(lambda _: healthy())
    killed = subprocess.run([sys.executable, "-c", _DIE_WHILE_WRITING, str(file._state.root)], check=False)
    assert killed.returncode == -9
    assert (file._state.root / ".status.json.new").exists()
    assert reopened(file).read() == before
    after = reopened(file).update(lambda status: recorded(status, created("other")))
    assert set(file.read().databases) == set(after.databases) == {"app", "other"}
    assert not (file._state.root / ".status.json.new").exists()


def test_a_full_disk_leaves_the_old_content_and_no_sign_of_life(tmp_path: Path) -> None:
    """The error is reported, and the next write succeeds when there is room."""
    with small_disk(tmp_path / "disk"):
        file = StatusFile(StateDirectory(tmp_path / "disk"))
        before = file.update(lambda _: healthy())
        file.touch()
        alive_at = file.alive_at()
        many = healthy(*(f"tenant-{number}" for number in range(500)))
        with pytest.raises(TargetUnwritableError, match="No space left") as caught:
            file.update(lambda _: many)
        assert "space" in (caught.value.hint or "")
        assert file.read() == reopened(file).read() == before
        filler = tmp_path / "disk/filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        with pytest.raises(TargetUnwritableError, match="No space left"):
            file.touch()
        assert file.alive_at() == alive_at
        filler.unlink()
        file.touch()
        assert file.update(lambda status: recorded(status, created("other"))).databases.keys() == {"app", "other"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"databases":{}}',
        b'{"version":0}',
        b'{"version":true,"databases":{}}',
        b'{"version":1,"databases":[]}',
        b'{"version":1,"databases":{"app":{}}}',
        b'{"version":1,"databases":{"app":{"path":3}}}',
        b'{"version":1,"written_at":"2026-11-22T12:00:00"}',
        b'{"version":1,"databases":{"app":{"path":"a","stores":{"b":{"current_at":5}}}}}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_not_a_status_counts_as_none_and_is_kept(file: StatusFile, content: bytes, capsys) -> None:
    """The daemon continues, and the file can be examined."""
    file.update(lambda _: healthy())
    path = file._state.root / "status.json"
    path.write_bytes(content)
    file = reopened(file)
    with pytest.raises(DamageError, match=str(path)):
        file.find()
    assert file.read() == file.read() == Status()
    assert capsys.readouterr().err.count(str(path)) == 1
    assert file.update(lambda status: recorded(status, created("new"))).databases.keys() == {"new"}
    assert path.with_name("status.json.unreadable").read_bytes() == content
    assert reopened(file).find() == file.read()


def test_a_file_that_is_lost_while_the_daemon_runs_is_written_back(file: StatusFile, capsys) -> None:
    """A status file that is lost while the daemon runs is written again with all that was wrong."""
    before = file.update(lambda _: with_entry_problem(full_status(), "/data/*.db", DOWN, at=NOON))
    path = file._state.root / "status.json"
    for damage in (path.unlink, lambda: path.write_bytes(b"{")):
        damage()
        assert file.read() == before
        file.touch()
        assert forgetting_when(reopened(file).find()) == forgetting_when(before)
        before = file.read()
    assert path.with_name("status.json.unreadable").read_bytes() == b"{"
    reported = capsys.readouterr().err
    assert reported.count("status.json is gone") == 1
    assert reported.count("cannot be read") == 1


def test_a_change_after_the_loss_starts_from_what_was_known(file: StatusFile) -> None:
    """A round may come before the next sign of life. What it notes of the daemon finds one."""
    file.update(lambda _: healthy())
    (file._state.root / "status.json").unlink()
    file.update(lambda status: with_config_problem(status, DOWN, at=NOON))
    found = reopened(file).read()
    assert found.databases == healthy().databases
    assert found.daemon is not None
    assert found.daemon.config_problem is not None


def test_a_change_that_changes_nothing_writes_a_lost_file_back(file: StatusFile) -> None:
    """The status in memory has not changed."""
    before = file.update(lambda _: healthy())
    (file._state.root / "status.json").unlink()
    file.update(lambda status: status)
    assert forgetting_when(reopened(file).read()) == forgetting_when(before)


def test_a_file_that_another_process_began_gets_the_daemon_back(file: StatusFile) -> None:
    """`backupd now` beside it came first, and knows nothing of what was wrong."""
    before = file.update(lambda _: recorded(recorded(healthy(), failed()), failed()))
    (file._state.root / "status.json").unlink()
    reopened(file).update(lambda status: recorded(status, created("app"), created("by-hand"), due_by=None))
    assert file.read().daemon == before.daemon
    assert file.read().databases["app"] == before.databases["app"]
    file.touch()
    found = reopened(file).read()
    assert found.daemon == before.daemon
    assert found.databases.keys() == {"app", "by-hand"}
    assert alarms_of(found, NOON) == alarms_of(before, NOON) != ()


def test_a_daemon_that_starts_on_a_file_without_one_keeps_what_is_in_it(file: StatusFile) -> None:
    """`backupd now` was used before."""
    file.update(lambda _: replace(healthy(), daemon=None))
    other = reopened(file)
    other.read()
    file.update(lambda _: healthy("b"))
    assert other.read().databases.keys() == {"b"}


def test_a_moment_in_which_the_file_cannot_be_read_ends_no_alarm(file: StatusFile, capsys) -> None:
    """A directory stands in for a disk that answers with an error, or a process that has no descriptor left."""
    before = file.update(lambda _: healthy())
    path = file._state.root / "status.json"
    path.rename(path.with_name("aside"))
    path.mkdir()
    assert file.read() == file.read() == before
    assert capsys.readouterr().err.count("Is a directory") == 1
    path.rmdir()
    path.with_name("aside").rename(path)
    assert file.read() == before


def test_names_that_are_no_text_are_remembered(file: StatusFile) -> None:
    """A pattern may find a file whose name is no UTF-8: it must not keep the others from being backed up."""
    odd = "/data/tenant-\udcff.db"
    error = StoreUnavailableError(f"{odd} went wrong", hint=f"look at {odd}")
    status = with_entry_problem(recorded(healthy(), failed(error=error), path=odd), odd, error, at=NOON)
    written = file.update(lambda _: status)
    assert reopened(file).read() == written
    assert written.databases["app"].path == odd
    json.dumps(values(written)).encode()


def test_what_cannot_be_read_is_not_written_over(file: StatusFile) -> None:
    """A directory stands in for a disk that answers with errors: what is remembered may still be there."""
    path = file._state.root / "status.json"
    path.mkdir(parents=True)
    assert file.read() == Status()
    with pytest.raises(TargetUnwritableError, match="Is a directory"):
        file.update(lambda status: recorded(status, created()))
    assert path.is_dir()


def test_a_status_of_a_newer_version_is_not_guessed_at(file: StatusFile) -> None:
    """A status of a newer version, as after a downgrade, is refused and not guessed at."""
    file.update(lambda _: healthy())
    path = file._state.root / "status.json"
    path.write_text(path.read_text().replace('"version":1', '"version":2', 1))
    with pytest.raises(UnsupportedFormatError, match="it has version 2, and this backupd knows 1"):
        file.find()
    assert reopened(file).read() == Status()


def test_keys_that_are_not_known_do_no_harm(file: StatusFile) -> None:
    """A version that only adds some stays readable."""
    written = file.update(lambda _: healthy())
    path = file._state.root / "status.json"
    tree = json.loads(path.read_text())
    tree["mood"] = tree["databases"]["app"]["mood"] = "good"
    path.write_text(json.dumps(tree))
    assert file.read() == written


def test_changes_of_other_processes_are_read(file: StatusFile) -> None:
    """An unchanged file is not read twice."""
    file.update(lambda _: healthy())
    other = reopened(file)
    other.update(lambda status: recorded(status, created("other")))
    assert set(file.read().databases) == {"app", "other"}


def test_a_change_that_changes_nothing_writes_nothing(file: StatusFile) -> None:
    """A thousand idle tenants are not to wear out a disk."""
    file.update(lambda _: healthy())
    before = (file._state.root / "status.json").stat()
    file.update(lambda status: status)
    assert (file._state.root / "status.json").stat().st_mtime_ns == before.st_mtime_ns


def test_only_the_daemon_leaves_signs_of_life(file: StatusFile) -> None:
    """A command beside a hung daemon leaves none."""
    file.update(lambda _: healthy())
    assert file.alive_at() is None
    file.touch()
    alive = file._state.root / "alive"
    os.utime(alive, (NOON.timestamp(), NOON.timestamp()))
    file.update(lambda status: recorded(status, created("other")))
    assert file.alive_at() == NOON
    file.touch()
    assert file.alive_at() > NOON - 365 * 24 * HOUR
    assert abs(datetime.now(UTC) - file.alive_at()) < MINUTE


def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A state directory that cannot be used is named in an error with a hint."""
    (tmp_path / "state").write_text("a file in the way")
    file = StatusFile(StateDirectory(tmp_path / "state"))
    for attempt in (file.find, file.touch, file.alive_at, lambda: file.update(lambda _: healthy())):
        with pytest.raises(TargetUnwritableError, match=str(tmp_path / "state")) as caught:
            attempt()
        assert caught.value.hint
    assert file.read() == Status()


def test_what_root_writes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """A daemon that is not root has to read what was written by `docker exec`."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 1000, 1001)
    StatusFile(StateDirectory(state)).update(lambda _: healthy())
    owner = (state / "status.json").stat()
    assert (owner.st_uid, owner.st_gid) == (1000, 1001)


def test_change_that_makes_no_difference_writes_nothing(tmp_path: Path) -> None:
    """The file of a thousand databases is not written again for a prune that found nothing, or a run that is over."""
    file = StatusFile(StateDirectory(tmp_path))
    now = datetime(2026, 11, 22, tzinfo=UTC)
    health = DatabaseHealth(path="/app.db", stores={"s": StoreHealth(snapshot_at=now)})
    file.update(lambda status: replace(status, databases={"app": health}))
    before = (tmp_path / "status.json").stat()
    pruned = PruneResult(database="app", store="s")
    file.update(lambda status: with_running(with_prune(status, pruned, at=now), "app", since=None))
    assert os.path.samestat(before, (tmp_path / "status.json").stat())
    file.update(lambda status: with_running(status, "app", since=now))
    assert not os.path.samestat(before, (tmp_path / "status.json").stat())
