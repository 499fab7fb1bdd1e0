"""What a bucket says of itself that endangers snapshots, or keeps what was deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import ExitCode, StoreError, StoreUnavailableError
from backupd.store import Versioning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backupd.doctor.findings import Finding, Subject
    from backupd.store import Bucket, LifecycleRule


def findings(subject: Subject, bucket: Bucket) -> Iterator[Finding]:
    """One finding for each question. A bucket that may not or cannot answer is a note: many are set up so."""
    yield from answers(
        subject,
        bucket,
        ("lifecycle", lifecycle, "s3:GetLifecycleConfiguration"),
        ("versioning", _versioning, "s3:GetBucketVersioning"),
        ("object lock", _object_lock, "s3:GetBucketObjectLockConfiguration"),
    )


def answers(
    subject: Subject, bucket: Bucket, *questions: tuple[str, Callable[[Subject, Bucket], Finding], str]
) -> Iterator[Finding]:
    """A finding for each question: what it checks, how it is asked, and the permission that it needs."""
    for check, question, permission in questions:
        try:
            yield question(subject, bucket)
        except StoreUnavailableError as error:
            yield subject.note(check, f"was not answered: {error.message}", "run doctor again")
        except StoreError:
            yield subject.note(
                check,
                "the bucket does not say: these credentials may not ask, or the server does not know the question",
                f"allow {permission} if doctor is to look, or look in the provider's console",
            )


def lifecycle(subject: Subject, bucket: Bucket) -> Finding:
    """Whether the bucket itself deletes or archives objects of the store. Raises the errors of `Store`."""
    rules = bucket.lifecycle_rules()
    expiring = [rule for rule in rules if rule.expires]
    if expiring:
        return subject.error(
            "lifecycle",
            f"the bucket itself deletes objects of this store: {'; '.join(map(_told, expiring))}",
            "take these rules off the bucket, or give them another prefix: snapshots need old packs, and only backupd "
            "knows which; [retention] says how long snapshots stay",
            ExitCode.STORE_UNAVAILABLE,
        )
    if rules:
        return subject.warning(
            "lifecycle",
            f"the bucket moves objects of this store to an archive: {'; '.join(map(_told, rules))}",
            "take these rules off the bucket: a restore would have to wait for hours for each object",
        )
    return subject.ok("lifecycle", "no rule of the bucket deletes or archives objects of this store")


def _told(rule: LifecycleRule) -> str:
    what = rule.expires or f"to {rule.archive_class}"
    return f"rule {rule.name} {what}, prefix {rule.prefix!r}" if rule.prefix else f"rule {rule.name} {what}, everything"


def _versioning(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.versioning() is Versioning.OFF:
        return subject.ok("versioning", "off: what is deleted is gone")
    return subject.note(
        "versioning",
        "the bucket keeps versions: what backupd deletes stays there, unseen and paid for",
        "let a lifecycle rule delete noncurrent versions (and only those) after some days, say 30",
    )


def _object_lock(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.has_object_lock():
        return subject.note(
            "object lock",
            "the bucket locks each object for a time: what backupd deletes before stays as a version",
            "keep the lock shorter than the retention, or know that space is freed late",
        )
    return subject.ok("object lock", "no object is locked against deletion")
