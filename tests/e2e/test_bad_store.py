"""Stores that cannot be used: one error that names the store, one hint, an exit code, and nothing half-done in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, Runner
from harness.confinement import private_mounts, shared_directory
from harness.extent import slow
from harness.loopback import loopback
from harness.place import content_digest, create_database
from harness.ports import reserved_port

if TYPE_CHECKING:
    from pathlib import Path

    from harness.loopback import Handler, Request
    from harness.place import Place
    from harness.s3_server import S3Server

USAGE, PARTLY_DONE, UNAVAILABLE, DAMAGE_FOUND, UNSUPPORTED_FORMAT = 2, 3, 10, 20, 21


def _answer_like_a_web_page(handler: Handler, _: Request) -> None:
    handler.answer(200, b"<html><body>Welcome</body></html>", Content_Type="text/html")


def _answer_from_tomorrow(handler: Handler, _: Request) -> None:
    tomorrow = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    handler.error(403, "RequestTimeTooSkewed", "the difference is too large", Date=tomorrow)


def _configure(file: Path, store: dict[str, object]) -> None:
    file.write_text("[[stores]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in store.items()))


@slow
def test_bad_buckets_and_endpoints(place: Place, seaweed: S3Server) -> None:
    """Each kind of bad bucket or endpoint has a message of its own, with no secret in it."""
    bucket = seaweed.new_bucket()
    good = {"url": f"s3://{bucket}", "endpoint_url": seaweed.endpoint_url, "max_attempts": 1}
    good |= {"access_key_id": seaweed.access_key_id, "secret_access_key": seaweed.secret_access_key}
    with ExitStack() as servers:
        web = servers.enter_context(loopback(_answer_like_a_web_page))
        ahead = servers.enter_context(loopback(_answer_from_tomorrow))
        wrong = {
            "bucket": ({"url": "s3://there-is-none"}, "bucket there-is-none does not exist"),
            "key": ({"access_key_id": "WRONG"}, "does not know this access key"),
            "secret": ({"secret_access_key": "wrong"}, "secret key is wrong"),
            "port": ({"endpoint_url": f"http://127.0.0.1:{reserved_port()}"}, "connection refused"),
            "host": ({"endpoint_url": "http://nosuch.invalid"}, "nosuch.invalid"),
            "web": ({"endpoint_url": web.endpoint_url}, "does not answer like S3"),
            "clock": ({"endpoint_url": ahead.endpoint_url}, "24 h behind the store's"),
        }
        commands = []
        for name, (change, words) in wrong.items():
            values = good | change
            _configure(place.home / f"{name}.toml", values)
            verb = ["now", "app.db"] if name == "bucket" else ["list"]
            commands.append(([*verb, "--config", f"{name}.toml"], UNAVAILABLE, [values["url"], words]))
        results = place.backupd.refusals(commands)
    assert not any(seaweed.secret_access_key in result.stderr for result in results)


def test_unwritable_store_and_state_directory(other_user: Runner) -> None:
    """A user that may not write there gets an error with the directory and its uid."""
    with shared_directory() as home:
        create_database(home / "app.db", rows=5)
        (home / "state").mkdir(mode=0o700)
        (home / "own").mkdir()
        (home / "own").chmod(0o777)
        backupd = CommandLine(home, state="own", runner=other_user)
        refused = backupd.refusal("now", "app.db", "--store", "store", code=UNAVAILABLE, names=[home / "store"])
        assert "uid 65534" in refused.reported("hint")[0]
        refused = CommandLine(home, runner=other_user).run("now", "app.db", "--store", "own", code=USAGE)
        assert str(home / "state") in refused.reported("error")[0]
        assert "BACKUPD_STATE_DIR" in refused.reported("hint")[0]
        assert not (home / "store").exists()


def test_unwritable_state_directory_is_enough_to_restore(other_user: Runner) -> None:
    """A machine that cannot create the state directory can list and restore."""
    with shared_directory() as home:
        for name in ("store", "own"):
            (home / name).mkdir()
            (home / name).chmod(0o777)
        create_database(home / "app.db", rows=5)
        CommandLine(home, state="own/state", runner=other_user).run("now", "app.db", "--store", "store")
        backupd = CommandLine(home, state="nowhere/state", runner=other_user)
        assert len(backupd.json("list", "--store", "store")["snapshots"]) == 1
        backupd.run("restore", "latest", "--store", "store", "--to", "own/restored.db")
        assert content_digest(home / "own/restored.db") == content_digest(home / "app.db")
        assert not (home / "nowhere").exists()


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
@pytest.mark.parametrize(("offset", "words"), [("-2h", "behind the store"), ("+2h", "ahead of the store")])
def test_clock_that_is_far_off(place: Place, seaweed: S3Server, offset: str, words: str) -> None:
    """A real server refuses the signature; that says by how much this machine's clock is off."""
    keys = {"access_key_id": seaweed.access_key_id, "secret_access_key": seaweed.secret_access_key}
    store = {"url": f"s3://{seaweed.new_bucket()}", "endpoint_url": seaweed.endpoint_url, **keys}
    _configure(place.home / "backupd.toml", store)
    backupd = CommandLine(place.home, runner=Runner(become=("faketime", "-f", offset)))
    backupd.refusal("now", "app.db", code=UNAVAILABLE, names=[store["url"], words])


def test_full_store_takes_the_snapshot_when_it_has_space(place: Place) -> None:
    """A snapshot that does not fit leaves nothing in the store, and the one after it restores."""
    create_database(place.home / "big.db", rows=3000)
    with private_mounts() as mounts:
        small = place.home / "small"
        small.mkdir()
        mounts.mount("-t", "tmpfs", "-o", "size=2m", "none", small)
        backupd = CommandLine(place.home, runner=mounts.runner())
        backupd.refusal("now", "big.db", "--store", "small", code=UNAVAILABLE, names=["no space", small])
        assert [path for path in mounts.seen(small).rglob("*") if path.is_file() and path.suffix != ".json"] == []
        assert backupd.json("list", "--store", "small") == {"snapshots": [], "windows": [], "problems": []}
        mounts.mount("-o", "remount,size=50m", small)
        backupd.run("now", "big.db", "--store", "small")
        backupd.run("restore", "latest", "--store", "small", "--to", "restored.db")
    assert content_digest(place.home / "restored.db") == content_digest(place.home / "big.db")


def test_full_state_directory_leaves_stores_unchanged(place: Place) -> None:
    """Packs on their way find no room in the spool; the stores are as they were."""
    create_database(place.home / "big.db", rows=3000)
    with private_mounts() as mounts:
        state = place.home / "state"
        mounts.mount("-t", "tmpfs", "-o", "size=1m", "none", state)
        backupd = CommandLine(place.home, runner=mounts.runner())
        backupd.refusal("now", "big.db", code=USAGE, names=[state])
        assert list((mounts.seen(state) / "spool").iterdir()) == []
    assert not (place.store / "big").exists()


def test_store_of_a_newer_format(place: Place) -> None:
    """A newer format is refused, in the repository object or in a manifest; only the repository stops snapshots."""
    newer = place.copy(place.home.with_name("newer manifest"))
    repository = place.store / "backupd.json"
    repository.write_text(json.dumps(json.loads(repository.read_text()) | {"format": 2}))
    verbs = (["list"], ["now", "app.db"], ["restore", "latest", "--to", "restored.db"])
    place.backupd.refusals([(verb, UNSUPPORTED_FORMAT, [place.store, "format 2"]) for verb in verbs])
    _seal_as_format_2(newer.manifest(2))
    shutil.rmtree(newer.backupd.state)
    reported = [newer.ids[2], newer.store, "version 2"]
    newer.backupd.refusals([(verbs[2], UNSUPPORTED_FORMAT, reported)])
    assert "version 2" in newer.backupd.run("list", code=PARTLY_DONE).stderr
    assert newer.ids[2] in newer.backupd.run("now", "app.db").stderr
    newer.backupd.run("restore", "latest", "--to", "restored.db")


def _seal_as_format_2(manifest: Path) -> None:
    body = manifest.read_bytes().partition(b'"manifest":')[2][:-2].replace(b'"format": 1', b'"format": 2')
    seal = hashlib.sha256(body).hexdigest().encode()
    manifest.write_bytes(b'{"sha256":"' + seal + b'","manifest":' + body + b"}\n")


def test_garbage_in_place_of_the_repository_object(place: Place) -> None:
    """Garbage in place of the repository object is damage, and is not overwritten."""
    (place.store / "backupd.json").write_text("not ours")
    verbs = (["list"], ["now", "app.db"])
    place.backupd.refusals([(verb, DAMAGE_FOUND, ["backupd.json", place.store]) for verb in verbs])


def test_file_in_place_of_the_store(place: Place) -> None:
    """A path that is no directory is refused by name."""
    place.backupd.refusals(
        [
            (verb, UNAVAILABLE, [place.database])
            for verb in (["now", "app.db", "--store", "app.db"], ["list", "--store", "app.db"])
        ]
    )


@slow
def test_two_writers_that_take_turns_are_reported(place: Place) -> None:
    """Staging and production share a prefix: each finds a newer snapshot of the other when it runs again."""
    production, staging = place.backupd, CommandLine(place.home, state="staging")
    staging.run("now", "app.db", "--tag", "staging")
    (warning,) = production.run("now", "app.db", "--tag", "production").reported("warning")
    assert all(each in warning for each in ("app", "two writers", str(place.store), str(place.database)))
    (result,) = staging.json("now", "app.db", "--tag", "staging")["snapshots"]
    assert result["outcome"] == "created"
    assert ["two writers" in each for each in result["warnings"]] == [True]
