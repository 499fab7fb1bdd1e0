"""A store in an S3-compatible bucket. Only the modules that are called after S3 know boto3."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from concurrent.futures import Future, wait
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from backupd.errors import BackupdError, DamageError, LimitReachedError, NoSuchObjectError
from backupd.store import ObjectFacts, StoredObject
from backupd.store.keys import require_safe_key, require_safe_prefix
from backupd.store.s3_client import Connection
from backupd.store.s3_errors import Asked, is_beyond_end, not_s3, out_of_time, translate, unusable
from backupd.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
    )

    from backupd.config import StoreSettings

_T = TypeVar("_T")

_READ_BLOCK_BYTES = 1 << 18
# Against a listing that never ends: no repository comes near, and this many take 2 GB of memory.
_MOST_LISTED = 5_000_000
_PAGE_COUNTS_AS = 100


class S3Store:
    """Implements `Store` in a bucket, with one request for one object.

    Each operation (for `list`, each page) has the time limit of the settings, retries included. At its end the caller
    gets `StoreUnavailableError` at once; the abandoned request ends at its next sign of life.
    """

    def __init__(self, settings: StoreSettings, *, most_listed: int = _MOST_LISTED) -> None:
        """`most_listed` objects are taken from one listing, and fewer when its pages have less than a hundred each."""
        self._settings = settings
        self._most_listed = most_listed
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._operation = threading.local()

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._settings.bucket}/{self._root}".rstrip("/")

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object with one PUT, whose checksum and signature both carry `sha256`.

        Raises OSError when `content` is a file that cannot be opened: that is not the store's doing.
        """
        asked = self._asked("put", key)
        checksum = base64.b64encode(sha256).decode()
        # Bytes go through a reader too: only then is the read timeout for each block, not for the whole upload, and a
        # server can refuse ("100-continue") before it is sent anything. Leaving the block stops an abandoned upload.
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as body:
            answer = self.bounded(
                asked,
                lambda client: client.put_object(
                    **self._object(key), **self._placement(), Body=body, ChecksumSHA256=checksum
                ),
            )
        if "ETag" not in answer:
            raise not_s3(asked)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """The whole object."""
        asked = self._asked("get", key)

        def read(answer: GetObjectOutputTypeDef) -> bytes:
            size_bytes = answer.get("ContentLength", 0)
            content = b"" if size_bytes > limit_bytes else self._read(answer, limit_bytes + 1)
            if max(size_bytes, len(content)) > limit_bytes:
                raise DamageError(f"{key} in {self.url} has more than the {limit_bytes} bytes that can be right")
            return content

        return self.bounded(asked, lambda client: self._get(client, asked, read))

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the object's end."""
        asked = self._asked("get", key)
        # HTTP has no empty range; one byte more finds out whether the object exists.
        last = offset + max(length, 1) - 1

        def read(answer: GetObjectOutputTypeDef) -> bytes:
            if "ContentRange" in answer:
                return self._read(answer, length)
            # A server may answer a range with the whole object (RFC 9110, 14.2).
            return self._read(answer, offset + length)[offset:]

        def get_range(client: S3Client) -> bytes:
            try:
                return self._get(client, asked, read, Range=f"bytes={offset}-{last}")
            except ClientError as error:
                if is_beyond_end(error):
                    return b""
                raise

        return self.bounded(asked, get_range)

    def facts(self, key: str) -> ObjectFacts:
        """What one HEAD tells. A bucket that is gone looks like a missing object: the answer has no words for why."""
        asked = self._asked("head", key)
        answer = self.bounded(asked, lambda client: client.head_object(**self._object(key), ChecksumMode="ENABLED"))
        if not answer.keys() >= {"ETag", "ContentLength"} or answer.get("ContentType", "").startswith("text/html"):
            raise not_s3(asked)
        return ObjectFacts(answer["ContentLength"], _sha256_of_whole(answer))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in the order of the keys' UTF-8 bytes.

        Holds all of them in memory, because not every server lists in this order (SeaweedFS goes by directory).
        """
        require_safe_prefix(prefix)
        found: list[StoredObject] = []
        room = self._most_listed
        for page in self._pages(prefix):
            listed = self._listed(page, prefix)
            found += listed
            room -= max(len(listed), _PAGE_COUNTS_AS)
            if room < 0:
                raise not_s3(self.asked("list", prefix))
        yield from sorted(found, key=lambda stored: stored.key.encode())

    def _listed(self, page: ListObjectsV2OutputTypeDef, prefix: str) -> Sequence[StoredObject]:
        """The objects on one page of a listing. What was not asked for would be taken for ours, and swept."""
        begins = self._root + prefix
        try:
            return [
                StoredObject(
                    key=item["Key"].removeprefix(self._root),
                    size_bytes=item["Size"],
                    modified_at=item["LastModified"].astimezone(UTC),
                )
                for item in page.get("Contents", [])
                # A "folder" that some tool made for the prefix itself has no key in this store.
                if item["Key"] != self._root and item["Key"].startswith(begins)
            ]
        except (KeyError, OverflowError) as error:
            raise not_s3(self.asked("list", prefix)) from error

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when it is not there."""
        asked = self._asked("delete", key)
        try:
            self.bounded(asked, lambda client: client.delete_object(**self._object(key)))
        except NoSuchObjectError:
            # Google's answer where Amazon's is a success.
            return

    def _pages(self, prefix: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        asked = self.asked("list", prefix)
        continuation: dict[str, Any] = {}
        while True:
            parameters = {"Bucket": self._settings.bucket, "Prefix": self._root + prefix, **continuation}
            page = self.bounded(asked, lambda client, given=parameters: client.list_objects_v2(**given))  # type: ignore[misc]
            if "IsTruncated" not in page:
                raise not_s3(asked)
            yield page
            if not page["IsTruncated"]:
                return
            following = {"ContinuationToken": page.get("NextContinuationToken")}
            if following in ({"ContinuationToken": None}, continuation):
                raise not_s3(asked)
            continuation = following

    def _get(
        self,
        client: S3Client,
        asked: Asked,
        read: Callable[[GetObjectOutputTypeDef], bytes],
        **parameters: Any,
    ) -> bytes:
        """One object through `read`, asked for again when its body breaks off: botocore retries what precedes that."""
        attempts_left = self._settings.max_attempts
        while True:
            attempts_left -= 1
            answer = client.get_object(**self._object(asked.key), **parameters)
            try:
                with closing(answer["Body"]):
                    # Ours are binary; a web server answers every path with its start page.
                    if "ETag" not in answer or answer.get("ContentType", "").startswith("text/html"):
                        raise not_s3(asked)
                    return read(answer)
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if not attempts_left:
                    raise

    def _read(self, answer: GetObjectOutputTypeDef, most_bytes: int) -> bytes:
        """The body, or its first `most_bytes`."""
        blocks = []
        while most_bytes > 0 and (block := answer["Body"].read(min(_READ_BLOCK_BYTES, most_bytes))):
            self._require_time()
            blocks.append(block)
            most_bytes -= len(block)
        return b"".join(blocks)

    def asked(self, verb: str, what: str) -> Asked:
        """The account of an operation, for its errors."""
        return Asked(verb, self._settings, what, self._found_endpoint)

    def bounded(self, asked: Asked, operation: Callable[[S3Client], _T]) -> _T:
        """What `operation` returns, or its error as a `StoreError`, within the time limit.

        Every call of botocore goes through here: whatever it, or a library under it, raises is this store's error.

        It runs in a thread of its own, because no setting of botocore or urllib3 bounds a name server that does not
        answer, a credential process that hangs, or a server that sends one byte a minute.
        """
        limit = self._settings.time_limit.total_seconds()
        outcome: Future[_T] = Future()

        def run() -> None:
            self._operation.asked, self._operation.deadline = asked, time.monotonic() + limit
            try:
                outcome.set_result(operation(self._client()))
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                outcome.set_exception(error)

        try:
            start_thread(run, name=f"s3-{asked.verb}")
        except LimitReachedError as error:
            raise translate(error, asked) from error
        if not wait([outcome], timeout=limit).done:
            raise out_of_time(asked)
        try:
            return outcome.result()
        except BackupdError:
            raise
        except Exception as error:
            raise translate(error, asked) from error

    def _require_time(self, **_: object) -> None:
        """Raise when this thread's operation was given up on. Also botocore's hook before each attempt."""
        if time.monotonic() > self._operation.deadline:
            raise out_of_time(self._operation.asked)

    def _client(self) -> S3Client:
        """The one client of this store, for a thread that has an operation. Raises `StoreError`."""
        # The thread that makes the client may never come back: a credential process hangs.
        if not self._lock.acquire(timeout=self._settings.time_limit.total_seconds()):
            raise out_of_time(self._operation.asked)
        try:
            if self._connection is None:
                self._connection = Connection(self._settings, before_send=self._require_time)
        except Exception as error:
            raise unusable(error, self._operation.asked) from error
        finally:
            self._lock.release()
        try:
            return self._connection.client
        except Exception as error:
            raise unusable(error, self._operation.asked) from error

    def _found_endpoint(self) -> str | None:
        # Without the lock: who makes the client, and cannot, holds it.
        connection = self._connection
        return None if connection is None else connection.endpoint_url

    def _asked(self, verb: str, key: str) -> Asked:
        require_safe_key(key)
        return self.asked(verb, key)

    def _object(self, key: str) -> Mapping[str, Any]:
        return {"Bucket": self._settings.bucket, "Key": self._root + key}

    def _placement(self) -> Mapping[str, Any]:
        """How the store is to keep an object, as parameters of a PUT."""
        wanted = {
            "StorageClass": self._settings.storage_class,
            "ServerSideEncryption": self._settings.server_side_encryption,
            "SSEKMSKeyId": self._settings.sse_kms_key_id,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def _sha256_of_whole(answer: HeadObjectOutputTypeDef) -> bytes | None:
    """The SHA-256 that a server keeps of an object, unless it is one over the parts of a multipart upload."""
    if answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(answer.get("ChecksumSHA256", ""), validate=True)
    except ValueError:
        return None  # of parts: base64, a hyphen, and how many
    return digest if len(digest) == hashlib.sha256().digest_size else None
