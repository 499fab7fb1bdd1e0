"""The policies of docs/s3-providers.md on a real server: what each role needs works, and everything else is refused."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from harness.checks import check_context
from harness.cli import CommandLine
from harness.extent import sampled, slow
from harness.place import change_rows, content_digest, create_database
from harness.roles import PREFIX, Keys, Role, keys_by_bucket_policy, keys_for
from harness.site import new_site

from backupd.config import load
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import open_store
from backupd.verify import drill

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.s3_server import S3Server
    from mypy_boto3_s3 import S3Client

_OBJECTS = {
    "repository": f"{PREFIX}/backupd.json",
    "manifest": f"{PREFIX}/app/snapshots/x.json",
    "pack": f"{PREFIX}/app/packs/x.zst",
    "encrypted pack": f"{PREFIX}/app/packs/x.zst.age",
    "trash": f"{PREFIX}/app/trash/x.json",
    "sweep": f"{PREFIX}/app/sweeps/x.json",
    "deletion": f"{PREFIX}/app/deletions/x.json",
    "drill": f"{PREFIX}/app/drills/x.json",
    "continuity": f"{PREFIX}/app/continuity/x.json",
    "segment": f"{PREFIX}/app/segments/x/x.zst",
    "another machine's": "others/app/packs/x.zst",
}
_OURS = _OBJECTS.keys() - {"another machine's"}
_NOT_PACKS = _OURS - {"pack", "encrypted pack"}

_MAY: dict[Role, dict[str, set[str]]] = {
    Role.PUT_ONLY: {"get": set(_NOT_PACKS), "put": set(_OURS), "delete": set()},
    Role.FULL: {"get": set(_OURS), "put": set(_OURS), "delete": set(_OURS)},
    Role.PRUNE: {"get": set(_NOT_PACKS), "put": set(_NOT_PACKS), "delete": set(_OURS)},
    Role.RESTORE: {"get": set(_OURS), "put": set(), "delete": set()},
    Role.TEST: {"get": set(_OURS), "put": {"drill", "continuity"}, "delete": set()},
    Role.RECOVER: {"get": set(_OURS), "put": set(), "delete": set()},
}
_MAY_LOOK_AT_BUCKET = {Role.PUT_ONLY, Role.FULL}
_MAY_READ_OLD_VERSIONS = {Role.RECOVER}


@pytest.fixture
def bucket(seaweed: S3Server) -> str:
    """A bucket with versions."""
    name = seaweed.new_bucket()
    with closing(seaweed.client()) as client:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def _may(call: Callable[[], object]) -> bool:
    try:
        call()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:
            return False
        if not error.response["Error"]["Code"].startswith(("NoSuchLifecycle", "ObjectLockConfigurationNotFound")):
            raise
    return True


def _allowed(client: S3Client, admin: S3Client, bucket: str) -> dict[str, set[str]]:
    """The objects that each verb works on."""
    found: dict[str, set[str]] = {"get": set(), "put": set(), "delete": set()}
    for name, key in _OBJECTS.items():
        place = {"Bucket": bucket, "Key": key}
        admin.put_object(**place, Body=b"there")
        may_get = _may(lambda place=place: client.get_object(**place))
        assert _may(lambda place=place: client.head_object(**place)) == may_get, name
        for verb, is_allowed in (
            ("get", may_get),
            ("put", _may(lambda place=place: client.put_object(**place, Body=b"overwritten"))),
            ("delete", _may(lambda place=place: client.delete_object(**place))),
        ):
            found[verb] |= {name} if is_allowed else set()
    return found


def _require_nothing_else(client: S3Client, admin: S3Client, bucket: str, role: Role) -> None:
    """Listing works; who recovers reads old versions, and at most who backs up the settings of the bucket."""
    may_look, may_go_back = role in _MAY_LOOK_AT_BUCKET, role in _MAY_READ_OLD_VERSIONS
    key = _OBJECTS["manifest"]
    version = admin.put_object(Bucket=bucket, Key=key, Body=b"there")["VersionId"]
    assert _may(lambda: client.list_objects_v2(Bucket=bucket, Prefix=f"{PREFIX}/"))
    assert _may(lambda: client.list_object_versions(Bucket=bucket)) == may_go_back
    assert _may(lambda: client.get_object(Bucket=bucket, Key=key, VersionId=version)) == may_go_back
    assert not _may(lambda: client.delete_object(Bucket=bucket, Key=key, VersionId=version))
    for look in (
        client.get_bucket_versioning,
        client.get_bucket_lifecycle_configuration,
        client.get_object_lock_configuration,
    ):
        assert _may(lambda look=look: look(Bucket=bucket)) == may_look, look
    suspended = {"Status": "Suspended"}
    assert not _may(lambda: client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=suspended))
    assert not _may(lambda: client.delete_bucket_policy(Bucket=bucket))
    assert not _may(lambda: client.delete_bucket(Bucket=bucket))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("made", sampled([keys_for, keys_by_bucket_policy]), ids=["of-a-user", "of-the-bucket"])
def test_each_policy_allows_what_it_says(
    seaweed: S3Server, bucket: str, role: Role, made: Callable[[Role, S3Server, str], Keys]
) -> None:
    """Each policy, of a user or of a bucket, allows exactly the verbs that it names on each kind of object."""
    keys = made(role, seaweed, bucket)
    with closing(keys.client()) as client, closing(seaweed.client()) as admin:
        assert _allowed(client, admin, bucket) == _MAY[role]
        _require_nothing_else(client, admin, bucket, role)


@dataclass(frozen=True, slots=True)
class _Story:
    """A database with snapshots in a bucket, and a machine for each role."""

    home: Path
    server: S3Server
    bucket: str
    digest: str

    def machine(self, role: Role, **others: object) -> CommandLine:
        """Commands with the keys of `role`; with others the store's entry has these values."""
        home = self.home / f"{role.name}-{len([*self.home.iterdir()])}"
        home.mkdir()
        site = new_site(home)
        keys = keys_for(role, self.server, self.bucket)
        site.configure(str(self.home / "app.db"), stores=[keys.store(**others)], retention={"keep_last": 1, "daily": 0})
        return CommandLine(home)


@pytest.fixture(scope="module")
def story(seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> _Story:
    """Three snapshots of app.db, taken with put-only keys."""
    home, bucket = tmp_path_factory.mktemp("roles"), seaweed.new_bucket()
    create_database(home / "app.db", rows=50)
    story = _Story(home, seaweed, bucket, "")
    machine = story.machine(Role.PUT_ONLY, put_only=True)
    for title in ("first", "second", "third"):
        change_rows(home / "app.db", title)
        machine.run("now")
    return _Story(home, seaweed, bucket, content_digest(home / "app.db"))


@slow
def test_keys_for_restores_restore_and_cannot_do_more(story: _Story) -> None:
    """Listed, shown and restored on a machine that has nothing; a snapshot from there is refused."""
    machine = story.machine(Role.RESTORE)
    assert len(machine.json("list")["snapshots"]) == 3
    machine.run("show", "app@latest")
    machine.run("restore", "app@latest", "--to", "restored.db")
    assert content_digest(machine.home / "restored.db") == story.digest
    refused = machine.run("now", "--full", code=10)
    assert "denies access" in refused.reported("error")[0]


@slow
def test_keys_for_tests_record_what_they_find(story: _Story) -> None:
    """A drill reads everything and leaves its record, which the machine that backs up can read."""
    machine = story.machine(Role.TEST)
    settings = load(machine.home / "backupd.toml", {"HOME": str(machine.home)})
    (entry,) = settings.stores
    state = StateDirectory(machine.state)
    result = drill(Repository(open_store(entry), state).archive("app"), check_context())
    assert (result.error, str(result.outcome)) == (None, "proven")
    with closing(keys_for(Role.PUT_ONLY, story.server, story.bucket).client()) as client:
        listed = client.list_objects_v2(Bucket=story.bucket, Prefix=f"{PREFIX}/app/drills/")["Contents"]
        content = client.get_object(Bucket=story.bucket, Key=listed[0]["Key"])["Body"].read()
    assert str(result.id) in json.dumps(json.loads(content))


@slow
def test_keys_for_pruning_prune_without_the_database(story: _Story) -> None:
    """Two of three go, on a machine that knows only the database's name; packs are neither read nor written there."""
    machine = story.machine(Role.PRUNE)
    (machine.home / "backupd.toml").write_text(
        (machine.home / "backupd.toml").read_text().replace(str(story.home / "app.db"), "/nowhere/app.db")
    )
    newest = machine.json("list")["snapshots"][-1]["id"]
    assert "2 snapshots to the trash" in machine.run("prune").stdout
    assert [each["id"] for each in machine.json("list")["snapshots"]] == [newest]
    refused = machine.run("restore", "app@latest", "--to", "stolen.db", code=10)
    assert "put_only" in refused.reported("hint")[0]
    assert not (machine.home / "stolen.db").exists()
