from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from harness.loopback import loopback

from backupd.config import StoreSettings
from backupd.doctor import buckets
from backupd.doctor.findings import Subject, Verdict
from backupd.errors import StoreRefusedError
from backupd.store import LifecycleRule, Versioning, open_bucket
from backupd.store.s3_bucket import S3Bucket, harmful_rules

if TYPE_CHECKING:
    from harness.loopback import Handler, Request
    from harness.s3_server import S3Server

_LIST = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def _rule(**parts: Any) -> dict[str, Any]:
    return {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, **parts}


_EXPIRE = {"Expiration": {"Days": 30}}


@pytest.mark.parametrize(
    "rule",
    [
        _rule(**_EXPIRE),
        _rule(Filter={"Prefix": "some/"}, **_EXPIRE),
        _rule(Filter={"Prefix": "some/prefix/app/packs/"}, **_EXPIRE),
        _rule(Filter={"And": {"Prefix": "some/", "ObjectSizeGreaterThan": 1000}}, **_EXPIRE),
        _rule(Filter={"ObjectSizeGreaterThan": 1000}, **_EXPIRE),
        {"Status": "Enabled", "Prefix": "some", **_EXPIRE},
        _rule(Expiration={"Date": datetime(2027, 1, 1, tzinfo=UTC)}),
        _rule(Transitions=[{"Days": 1, "StorageClass": "STANDARD_IA"}, {"Days": 9, "StorageClass": "DEEP_ARCHIVE"}]),
    ],
)
def test_rules_that_do_harm(rule: dict[str, Any]) -> None:
    """A rule that deletes or archives current objects below the store's prefix, or some of them, does harm."""
    assert len(harmful_rules([rule], "some/prefix/")) == 1


@pytest.mark.parametrize(
    "rule",
    [
        _rule(Status="Disabled", Expiration={"Days": 30}),
        _rule(Filter={"Prefix": "other/"}, **_EXPIRE),
        _rule(Filter={"Prefix": "some/prefix2"}, **_EXPIRE),
        _rule(Filter={"Tag": {"Key": "a", "Value": "b"}}, **_EXPIRE),
        _rule(Filter={"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}, **_EXPIRE),
        _rule(Expiration={"ExpiredObjectDeleteMarker": True}),
        _rule(NoncurrentVersionExpiration={"NoncurrentDays": 30}),
        _rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 1}),
        _rule(Transitions=[{"Days": 30, "StorageClass": "STANDARD_IA"}]),
    ],
)
def test_rules_that_do_none(rule: dict[str, Any]) -> None:
    """Old versions, delete markers, unfinished uploads, other prefixes, tagged objects, and classes that answer."""
    assert harmful_rules([rule], "some/prefix/") == ()


def test_the_effect_of_a_rule_is_reported() -> None:
    """A harmful rule is reported with its name, its prefix, and its time."""
    assert harmful_rules([_rule(ID="tidy", Filter={"Prefix": "so"}, **_EXPIRE)], "some/") == (
        LifecycleRule("tidy", "so", "after 30 days", None),
    )


def test_a_bucket_as_it_was_made(moto: S3Server) -> None:
    """A new bucket is not versioned, not locked and has no rules, and the doctor finds it in order."""
    bucket = open_bucket(moto.settings(prefix="some"))
    assert bucket is not None
    assert bucket.versioning() is Versioning.OFF
    assert not bucket.has_object_lock()
    assert bucket.lifecycle_rules() == ()
    found = [*buckets.check_bucket(Subject("store"), bucket)]
    assert [(each.check, each.verdict) for each in found] == [
        ("lifecycle", Verdict.OK),
        ("versioning", Verdict.OK),
        ("object lock", Verdict.OK),
    ]


@pytest.mark.parametrize("kind", ["moto", "seaweed"])
def test_a_bucket_that_keeps_and_deletes_by_itself(kind: str, request: pytest.FixtureRequest) -> None:
    """An expiring rule is an error that names it; versions and locks are notes."""
    server: S3Server = request.getfixturevalue(kind)
    settings = server.settings(prefix="some")
    client, name = server.client(), settings.bucket
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    client.put_bucket_lifecycle_configuration(
        Bucket=name,
        LifecycleConfiguration={
            "Rules": [{"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": "some/"}, **_EXPIRE}]
        },
    )
    found = {each.check: each for each in buckets.check_bucket(Subject("store"), S3Bucket(settings))}
    assert found["lifecycle"].verdict is Verdict.ERROR
    assert "rule tidy after 30 days, prefix 'some/'" in found["lifecycle"].message
    assert found["versioning"].verdict is Verdict.NOTE
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    assert S3Bucket(settings).versioning() is Versioning.SUSPENDED


def test_a_bucket_with_object_lock(moto: S3Server) -> None:
    """A default retention holds every object; a bucket that merely could lock holds none of ours."""
    client = moto.client()
    client.create_bucket(Bucket="locked-bucket", ObjectLockEnabledForBucket=True)
    settings = moto.settings().replaced(url="s3://locked-bucket")
    assert not S3Bucket(settings).has_object_lock()
    client.put_object_lock_configuration(
        Bucket="locked-bucket",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    assert S3Bucket(settings).has_object_lock()


def test_a_bucket_that_may_not_answer() -> None:
    """Credentials for objects alone are a good idea: that is no more than a note, which names the permission."""

    def deny(handler: Handler, _request: Request) -> None:
        handler.error(403, "AccessDenied")

    with loopback(deny) as server:
        settings = _settings(server.endpoint_url)
        with pytest.raises(StoreRefusedError):
            S3Bucket(settings).versioning()
        found = [*buckets.check_bucket(Subject("store"), S3Bucket(settings))]
    assert [each.verdict for each in found] == [Verdict.NOTE] * 3
    assert "s3:GetLifecycleConfiguration" in str(found[0].remedy)


@pytest.mark.parametrize("ahead", [timedelta(hours=-2), timedelta(0), timedelta(minutes=3)])
def test_the_clock_of_a_server(ahead: timedelta) -> None:
    """The clock of a server is read from the date of its answer, to the second."""

    def answer(handler: Handler, _request: Request) -> None:
        handler.answer(200, _LIST, Date=format_datetime(datetime.now(UTC) + ahead, usegmt=True))

    with loopback(answer) as server:
        found = S3Bucket(_settings(server.endpoint_url)).clock_ahead()
    assert found is not None
    assert abs(found - ahead) < timedelta(seconds=2)


def test_a_server_without_a_date() -> None:
    """The clock of a server that sends no date is unknown."""
    with loopback(lambda handler, _: handler.answer(200, _LIST)) as server:
        assert S3Bucket(_settings(server.endpoint_url)).clock_ahead() is None


def test_a_directory_has_no_bucket() -> None:
    """A directory store has no bucket to be asked about."""
    assert open_bucket(StoreSettings(url="/backups")) is None


def _settings(endpoint_url: str) -> StoreSettings:
    return StoreSettings.read(
        {
            "url": "s3://bucket/prefix",
            "endpoint_url": endpoint_url,
            "access_key_id": "key",
            "secret_access_key": "secret",
            "max_attempts": 1,
        }
    )
