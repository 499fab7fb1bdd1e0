"""Several stores at once: one capture feeds all, and one that fails costs the others nothing."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from harness.cli import CommandLine
from harness.extent import slow
from harness.loopback import loopback
from harness.place import change_rows, content_digest, create_database
from harness.ports import reserved_port

if TYPE_CHECKING:
    from pathlib import Path

    from harness.loopback import Handler, Request
    from harness.place import Place
    from harness.s3_server import S3Server

PARTLY_DONE, UNAVAILABLE = 3, 10


def _configure(home: Path, *stores: dict[str, object]) -> None:
    tables = ["[[databases]]\npath = 'app.db'\n"]
    for store in stores:
        tables += ["[[stores]]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in store.items())]
    (home / "backupd.toml").write_text("".join(tables))


def _bucket(server: S3Server, **others: object) -> dict[str, object]:
    keys = {"access_key_id": server.access_key_id, "secret_access_key": server.secret_access_key}
    return {"url": f"s3://{server.new_bucket()}", "endpoint_url": server.endpoint_url, **keys, **others}


def _never_answer(handler: Handler, _: Request) -> None:
    handler.loopback.closing.wait()


def test_directory_and_bucket_hold_the_same_snapshots(place: Place, seaweed: S3Server) -> None:
    """The new store starts with a full snapshot, the old one with a small one, under one id; both restore."""
    bucket = _bucket(seaweed)
    _configure(place.home, {"url": "backups"}, bucket)
    change_rows(place.database, "in both")
    directory, remote = place.backupd.json("now")["snapshots"]
    assert directory["id"] == remote["id"]
    assert directory["stored_bytes"] < 20_000 < remote["stored_bytes"]
    listed = place.backupd.json("list")["snapshots"]
    assert [(each["store"], each["id"]) for each in listed] == [
        *((str(place.store), snapshot) for snapshot in (*place.ids, directory["id"])),
        (bucket["url"], directory["id"]),
    ]
    for store in ("backups", str(bucket["url"])):
        place.backupd.run("restore", directory["id"], "--store", store, "--to", "restored.db", "--force")
        assert content_digest(place.home / "restored.db") == content_digest(place.database)


@slow
def test_hung_store_holds_up_no_other(place: Place) -> None:
    """A server that takes requests and never answers: the run ends within its time limit, partly done."""
    with loopback(_never_answer) as hung:
        keys = {"access_key_id": "id", "secret_access_key": "hunter2", "time_limit": "1s", "read_timeout": "1s"}
        _configure(place.home, {"url": "s3://bucket", "endpoint_url": hung.endpoint_url, **keys}, {"url": "backups"})
        change_rows(place.database, "while it hangs")
        started = time.monotonic()
        result = place.backupd.run("now", code=PARTLY_DONE)
        assert time.monotonic() - started < 15
        (error,), (hint,) = result.reported("error"), result.reported("hint")
        assert "s3://bucket" in error
        assert hint
        partly = place.backupd.json("list", code=PARTLY_DONE)
        assert len(partly["snapshots"]) == 4
        assert ["s3://bucket" in problem["message"] for problem in partly["problems"]] == [True]


@slow
def test_store_that_hangs_on_uploads_holds_up_no_other(place: Place) -> None:
    """A store that hangs on packs fails alone, and the other gets all, even if they do not fit into the spool."""
    objects: dict[str, bytes] = {}

    def hang_on_packs(handler: Handler, request: Request) -> None:
        key = request.path.partition("?")[0]
        if "/packs/" in key:
            handler.loopback.closing.wait()
        elif request.method == "PUT":
            objects[key] = request.body
            handler.answer(200)
        elif "list-type" in request.path:
            handler.answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        elif key in objects:
            handler.answer(200, objects[key])
        else:
            handler.error(404, "NoSuchKey")

    create_database(place.home / "big.db", rows=800, row_bytes=100_000, journal_mode="wal")
    with loopback(hang_on_packs) as hung:
        keys = {"access_key_id": "id", "secret_access_key": "hunter2", "time_limit": "2s"}
        _configure(place.home, {"url": "s3://bucket", "endpoint_url": hung.endpoint_url, **keys}, {"url": "backups"})
        backupd = CommandLine(place.home, BACKUPD_PACKS__SPOOL_LIMIT="1MB")
        started = time.monotonic()
        failed, created = backupd.json("now", "big.db", code=PARTLY_DONE)["snapshots"]
        assert time.monotonic() - started < 20
    assert (failed["outcome"], created["outcome"]) == ("failed", "created")
    assert "2 s" in failed["error"]["message"]
    backupd.run("restore", "big@latest", "--store", "backups", "--to", "restored.db")
    assert content_digest(place.home / "restored.db") == content_digest(place.home / "big.db")


@slow
def test_failure_of_all_stores_has_the_exit_code_of_the_failure(place: Place) -> None:
    """The exit code is that of the failure, not "partly done"; each store has its own error."""
    port = reserved_port()
    keys = {"access_key_id": "id", "secret_access_key": "hunter2", "max_attempts": 1}
    stores = [{"url": f"s3://{name}", "endpoint_url": f"http://127.0.0.1:{port}", **keys} for name in ("one", "two")]
    _configure(place.home, *stores)
    document = place.backupd.json("now", code=UNAVAILABLE)
    assert [each["store"] in each["error"]["message"] for each in document["snapshots"]] == [True, True]
    assert [each["error"]["exit_code"] for each in document["snapshots"]] == [UNAVAILABLE, UNAVAILABLE]
