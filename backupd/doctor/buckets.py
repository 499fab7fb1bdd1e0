"""Whether the settings of a bucket endanger snapshots, and whether keys that may only put can do no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import ExitCode, NoSuchObjectError, PutOnlyError, StoreError, StoreUnavailableError
from backupd.store import Versioning
from backupd.store.keys import PackKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backupd.doctor.findings import Finding, Subject
    from backupd.store import Bucket, LifecycleRule, Store

PUT_ONLY_POLICY = "give them the policy for put-only keys in docs/s3-providers.md, and nothing more"
"""The remedy for keys that may do more than put."""

# S3 denies what may not be read before it looks whether it is there: nothing has to be put to find that out.
_NO_PACK = PackKey("doctor", bytes(32))


def check_bucket(subject: Subject, bucket: Bucket) -> Iterator[Finding]:
    """Check each setting of a bucket. One that may not or cannot answer gives a note: many are set up so."""
    yield _check_lifecycle(subject, bucket)
    yield _answer(subject, bucket, "versioning", _check_versioning, "s3:GetBucketVersioning")
    yield _answer(subject, bucket, "object lock", _check_object_lock, "s3:GetBucketObjectLockConfiguration")


def _check_lifecycle(subject: Subject, bucket: Bucket) -> Finding:
    return _answer(subject, bucket, "lifecycle", _lifecycle, "s3:GetLifecycleConfiguration")


def _answer(
    subject: Subject,
    bucket: Bucket,
    check: str,
    question: Callable[[Subject, Bucket], Finding],
    permission: str,
) -> Finding:
    """The finding of `question`, or a note when the bucket does not answer it, with the `permission` it needs."""
    try:
        return question(subject, bucket)
    except StoreUnavailableError as error:
        return subject.note(check, f"was not answered: {error.message}", "run doctor again")
    except StoreError:
        return subject.note(
            check,
            "the bucket does not say: these credentials may not ask, or the server does not know the question",
            f"allow {permission} to let doctor check it, or look in the provider's console",
        )


def _lifecycle(subject: Subject, bucket: Bucket) -> Finding:
    """Whether the bucket itself deletes or archives objects of the store. Raises the errors of `Store`."""
    rules = bucket.lifecycle_rules()
    expiring = [rule for rule in rules if rule.expires]
    if expiring:
        return subject.error(
            "lifecycle",
            f"the bucket itself deletes objects of this store: {'; '.join(map(_described, expiring))}",
            "take these rules off the bucket, or give them another prefix: snapshots need old packs, and only backupd "
            "knows which; [retention] says how long snapshots stay",
            ExitCode.STORE_UNAVAILABLE,
        )
    if rules:
        return subject.warning(
            "lifecycle",
            f"the bucket moves objects of this store to an archive: {'; '.join(map(_described, rules))}",
            "take these rules off the bucket: a restore would have to wait for hours for each object",
        )
    return subject.ok("lifecycle", "no rule of the bucket deletes or archives objects of this store")


def _described(rule: LifecycleRule) -> str:
    what = rule.expires or f"to {rule.archive_class}"
    return f"rule {rule.name} {what}, prefix {rule.prefix!r}" if rule.prefix else f"rule {rule.name} {what}, everything"


def _check_versioning(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.versioning() is Versioning.OFF:
        return subject.ok("versioning", "off: what is deleted is gone")
    return subject.note(
        "versioning",
        "the bucket keeps versions: what backupd deletes stays there, unseen and paid for",
        "let a lifecycle rule delete noncurrent versions (and only those) after some days, such as 30",
    )


def _check_object_lock(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.has_object_lock():
        return subject.note(
            "object lock",
            "the bucket locks each object for a time: what backupd deletes before stays as a version",
            "keep the lock shorter than the retention, or know that space is freed late",
        )
    return subject.ok("object lock", "no object is locked against deletion")


def check_reading_packs(subject: Subject, store: Store) -> Finding:
    """Check whether put-only keys are refused to read packs."""
    try:
        store.get_range(str(_NO_PACK), offset=0, length=1)
    except PutOnlyError:
        return subject.ok("packs", "reading packs is refused to these keys, as put_only says")
    except NoSuchObjectError:
        return subject.warning(
            "packs",
            "put_only is set, and these keys may read packs: a thief of them has the databases",
            PUT_ONLY_POLICY,
        )
    except StoreError as error:
        return subject.note("packs", f"whether they can be read is not known: {error.message}", "run doctor again")
    return subject.warning("packs", f"returns {_NO_PACK}, which was never put there", "find out what answers there")


def check_put_only_bucket(subject: Subject, bucket: Bucket, probe_key: str) -> Iterator[Finding]:
    """Check whether the bucket keeps the objects that put-only keys can still replace."""
    yield _check_lifecycle(subject, bucket)
    keeps_versions = False
    try:
        versioning = bucket.versioning()
    except StoreUnavailableError as error:
        yield subject.note("versioning", f"was not answered: {error.message}", "run doctor again")
    except StoreError:
        yield subject.warning(
            "versioning",
            "the bucket does not say whether it keeps versions: without them, put_only protects nothing that these "
            "keys can overwrite",
            "allow s3:GetBucketVersioning, or look in the provider's console, also for a lock rule",
        )
    else:
        keeps_versions = versioning is Versioning.ON
        yield _check_needed_versioning(subject, versioning)
    if keeps_versions:
        yield _check_old_versions(subject, bucket, probe_key)
    yield _answer(subject, bucket, "object lock", _check_needed_lock, "s3:GetBucketObjectLockConfiguration")


def _check_needed_versioning(subject: Subject, versioning: Versioning) -> Finding:
    if versioning is Versioning.ON:
        return subject.ok("versioning", "on: what these keys overwrite can be recovered")
    return subject.warning(
        "versioning",
        f"{versioning}: put_only protects nothing, because these keys can overwrite every snapshot",
        "switch versioning on, or object lock, and let a lifecycle rule delete noncurrent versions after, say, 30 days",
    )


def _check_old_versions(subject: Subject, bucket: Bucket, probe_key: str) -> Finding:
    """Try to remove old versions of the probe alone, of which this run has put one."""
    try:
        bucket.remove_versions(probe_key)
    except StoreUnavailableError as error:
        return subject.note("old versions", f"were not tried: {error.message}", "run doctor again")
    except StoreError:
        return subject.ok("old versions", "cannot be removed by these keys")
    return subject.warning(
        "old versions", "these keys may remove old versions too: what they overwrite is not safe", PUT_ONLY_POLICY
    )


def _check_needed_lock(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.has_object_lock():
        return subject.ok("object lock", "on: what is stored, and its versions, cannot be removed before their time")
    return subject.note(
        "object lock",
        "off: keys that may delete versions, such as those of the account, can still remove everything",
        "keep those elsewhere; or use a bucket with object lock and a default retention",
    )
