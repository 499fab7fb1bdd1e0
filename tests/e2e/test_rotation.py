"""Rotation through the command line: from a snapshot that no rule keeps to space that is free again, and back."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.cli import CommandLine
from harness.extent import slow
from harness.loopback import loopback
from harness.place import change_rows, content_digest, create_database
from msgspec.structs import replace

from backupd.format import SnapshotId
from backupd.format.manifest import decode_manifest, encode_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from harness.loopback import Handler, Request
    from harness.s3_server import S3Server

NO_SUCH_SNAPSHOT, UNAVAILABLE = 12, 10
_POLICY = """
[[databases]]
path = "app.db"

[retention]
keep_last = 2
daily = 0
weekly = 0
monthly = 0
time_zone = "Australia/Lord_Howe"

[[stores]]
"""
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


def _configured(home: Path, **store: object) -> CommandLine:
    """A database, and a configuration that keeps two snapshots of it in one store."""
    create_database(home / "app.db", rows=40)
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in store.items())
    (home / "backupd.toml").write_text(_POLICY + "".join(lines))
    return CommandLine(home)


def _snapshot(backupd: CommandLine, title: str) -> str:
    """Change every row, and take a snapshot that shares no pack with the others; gives the id."""
    change_rows(backupd.home / "app.db", title, rows=40)
    return str(backupd.json("now", "--full")["snapshots"][0]["id"])


def _let_days_pass(store: Path, days: int) -> None:
    """Make all that is in a directory store older, but for packs: with another time they would be other packs."""
    for file in store.rglob("*.json"):
        then = file.stat().st_mtime - days * 86_400
        os.utime(file, (then, then))


def _bytes_in(store: Path) -> int:
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())


def _ids(backupd: CommandLine, *arguments: str) -> list[str]:
    document = backupd.json("list", *arguments)
    return [each["id"] for each in document["trash" if "--trash" in arguments else "snapshots"]]


@slow
def test_from_the_trash_to_free_space(tmp_path: Path) -> None:
    """Two graces later the space is free, one snapshot came back in between, and what is listed restores."""
    backupd, store = _configured(tmp_path, url="backups"), tmp_path / "backups"
    contents = {}
    for number in range(5):
        snapshot_id = _snapshot(backupd, f"state {number}")
        contents[snapshot_id] = content_digest(tmp_path / "app.db")
    first, second, third, fourth, fifth = contents
    assert (_ids(backupd), _ids(backupd, "--trash")) == ([fourth, fifth], [first, second, third])
    backupd.run("undelete", second)
    full_bytes = _bytes_in(store)

    _let_days_pass(store, 4)
    (pruned,) = backupd.json("prune")["pruned"]
    assert sorted(pruned["purged"]) == [first, third]
    assert (pruned["removed"], pruned["deleted_packs"]) == ([], 0)
    backupd.run("undelete", first, code=NO_SUCH_SNAPSHOT)
    (pruned,) = backupd.json("prune")["pruned"]
    assert (pruned["deleted_packs"], pruned["waiting_packs"]) == (0, 2)
    assert "2 packs (" in backupd.run("prune").stdout

    _let_days_pass(store, 4)
    would = backupd.json("prune", "--dry-run")["pruned"][0]
    before = _bytes_in(store)
    (pruned,) = backupd.json("prune")["pruned"]
    assert (pruned["deleted_packs"], pruned["waiting_packs"]) == (2, 0)
    assert (would["deleted_packs"], would["freed_bytes"]) == (2, pruned["freed_bytes"])
    assert pruned["freed_bytes"] > full_bytes / 4
    assert before - _bytes_in(store) >= pruned["freed_bytes"] - 2000

    assert _ids(backupd) == [second, fourth, fifth]
    for snapshot_id in (second, fourth, fifth):
        restored = tmp_path / f"{snapshot_id}.db"
        backupd.run("restore", snapshot_id, "--to", restored)
        assert content_digest(restored) == contents[snapshot_id]
    backupd.run("forget", second)
    assert _ids(backupd) == [fourth, fifth]


def test_now_frees_space_by_itself(tmp_path: Path) -> None:
    """Snapshots every few days free space without any call of `prune`, and the store stops growing."""
    backupd, store = _configured(tmp_path, url="backups"), tmp_path / "backups"
    sizes, reported = [], ""
    for number in range(9):
        change_rows(tmp_path / "app.db", f"state {number}", rows=40)
        reported += backupd.run("now", "--full").stdout
        sizes.append(_bytes_in(store))
        _let_days_pass(store, 4)
    assert len(_ids(backupd)) == 2
    assert sizes[-1] < sizes[0] * 7
    assert sizes[-1] - sizes[-2] < sizes[0] / 10
    assert "1 snapshot to the trash, 1 snapshot gone from the trash, 1 pack (" in reported


def test_lost_configuration_removes_nothing(tmp_path: Path) -> None:
    """Without the configuration file the same commands keep every snapshot."""
    backupd = _configured(tmp_path, url="backups")
    first = _snapshot(backupd, "first")
    (tmp_path / "backupd.toml").unlink()
    for number in range(3):
        change_rows(tmp_path / "app.db", f"state {number}")
        backupd.run("now", "app.db")
    assert backupd.json("prune")["pruned"][0]["removed"] == []
    assert _ids(backupd)[0] == first
    assert len(_ids(backupd)) == 4


def _forward(handler: Handler, request: Request, *, server: S3Server, refused: list[str]) -> None:
    """Hand a request on to a server; those of the `refused` methods get what a locked bucket answers."""
    if request.method in refused:
        handler.error(403, "AccessDenied", "Access Denied")
        return
    address = urlsplit(server.endpoint_url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
    connection.request(request.method, request.path, request.body or None, headers)
    answer = connection.getresponse()
    body = answer.read()
    passed = {name.replace("-", "_"): value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
    handler.answer(answer.status, body, **passed)
    connection.close()


@slow
def test_bucket_that_refuses_deletions(moto: S3Server, tmp_path: Path) -> None:
    """`now` succeeds and says it once, until a deletion works again; `prune` by hand says it every time."""
    refused = ["DELETE"]
    with loopback(partial(_forward, server=moto, refused=refused)) as locked:
        backupd = _configured(
            tmp_path,
            url=f"s3://{moto.new_bucket()}/x",
            endpoint_url=locked.endpoint_url,
            access_key_id="MOTO",
            secret_access_key="no secret",
        )
        said = []
        for number in range(5):
            change_rows(tmp_path / "app.db", f"state {number}", rows=40)
            said.append(backupd.run("now", "--full").reported("warning"))
        assert [len(warnings) for warnings in said] == [0, 0, 1, 0, 0]
        assert said[2][0].startswith("app: nothing more is removed: ")
        by_hand = [backupd.run("prune", code=UNAVAILABLE).reported("error") for _ in range(2)]
        assert [len(errors) for errors in by_hand] == [1, 1]
        assert len(_ids(backupd)) == 5
        refused.clear()
        assert "3 snapshots to the trash" in backupd.run("now").stdout
        assert len(_ids(backupd)) == 2
        refused.append("DELETE")
        assert len(backupd.run("now", "--full").reported("warning")) == 1


@slow
def test_two_hosts_share_what_was_decided(tmp_path: Path) -> None:
    """What one host undeletes or accepts, the other respects: it is in the store, not in a cache."""
    backupd = _configured(tmp_path, url="backups")
    contents = [_snapshot(backupd, f"state {number}") for number in range(4)]
    elsewhere = CommandLine(tmp_path, state="another host")
    elsewhere.run("undelete", contents[0])
    assert contents[0] in _ids(backupd)
    backupd.run("prune")
    assert contents[0] in _ids(backupd)
    (tmp_path / "app.db").unlink()
    create_database(tmp_path / "app.db", rows=1)
    assert elsewhere.run("now", "--full").reported("warning")
    assert "--accept-shrink" in backupd.run("prune", code=3).reported("hint")[0]
    backupd.run("prune", "app", "--accept-shrink")
    assert elsewhere.run("now", "--full").reported("warning") == []
    shutil.rmtree(tmp_path / "another host")
    assert elsewhere.run("prune").reported("warning") == []


@slow
def test_clock_that_is_behind_removes_nothing(tmp_path: Path) -> None:
    """A newest snapshot from tomorrow: no age can be trusted, until that one is forgotten as the hint says."""
    backupd = _configured(tmp_path, url="backups")
    ids = [_snapshot(backupd, f"state {number}") for number in range(2)]
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y%m%dT%H%M%S}000Z-00000000"
    _rename_newest(tmp_path / "backups/app/snapshots", ids[1], tomorrow)
    result = backupd.run("prune", code=3)
    assert f"is behind the snapshot {tomorrow}" in result.reported("warning")[0]
    assert len(_ids(backupd)) == 2
    commands = re.findall(r"backupd ([^,]+)", result.reported("hint")[0])
    assert commands == ["now app --full", f"forget app@{tomorrow}"]
    for command in commands:
        backupd.run(*command.split())
    assert backupd.run("prune").reported("warning") == []


def _rename_newest(snapshots: Path, old: str, new: str) -> None:
    """Give a snapshot another id, seal and all, as a host with a wrong clock would have."""
    manifest = decode_manifest((snapshots / f"{old}.json").read_bytes())
    (snapshots / f"{old}.json").unlink()
    (snapshots / f"{new}.json").write_bytes(encode_manifest(replace(manifest, id=SnapshotId(new))))
