"""Properties of a bucket: its clock, versioning, object lock and lifecycle rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from backupd.store import LifecycleRule, Versioning
from backupd.store.keys import require_safe_key
from backupd.store.s3 import Requests
from backupd.store.s3_errors import code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mypy_boto3_s3 import S3Client

    from backupd.config import StoreSettings

_NO_LIFECYCLE = {"NoSuchLifecycleConfiguration"}
_NO_OBJECT_LOCK = {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"}
# Objects in these classes must be restored for hours before they can be read.
_ARCHIVE_CLASSES = {"GLACIER", "DEEP_ARCHIVE"}


class S3Bucket:
    """Implements `Bucket`, with one request per answer, within the time limit of the store."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._requests = Requests(settings)

    def clock_ahead(self) -> timedelta | None:
        """Compare the `Date` header of an answer, in whole seconds, with the middle of the time that it took."""

        def ask(client: S3Client) -> timedelta | None:
            asked_at = datetime.now(UTC)
            answer = client.list_objects_v2(Bucket=self._settings.bucket, Prefix=self._root, MaxKeys=1)
            answered_at = datetime.now(UTC)
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            if date is None:
                return None
            try:
                theirs = parsedate_to_datetime(date).astimezone(UTC) + timedelta(seconds=0.5)
            except (ValueError, OverflowError):
                return None
            return theirs - (asked_at + (answered_at - asked_at) / 2)

        return self._requests.run(self._requests.operation("list", ""), ask)

    def versioning(self) -> Versioning:
        """Return what the bucket does with an object that is deleted."""
        answer = self._ask("versioning", lambda client, bucket: client.get_bucket_versioning(Bucket=bucket))
        status = answer.get("Status")
        return {"Enabled": Versioning.ON, "Suspended": Versioning.SUSPENDED}.get(str(status), Versioning.OFF)

    def has_object_lock(self) -> bool:
        """Whether the bucket has a default retention: without one, only objects that request a lock have one."""
        answer = self._ask(
            "object lock",
            lambda client, bucket: client.get_object_lock_configuration(Bucket=bucket),
            absent=_NO_OBJECT_LOCK,
        )
        return bool(answer.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention"))

    def lifecycle_rules(self) -> tuple[LifecycleRule, ...]:
        """Return the enabled rules that delete or archive current objects of this store, or some of them."""
        answer = self._ask(
            "lifecycle rules",
            lambda client, bucket: client.get_bucket_lifecycle_configuration(Bucket=bucket),
            absent=_NO_LIFECYCLE,
        )
        return harmful_rules(answer.get("Rules", []), self._root)

    def remove_versions(self, key: str) -> None:
        """Remove all versions that the bucket kept of a deleted object, and its delete markers."""
        require_safe_key(key)
        name = self._root + key

        def remove(client: S3Client) -> None:
            answer = client.list_object_versions(Bucket=self._settings.bucket, Prefix=name)
            for kept in (*answer.get("Versions", []), *answer.get("DeleteMarkers", [])):
                if kept["Key"] == name:
                    client.delete_object(Bucket=self._settings.bucket, Key=name, VersionId=kept["VersionId"])

        self._requests.run(self._requests.operation("delete", key), remove)

    def _ask(
        self, what: str, question: Callable[[S3Client, str], Any], *, absent: Iterable[str] = ()
    ) -> Mapping[str, Any]:
        """Return the answer to a question about the bucket; an empty one for an error with one of the codes `absent`.

        The codes are compared in the thread of the request, where the error is still botocore's.
        """

        def ask(client: S3Client) -> Mapping[str, Any]:
            try:
                answer: Mapping[str, Any] = question(client, self._settings.bucket)
            except ClientError as error:
                if code_of(error) in absent:
                    return {}
                raise
            return answer

        return self._requests.run(self._requests.operation("read", f"the {what} of the bucket"), ask)


def harmful_rules(rules: Iterable[Mapping[str, Any]], root: str) -> tuple[LifecycleRule, ...]:
    """Return the rules of a lifecycle configuration of S3 that delete or archive current objects below `root`.

    Ignored are rules that are disabled, that concern only old versions, delete markers or unfinished uploads, that
    need a tag (backupd's objects have none), and those for other prefixes.
    """
    found = []
    for rule in rules:
        prefix, needs_tag = _reach(rule)
        is_ours = root.startswith(prefix) or prefix.startswith(root)
        expires, archive_class = _expiry(rule.get("Expiration", {})), _archive_class(rule.get("Transitions", []))
        if rule.get("Status") == "Enabled" and is_ours and not needs_tag and (expires or archive_class):
            found.append(LifecycleRule(str(rule.get("ID") or "without a name"), prefix, expires, archive_class))
    return tuple(found)


def _reach(rule: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the prefix of a rule, which has three possible places, and whether it is for objects with a tag."""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    prefix = chosen.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""
    return str(prefix), bool(chosen.get("Tag") or both.get("Tags"))


def _expiry(expiration: Mapping[str, Any]) -> str | None:
    if days := expiration.get("Days"):
        return f"after {days} day{'' if days == 1 else 's'}"
    date = expiration.get("Date")
    return None if date is None else f"on {date:%Y-%m-%d}"


def _archive_class(transitions: Iterable[Mapping[str, Any]]) -> str | None:
    classes = (str(transition.get("StorageClass")) for transition in transitions)
    return next((name for name in classes if name in _ARCHIVE_CLASSES), None)
