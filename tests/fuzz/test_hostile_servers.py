"""A server, or who is in between, that answers as no S3 server does: bounded time, bounded memory, no foreign key."""

from __future__ import annotations

import gzip
import resource
from typing import TYPE_CHECKING

import pytest
from harness.loopback import Handler, Loopback, Request, loopback

from backupd.config import StoreSettings
from backupd.errors import DamageError, StoreError, StoreRefusedError
from backupd.repository import Repository
from backupd.repository.history import Listing
from backupd.state import StateDirectory
from backupd.store.s3 import S3Store

if TYPE_CHECKING:
    from pathlib import Path

_ID = "20261122T085557123Z-7f3a91c2"
_PACK = f"{'0' * 64}.zst"
_MOST_GROWN_BYTES = 100 << 20


def _settings(server: Loopback, **others: object) -> StoreSettings:
    return StoreSettings.read(
        {
            "url": "s3://bucket/team/app",
            "endpoint_url": server.endpoint_url,
            "access_key_id": "KEY",
            "secret_access_key": "the secret of the store",
            "max_attempts": 1,
            **others,
        }
    )


def _page(handler: Handler, *keys: str, token: str | None = None, item: str = "") -> None:
    size = "<Size>1</Size><LastModified>2026-11-22T08:55:57Z</LastModified>"
    contents = "".join(f"<Contents><Key>{key}</Key>{item or size}</Contents>" for key in keys)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    truncated = "true" if token else "false"
    body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{contents}{more}</ListBucketResult>"
    handler.answer(200, body.encode(), Content_Type="application/xml")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_what_was_not_asked_for_is_not_listed() -> None:
    """Keys of another database, or of another prefix, would be taken for this one's packs, and swept."""
    own = f"team/app/app/packs/{_PACK}"
    others = (f"team/app/other/packs/{_PACK}", f"app/packs/{_PACK}", "/etc/passwd", "../x", f"other/app/packs/{_PACK}")
    with loopback(lambda handler, _: _page(handler, *others, own, "team/app/app/../../x")) as server:
        survey = Listing.of("app", S3Store(_settings(server)).list("app/"))
    assert [stored.key for stored in survey.packs.values()] == [f"app/packs/{_PACK}"]
    assert survey.foreign == ["app/../../x"]
    assert (survey.manifests, survey.trash) == ({}, {})


def test_a_listing_that_never_ends_is_refused() -> None:
    """A listing that has a new token on each page and no objects is refused."""
    asked: list[Request] = []

    def answer(handler: Handler, request: Request) -> None:
        asked.append(request)
        _page(handler, token=f"token-{len(asked)}")

    with loopback(answer) as server, pytest.raises(StoreRefusedError):
        list(S3Store(_settings(server), most_listed=1000).list(""))
    assert 1 < len(asked) < 20


@pytest.mark.parametrize(
    "item",
    [
        "<Size>1</Size>",
        "<LastModified>2026-11-22T08:55:57Z</LastModified>",
        "<Size>many</Size><LastModified>2026-11-22T08:55:57Z</LastModified>",
        "<Size>1</Size><LastModified>yesterday</LastModified>",
        "<Size>1</Size><LastModified>0001-01-01T00:00:00+14:00</LastModified>",
    ],
)
def test_an_object_without_what_each_has(item: str) -> None:
    """An error of the store, and no bug of ours."""
    with loopback(lambda handler, _: _page(handler, "team/app/x", item=item)) as server, pytest.raises(StoreError):
        list(S3Store(_settings(server)).list(""))


def test_entities_are_not_expanded() -> None:
    """A billion laughs are an error."""
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "{"ha" * 50}">{entities}]><ListBucketResult><Name>&e8;</Name></ListBucketResult>'
    before = _peak_bytes()
    with loopback(lambda handler, _: handler.answer(200, bomb.encode())) as server, pytest.raises(StoreError):
        list(S3Store(_settings(server)).list(""))
    assert _peak_bytes() - before < _MOST_GROWN_BYTES


def test_endless_object_is_cut_at_its_limit(tmp_path: Path) -> None:
    """10 GB in the place of backupd.json: the first bytes are enough, whether the length is announced or not."""

    def reported(handler: Handler, _: Request) -> None:
        handler.start(200, length=10_000_000_000)
        handler.wfile.write(bytes(1 << 16))
        handler.close_connection = True

    def without_length(handler: Handler, _: Request) -> None:
        handler.send_response_only(200)
        handler.send_header("ETag", '"etag"')
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        for _block in range(10_000):
            handler.wfile.write(bytes(1 << 20))

    before = _peak_bytes()
    for answer in (reported, without_length):
        with loopback(answer) as server, pytest.raises(DamageError):
            Repository(S3Store(_settings(server)), StateDirectory(tmp_path)).exists()
    assert _peak_bytes() - before < _MOST_GROWN_BYTES


def test_a_compressed_answer_stays_compressed() -> None:
    """What says that it is gzip is not unpacked: 4 kB would be 4 MB and more."""
    body = gzip.compress(bytes(4 << 20))
    with loopback(lambda handler, _: handler.answer(200, body, Content_Encoding="gzip")) as server:
        assert S3Store(_settings(server)).get("x", limit_bytes=1 << 16) == body


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_another_host_is_not_followed(status: int) -> None:
    """A redirect to another host, by its address or as a region, gets no request and so no signature."""
    with loopback(lambda handler, _: handler.answer(200, b"stolen")) as other:

        def answer(handler: Handler, _: Request) -> None:
            host = other.endpoint_url.removeprefix("http://")
            handler.error(status, "PermanentRedirect", Location=f"{other.endpoint_url}/x", x_amz_bucket_region=host)

        with loopback(answer) as server, pytest.raises(StoreError):
            S3Store(_settings(server)).get("x", limit_bytes=100)
        assert other.requests == []
