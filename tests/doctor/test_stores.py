from __future__ import annotations

import hashlib
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow
from harness.faults import FaultyStore, PretendingStore, RefusingStore
from harness.loopback import loopback
from msgspec.structs import replace

from backupd.config import StoreSettings
from backupd.doctor.findings import Verdict, exit_code_of
from backupd.doctor.stores import Probe, StoreExamination, with_short_limits
from backupd.errors import ExitCode, InterruptedByUserError
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import Store, open_store
from backupd.store.directory import DirectoryStore
from backupd.store.keys import is_object_key, is_probe_key, probe_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.loopback import Handler, Request
    from harness.s3_server import S3Server

    from backupd.doctor.findings import Finding

_USE = ["write", "read", "list", "delete"]


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """State of a run."""
    return StateDirectory(tmp_path / "state")


def _directory(tmp_path: Path) -> StoreSettings:
    return StoreSettings(url=str(tmp_path / "backups"))


def _found(settings: StoreSettings, state: StateDirectory, store: Store | None = None) -> dict[str, Finding]:
    findings = StoreExamination(settings, state, store=store).run().findings
    assert {finding.subject for finding in findings} == {f"store {settings.url}"}
    return {finding.check: finding for finding in findings}


def test_a_real_bucket_is_used_and_left_empty(seaweed: S3Server, state: StateDirectory) -> None:
    """The object is written, read, listed and deleted; what the bucket does not answer is a note."""
    settings = seaweed.settings(prefix="some/prefix")
    found = _found(settings, state)
    assert [*found] == [*_USE, "repository", "clock", "lifecycle", "versioning", "object lock"]
    assert all(found[check].verdict is Verdict.OK for check in (*_USE, "clock")), found
    assert exit_code_of(found.values()) is ExitCode.DONE
    assert list(open_store(settings).list("")) == []


def test_a_directory_is_used_and_left_as_it_was(tmp_path: Path, state: StateDirectory) -> None:
    """A missing directory is created for the test and removed again; an existing one keeps its content."""
    settings = StoreSettings(url=str(tmp_path / "disk/deep/backups"))
    found = _found(settings, state)
    assert [found[check].verdict for check in _USE] == [Verdict.OK] * 4
    assert found["repository"].verdict is Verdict.NOTE
    assert [*tmp_path.iterdir()] == []
    Repository(open_store(settings), state).create_if_missing()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert _found(settings, state)["repository"].verdict is Verdict.OK
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_each_failing_call_is_one_error_and_leaves_nothing(tmp_path: Path, state: StateDirectory) -> None:
    """Whichever call fails, before or after it took effect: one error with a remedy, and an empty store."""
    settings, calls = _directory(tmp_path), 0
    counting = FaultyStore(open_store(settings))
    StoreExamination(settings, state, store=counting).run()
    for after in (False, True):
        for number, call in enumerate(counting.calls):
            if after and call not in {"put", "delete"}:
                continue  # what has been read is as good as not read
            faulty = FaultyStore(open_store(settings), fail_at=number, after=after)
            found = _found(settings, state, faulty)
            errors = [finding for finding in found.values() if finding.verdict is Verdict.ERROR]
            assert len(errors) == 1, (number, after, found)
            assert errors[0].exit_code is ExitCode.STORE_UNAVAILABLE
            assert errors[0].remedy
            assert list(open_store(settings).list("")) == []
            calls += 1
    assert calls >= 10


def test_refused_deletions_are_a_warning(tmp_path: Path, state: StateDirectory) -> None:
    """Credentials that may only add are a good idea: backups work, and the message names what stays."""
    settings = _directory(tmp_path)
    finding = _found(settings, state, RefusingStore(open_store(settings)))["delete"]
    (left,) = (stored.key for stored in open_store(settings).list(""))
    assert is_probe_key(left)
    assert finding.verdict is Verdict.WARNING
    assert left in finding.message


def test_deletions_without_effect_are_an_error(tmp_path: Path, state: StateDirectory) -> None:
    """A store that reports a deletion that it did not do would fill up unnoticed."""
    settings = _directory(tmp_path)
    found = _found(settings, state, PretendingStore(open_store(settings), part=".probe"))
    assert found["delete"].verdict is Verdict.ERROR
    assert "still has it" in found["delete"].message


class _OtherBytes(FaultyStore):
    """Gives back something else."""

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        return super().get(key, limit_bytes=limit_bytes)[::-1]


class _NotListing(FaultyStore):
    """Shows nothing."""

    def list(self, prefix: str) -> Iterator[object]:
        yield from super().list(f"{prefix}-of-none")


class _OtherTime(FaultyStore):
    """A file server whose clock is wrong."""

    def list(self, prefix: str) -> Iterator[object]:
        yield from (replace(each, modified_at=each.modified_at + timedelta(hours=3)) for each in super().list(prefix))


def test_other_bytes_are_damage(tmp_path: Path, state: StateDirectory) -> None:
    """The content is compared, not only its length."""
    settings = _directory(tmp_path)
    finding = _found(settings, state, _OtherBytes(open_store(settings)))["read"]
    assert (finding.verdict, finding.exit_code) == (Verdict.ERROR, ExitCode.DAMAGE_FOUND)
    assert list(open_store(settings).list("")) == []


def test_an_incomplete_listing_is_an_error(tmp_path: Path, state: StateDirectory) -> None:
    """Snapshots that are not listed cannot be found."""
    settings = _directory(tmp_path)
    assert _found(settings, state, _NotListing(open_store(settings)))["list"].verdict is Verdict.ERROR


def test_a_clock_difference_is_a_warning(tmp_path: Path, state: StateDirectory) -> None:
    """A clock difference is a warning that says which clock is behind, and by how much."""
    settings = _directory(tmp_path)
    finding = _found(settings, state, _OtherTime(open_store(settings)))["clock"]
    assert finding.verdict is Verdict.WARNING
    assert "this machine's clock is 3 h behind the store's" in finding.message


def test_probes_of_a_killed_doctor_are_removed_after_an_hour(tmp_path: Path, state: StateDirectory) -> None:
    """A younger one may belong to a doctor that runs right now, and other objects are foreign."""
    settings = _directory(tmp_path)
    store = DirectoryStore(settings.directory)
    old, young, other = probe_key("0" * 32), probe_key("1" * 32), "doctor-notes.txt"
    for key in (old, young, other):
        store.put(key, b"left", sha256=hashlib.sha256(b"left").digest())
    for key in (old, other):
        past = (datetime.now(UTC) - timedelta(hours=2)).timestamp()
        os.utime(settings.directory / key, (past, past))
    _found(settings, state)
    assert [stored.key for stored in store.list("")] == [young, other]


def test_a_newer_repository_has_its_own_exit_code(tmp_path: Path, state: StateDirectory) -> None:
    """A format that only a newer version reads is reported before a restore needs it."""
    settings = _directory(tmp_path)
    content = b'{"format": 2, "repository": "0123456789abcdef"}'
    open_store(settings).put("backupd.json", content, sha256=hashlib.sha256(content).digest())
    finding = _found(settings, state)["repository"]
    assert (finding.verdict, finding.exit_code) == (Verdict.ERROR, ExitCode.UNSUPPORTED_FORMAT)


@slow
def test_a_server_that_never_answers_is_one_error(state: StateDirectory) -> None:
    """The write fails at the time limit, and no other request is sent."""
    never = threading.Event()

    def silent(_handler: Handler, _request: Request) -> None:
        never.wait(20)

    with loopback(silent) as server:
        settings = StoreSettings.read(
            {
                "url": "s3://bucket/prefix",
                "endpoint_url": server.endpoint_url,
                "access_key_id": "key",
                "secret_access_key": "secret",
                "time_limit": timedelta(seconds=2),
            }
        )
        found = _found(settings, state)
        never.set()
    assert [*found] == ["write"]
    assert "did not finish within 2 s" in found["write"].message


def test_time_limits_are_shortened_and_never_lengthened() -> None:
    """The user waits for doctor; shorter configured limits stay."""
    url = "s3://bucket/x"
    assert with_short_limits(StoreSettings(url=url)).time_limit == timedelta(seconds=20)
    assert with_short_limits(StoreSettings(url=url, time_limit=timedelta(seconds=1))).time_limit == timedelta(seconds=1)


def test_a_cancelled_probe_only_removes(tmp_path: Path) -> None:
    """A probe that is cancelled with Ctrl-C only removes its object from the store."""
    store = FaultyStore(DirectoryStore(tmp_path / "backups"))
    probe = Probe(store)
    probe.write()
    probe.cancel()
    with pytest.raises(InterruptedByUserError):
        probe.read_back()
    probe.remove()
    probe.remove()
    assert store.calls == ["put", "delete"]
    assert list(store.list("")) == []


def test_a_probe_cancelled_while_it_is_written_is_removed(tmp_path: Path) -> None:
    """A removal before the object is there does not make it stay."""

    class Interrupted(FaultyStore):
        def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
            probe.cancel()
            probe.remove()
            super().put(key, content, sha256=sha256)

    store = Interrupted(DirectoryStore(tmp_path / "backups"))
    probe = Probe(store)
    probe.write()
    assert [stored.key for stored in store.list("")] == [probe.key]
    with pytest.raises(InterruptedByUserError):
        probe.read_back()
    probe.remove()
    assert list(store.list("")) == []


def test_probes_are_no_foreign_objects(tmp_path: Path, state: StateDirectory) -> None:
    """A prune at the same moment does not report the object."""
    store = DirectoryStore(tmp_path / "backups")
    probe = Probe(store)
    probe.write()
    assert is_object_key(probe.key)
    assert Repository(store, state).foreign_objects() == []
    assert Repository(store, state).databases(with_trash=True) == []


def test_a_versioned_bucket_keeps_no_version(moto: S3Server, state: StateDirectory) -> None:
    """In a versioned bucket the probe leaves neither a version of its object nor a delete marker."""
    settings = moto.settings(prefix="some")
    client = moto.client()
    client.put_bucket_versioning(Bucket=settings.bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=settings.bucket, Key="some/other", Body=b"kept")
    found = _found(settings, state)
    assert found["versioning"].verdict is Verdict.NOTE
    kept = client.list_object_versions(Bucket=settings.bucket)
    assert [version["Key"] for version in kept["Versions"]] == ["some/other"]
    assert "DeleteMarkers" not in kept
