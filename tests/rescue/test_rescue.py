"""rescue.py restores what backupd restores, with nothing but Python, zstd and age; and refuses all that is damaged."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, tree
from harness.extent import sampled, slow
from harness.place import change_rows, create_database
from harness.rescuing import RESCUE, Bare, Kept, encrypt_in
from msgspec.structs import replace

from backupd.encryption import NO_ENCRYPTION
from backupd.format import SnapshotId
from backupd.format.segment import encode_segment
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from harness.s3_server import S3Server

_VECTORS = Path(__file__).parents[1] / "vectors"
_USAGE, _UNAVAILABLE, _NO_SUCH_SNAPSHOT, _DAMAGE, _NEWER = 2, 10, 12, 20, 21
_FIRST_COMMIT = datetime(2026, 11, 22, 8, 55, 57, 123000, UTC)
"""In the golden segments, commit `n` was seen `n` seconds after this."""

_STDLIB_ONLY = """
import runpy, sys
runpy.run_path(sys.argv[1])
foreign = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"__main__"}
print(sorted(foreign), [entry for entry in sys.path if "site-packages" in entry])
"""


@pytest.fixture(params=sampled(["plain", "encrypted"]))
def kept(request: pytest.FixtureRequest) -> Kept:
    """A repository of each kind, which no test changes."""
    found: Kept = request.getfixturevalue(request.param)
    return found


def _copy_of_vectors(home: Path) -> Path:
    copied = shutil.copytree(_VECTORS / "valid/repository", home / "repository")
    shutil.copy(RESCUE, copied / "rescue.py")
    return copied


def test_needs_nothing_but_the_standard_library(bare: Bare, tmp_path: Path) -> None:
    """The script imports nothing but the standard library, where nothing else could be imported."""
    assert bare.start("-c", _STDLIB_ONLY, RESCUE, cwd=tmp_path).stdout == "[] []\n"


def test_any_python_from_3_8_on_can_parse_it() -> None:
    """The syntax is that of Python 3.8, because a machine that finds a backup may be old."""
    ast.parse(RESCUE.read_text(), feature_version=(3, 8))


def test_restores_what_backupd_restores(bare: Bare, kept: Kept, tmp_path: Path) -> None:
    """Every snapshot, byte for byte, with the program that lies in the repository itself, every page checked."""
    repository = kept.place.store
    listed = [line.split()[0] for line in bare.rescue(repository=repository).stdout.splitlines()]
    assert listed == [f"app@{each}" for each in kept.place.ids]
    for each in kept.place.ids:
        target, expected = tmp_path / f"{each}.db", tmp_path / f"{each}.backupd.db"
        bare.rescue("restore", each, target, *kept.options, "--check-pages", repository=repository)
        kept.place.backupd.run("restore", each, "--to", expected, *kept.options)
        assert target.read_bytes() == expected.read_bytes()
        assert target.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2 * len(kept.place.ids)


def test_changes_nothing_in_the_repository(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """A restore writes no cache, no bytecode and no lock into the repository, which may be the only copy."""
    before = tree(plain.place.store)
    bare.rescue("restore", "app@latest", tmp_path / "out.db", repository=plain.place.store)
    assert tree(plain.place.store) == before


def test_restores_the_golden_repository(bare: Bare, tmp_path: Path) -> None:
    """The golden repository, which the format promises to keep readable, restores byte for byte."""
    repository = _copy_of_vectors(tmp_path)
    for snapshot, facts in json.loads((_VECTORS / "valid/repository.expected.json").read_text()).items():
        target = tmp_path / f"{snapshot}.db"
        bare.rescue("restore", snapshot, target, repository=repository)
        assert target.stat().st_size == facts["size_bytes"]
        assert _sha256(target) == facts["sha256"]


def test_restores_each_commit_of_the_golden_segments(bare: Bare, tmp_path: Path) -> None:
    """Each commit after the golden snapshot restores byte for byte, in Python alone and in backupd."""
    copied = shutil.copytree(_VECTORS / "valid/followed", tmp_path / "repository")
    backupd = CommandLine(tmp_path)
    for number, facts in json.loads((_VECTORS / "valid/followed.expected.json").read_text()).items():
        at = (_FIRST_COMMIT + timedelta(seconds=int(number))).isoformat()
        target = tmp_path / f"{number}.db"
        finished = bare.start(RESCUE, "--repository", copied, "restore", "app", target, "--at", at, cwd=tmp_path)
        assert "and the commits after it up to" in finished.stdout, finished
        assert (_sha256(target), target.stat().st_size) == (facts["sha256"], facts["size_bytes"])
        backupd.run("restore", f"app@{at}", "--to", f"{number}.backupd.db", "--store", copied)
        assert _sha256(tmp_path / f"{number}.backupd.db") == facts["sha256"]


def test_a_window_of_a_clock_that_was_behind_hides_no_commit(bare: Bare, tmp_path: Path) -> None:
    """A window that lies within an earlier one, because the clock was set back, is not taken for the newest."""
    copied = shutil.copytree(_VECTORS / "valid/followed", tmp_path / "repository")
    archive = Repository(DirectoryStore(copied), StateDirectory(tmp_path / "state"), NO_ENCRYPTION).archive("app")
    number, facts = [*json.loads((_VECTORS / "valid/followed.expected.json").read_text()).items()][-1]
    last = _FIRST_COMMIT + timedelta(seconds=int(number))
    behind = last - timedelta(milliseconds=500)
    ((first, *_),) = archive.segments().segments.values()
    segment = archive.segment(first)
    head = replace(segment.head, window=SnapshotId.new(behind, 1), anchors=())
    commit = segment.with_images()[0]._replace(seen_at_ms=round(behind.timestamp() * 1000))
    archive.put_segment(encode_segment(head, [commit], level=1))
    options = ("restore", "app", tmp_path / "out.db", "--at", last.isoformat())
    finished = bare.start(RESCUE, "--repository", copied, *options, cwd=tmp_path)
    assert finished.returncode == 0, finished
    assert _sha256(tmp_path / "out.db") == facts["sha256"]


def test_commits_that_were_found_wrong_are_not_restored(bare: Bare, tmp_path: Path) -> None:
    """A record that a window is broken keeps later commits from being restored, until it is moved away."""
    copied = shutil.copytree(_VECTORS / "valid/followed", tmp_path / "repository")
    (window,) = (copied / "app/segments").iterdir()
    values = json.loads((_VECTORS / "valid/continuity-broken.json").read_text())["continuity"] | {"window": window.name}
    options = ("restore", "app", tmp_path / "out.db", "--at", (_FIRST_COMMIT + timedelta(seconds=7)).isoformat())
    record = copied / f"app/continuity/{window.name}.json"
    record.parent.mkdir()
    for outcome, code in (("broken", _DAMAGE), ("proven", 0)):
        body = json.dumps(values | {"outcome": outcome}).encode()
        record.write_bytes(b'{"sha256":"%s","continuity":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body))
        finished = bare.start(RESCUE, "--repository", copied, *options, cwd=tmp_path)
        assert finished.returncode == code, finished
        assert ("a check found that commits after 0" in finished.stderr) == (outcome == "broken")
        assert (tmp_path / "out.db").exists() == (outcome == "proven")


def test_a_damaged_segment_restores_nothing(bare: Bare, tmp_path: Path) -> None:
    """A flipped bit in a segment that is needed is damage; a time before all commits has none."""
    copied = shutil.copytree(_VECTORS / "valid/followed", tmp_path / "repository")
    options = ("restore", "app", tmp_path / "out.db", "--at")
    finished = bare.start(RESCUE, "--repository", copied, *options, "2026-11-22T08:00Z", cwd=tmp_path)
    assert (finished.returncode, "no commit of app up to that time" in finished.stderr) == (_NO_SUCH_SNAPSHOT, True)
    for file in copied.glob("app/segments/*/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    finished = bare.start(RESCUE, "--repository", copied, *options, "2026-11-22T09:00Z", cwd=tmp_path)
    assert (finished.returncode, "does not have the SHA-256" in finished.stderr) == (_DAMAGE, True)
    assert not (tmp_path / "out.db").exists()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@slow
@pytest.mark.parametrize("kind", sampled(["encrypted", "plain"]))
def test_restores_from_a_copied_bucket(bare: Bare, seaweed: S3Server, tmp_path: Path, kind: str) -> None:
    """A copy of a whole bucket, or of what one snapshot needs, is restored by the script in it."""
    bucket, home = seaweed.new_bucket(), tmp_path / "home"
    home.mkdir()
    identity = encrypt_in(home, tmp_path) if kind == "encrypted" else None
    backupd = CommandLine(home, **_bucket_variables(seaweed, f"s3://{bucket}/team/app"))
    create_database(home / "app.db", rows=3000)
    backupd.run("now")
    change_rows(home / "app.db", "changed")
    backupd.run("now", "--full")
    options = ("--identity", identity) if identity else ()
    backupd.run("restore", "latest", "--to", tmp_path / "expected.db", *options)

    def fetch(keys: list[str], copy: Path) -> None:
        with closing(seaweed.client()) as client:
            for key in keys:
                (copy / key).parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, f"team/app/{key}", str(copy / key))

    with closing(seaweed.client()) as client:
        listed = [each["Key"] for each in client.list_objects_v2(Bucket=bucket, Prefix="team/app/")["Contents"]]
    keys = [key.removeprefix("team/app/") for key in listed]
    fetch(keys, tmp_path / "whole")
    bare.rescue("restore", "app@latest", tmp_path / "whole.db", *options, repository=tmp_path / "whole")
    part = tmp_path / "part"
    fetch([key for key in keys if "/packs/" not in key], part)
    refused = bare.rescue("restore", "latest", tmp_path / "x.db", *options, repository=part, code=_DAMAGE)
    assert "is missing here" in refused.stderr
    assert "rescue.py needs app@" in refused.stderr
    needed = bare.rescue("needs", "latest", repository=part).stdout.splitlines()
    assert {"/packs/" in key for key in keys if key not in needed} == {True, False}
    fetch(needed, part)
    bare.rescue("restore", "latest", tmp_path / "part.db", *options, repository=part)
    for restored in ("whole.db", "part.db"):
        assert (tmp_path / restored).read_bytes() == (tmp_path / "expected.db").read_bytes()


def _bucket_variables(server: S3Server, url: str) -> dict[str, str]:
    return {
        "BACKUPD_DATABASES__0__PATH": "app.db",
        "BACKUPD_STORES__0__URL": url,
        "BACKUPD_STORES__0__ENDPOINT_URL": server.endpoint_url,
        "BACKUPD_STORES__0__ACCESS_KEY_ID": server.access_key_id,
        "BACKUPD_STORES__0__SECRET_ACCESS_KEY": server.secret_access_key,
    }


def test_flipped_bit_restores_nothing(bare: Bare, kept: Kept, tmp_path: Path) -> None:
    """A flipped bit in the manifest or a pack restores nothing and leaves nothing."""
    repository = kept.copy(tmp_path / "copy").place.store
    out = tmp_path / "out"
    out.mkdir()
    for key in bare.rescue("needs", "app@latest", repository=repository).stdout.splitlines()[:2]:
        right = (repository / key).read_bytes()
        for position in (0, len(right) // 2, len(right) - 1):
            wrong = bytearray(right)
            wrong[position] ^= 1
            (repository / key).write_bytes(wrong)
            reference = f"app@{kept.place.ids[-1]}"
            refused = bare.start("rescue.py", "restore", reference, out / "x.db", *kept.options, cwd=repository)
            # A damaged manifest is listed as damaged, and then no snapshot matches.
            assert refused.returncode in {_DAMAGE, _NO_SUCH_SNAPSHOT}, refused
            assert key.rpartition("/")[2] in refused.stderr
            assert list(out.iterdir()) == []
        (repository / key).write_bytes(right)
    bare.rescue("restore", "app@latest", out / "x.db", *kept.options, repository=repository)


def test_lists_the_others_when_a_manifest_is_damaged(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """A damaged manifest is named with the code for damage, and the others are listed."""
    place = plain.copy(tmp_path / "copy").place
    place.manifest(0).write_bytes(b"{}")
    listed = bare.rescue(repository=place.store, code=_DAMAGE)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [f"app@{each}" for each in place.ids[1:]]
    assert f"damaged: app/snapshots/{place.ids[0]}.json: the object is not a sealed manifest" in listed.stderr


def test_without_the_key_nothing_is_restored(bare: Bare, encrypted: Kept, tmp_path: Path) -> None:
    """A missing key, a wrong one, or what is none: exit code 2, in words that say what to look for, and no file."""
    repository = encrypted.place.store
    assert "encrypted" in bare.rescue(repository=repository).stdout
    other = encrypt_in(tmp_path, tmp_path)
    (tmp_path / "no.key").write_text("AGE-SECRET-KEY-1 or something\n")
    restore = ("restore", "app@latest", tmp_path / "x.db")
    for options, reported in (
        ((), "it is encrypted"),
        (("--identity", other), f"no secret key in {other} decrypts it"),
        (("--identity", tmp_path / "nowhere"), f"there is no file {tmp_path / 'nowhere'}"),
        (("--identity", tmp_path), f"there is no file {tmp_path}"),
    ):
        refused = bare.rescue(*restore, *options, repository=repository, code=_USAGE)
        assert reported in refused.stderr
        assert "--identity" in refused.stderr
        assert "age/report" not in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backupd.toml", "key.txt", "no.key"]


@pytest.mark.skipif(shutil.which("age") is None, reason="what age says of such a file only age knows")
def test_what_holds_no_key_is_called_that(bare: Bare, encrypted: Kept, tmp_path: Path) -> None:
    """A file of something else, or an empty one; nothing of its content is shown."""
    for content in ("AGE-SECRET-KEY-1TYPO\n", "photos of the cat\n", ""):
        (tmp_path / "no.key").write_text(content)
        refused = bare.rescue(
            *("restore", "latest", tmp_path / "x.db", "--identity", tmp_path / "no.key"),
            repository=encrypted.place.store,
            code=_USAGE,
        )
        assert "no.key" in refused.stderr
        assert "age/report" not in refused.stderr
        assert "TYPO" not in refused.stderr


def test_needs_takes_a_key_and_tries_it(bare: Bare, encrypted: Kept, tmp_path: Path) -> None:
    """The `needs` command tries the key before gigabytes are copied; without one it still names the objects."""
    repository = encrypted.place.store
    without = bare.rescue("needs", "app@latest", repository=repository).stdout
    assert bare.rescue("needs", "app@latest", *encrypted.options, repository=repository).stdout == without
    other = encrypt_in(tmp_path, tmp_path)
    refused = bare.rescue("needs", "app@latest", "--identity", other, repository=repository, code=_USAGE)
    assert "decrypts it" in refused.stderr


def test_a_lost_pack_is_reported_with_a_snapshot_that_does_not_need_it(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """The newest of the others that restores; and when there is none, that."""
    place = plain.copy(tmp_path / "copy").place
    needed = [set(bare.rescue("needs", each, repository=place.store).stdout.splitlines()[1:]) for each in place.ids]
    pack = place.store / min(needed[-1] - needed[-2])
    right = pack.read_bytes()

    def refused() -> str:
        return bare.rescue("restore", "latest", tmp_path / "x.db", repository=place.store, code=_DAMAGE).stderr

    pack.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    assert f"the newest snapshot that does not need it is app@{place.ids[-2]}" in refused()
    pack.unlink()
    assert f"the newest snapshot that does not need it is app@{place.ids[-2]}" in refused()
    for position in range(len(place.ids) - 1):
        place.manifest(position).unlink()
    assert "all snapshots here need it" in refused()


def test_a_time_means_the_newest_at_or_before_it(bare: Bare, plain: Kept) -> None:
    """A time means the newest snapshot at or before it, in local time if it has no offset."""
    store, ids = plain.place.store, plain.place.ids
    taken = [datetime.strptime(each[:18] + "000+0000", "%Y%m%dT%H%M%S%f%z") for each in ids]
    forms = [moment.isoformat(timespec="milliseconds") for moment in taken]
    forms += [moment.astimezone().replace(tzinfo=None).isoformat(timespec="milliseconds") for moment in taken]
    forms += [f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} UTC" for moment in taken]
    for expected, form in zip(ids * 3, forms, strict=True):
        assert expected in bare.rescue("needs", f"app@{form}", repository=store).stdout.splitlines()[0], form
    before = taken[1] - timedelta(milliseconds=1)
    assert ids[0] in bare.rescue("needs", before.isoformat(), repository=store).stdout.splitlines()[0]


@pytest.mark.parametrize("name", ["out.db", "out.db-wal", "out.db-journal", "out.db-shm"])
def test_restore_overwrites_no_file(bare: Bare, plain: Kept, tmp_path: Path, name: str) -> None:
    """A restore overwrites no file, and none that SQLite would apply to the new one."""
    (tmp_path / name).write_text("precious")
    refused = bare.rescue("restore", "latest", tmp_path / "out.db", repository=plain.place.store, code=_USAGE)
    assert f"error: {tmp_path / name} already exists" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_restores_what_was_removed(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """A removed snapshot is restored while it is in the trash."""
    place = plain.copy(tmp_path / "copy").place
    place.backupd.run("forget", f"app@{place.ids[0]}")
    assert place.ids[0] not in bare.rescue(repository=place.store).stdout
    listed = bare.rescue("--trash", repository=place.store).stdout
    assert place.ids[0] in listed
    assert "in the trash" in listed
    bare.rescue("--trash", "restore", place.ids[0], tmp_path / "old.db", repository=place.store)
    assert (tmp_path / "old.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["restore", "app@20200101", "x.db"], _NO_SUCH_SNAPSHOT, "no snapshot matches"),
        (["restore", "2", "x.db"], _NO_SUCH_SNAPSHOT, "several snapshots match"),
        (["restore", "other@latest", "x.db"], _NO_SUCH_SNAPSHOT, "no snapshot matches"),
        (["restore", "app", "x.db"], _NO_SUCH_SNAPSHOT, "its newest snapshot is app@latest"),
        (["restore", "app@2020-01-01T00:00", "x.db"], _NO_SUCH_SNAPSHOT, "NAME@2026-11-22T08:00"),
        (["restore", "app@2020-01-01T25:00", "x.db"], _USAGE, "is not a time"),
        (["restore", "latest", "nowhere/x.db"], _USAGE, "nowhere is not a directory"),
        (["restore", "latest", "app/x.db"], _USAGE, "app/x.db would be in the repository"),
        (["--repository", "nowhere"], _UNAVAILABLE, "nowhere is not a directory"),
        (["--repository", "app"], _UNAVAILABLE, "has no backups"),
        (["back"], _USAGE, "invalid choice"),
    ],
)
def test_failure_says_what_is_wrong(bare: Bare, plain: Kept, words: list[str], code: int, says: str) -> None:
    """A failure has its exit code, says what is wrong, and writes no file."""
    refused = bare.rescue(*words, repository=plain.place.store, code=code)
    assert says in refused.stderr
    assert not list(plain.place.store.glob("*x.db*"))


def test_a_newer_format_is_refused(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """A newer format is refused with its exit code, and the error names the right program."""
    repository = plain.copy(tmp_path / "copy").place.store
    (repository / "backupd.json").write_text('{"format": 2, "repository": "a"}')
    assert "rescue.py from this repository itself" in bare.rescue(repository=repository, code=_NEWER).stderr


def test_without_zstd_it_says_what_to_install(bare: Bare, plain: Kept, tmp_path: Path) -> None:
    """Without zstd the script says what to install, unless Python has its own."""
    lonely = Bare(tmp_path / "no programs")
    has_own = sys.version_info >= (3, 14)
    finished = lonely.rescue(
        "restore", "latest", tmp_path / "x.db", repository=plain.place.store, code=0 if has_own else _USAGE
    )
    assert has_own or "apt install zstd" in finished.stderr


def test_a_foreign_collation_is_no_damage(bare: Bare, tmp_path: Path) -> None:
    """A collation of the application, which keeps SQLite from checking the file, is not damage."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.create_collation("mine", lambda a, b: (a > b) - (a < b))
        connection.execute("CREATE TABLE t (a TEXT COLLATE mine PRIMARY KEY)")
        connection.execute("INSERT INTO t VALUES ('a'), ('b')")
    CommandLine(tmp_path).run("now", "app.db")
    finished = bare.rescue("restore", "latest", tmp_path / "x.db", repository=tmp_path / "backups")
    assert "no such collation sequence: mine" in finished.stderr


def test_a_damaged_source_is_restored_and_reported(bare: Bare, tmp_path: Path) -> None:
    """The copy is as good as it was: it stays, with the code for damage."""
    create_database(tmp_path / "app.db")
    with (tmp_path / "app.db").open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * 64)
    CommandLine(tmp_path).run("now", "app.db")
    finished = bare.rescue("restore", "latest", tmp_path / "x.db", repository=tmp_path / "backups", code=_DAMAGE)
    assert "SQLite finds the database damaged" in finished.stderr
    assert (tmp_path / "x.db").stat().st_size == (tmp_path / "app.db").stat().st_size
