"""A store in an S3-compatible bucket: each request within its time limit, each failure as a `StoreError`.

Only the modules whose names begin with s3 import boto3.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from backupd.concurrency import has_ended, start_call
from backupd.errors import BackupdError, DamageError, LimitReachedError, NoSuchObjectError
from backupd.store import ObjectFacts, StoredObject
from backupd.store.keys import require_safe_key, require_safe_prefix
from backupd.store.s3_client import Connection
from backupd.store.s3_errors import Operation, is_beyond_end, not_s3, out_of_time, translate, unusable

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
# A limit for endless listings: no repository has so many objects, which take 2 GB of memory.
_MOST_LISTED = 5_000_000
_PAGE_COUNTS_AS = 100


class Requests:
    """The one connection to a store, and the time limit for each operation on it. Threads may share it.

    At the end of the limit, retries included, the caller gets `StoreUnavailableError` at once; the abandoned request
    ends with its next byte or attempt.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._limit_seconds = settings.time_limit.total_seconds()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._running = threading.local()

    def operation(self, verb: str, what: str) -> Operation:
        """Describe an operation, for `run` and for its errors."""
        return Operation(verb, self._settings, what, self._found_endpoint)

    def run(self, operation: Operation, call: Callable[[S3Client], _T]) -> _T:
        """Return what `call` returns, or raise its failure as a `StoreError`, within the time limit.

        All use of botocore goes through here: any exception of it, or of a library below it, is this store's error.

        It runs in a thread of its own, because no setting of botocore or urllib3 limits a name server that does not
        answer, a credential process that hangs, or a server that sends one byte a minute.
        """

        def run() -> _T:
            self._running.operation, self._running.deadline = operation, time.monotonic() + self._limit_seconds
            return call(self._client())

        try:
            outcome = start_call(run, name=f"s3-{operation.verb}")
        except LimitReachedError as error:
            raise translate(error, operation) from error
        if not has_ended(outcome, within_seconds=self._limit_seconds):
            raise out_of_time(operation)
        try:
            return outcome.result()
        except BackupdError:
            raise
        except Exception as error:
            raise translate(error, operation) from error

    def require_time(self, **_: object) -> None:
        """Raise when the operation of this thread has reached its time limit. botocore's hook before each attempt."""
        if time.monotonic() > self._running.deadline:
            raise out_of_time(self._running.operation)

    def _client(self) -> S3Client:
        """Return the store's client, for a thread that runs an operation. Raises `StoreError`."""
        # A thread that makes the client may never return: a credential process hangs.
        if not self._lock.acquire(timeout=self._limit_seconds):
            raise out_of_time(self._running.operation)
        try:
            if self._connection is None:
                self._connection = Connection(self._settings, before_send=self.require_time)
        except Exception as error:
            raise unusable(error, self._running.operation) from error
        finally:
            self._lock.release()
        try:
            return self._connection.client
        except Exception as error:
            raise unusable(error, self._running.operation) from error

    def _found_endpoint(self) -> str | None:
        # Without the lock: a thread that hangs while it makes the client holds it.
        connection = self._connection
        return None if connection is None else connection.endpoint_url


class S3Store:
    """Implements `Store` in a bucket, with one request per object.

    Each operation (for `list`, each page) has the time limit of the settings: see `Requests`.
    """

    def __init__(self, settings: StoreSettings, *, most_listed: int = _MOST_LISTED) -> None:
        """A listing may have `most_listed` objects, and fewer when its pages have less than a hundred each."""
        self._settings = settings
        self._most_listed = most_listed
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._requests = Requests(settings)

    @property
    def url(self) -> str:
        """The URL as `s3://bucket/prefix`."""
        return f"s3://{self._settings.bucket}/{self._root}".rstrip("/")

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object with one PUT, whose checksum and signature both carry `sha256`.

        Raises OSError when `content` is a file that cannot be opened: that is not the store's doing.
        """
        operation = self._operation("put", key)
        checksum = base64.b64encode(sha256).decode()
        # Bytes go through a reader too: only then does the read timeout apply to each block, not to the whole upload,
        # and a server can refuse ("100-continue") before anything is sent. Leaving the block stops an abandoned upload.
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as body:
            answer = self._requests.run(
                operation,
                lambda client: client.put_object(
                    **self._object(key), **self._placement(), Body=body, ChecksumSHA256=checksum
                ),
            )
        if "ETag" not in answer:
            raise not_s3(operation)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return the whole object."""
        operation = self._operation("get", key)

        def read(answer: GetObjectOutputTypeDef) -> bytes:
            size_bytes = answer.get("ContentLength", 0)
            content = b"" if size_bytes > limit_bytes else self._read(answer, limit_bytes + 1)
            if max(size_bytes, len(content)) > limit_bytes:
                raise DamageError(f"{key} in {self.url} has more than the {limit_bytes} bytes that can be right")
            return content

        return self._requests.run(operation, lambda client: self._get(client, operation, read))

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the object's end."""
        operation = self._operation("get", key)
        # HTTP has no empty range; one byte more finds out whether the object exists.
        last = offset + max(length, 1) - 1

        def read(answer: GetObjectOutputTypeDef) -> bytes:
            if "ContentRange" in answer:
                return self._read(answer, length)
            # A server may answer a range with the whole object (RFC 9110, 14.2).
            return self._read(answer, offset + length)[offset:]

        def get_range(client: S3Client) -> bytes:
            try:
                return self._get(client, operation, read, Range=f"bytes={offset}-{last}")
            except ClientError as error:
                if is_beyond_end(error):
                    return b""
                raise

        return self._requests.run(operation, get_range)

    def facts(self, key: str) -> ObjectFacts:
        """Return what one HEAD reports. A missing bucket looks like a missing object: the answer gives no reason."""
        operation = self._operation("head", key)
        answer = self._requests.run(
            operation, lambda client: client.head_object(**self._object(key), ChecksumMode="ENABLED")
        )
        if not answer.keys() >= {"ETag", "ContentLength"} or answer.get("ContentType", "").startswith("text/html"):
            raise not_s3(operation)
        return ObjectFacts(answer["ContentLength"], _sha256_of_whole(answer))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List all objects whose key begins with `prefix`, in the order of the keys' UTF-8 bytes.

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
                raise not_s3(self._requests.operation("list", prefix))
        yield from sorted(found, key=lambda stored: stored.key.encode())

    def survey(self, prefix: str, *, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:  # noqa: ARG002
        """List as `list` does: each page has the sizes."""
        return self.list(prefix)

    def look(self, key: str) -> StoredObject | None:
        """Return one object as a listing shows it; None when it does not exist."""
        return next((stored for stored in self.list(key) if stored.key == key), None)

    def _listed(self, page: ListObjectsV2OutputTypeDef, prefix: str) -> Sequence[StoredObject]:
        """Return the objects on one page of a listing, without any outside `prefix`: a sweep would delete them."""
        begins = self._root + prefix
        try:
            return [
                StoredObject(
                    key=item["Key"].removeprefix(self._root),
                    size_bytes=item["Size"],
                    modified_at=item["LastModified"].astimezone(UTC),
                )
                for item in page.get("Contents", [])
                # Some tools make a "folder" object for the prefix itself, which has no key in this store.
                if item["Key"] != self._root and item["Key"].startswith(begins)
            ]
        except (KeyError, OverflowError) as error:
            raise not_s3(self._requests.operation("list", prefix)) from error

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when it is not there."""
        operation = self._operation("delete", key)
        try:
            self._requests.run(operation, lambda client: client.delete_object(**self._object(key)))
        except NoSuchObjectError:
            # Google's answer where Amazon reports success.
            return

    def _pages(self, prefix: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        operation = self._requests.operation("list", prefix)
        continuation: dict[str, Any] = {}
        while True:
            parameters = {"Bucket": self._settings.bucket, "Prefix": self._root + prefix, **continuation}
            page = self._requests.run(operation, lambda client, given=parameters: client.list_objects_v2(**given))  # type: ignore[misc]
            if "IsTruncated" not in page:
                raise not_s3(operation)
            yield page
            if not page["IsTruncated"]:
                return
            following = {"ContinuationToken": page.get("NextContinuationToken")}
            if following in ({"ContinuationToken": None}, continuation):
                raise not_s3(operation)
            continuation = following

    def _get(
        self,
        client: S3Client,
        operation: Operation,
        read: Callable[[GetObjectOutputTypeDef], bytes],
        **parameters: Any,
    ) -> bytes:
        """Read one object with `read`, again when its body breaks off: botocore retries only what precedes the body."""
        attempts_left = self._settings.max_attempts
        while True:
            attempts_left -= 1
            answer = client.get_object(**self._object(operation.key), **parameters)
            try:
                with closing(answer["Body"]):
                    # A web server may answer every path with its start page.
                    if "ETag" not in answer or answer.get("ContentType", "").startswith("text/html"):
                        raise not_s3(operation)
                    return read(answer)
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if not attempts_left:
                    raise

    def _read(self, answer: GetObjectOutputTypeDef, most_bytes: int) -> bytes:
        """Return the body, or its first `most_bytes`."""
        blocks = []
        while most_bytes > 0 and (block := answer["Body"].read(min(_READ_BLOCK_BYTES, most_bytes))):
            self._requests.require_time()
            blocks.append(block)
            most_bytes -= len(block)
        return b"".join(blocks)

    def _operation(self, verb: str, key: str) -> Operation:
        require_safe_key(key)
        return self._requests.operation(verb, key)

    def _object(self, key: str) -> Mapping[str, Any]:
        return {"Bucket": self._settings.bucket, "Key": self._root + key}

    def _placement(self) -> Mapping[str, Any]:
        """Return how the store must keep an object, as parameters of a PUT."""
        wanted = {
            "StorageClass": self._settings.storage_class,
            "ServerSideEncryption": self._settings.server_side_encryption,
            "SSEKMSKeyId": self._settings.sse_kms_key_id,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def _sha256_of_whole(answer: HeadObjectOutputTypeDef) -> bytes | None:
    """Return the SHA-256 that a server keeps of an object, if it is not that of a multipart upload."""
    if answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(answer.get("ChecksumSHA256", ""), validate=True)
    except ValueError:
        return None  # of a multipart upload: base64, a hyphen, and the number of parts
    return digest if len(digest) == hashlib.sha256().digest_size else None
