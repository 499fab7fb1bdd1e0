"""A machine whose keys may only put, on a real server: what works there, what is refused, and what an attacker gets."""

from __future__ import annotations

import json
import runpy
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from harness.cli import CommandLine
from harness.daemon import wait_until
from harness.extent import slow
from harness.pages import DOCS, blocks_of, section
from harness.place import change_rows, content_digest, create_database
from harness.roles import PREFIX, Keys, Role, keys_for
from harness.site import Site, new_site

from backupd.store.keys import is_probe_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.cli import Finished
    from harness.s3_server import S3Server

_REFUSED = 10
_DAMAGED = 20


def _bucket(server: S3Server, *, has_versions: bool = True, has_lock: bool = False) -> str:
    name = server.new_bucket()
    with closing(server.client()) as client:
        if has_lock:
            name = f"{name}-locked"
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
            retention = {"Mode": "GOVERNANCE", "Days": 1}
            client.put_object_lock_configuration(
                Bucket=name,
                ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}},
            )
        elif has_versions:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def _site(home: Path, keys: Keys, *, put_only: bool = True, **others: Any) -> Site:
    """A machine with app.db, and these keys."""
    home.mkdir(exist_ok=True)
    site = new_site(home)
    if not (home / "app.db").exists():
        create_database(home / "app.db", rows=50)
    site.configure("app.db", stores=[keys.store(put_only=put_only)], **others)
    return site


@pytest.fixture
def keys(seaweed: S3Server) -> Keys:
    """Put-only keys for a bucket with versions."""
    return keys_for(Role.PUT_ONLY, seaweed, _bucket(seaweed))


@slow
def test_snapshots_are_incremental_while_the_state_lasts(tmp_path: Path, keys: Keys) -> None:
    """Snapshots are incremental while the state lasts; without it one full snapshot warns and starts again."""
    backupd = _site(tmp_path, keys).backupd
    first = backupd.json("now")["snapshots"][0]
    change_rows(tmp_path / "app.db", "changed")
    assert backupd.json("now")["snapshots"][0]["changed_pages"] < first["changed_pages"]
    elsewhere = CommandLine(tmp_path, state="another state")
    change_rows(tmp_path / "app.db", "changed again")
    full = elsewhere.run("now")
    (warning,) = full.reported("warning")
    assert "put_only" in warning
    assert "keep state_dir" in warning
    change_rows(tmp_path / "app.db", "changed once more")
    last = elsewhere.json("now")["snapshots"][0]
    assert (last["warnings"], last["outcome"]) == ([], "created")
    assert last["stored_bytes"] < first["stored_bytes"] / 2


@slow
def test_without_the_setting_each_refusal_names_it(tmp_path: Path, seaweed: S3Server) -> None:
    """Keys that are put-only by accident, or not yet said to be: nothing lies, and every hint says put_only."""
    keys = keys_for(Role.PUT_ONLY, seaweed, _bucket(seaweed))
    backupd = _site(tmp_path, keys, put_only=False).backupd
    backupd.run("now")
    change_rows(tmp_path / "app.db", "changed")
    backupd.run("now")
    stateless = CommandLine(tmp_path, state="another state")
    for refused in (
        stateless.run("now", "--tag", "again", code=_REFUSED),
        backupd.run("restore", "latest", "--to", "x.db", code=_REFUSED),
        backupd.run("forget", "latest~1", code=_REFUSED),
    ):
        _require_hint(refused, "set `put_only = true`")


@slow
def test_what_needs_other_keys_says_which(tmp_path: Path, keys: Keys) -> None:
    """Restoring, pruning and forgetting: refused in words that say what to do, and a plan of a prune works."""
    backupd = _site(tmp_path, keys, retention={"keep_last": 1, "daily": 0, "after_snapshot": True}).backupd
    for title in ("a", "b"):
        change_rows(tmp_path / "app.db", title)
        assert backupd.run("now").reported("warning") == []
    assert "2 snapshots" not in backupd.run("prune", "--dry-run").stderr
    for arguments, reported in (
        (("restore", "latest", "--to", "x.db"), "the policy for restores"),
        (("prune",), "run backupd prune elsewhere"),
        (("forget", "latest~1"), "keys that may delete"),
    ):
        _require_hint(backupd.run(*arguments, code=_REFUSED), reported)
    assert len(backupd.json("list")["snapshots"]) == 2
    with closing(keys.client()) as client:
        listed = client.list_objects_v2(Bucket=keys.bucket, Prefix=f"{PREFIX}/")["Contents"]
    assert not [each["Key"] for each in listed if "/trash/" in each["Key"]]


def _require_hint(refused: Finished, reported: str) -> None:
    assert len(refused.reported("error")) == 1, refused
    assert any(reported in hint for hint in refused.reported("hint")), refused


def test_the_daemon_plans_neither_drills_nor_prunes(tmp_path: Path, keys: Keys) -> None:
    """The daemon takes snapshots, plans neither drills nor prunes, and stays green."""
    site = _site(tmp_path, keys, schedule={"drills": "* * * * *", "prunes": "* * * * *"})
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        wait_until(lambda: site.status.read().databases["app"].stores)
        change_rows(tmp_path / "app.db", "changed")
        position = daemon.run_again("app")
        daemon.wait_for("snapshot", after=position, outcome="created")
        daemon.require_green()
        planned = {event["what"] for event in daemon.events_of("planned")}
        daemon.stop()
    database = site.status.read().databases["app"]
    assert planned == {"snapshots"}
    assert database.next_drill_at is None
    assert [health.is_put_only for health in database.stores.values()] == [True]


def _checks(site: Site) -> dict[str, tuple[str, str]]:
    document = site.backupd.start("doctor", "--json").communicate(timeout=60)[0]
    findings = json.loads(document)["checks"]
    return {each["check"]: (each["verdict"], each["message"]) for each in findings if "store" in each["subject"]}


def test_doctor_tries_what_the_keys_can_do(tmp_path: Path, seaweed: S3Server) -> None:
    """The right ones in a bucket with versions: all is well, and one small object stays, however often it looks."""
    keys = keys_for(Role.PUT_ONLY, seaweed, _bucket(seaweed))
    site = _site(tmp_path, keys)
    for _ in range(2):
        checks = _checks(site)
        assert {checks[name][0] for name in ("write", "read", "list", "delete", "packs", "versioning")} == {"ok"}, (
            checks
        )
        assert checks["old versions"] == ("ok", "cannot be removed by these keys")
    with closing(keys.client()) as client:
        (left,) = client.list_objects_v2(Bucket=keys.bucket)["Contents"]
    key = left["Key"].removeprefix(f"{PREFIX}/")
    assert is_probe_key(key)
    page = section(DOCS / "s3-providers.md", "## Put only")
    assert f"`{key}`, {left['Size']} bytes" in page
    assert key in checks["delete"][1]


@slow
def test_doctor_warns_of_what_does_not_protect(tmp_path: Path, seaweed: S3Server) -> None:
    """A bucket without versions; and keys that can do more than put_only says. A lock is reported too."""
    unversioned = _checks(_site(tmp_path / "a", keys_for(Role.PUT_ONLY, seaweed, _bucket(seaweed, has_versions=False))))
    assert unversioned["versioning"][0] == "warning"
    assert "protects nothing" in unversioned["versioning"][1]
    server_keys = Keys(seaweed, _bucket(seaweed))
    mighty = _checks(_site(tmp_path / "b", server_keys))
    assert {mighty[name][0] for name in ("delete", "packs")} == {"warning"}
    assert "put_only is set, and these keys may delete" in mighty["delete"][1]
    locked = _checks(_site(tmp_path / "c", keys_for(Role.PUT_ONLY, seaweed, _bucket(seaweed, has_lock=True))))
    assert (locked["object lock"][0], locked["versioning"][0]) == ("ok", "ok")


@slow
def test_a_thief_gets_no_data_and_destroys_nothing_for_good(
    tmp_path: Path,
    seaweed: S3Server,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stolen keys read and delete nothing, and what they overwrite is restored from older versions."""
    backupd = _site(tmp_path, keys).backupd
    digests = {}
    for title in ("first", "second"):
        change_rows(tmp_path / "app.db", title)
        digests[backupd.json("now")["snapshots"][0]["id"]] = content_digest(tmp_path / "app.db")
    with closing(seaweed.client()) as admin, closing(keys.client()) as thief:
        listed = [each["Key"] for each in thief.list_objects_v2(Bucket=keys.bucket)["Contents"]]
        stored_at = max(each["LastModified"] for each in admin.list_objects_v2(Bucket=keys.bucket)["Contents"])
        wait_until(lambda: (datetime.now(UTC) - stored_at).total_seconds() > 1.1)  # listings have whole seconds
        moment = datetime.now(UTC).replace(microsecond=0)
        for key in listed:
            with pytest.raises(thief.exceptions.ClientError, match="AccessDenied"):
                thief.delete_object(Bucket=keys.bucket, Key=key)
            if "/packs/" in key:
                with pytest.raises(thief.exceptions.ClientError, match="AccessDenied"):
                    thief.get_object(Bucket=keys.bucket, Key=key)
            thief.put_object(Bucket=keys.bucket, Key=key, Body=b"garbage")
    _site(tmp_path / "rescuer", Keys(seaweed, keys.bucket), put_only=False)
    rescuer = CommandLine(tmp_path / "rescuer")
    assert rescuer.run("restore", "app@latest", "--to", "x.db", code=_DAMAGED).reported("error")
    recovering = keys_for(Role.RECOVER, seaweed, keys.bucket).server
    script = _script_of_page(tmp_path, recovering, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        script(keys.bucket, f"{PREFIX}/")
    assert ended.value.code is None
    reported = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [what.startswith("put again") for _, what in reported] == [False] * len(listed) + [True] * len(listed)
    assert max(at for at, _ in reported[: len(listed)]) < moment.isoformat() <= reported[len(listed)][0]
    script(keys.bucket, f"{PREFIX}/", moment.isoformat(), str(tmp_path / "recovered"))
    for snapshot_id, digest in digests.items():
        target = tmp_path / f"{snapshot_id}.db"
        rescuer.run("restore", f"app@{snapshot_id}", "--to", target, "--store", tmp_path / "recovered")
        assert content_digest(target) == digest


def _script_of_page(home: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script of docs/restore.md, to be called with its arguments, as a user with these keys would run it."""
    (script,) = blocks_of(section(DOCS / "restore.md", "## After an attacker overwrote the store"), "python")
    file = home / "as_it_was.py"
    file.write_text(script)
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        runpy.run_path(str(file), run_name="__main__")

    return run
