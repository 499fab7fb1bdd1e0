"""Receipts against a real S3 server, which keeps the SHA-256 of what it takes; and against servers that do not tell."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.loopback import loopback

from backupd.config import StoreSettings
from backupd.errors import NoSuchObjectError, StoreRefusedError
from backupd.format.records import CheckOutcome
from backupd.store import ObjectFacts, open_store
from backupd.verify import Kind, Level
from backupd.verify.results import Depth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.loopback import Handler, Request
    from harness.s3_server import S3Server
    from harness.stored import Stored

_SHA256 = base64.b64encode(hashlib.sha256(b"content").digest()).decode()


@pytest.fixture
def on_s3(stored: Stored, seaweed: S3Server) -> Stored:
    """Two snapshots in a bucket."""
    stored.store = open_store(seaweed.settings(prefix="backups"))
    stored.back_up()
    stored.back_up(rows=1)
    return stored


def test_checksums_of_the_store_are_compared(on_s3: Stored) -> None:
    """The checksums of the store are compared with one request for each pack, and no pack is read."""
    store = on_s3.counting()
    found = on_s3.verify(store, level=Level.UPLOAD_CHECK, wants_all=True)
    assert {(each.outcome, each.depth) for each in found.snapshots} == {(CheckOutcome.PRESENT, Depth.CHECKSUMS)}
    assert found.findings == ()
    packs = len([*on_s3.store.list("app/packs/")])
    assert Counter(store.calls)["head"] == packs


def test_object_replaced_by_one_of_the_same_size_is_found(on_s3: Stored, seaweed: S3Server) -> None:
    """A listing cannot show it; the checksum that the server computed of the new content does."""
    pack = max(on_s3.store.list("app/packs/"), key=lambda each: each.size_bytes)
    other = bytes(pack.size_bytes)
    on_s3.store.put(pack.key, other, sha256=hashlib.sha256(other).digest())
    found = on_s3.verify(level=Level.UPLOAD_CHECK)
    assert [(each.kind, each.key, len(each.snapshots)) for each in found.findings] == [
        (Kind.PACK_WRONG_CHECKSUM, pack.key, 2)
    ]
    assert found.exit_code == 20
    assert [each.kind for each in on_s3.verify().findings] == [Kind.PACK_WRONG_CHECKSUM]


def test_object_without_a_checksum_is_no_damage(on_s3: Stored, seaweed: S3Server) -> None:
    """An object without a checksum, as another tool copies it, is not checkable and not damage."""
    pack = max(on_s3.store.list("app/packs/"), key=lambda each: each.size_bytes)
    bucket, prefix = on_s3.store.url.removeprefix("s3://").split("/", 1)
    content = on_s3.store.get(pack.key, limit_bytes=1 << 24)
    seaweed.client().put_object(Bucket=bucket, Key=f"{prefix}/{pack.key}", Body=content)
    found = on_s3.verify(level=Level.UPLOAD_CHECK)
    assert [(each.kind, each.reason) for each in found.findings] == [
        (Kind.NOT_CHECKABLE, "sizes only: the store keeps no checksum of 1 packs")
    ]
    assert found.snapshots[0].depth is Depth.SIZES


def test_keys_that_may_not_read_checksums_check_sizes(on_s3: Stored) -> None:
    """Put-only keys: that is reported once, and is no error."""

    class Refusing(FaultyStore):
        def facts(self, key: str) -> ObjectFacts:
            self._count("head")
            raise StoreRefusedError(f"cannot head {key}")

    found = on_s3.verify(Refusing(on_s3.store), level=Level.UPLOAD_CHECK, wants_all=True)
    assert found.exit_code == 0
    (finding,) = found.findings
    assert finding.reason.startswith("sizes only: the store does not give its checksums")


def test_packs_are_verified_on_s3(on_s3: Stored) -> None:
    """Packs on S3 are verified whole, and in pieces as a rate requires."""
    for rate in (None, 10**6):
        found = on_s3.verify(wants_all=True, rate=rate)
        assert {(each.outcome, each.depth) for each in found.snapshots} == {(CheckOutcome.INTACT, Depth.PAGES)}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-amz-checksum-sha256": _SHA256}, hashlib.sha256(b"content").digest()),
        ({"x-amz-checksum-sha256": _SHA256, "x-amz-checksum-type": "FULL_OBJECT"}, hashlib.sha256(b"content").digest()),
        ({"x-amz-checksum-sha256": _SHA256, "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-sha256": f"{_SHA256}-3"}, None),
        ({"x-amz-checksum-sha256": "no base64"}, None),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, None),
        ({}, None),
    ],
)
def test_only_a_sha_256_of_the_whole_object_counts(headers: dict[str, str], expected: bytes | None) -> None:
    """The one of a multipart upload is computed over the checksums of its parts."""

    def answer(handler: Handler, _: Request) -> None:
        handler.start(200, length=7, **headers)

    with _asked(answer) as facts:
        assert facts() == ObjectFacts(7, expected)


def test_missing_and_denied_objects_are_different_errors() -> None:
    """Missing and denied objects differ by the status alone, because the answer to a HEAD has no body."""
    for status, expected in ((404, NoSuchObjectError), (403, StoreRefusedError)):
        with (
            _asked(lambda handler, _, status=status: handler.start(status, length=0)) as facts,  # type: ignore[misc]
            pytest.raises(expected),
        ):
            facts()


@contextmanager
def _asked(answer: Callable[[Handler, Request], None]) -> Iterator[Callable[[], ObjectFacts]]:
    """Asks a store whose server answers so for the facts of an object."""
    with loopback(answer) as server:
        settings = {
            "url": "s3://bucket",
            "endpoint_url": server.endpoint_url,
            "access_key_id": "KEY",
            "secret_access_key": "secret",
            "max_attempts": 1,
        }
        store = open_store(StoreSettings.read(settings))
        yield lambda: store.facts("app/packs/a")
