from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness.extent import slow
from harness.loopback import Handler, Loopback, Request, loopback
from harness.ports import reserved_port
from moto.backends import get_backend

from backupd.config import StoreSettings
from backupd.config.values import Secret
from backupd.errors import (
    DamageError,
    NoSuchObjectError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
)
from backupd.store import open_store
from backupd.store.s3 import S3Store
from backupd.store.s3_errors import Operation, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.s3_server import S3Server

_MIB = 1 << 20
_SECRET = "the/secret+access-key"
_HTML = b"<!DOCTYPE html><html><head><title>Login</title></head><body></body></html>"
_LIST = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def settings_for(endpoint_url: str | None, **others: object) -> StoreSettings:
    """Settings with keys, and time limits for tests that do not want to wait."""
    return StoreSettings.read(
        {
            "url": "s3://bucket/prefix",
            "endpoint_url": endpoint_url,
            "access_key_id": "KEYIDKEYIDKEYIDKEYID",
            "secret_access_key": _SECRET,
            "time_limit": timedelta(seconds=20),
            "max_attempts": 2,
            **others,
        }
    )


@contextmanager
def answering(answer: Callable[[Handler, Request], None], **others: object) -> Iterator[tuple[S3Store, Loopback]]:
    """A store whose server answers so."""
    with loopback(answer) as server:
        yield S3Store(settings_for(server.endpoint_url, **others)), server


def failure(store: S3Store, verb: str = "get") -> StoreError:
    """The error of one operation, which must not contain a secret, nor in its hint."""
    calls = {
        "get": lambda: store.get("app/a", limit_bytes=100),
        "put": lambda: put(store, "app/a", b"content"),
        "list": lambda: list(store.list("app/")),
        "delete": lambda: store.delete("app/a"),
    }
    with pytest.raises(StoreError) as caught:
        calls[verb]()
    assert _SECRET not in f"{caught.value.message} {caught.value.hint}"
    assert "KEYID" not in f"{caught.value.message} {caught.value.hint}"
    assert store.url in caught.value.message or not isinstance(caught.value, StoreRefusedError)
    assert "\n" not in f"{caught.value.message}{caught.value.hint}"
    return caught.value


def put(store: S3Store, key: str, content: bytes) -> None:
    """Put with the right hash."""
    store.put(key, content, sha256=hashlib.sha256(content).digest())


# What is sent


def test_put_carries_its_hash_twice_and_no_trailer(tmp_path: Path):
    """One PUT sends plain bytes, with the given hash as checksum and in the signature."""
    content = os.urandom(_MIB + 1)
    digest = hashlib.sha256(content).digest()
    (tmp_path / "file").write_bytes(content)
    with answering(lambda handler, _: handler.answer(200)) as (store, server):
        for source in (content, tmp_path / "file"):
            store.put("app/a", source, sha256=digest)
    for request in server.requests:
        assert (request.method, request.path, request.body) == ("PUT", "/bucket/prefix/app/a", content)
        assert request.headers["x-amz-checksum-sha256"] == base64.b64encode(digest).decode()
        assert request.headers["x-amz-content-sha256"] == digest.hex()
        assert request.headers["Content-Length"] == str(len(content))
        sent = {name.lower() for name in request.headers}
        assert not sent & {"x-amz-trailer", "content-encoding", "transfer-encoding", "x-amz-checksum-crc32"}
        assert not sent & {"x-amz-storage-class", "x-amz-server-side-encryption"}


def test_the_given_hash_is_not_calculated_again():
    """The hash in the signature is the caller's, even a wrong one: the store is to find that out."""
    with answering(lambda handler, _: handler.answer(200)) as (store, server):
        store.put("app/a", b"content", sha256=bytes(32))
    assert server.requests[0].headers["x-amz-content-sha256"] == "00" * 32


def test_the_signature_is_valid(seaweed: S3Server):
    """A server that verifies signatures takes a PUT that was signed with the known hash."""
    settings = seaweed.settings(prefix="some prefix/é")
    put(S3Store(settings), "app/a", b"content")
    with closing(seaweed.client()) as client:
        stored = client.get_object(Bucket=settings.bucket, Key="some prefix/é/app/a")["Body"].read()
    assert stored == b"content"


def test_storage_class_and_encryption_are_sent():
    """What the settings say about keeping objects goes with each PUT, and with nothing else."""
    others = {"storage_class": "STANDARD_IA", "server_side_encryption": "aws:kms", "sse_kms_key_id": "the-key"}
    with answering(lambda handler, _: handler.answer(200), **others) as (store, server):
        put(store, "app/a", b"content")
        store.get("app/a", limit_bytes=7)
    names = ["x-amz-storage-class", "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"]
    assert [server.requests[0].headers[name] for name in names] == ["STANDARD_IA", "aws:kms", "the-key"]
    assert [server.requests[1].headers[name] for name in names] == [None, None, None]


def test_a_session_token_is_sent():
    """Temporary credentials come with their token."""
    with answering(lambda handler, _: handler.answer(200), session_token="the-token") as (store, server):
        put(store, "app/a", b"")
    assert server.requests[0].headers["x-amz-security-token"] == "the-token"


def test_addressing_by_path_and_by_host():
    """An endpoint gets the bucket in the path unless the settings say in the host name."""
    with answering(lambda handler, _: handler.answer(200, _LIST)) as (store, server):
        list(store.list("app/"))
        assert server.requests[0].path.startswith("/bucket?")
    by_host = S3Store(settings_for("http://s3.invalid", addressing_style="virtual"))
    request = {"ClientMethod": "get_object", "Params": {"Bucket": "bucket", "Key": "a"}}
    assert by_host._requests._client().generate_presigned_url(**request).startswith("http://bucket.s3.invalid/a?")


def test_the_region_is_that_of_the_settings():
    """The region is signed; without a setting it is the one that every other server takes."""
    for region, expected in ((None, "us-east-1"), ("eu-central-1", "eu-central-1")):
        with answering(lambda handler, _: handler.answer(200), region=region) as (store, server):
            put(store, "a", b"")
        assert f"/{expected}/s3/aws4_request" in server.requests[0].headers["Authorization"]


def test_nothing_is_sent_before_the_first_call():
    """Opening a store makes no request."""
    with loopback(lambda handler, _: handler.answer(200)) as server:
        open_store(settings_for(server.endpoint_url))
        assert server.requests == []


def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """Without keys in the settings, the usual AWS chain finds the credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with loopback(lambda handler, _: handler.answer(200)) as server:
        put(S3Store(StoreSettings(url="s3://bucket", endpoint_url=server.endpoint_url)), "a", b"")
    assert "Credential=FROMENVIRONMENT/" in server.requests[0].headers["Authorization"]


def test_credentials_of_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A profile of the AWS credentials file can be named; one that is not there is refused."""
    (tmp_path / "credentials").write_text("[backups]\naws_access_key_id=FROMPROFILE\naws_secret_access_key=x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with loopback(lambda handler, _: handler.answer(200)) as server:
        url = {"url": "s3://bucket", "endpoint_url": server.endpoint_url}
        put(S3Store(StoreSettings(**url, profile="backups")), "a", b"")
        error = failure(S3Store(StoreSettings(**url, profile="nosuch")))
    assert "Credential=FROMPROFILE/" in server.requests[0].headers["Authorization"]
    assert isinstance(error, StoreRefusedError)
    assert "nosuch" in error.message


def test_missing_credentials_are_an_error_with_a_hint():
    """Without credentials the hint names the settings, and no request is sent."""
    with loopback(lambda handler, _: handler.answer(200)) as server:
        error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url=server.endpoint_url)))
    assert isinstance(error, StoreRefusedError)
    assert "no credentials were found" in error.message
    assert "access_key_id" in (error.hint or "")
    assert server.requests == []


# The chain of credentials


def _run_by_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {tool}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("script", "reported"),
    [
        ("exit 3", "the program of `credential_process` failed"),
        ("echo '{not JSON'", "Expecting property name"),
        ("echo '[1, 2]'", "'list' object"),
        (r"printf '\377'", "can't decode"),
        ('python3 -c "print(200000 * chr(91))"', "recursion"),
        (
            'echo \'{"Version": 1, "AccessKeyId": 5, "SecretAccessKey": "x"}\'',
            "aws_access_key_id (custom-process) is no",
        ),
        (
            'echo \'{"Version": 1, "AccessKeyId": "KEYIDKEYID\\\\n", "SecretAccessKey": "x"}\'',
            "aws_access_key_id (custom-process) ends with a line break",
        ),
        (
            'echo \'{"Version": 1, "AccessKeyId": "x", "SecretAccessKey": "x", "Expiration": "never"}\'',
            "Unknown string format",
        ),
    ],
)
def test_a_process_for_credentials_that_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reported: str
):
    """A program that gives no credentials, whatever it does, is an error that names them."""
    _run_by_the_chain(tmp_path, monkeypatch, script)
    with loopback(lambda handler, _: handler.answer(200)) as server:
        error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url=server.endpoint_url)))
    assert isinstance(error, StoreRefusedError)
    assert "the credentials cannot be used: " in error.message
    assert reported in error.message
    assert "access_key_id" in (error.hint or "")
    assert server.requests == []


@pytest.mark.parametrize(
    ("environ", "reported"),
    [
        ({"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nosuch"}, "/nosuch: no"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "{garbage}"}, "Unable to parse config file"),
        ({"AWS_ACCESS_KEY_ID": "KEYIDKEYID"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "KEYIDKEYID\n", "AWS_SECRET_ACCESS_KEY": _SECRET}, "AWS_ACCESS_KEY_ID (env) ends with"),
        ({"AWS_ACCESS_KEY_ID": '"KEYIDKEYID"', "AWS_SECRET_ACCESS_KEY": _SECRET}, "quotes"),
        (
            {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": f"{_SECRET}\r"},
            "AWS_SESSION_TOKEN (env) ends with a line break",
        ),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.invalid/"}, "Unsupported host"),
        ({"AWS_DEFAULT_REGION": "a b"}, "region_name"),
        ({"HTTPS_PROXY": "http://user@["}, "Invalid IPv6 URL"),
    ],
)
def test_an_environment_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], reported: str
):
    """A variable of the AWS tools that is wrong, or names what cannot be read, is an error of this store."""
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\xfe[default")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("{garbage}", str(garbage)))
    with loopback(lambda handler, _: handler.answer(200)) as server:
        error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url=server.endpoint_url)))
    assert isinstance(error, StoreRefusedError)
    assert reported in error.message
    assert server.requests == []


@pytest.mark.parametrize(
    ("make", "reported"),
    [
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.mkdir(), "is a directory"),
    ],
    ids=["loop", "directory"],
)
@pytest.mark.parametrize("profile", [None, "backups"])
def test_a_credentials_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], reported: str, profile: str | None
):
    """A credentials file that cannot be read is named in the error, although botocore passes over it."""
    file = tmp_path / "credentials"
    make(file)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url="http://127.0.0.1:1", profile=profile)))
    assert isinstance(error, StoreRefusedError)
    assert error.message.endswith(f"the credentials cannot be used: {file}: {reported}")


@slow
def test_a_service_for_credentials_that_is_down(monkeypatch: pytest.MonkeyPatch):
    """A service for credentials that is down is an error that may pass, and not one of the store."""
    port = reserved_port()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/x")
    with loopback(lambda handler, _: handler.answer(200)) as server:
        error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url=server.endpoint_url)))
    assert isinstance(error, StoreUnavailableError)
    assert "the service that gives the credentials cannot be reached" in error.message


# Lists


def test_a_list_has_as_many_pages_as_it_needs(moto: S3Server):
    """Objects on several pages of a listing are all listed, in order, each once."""
    settings = moto.settings(prefix="some")
    names = [f"app/packs/{number:04}" for number in range(2001)]
    backend = get_backend("s3")["123456789012"]["aws"]
    for name in [*reversed(names), "app/snapshots/1"]:
        backend.put_object(settings.bucket, f"some/{name}", b"")
    backend.put_object(settings.bucket, "something/app/packs/1", b"")
    assert [stored.key for stored in S3Store(settings).list("app/packs/")] == names


def test_a_list_that_never_ends_is_noticed():
    """A server that gives the same page for ever is refused."""
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>same</NextContinuationToken></ListBucketResult>"
    )
    with answering(lambda handler, _: handler.answer(200, page)) as (store, server):
        assert isinstance(failure(store, "list"), StoreRefusedError)
    assert len(server.requests) == 2


def test_the_folder_of_the_prefix_is_no_object(seaweed: S3Server):
    """An empty object that a bucket browser made for the prefix itself is not listed."""
    settings = seaweed.settings(prefix="folder")
    with closing(seaweed.client()) as client:
        client.put_object(Bucket=settings.bucket, Key="folder/", Body=b"")
    put(S3Store(settings), "a", b"")
    assert [stored.key for stored in S3Store(settings).list("")] == ["a"]


# Time


def never(handler: Handler, _: Request) -> None:
    """Do not answer."""
    handler.loopback.closing.wait()


def drip_head(handler: Handler, _: Request) -> None:
    """Send the first line, and then headers without an end, byte by byte."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    while not handler.loopback.closing.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def drip_body(handler: Handler, _: Request) -> None:
    """Send a body byte by byte."""
    handler.start(200, length=100)
    while not handler.loopback.closing.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()


@pytest.mark.parametrize("answer", [never, drip_head, drip_body])
@pytest.mark.parametrize("verb", ["get", "put", "list", "delete"])
def test_the_time_limit_holds(answer: Callable[[Handler, Request], None], verb: str):
    """An operation with its retries ends at its time limit, whatever a server does instead of answering."""
    with answering(answer, time_limit=timedelta(seconds=0.3), max_attempts=5) as (store, _):
        started = time.monotonic()
        error = failure(store, verb)
        assert time.monotonic() - started < 5
    assert isinstance(error, StoreUnavailableError)
    assert error.retry_can_help
    assert "within 0.3 s" in error.message


def test_the_time_limit_holds_for_uploads(tmp_path: Path):
    """A server that stops reading does not hold an upload for longer than the limit."""
    (tmp_path / "large").write_bytes(bytes(32 * _MIB))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = S3Store(
            settings_for(f"http://127.0.0.1:{listener.getsockname()[1]}", time_limit=timedelta(seconds=1.5))
        )
        with pytest.raises(StoreUnavailableError, match=r"within 1\.5 s"):
            store.put("app/a", tmp_path / "large", sha256=bytes(32))


def test_an_abandoned_operation_sends_nothing_more():
    """After its time limit an operation is not tried again in the background."""
    ready = threading.Event()

    def answer(handler: Handler, _: Request) -> None:
        ready.wait(10)
        handler.error(503, "SlowDown")

    with answering(answer, time_limit=timedelta(seconds=1), max_attempts=5) as (store, server):
        before = set(threading.enumerate())
        failure(store)
        workers = [thread for thread in set(threading.enumerate()) - before if thread.name == "s3-get"]
        ready.set()
        for worker in workers:
            worker.join(10)
        assert len(workers) == len(server.requests) == 1


def test_hanging_server_is_detected_before_the_time_limit():
    """The read timeout ends an attempt, and its message says how long nothing was heard."""
    with answering(never, read_timeout=timedelta(seconds=0.5)) as (store, server):
        error = failure(store)
    assert isinstance(error, StoreUnavailableError)
    assert "sent nothing for 0.5 s" in error.message
    assert len(server.requests) == 2


# Faults that pass


@pytest.mark.parametrize("verb", ["get", "put", "list", "delete"])
def test_a_fault_that_passes_is_survived(verb: str):
    """An operation succeeds at its third attempt, after a 503 and an aborted connection."""
    faults = ["503", "reset"]

    def answer(handler: Handler, request: Request) -> None:
        fault = faults.pop(0) if faults else None
        if fault == "503":
            handler.error(503, "ServiceUnavailable")
        elif fault == "reset":
            reset(handler, request)
        else:
            handler.answer(200, _LIST if verb == "list" else b"")

    with answering(answer, max_attempts=3) as (store, server):
        calls = {
            "get": lambda: store.get("app/a", limit_bytes=7),
            "put": lambda: put(store, "app/a", b"content"),
            "list": lambda: list(store.list("app/")),
            "delete": lambda: store.delete("app/a"),
        }
        calls[verb]()
    assert len(server.requests) == 3
    if verb == "put":
        assert {request.body for request in server.requests} == {b"content"}


def reset(handler: Handler, _: Request) -> None:
    """Break the connection off with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()


def truncate(handler: Handler, _: Request) -> None:
    """Promise 50 bytes, send 20, and close."""
    handler.start(200, length=50)
    handler.wfile.write(b"x" * 20)
    handler.close_connection = True


def test_a_body_that_breaks_off_is_asked_for_again():
    """A download that ends early is repeated; the caller sees only the whole content."""
    broken = [True]

    def answer(handler: Handler, request: Request) -> None:
        if broken:
            broken.clear()
            truncate(handler, request)
        else:
            handler.answer(200, b"content")

    with answering(answer) as (store, server):
        assert store.get("app/a", limit_bytes=100) == b"content"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (truncate, "did not complete its answer"),
        (reset, "closed the connection|connection reset"),
        (lambda handler, _: handler.error(500, "InternalError"), r"overloaded or out of order \(InternalError\)"),
        (lambda handler, _: handler.error(503, "SlowDown"), "SlowDown"),
        (lambda handler, _: handler.answer(502, _HTML, Content_Type="text/html"), r"out of order \(502\)"),
        (lambda handler, _: handler.answer(429), r"out of order \(429\)"),
    ],
)
def test_a_fault_that_does_not_pass(answer: Callable[[Handler, Request], None], expected: str):
    """A fault that lasts ends a get after its attempts, as an error that may pass and says what happened."""
    with answering(answer) as (store, server):
        error = failure(store)
    assert isinstance(error, StoreUnavailableError)
    assert re.search(expected, error.message)
    assert len(server.requests) == 2


# Answers that stay


_REFUSALS = [
    (403, "AccessDenied", StoreRefusedError, "denies access", "s3://bucket/prefix for a typing error"),
    (403, "InvalidAccessKeyId", StoreRefusedError, "does not know this access key", "access_key_id"),
    (403, "SignatureDoesNotMatch", StoreRefusedError, "secret key is wrong", "secret_access_key"),
    (400, "ExpiredToken", StoreRefusedError, "token is invalid or expired", "new one"),
    (404, "NoSuchBucket", StoreRefusedError, "bucket bucket does not exist at http://127.0.0.1", "create it"),
    (507, "XMinioStorageFull", StoreFullError, "no space or quota", "quota"),
    (403, "QuotaExceeded", StoreFullError, "no space or quota", "quota"),
    (400, "BadDigest", StoreUnavailableError, "other bytes than were sent", "network"),
    (400, "XAmzContentSHA256Mismatch", StoreUnavailableError, "other bytes than were sent", "network"),
    (501, "NotImplemented", StoreRefusedError, "does not implement", "newer"),
    (403, "InvalidObjectState", StoreRefusedError, "archive", "restore it"),
]


@pytest.mark.parametrize(("status", "code", "kind", "message", "hint"), _REFUSALS)
@pytest.mark.parametrize("verb", ["get", "put", "list"])
def test_each_refusal_has_its_error_class_and_hint(
    verb: str, status: int, code: str, kind: type[StoreError], message: str, hint: str
):
    """Every known refusal has its class, and says what happened and what to do."""
    with answering(lambda handler, _: handler.error(status, code, "the server's own words")) as (store, _):
        error = failure(store, verb)
    assert type(error) is kind
    assert message in error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("verb", "rights"),
    [
        ("get", {"s3:GetObject", "s3:ListBucket"}),
        ("put", {"s3:PutObject"}),
        ("list", {"s3:ListBucket"}),
        ("delete", {"s3:DeleteObject"}),
    ],
)
def test_what_is_denied_names_its_own_right(verb: str, rights: set[str]):
    """A denied operation names only its own right, so that no right is granted without need."""
    with answering(lambda handler, _: handler.error(403, "AccessDenied")) as (store, _):
        error = failure(store, verb)
    assert set(re.findall(r"s3:[A-Z]\w+", error.hint or "")) == rights


def test_the_environment_may_say_where_the_server_is(monkeypatch: pytest.MonkeyPatch):
    """Errors name the server of AWS_ENDPOINT_URL, without its password, or Amazon S3 if it is theirs."""
    with loopback(lambda handler, _: handler.error(403, "AccessDenied")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url.replace("//", "//user:password@"))
        error = failure(S3Store(settings_for(None)))
        assert f"{server.endpoint_url} denies access" in error.message
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        amazon = Operation("get", settings_for(None), "x", lambda: "https://s3.eu-central-1.amazonaws.com")
        assert (amazon.endpoint, amazon._replace(found_endpoint=lambda: None).endpoint) == ("Amazon S3", "Amazon S3")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "HTTPS_PROXY"])
def test_a_variable_with_an_impossible_port_is_named(monkeypatch: pytest.MonkeyPatch, variable: str):
    """The hint names the variable of the environment that has to be corrected, and a new try cannot help."""
    monkeypatch.setenv(variable, "https://127.0.0.1:99999")
    error = failure(S3Store(settings_for(None)))
    assert isinstance(error, StoreRefusedError)
    assert "https://127.0.0.1:99999" in error.message
    assert variable in (error.hint or "")


def test_an_unknown_refusal_keeps_its_name():
    """An unknown code stays an error, with the code and the server's words, but no key's id."""
    with answering(lambda handler, _: handler.error(418, "OutOfTea", "AKIAABCDEFGHIJKLMNOP may have\n none")) as (
        store,
        _,
    ):
        error = failure(store)
    assert type(error) is StoreError
    assert "OutOfTea: *** may have  none" in error.message


_HOSTILE = "\x1b[2J\u202e\x85" + "A" * 100_000


@pytest.mark.parametrize("verb", ["get", "put", "list", "delete"])
@pytest.mark.parametrize("place", ["code", "message", "region"])
def test_what_a_server_says_is_short_and_harmless(verb: str, place: str):
    """An error repeats at most a few hundred characters of a server's answer, and no terminal commands."""

    def answer(handler: Handler, _: Request) -> None:
        described = {"Code": "PermanentRedirect", "Message": "", "Region": ""} | {place.title(): _HOSTILE[4:]}
        body = "".join(f"<{name}>{value}</{name}>" for name, value in described.items())
        handler.answer(400, f"<Error>{body}</Error>".encode()[: 1 << 16], Content_Type="application/xml")

    with answering(answer) as (store, _):
        error = failure(store, verb)
    reported = f"{error.message}{error.hint}"
    assert len(reported) < 1000
    assert reported.isprintable()


def test_what_a_credential_process_says_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error does not repeat what a credential process says, which may contain secrets."""
    (tmp_path / "config").write_text("[default]\ncredential_process = sh -c 'echo its-Secret/value >&2; exit 3'\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    error = failure(S3Store(StoreSettings(url="s3://bucket", endpoint_url="http://127.0.0.1:1")))
    assert isinstance(error, StoreRefusedError)
    assert "`credential_process` failed" in error.message
    assert "its-Secret" not in f"{error.message}{error.hint}"


def test_a_credential_process_that_hangs_keeps_no_thread_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A credential process that hangs fails each operation in time, and one thread waits for it."""
    (tmp_path / "config").write_text("[default]\ncredential_process = sleep 20\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    limit = timedelta(seconds=0.4)
    store = S3Store(StoreSettings(url="s3://bucket", endpoint_url="http://127.0.0.1:1", time_limit=limit))
    for _ in range(3):
        error = failure(store)
        assert isinstance(error, StoreUnavailableError)
        assert "no credentials were found within 0.4 s" in error.message
    time.sleep(0.2)
    assert [thread.name for thread in threading.enumerate()].count("s3-get") == 1


def test_a_server_that_redirects_for_ever():
    """Botocore follows each redirect of a bucket from within the one before."""

    def answer(handler: Handler, _: Request) -> None:
        handler.answer(307, b"", Location="http://127.0.0.1:1/")

    with answering(answer, max_attempts=1) as (store, _):
        error = failure(store)
    assert isinstance(error, StoreRefusedError)
    assert "endlessly" in error.message


@pytest.mark.parametrize("before", [0, 280, 290, 299])
def test_the_beginning_of_a_secret_is_not_left_where_an_answer_is_cut(before: int):
    """A server that repeats what it was sent may do so just where its words become too many."""

    def answer(handler: Handler, _: Request) -> None:
        handler.error(418, "Teapot", "x" * before + _SECRET + "y" * 300)

    with answering(answer) as (store, _):
        reported = failure(store).message
    assert "Teapot" in reported
    assert _SECRET[:4] not in reported


def test_an_error_whose_causes_go_in_a_ring_is_one_like_others():
    """An exception whose chain of causes is a ring is translated like any other."""
    one, other = ValueError("one"), OSError("other")
    one.__cause__, other.__cause__ = other, one
    error = translate(one, Operation("get", settings_for("http://127.0.0.1:1"), "app/a", lambda: None))
    assert isinstance(error, StoreError)


@pytest.mark.parametrize("status", [200, 400, 403, 500])
@pytest.mark.parametrize("verb", ["get", "put", "list"])
def test_an_answer_without_an_end_takes_little_memory(status: int, verb: str):
    """100 MB in one word of an error or of a listing are neither kept nor shown."""

    def endless(handler: Handler, _: Request) -> None:
        head = b"ListBucketResult><NextMarker" if status == 200 else b"Error><Code"
        handler.start(status, length=100 * _MIB, Content_Type="application/xml")
        handler.wfile.write(b"<" + head + b">")
        while not handler.loopback.closing.is_set():
            handler.wfile.write(b"A" * _MIB)

    with answering(endless, max_attempts=1) as (store, _):
        tracemalloc.start()
        try:
            with pytest.raises((StoreError, DamageError)) as caught:
                {
                    "get": lambda: store.get("app/a", limit_bytes=1000),
                    "put": lambda: put(store, "app/a", b"content"),
                    "list": lambda: list(store.list("app/")),
                }[verb]()
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert most_bytes < 120 * _MIB


@pytest.mark.parametrize(
    ("endpoint", "right"),
    [
        ("{url}/bucket", "{url}"),
        ("{url}/bucket/", "{url}"),
        ("{url}/bucket/prefix", "{url}"),
        ("{url}/behind/bucket", "{url}/behind"),
    ],
)
@pytest.mark.parametrize(
    "answer",
    [
        lambda handler, _: handler.error(404, "NoSuchKey", "The specified key does not exist."),
        lambda handler, _: handler.error(404, "NoSuchBucket"),
        lambda handler, _: handler.error(403, "SignatureDoesNotMatch"),
        lambda handler, _: handler.error(403, "AccessDenied"),
        lambda handler, _: handler.error(400, "InvalidURI"),
        lambda handler, _: handler.answer(404),
        lambda handler, _: handler.answer(200, b"<html><body/></html>"),
    ],
    ids=["no key", "no bucket", "signature", "denied", "uri", "404", "page"],
)
def test_a_bucket_in_the_endpoint_is_an_error_with_a_hint(
    answer: Callable[[Handler, Request], None], endpoint: str, right: str
):
    """A bucket in `endpoint_url` is what the error names, whatever the server answers."""
    with loopback(answer) as server:
        store = S3Store(settings_for(endpoint.format(url=server.endpoint_url)))
        error = failure(store, "list")
    assert isinstance(error, StoreRefusedError)
    assert "the bucket bucket is in `endpoint_url` too" in error.message
    assert error.hint == f"set `endpoint_url` to {right.format(url=server.endpoint_url)}"


def test_a_bucket_in_the_host_name_of_the_endpoint():
    """A listing that looks for an object says for certain that it is the bucket; the name alone may be the server's."""
    with loopback(lambda handler, _: handler.error(404, "NoSuchKey")) as server:
        port = server.endpoint_url.rpartition(":")[2]
        url, endpoint = "s3://localhost", f"http://localhost.localhost:{port}"
        right = f"http://localhost:{port}"
        asked = Operation("list", settings_for(endpoint, url=url), "", lambda: None)
        assert asked.bucket_in_endpoint == (right, False)
        unknown = translate(ClientError({"Error": {"Code": "NoSuchKey"}}, "ListObjectsV2"), asked)
        missing = translate(ClientError({"Error": {"Code": "NoSuchBucket"}}, "ListObjectsV2"), asked)
        elsewhere = failure(S3Store(settings_for("http://bucket.nosuch.invalid:1")))
    assert unknown.hint == f"set `endpoint_url` to {right}"
    assert (missing.hint or "").startswith("create it")
    assert f"set `endpoint_url` to {right}" in (missing.hint or "")
    assert "set `endpoint_url` to http://nosuch.invalid:1" in (elsewhere.hint or "")


def test_an_endpoint_without_the_bucket_has_no_such_hint():
    """An endpoint that only contains the letters of the bucket's name is not taken for one with the bucket."""
    for endpoint in ("https://mybucket.example", "https://bucketeer.example/buckets", "https://example"):
        asked = Operation("list", settings_for(endpoint), "", lambda: None)
        assert asked.bucket_in_endpoint is None


@pytest.mark.parametrize(("ahead", "words"), [(3, "3 h behind"), (-3, "3 h ahead of"), (72, "3 days behind")])
@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "AccessDenied"])
def test_refusal_because_of_the_clock_says_by_how_much_it_is_off(code: str, ahead: int, words: str):
    """A refusal by a server whose time is quite another says by how much, whatever code it uses."""
    date = format_datetime(datetime.now(UTC) + timedelta(hours=ahead), usegmt=True)
    with answering(lambda handler, _: handler.error(403, code, "no", Date=date)) as (store, _):
        error = failure(store, "put")
    assert isinstance(error, StoreRefusedError)
    assert f"this machine's clock is {words} the store's" in error.message


def test_a_wrong_clock_without_a_date():
    """An answer without a date is still explained by its code."""
    with answering(lambda handler, _: handler.error(403, "RequestTimeTooSkewed")) as (store, _):
        assert "differ by too much" in failure(store).message


@pytest.mark.parametrize(
    ("status", "code", "message", "headers"),
    [
        (400, "AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-north-1'", {}),
        (400, "AuthorizationHeaderMalformed", "wrong", {"x_amz_bucket_region": "eu-north-1"}),
        (301, "PermanentRedirect", "wrong", {"x_amz_bucket_region": "eu-north-1"}),
    ],
)
def test_refusal_because_of_the_region_names_the_right_one(
    status: int, code: str, message: str, headers: dict[str, str]
):
    """The hint has the region that the answer names."""
    with answering(lambda handler, _: handler.error(status, code, message, **headers)) as (store, _):
        error = failure(store, "put")
    assert isinstance(error, StoreRefusedError)
    assert "another region" in error.message
    assert error.hint == "set `region` to eu-north-1"


def test_a_delete_of_nothing_is_done():
    """Google's 404 for the delete of a missing object is a success here; a missing bucket is not."""
    with answering(lambda handler, _: handler.error(404, "NoSuchKey")) as (store, _):
        store.delete("app/a")
    with answering(lambda handler, _: handler.error(404, "NoSuchBucket")) as (store, _):
        assert isinstance(failure(store, "delete"), StoreRefusedError)


# Not S3


@pytest.mark.parametrize("verb", ["get", "put", "list"])
@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_web_page_is_not_a_store(verb: str, status: int):
    """A login page, captive portal or web console is no store, whatever its status."""

    def answer(handler: Handler, _: Request) -> None:
        handler.send_response_only(status)
        handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.send_header("Content-Length", str(len(_HTML)))
        handler.end_headers()
        handler.wfile.write(_HTML)

    with answering(answer) as (store, _):
        error = failure(store, verb)
    assert isinstance(error, StoreRefusedError)
    assert "does not answer like S3" in error.message
    assert "endpoint_url" in (error.hint or "")


def test_an_xml_page_is_not_a_list():
    """A list without the parts that each list has is not an empty list."""
    with answering(lambda handler, _: handler.answer(200, b"<html><body/></html>")) as (store, _):
        assert "does not answer like S3" in failure(store, "list").message


def test_closed_port_is_reported_as_such():
    """A closed port is said to be one."""
    port = reserved_port()
    error = failure(S3Store(settings_for(f"http://127.0.0.1:{port}")))
    assert isinstance(error, StoreUnavailableError)
    assert f"nothing listens at http://127.0.0.1:{port}" in error.message


def test_unknown_host_is_reported_as_such():
    """A name that no name server knows is said to be one."""
    error = failure(S3Store(settings_for("http://nosuch.invalid:9000")))
    assert isinstance(error, StoreUnavailableError)
    assert "the host name of http://nosuch.invalid:9000 is not known" in error.message


def test_tls_to_a_plain_port():
    """An https:// endpoint that speaks plain HTTP gets the hint to say so."""
    with loopback(lambda handler, _: handler.answer(200)) as server:
        error = failure(S3Store(settings_for(server.endpoint_url.replace("http:", "https:"))))
    assert isinstance(error, StoreRefusedError)
    assert "does not speak TLS" in error.message
    assert "http://" in (error.hint or "")


def test_plain_to_a_tls_port(tls: ssl.SSLContext):
    """An http:// endpoint that wants TLS gets the hint to say so."""
    with loopback(lambda handler, _: handler.answer(200), tls=tls) as server:
        error = failure(S3Store(settings_for(server.endpoint_url.replace("https:", "http:"))))
    assert isinstance(error, StoreUnavailableError)
    assert "https://" in (error.hint or "")


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the tests' CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(encoding) + private)
    return path


@pytest.fixture(scope="module")
def tls(ca_file: Path) -> ssl.SSLContext:
    """What a server with that certificate needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file)
    return context


def test_private_ca_is_trusted_only_when_configured(tls: ssl.SSLContext, ca_file: Path):
    """A store with a certificate of its own is trusted with its CA, and only then."""
    content = os.urandom(_MIB)
    with loopback(lambda handler, _: handler.answer(200), tls=tls) as server:
        store = S3Store(settings_for(server.endpoint_url, ca_bundle=str(ca_file)))
        store.put("app/a", content, sha256=hashlib.sha256(content).digest())
        error = failure(S3Store(settings_for(server.endpoint_url)))
    assert [request.body for request in server.requests] == [content]
    # TLS changes nothing about the hash in the signature.
    assert server.requests[0].headers["x-amz-content-sha256"] == hashlib.sha256(content).hexdigest()
    assert isinstance(error, StoreRefusedError)
    assert "is not trusted: self" in error.message
    assert "ca_bundle" in (error.hint or "")


def _certificate(path: Path, name: x509.GeneralName, *, begins: timedelta, ends: timedelta) -> ssl.SSLContext:
    """A server's context with a new certificate, which is in `path` too."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(encoding) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


_DAY = timedelta(days=1)
_LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    ("name", "begins", "ends", "host", "message", "hint"),
    [
        (x509.DNSName("s3.example"), -_DAY, _DAY, "127.0.0.1", "another host name: .*s3.example", "issued for 127"),
        (x509.DNSName("s3.example"), -_DAY, _DAY, "localhost", "for another host name: ", "issued for localhost"),
        (_LOOPBACK, -2 * _DAY, -_DAY, "127.0.0.1", "has expired", "renew"),
        (_LOOPBACK, _DAY, 2 * _DAY, "127.0.0.1", "is not valid yet", "clock"),
    ],
    ids=["IP", "name", "expired", "early"],
)
def test_a_certificate_that_is_wrong_in_itself(
    tmp_path: Path, name: x509.GeneralName, begins: timedelta, ends: timedelta, host: str, message: str, hint: str
):
    """A wrong certificate is an error with a remedy, which is never to use no TLS."""
    file = tmp_path / "certificate.pem"
    context = _certificate(file, name, begins=begins, ends=ends)
    with loopback(lambda handler, _: handler.answer(200), tls=context) as server:
        endpoint = server.endpoint_url.replace("127.0.0.1", host)
        error = failure(S3Store(settings_for(endpoint, ca_bundle=str(file), max_attempts=1)))
    assert isinstance(error, StoreRefusedError)
    assert re.search(message, error.message)
    assert hint in (error.hint or "")
    assert "http://" not in (error.hint or "")


def test_a_certificate_of_another_ca(tls: ssl.SSLContext, tmp_path: Path):
    """A certificate of another CA than that of `ca_bundle` is an error that names the bundle."""
    _certificate(tmp_path / "other.pem", _LOOPBACK, begins=-_DAY, ends=_DAY)
    with loopback(lambda handler, _: handler.answer(200), tls=tls) as server:
        error = failure(S3Store(settings_for(server.endpoint_url, ca_bundle=str(tmp_path / "other.pem"))))
    assert "is not trusted: " in error.message
    assert f"`ca_bundle` ({tmp_path / 'other.pem'}) does not belong to the CA" in (error.hint or "")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_of_cas_that_has_none(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
):
    """The file is what is wrong, and not the store's TLS."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    with loopback(lambda handler, _: handler.answer(200), tls=tls) as server:
        error = failure(S3Store(settings_for(server.endpoint_url)))
    assert "the CA certificates for https://127.0.0.1" in error.message
    assert "AWS_CA_BUNDLE" in (error.hint or "")


def test_a_port_that_says_in_words_that_it_wants_tls():
    """Servers in Go and nginx answer a plain request so, with a status that S3 has other words for."""
    with answering(lambda handler, _: handler.answer(400, b"Client sent an HTTP request to an HTTPS server.")) as (
        store,
        _,
    ):
        error = failure(store, "list")
    assert "does not answer like S3" in error.message
    assert "scheme" in (error.hint or "")


def test_a_missing_ca_file(tmp_path: Path):
    """A CA file that is not there is named."""
    error = failure(S3Store(settings_for("https://127.0.0.1:1", ca_bundle=str(tmp_path / "nosuch.pem"))))
    assert isinstance(error, StoreRefusedError)
    assert "nosuch.pem does not exist" in error.message


# Sizes


def test_a_larger_object_is_refused_before_it_is_read():
    """The limit holds for what the server announces, and for a body without a length."""

    def endless(handler: Handler, _: Request) -> None:
        handler.wfile.write(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nConnection: close\r\n\r\n')
        while not handler.loopback.closing.is_set():
            handler.wfile.write(bytes(_MIB))

    with answering(lambda handler, _: handler.start(200, length=1 << 40)) as (store, _), pytest.raises(DamageError):
        store.get("app/a", limit_bytes=100)
    with answering(endless) as (store, _), pytest.raises(DamageError):
        store.get("app/a", limit_bytes=100)


def test_a_server_without_ranges():
    """A whole object in answer to a range gives the range."""
    with answering(lambda handler, _: handler.answer(200, b"0123456789")) as (store, server):
        assert store.get_range("app/a", offset=3, length=4) == b"3456"
        assert store.get_range("app/a", offset=20, length=4) == b""
    assert server.requests[0].headers["Range"] == "bytes=3-6"


def test_many_threads_share_one_client(seaweed: S3Server):
    """Sixteen threads that use a new store at once share one client."""
    store = S3Store(seaweed.settings())
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: put(store, f"{number}", b"x"), range(64)))
        clients = set(threads.map(lambda _: id(store._requests._client()), range(16)))
    assert len(clients) == 1
    assert len(list(store.list(""))) == 64


# The real server's own words


def test_wrong_keys_at_a_real_server(seaweed: S3Server):
    """A real server distinguishes a wrong secret from an unknown key, and neither is repeated."""
    settings = seaweed.settings()
    wrong_secret = settings.replaced(secret_access_key=Secret(_SECRET))
    assert "secret key is wrong" in failure(S3Store(wrong_secret), "put").message
    wrong_id = settings.replaced(access_key_id="KEYIDKEYIDKEYIDKEYID")
    assert "does not know this access key" in failure(S3Store(wrong_id), "put").message


@pytest.mark.parametrize("server", ["seaweed", "moto"])
@pytest.mark.parametrize("verb", ["get", "put", "list", "delete"])
def test_a_missing_bucket_at_a_real_server(server: str, verb: str, request: pytest.FixtureRequest):
    """A missing bucket is not taken for a missing object."""
    settings = request.getfixturevalue(server).settings()
    error = failure(S3Store(settings.replaced(url="s3://nosuch-bucket")), verb)
    assert not isinstance(error, NoSuchObjectError)
    assert "bucket nosuch-bucket does not exist" in error.message


@pytest.mark.parametrize("server", ["seaweed", "moto"])
@pytest.mark.parametrize("has_stored", [False, True])
def test_a_bucket_in_the_endpoint_of_a_real_server(server: str, request: pytest.FixtureRequest, *, has_stored: bool):
    """Servers take objects there, under a name that begins with the bucket's; a listing says what is wrong."""
    settings = request.getfixturevalue(server).settings()
    right = settings.endpoint_url
    store = S3Store(settings.replaced(endpoint_url=f"{right}/{settings.bucket}"))
    if has_stored:
        put(store, "app/a", b"content")
    error = failure(store, "list")
    assert isinstance(error, StoreRefusedError)
    assert error.hint == f"set `endpoint_url` to {right}"
