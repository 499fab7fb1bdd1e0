"""The whole of backupd against real S3 servers."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, finish
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.place import change_rows, content_digest, create_database
from harness.restarting import restarting_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.s3_server import S3Server

UNAVAILABLE = 10


def _configure(home: Path, server: S3Server, url: str, *databases: str, **others: object) -> None:
    """Write a backupd.toml with one store."""
    values = {
        "url": url,
        "endpoint_url": server.endpoint_url,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        **others,
    }
    entries = (f"[[databases]]\npath = {json.dumps(each)}\n" for each in databases)
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    (home / "backupd.toml").write_text("".join([*entries, "[[stores]]\n", *lines]))


def _keys(server: S3Server, bucket: str) -> list[str]:
    with closing(server.client()) as client:
        return [each["Key"] for each in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_configured_bucket_from_first_snapshot_to_restore(seaweed: S3Server, tmp_path: Path) -> None:
    """Two databases share a prefix; a small change stores little, on a host without state too, which restores it."""
    bucket = seaweed.new_bucket()
    url = f"s3://{bucket}/team/production"
    create_database(tmp_path / "app.db", rows=3000)
    create_database(tmp_path / "users.db", rows=50, journal_mode="wal")
    _configure(tmp_path, seaweed, url, "app.db", "users.db")
    backupd = CommandLine(tmp_path)
    app, users = backupd.json("now")["snapshots"]
    assert app["store"] == users["store"] == url
    assert app["stored_bytes"] > 3_000_000
    change_rows(tmp_path / "app.db", "changed")
    changed, unchanged = backupd.json("now")["snapshots"]
    assert (changed["outcome"], unchanged["outcome"], unchanged["id"]) == ("created", "unchanged", users["id"])
    assert changed["stored_bytes"] < 20_000
    elsewhere = CommandLine(tmp_path, state="another host")
    listed = elsewhere.json("list")["snapshots"]
    assert [each["id"] for each in listed] == [app["id"], changed["id"], users["id"]]
    assert elsewhere.json("show", "app@latest")["snapshot"]["id"] == changed["id"]
    change_rows(tmp_path / "app.db", "changed elsewhere")
    (small,) = elsewhere.json("now", "app")["snapshots"]
    assert small["stored_bytes"] < 20_000
    elsewhere.run("restore", "app@latest", "--to", "restored.db")
    assert content_digest(tmp_path / "restored.db") == content_digest(tmp_path / "app.db")
    assert all(key.startswith("team/production/") for key in _keys(seaweed, bucket))


@pytest.mark.parametrize("named", sampled(["BACKUPD_", "AWS_"]))
def test_configured_by_the_environment_alone(moto: S3Server, tmp_path: Path, named: str) -> None:
    """Variables of backupd, or those of the AWS tools and `--store`, are enough to back up and restore."""
    bucket = moto.new_bucket()
    create_database(tmp_path / "app.db", rows=50)
    (tmp_path / "secret").write_text("no secret\n")
    own = {
        "BACKUPD_DATABASES__0__PATH": "app.db",
        "BACKUPD_STORES__0__URL": f"s3://{bucket}/there",
        "BACKUPD_STORES__0__ENDPOINT_URL": moto.endpoint_url,
        "BACKUPD_STORES__0__ACCESS_KEY_ID": "MOTO",
        "BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret"),
    }
    tools = {
        "AWS_ENDPOINT_URL_S3": moto.endpoint_url,
        "AWS_ACCESS_KEY_ID": "MOTO",
        "AWS_SECRET_ACCESS_KEY": "no secret",
        "AWS_REGION": "eu-central-1",
    }
    environ, arguments = (own, []) if named == "BACKUPD_" else (tools, ["--store", f"s3://{bucket}/there"])
    backupd = CommandLine(tmp_path, **environ)
    (snapshot,) = backupd.json("now", "app.db", *arguments)["snapshots"]
    backupd.run("restore", snapshot["id"], "--to", "restored.db", *arguments)
    assert content_digest(tmp_path / "restored.db") == content_digest(tmp_path / "app.db")
    assert all(key.startswith("there/") for key in _keys(moto, bucket))


def test_no_secret_is_shown_or_kept(seaweed: S3Server, tmp_path: Path) -> None:
    """No secret is in output, logs, state or arguments of a process, in a run that succeeds and one that fails."""
    create_database(tmp_path / "app.db", rows=3000)
    _configure(tmp_path, seaweed, f"s3://{seaweed.new_bucket()}", "app.db")
    backupd = CommandLine(tmp_path)
    seen: set[str] = set()
    shown = []
    for command in (["now"], ["now", "--json", "--store", "s3://there-is-none"]):
        process = backupd.start(*command)
        wait_until(lambda process=process: seen.update(_command_lines(process.pid)) or process.poll() is not None)
        shown += list(process.communicate())
    assert any("backupd.capture.child" in each for each in seen)
    kept = [path.read_bytes().decode(errors="replace") for path in backupd.state.rglob("*") if path.is_file()]
    for secret in (seaweed.secret_access_key, seaweed.access_key_id):
        assert not [text for text in (*seen, *shown, *kept) if secret in text]


def _command_lines(session: int) -> Iterator[str]:
    """The arguments of the processes of a session."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                yield (process / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue


@slow
def test_server_killed_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    """The run fails in time; with the server back, the next one succeeds, and all that is listed restores."""
    database = tmp_path / "app.db"
    create_database(database, rows=50)
    with restarting_server() as seaweed:
        _configure(tmp_path, seaweed.server, f"s3://{seaweed.server.new_bucket()}", "app.db", time_limit="3s")
        backupd = CommandLine(tmp_path)
        contents = {backupd.json("now")["snapshots"][0]["id"]: content_digest(database)}
        database.unlink()
        create_database(database, rows=240, row_bytes=100_000)
        process, before = backupd.start("now"), seaweed.stored_bytes()
        wait_until(lambda: seaweed.stored_bytes() > before + (4 << 20))
        seaweed.kill()
        failed = finish(process, code=UNAVAILABLE)
        assert seaweed.server.endpoint_url in failed.reported("error")[0]
        assert backupd.spooled() == []
        seaweed.start()
        contents[backupd.json("now")["snapshots"][0]["id"]] = content_digest(database)
        assert [each["id"] for each in backupd.json("list")["snapshots"]] == list(contents)
        for process in [backupd.start("restore", each, "--to", f"{each}.db") for each in contents]:
            finish(process)
    assert {each: content_digest(tmp_path / f"{each}.db") for each in contents} == contents
