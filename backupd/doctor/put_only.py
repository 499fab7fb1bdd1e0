"""Whether keys that are to put only can do no more, and whether the bucket keeps what they overwrite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.doctor import buckets
from backupd.errors import NoSuchObjectError, PutOnlyError, StoreError, StoreUnavailableError
from backupd.store import Versioning
from backupd.store.keys import PackKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.doctor.findings import Finding, Subject
    from backupd.doctor.probe import Probe
    from backupd.store import Bucket, Store

# S3 denies what may not be read before it looks whether it is there: nothing has to be put to find that out.
_NO_PACK = PackKey("doctor", bytes(32))
_POLICY = "give them the policy for put-only keys in docs/s3-providers.md, and nothing besides"


def deletion(subject: Subject, probe: Probe) -> Finding:
    """Whether the removal of the probe is refused. Raises the errors of `Store` for any other answer."""
    try:
        probe.remove()
    except PutOnlyError:
        return subject.ok("delete", f"deleting is refused to these keys, as put_only says: {probe.key} stays there")
    return subject.warning(
        "delete", "put_only is set, and these keys may delete: whoever steals them can remove every snapshot", _POLICY
    )


def packs(subject: Subject, store: Store) -> Finding:
    """Whether packs are refused."""
    try:
        store.get_range(str(_NO_PACK), offset=0, length=1)
    except PutOnlyError:
        return subject.ok("packs", "reading packs is refused to these keys, as put_only says")
    except NoSuchObjectError:
        return subject.warning(
            "packs", "put_only is set, and these keys may read packs: whoever steals them has the databases", _POLICY
        )
    except StoreError as error:
        return subject.note("packs", f"whether they are given is not known: {error.message}", "run doctor again")
    return subject.warning("packs", f"gives {_NO_PACK}, which nobody put there", "find out what answers there")


def bucket_findings(subject: Subject, bucket: Bucket, probe_key: str) -> Iterator[Finding]:
    """Whether the bucket keeps what such keys can still do: put other content in place of what is there."""
    yield from buckets.answers(subject, bucket, ("lifecycle", buckets.lifecycle, "s3:GetLifecycleConfiguration"))
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
        yield _versioning(subject, versioning)
    if keeps_versions:
        yield _old_versions(subject, bucket, probe_key)
    yield from buckets.answers(subject, bucket, ("object lock", _object_lock, "s3:GetBucketObjectLockConfiguration"))


def _versioning(subject: Subject, versioning: Versioning) -> Finding:
    if versioning is Versioning.ON:
        return subject.ok("versioning", "on: what these keys overwrite can be had back")
    return subject.warning(
        "versioning",
        f"{versioning}: put_only protects nothing, because these keys can overwrite every snapshot",
        "switch versioning on, or object lock, and let a lifecycle rule delete noncurrent versions after 30 days, say",
    )


def _old_versions(subject: Subject, bucket: Bucket, probe_key: str) -> Finding:
    """Tried on the probe alone, of which this very run has put a version."""
    try:
        bucket.remove_versions(probe_key)
    except StoreUnavailableError as error:
        return subject.note("old versions", f"were not tried: {error.message}", "run doctor again")
    except StoreError:
        return subject.ok("old versions", "cannot be removed by these keys")
    return subject.warning(
        "old versions", "these keys may remove old versions too: what they overwrite is not safe", _POLICY
    )


def _object_lock(subject: Subject, bucket: Bucket) -> Finding:
    if bucket.has_object_lock():
        return subject.ok("object lock", "on: nobody removes what is stored, nor its versions, before its time")
    return subject.note(
        "object lock",
        "off: keys that may delete versions, such as those of the account, can still remove everything",
        "keep those elsewhere; or use a bucket with object lock and a default retention",
    )
