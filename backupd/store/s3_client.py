"""The set-up of botocore for any S3-compatible server: credentials, signatures, limits on answers."""

from __future__ import annotations

import base64
import os
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import boto3
import botocore.loaders
import botocore.session
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, CredentialRetrievalError, ProfileNotFound, ReadTimeoutError
from urllib3 import exceptions as urllib3

from backupd.errors import keep_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
    from botocore.credentials import Credentials
    from botocore.httpsession import URLLib3Session
    from mypy_boto3_s3 import S3Client

    from backupd.config import StoreSettings
    from backupd.config.values import Secret

# Eight threads use one store at once; abandoned requests may keep connections for a while.
_POOL_CONNECTIONS = 16
_SIGNER = "s3v4-known-hash"
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_FIRST_ERROR = 300
_MOST_OF_AN_ERROR = 1 << 16
# A page of a listing has at most 1,000 keys of 1,024 bytes, each of which may take six in XML.
_MOST_OF_AN_ANSWER = 1 << 24

# Botocore's description of S3 is 1 MB of JSON: parsed once, a client takes 15 ms instead of 130.
_DESCRIPTIONS = botocore.loaders.create_loader()


class _KnownHashAuth(S3SigV4Auth):
    """Signs a PUT with the hash in its checksum header; botocore would read and hash the body again."""

    def payload(self, request: AWSRequest) -> str:
        return base64.b64decode(request.headers["x-amz-checksum-sha256"]).hex()


AUTH_TYPE_MAPS[_SIGNER] = _KnownHashAuth


def _choose_signer(signature_version: str, **_: object) -> str | None:
    # Other signatures (S3 Express, multi-region access points) stay as they are.
    return _SIGNER if signature_version in {"v4", "s3v4"} else None


class CredentialsError(Exception):
    """The credential chain of the AWS tools (environment, files, processes, services) failed, or found unusable ones.

    The reason is in its text, without a secret, or in its cause.
    """


class Connection:
    """A client for one store, with the configured credentials, or those of the AWS credential chain."""

    def __init__(self, settings: StoreSettings, *, before_send: Callable[..., None]) -> None:
        """`before_send` is called before each attempt at a request, and may raise.

        Raises `CredentialsError`, or, for wrong settings or a wrong configuration of the AWS tools, any exception of a
        library or of the system: the chain runs programs and reads any file.
        """
        if settings.ca_bundle is not None and not settings.ca_bundle.is_file():
            raise ValueError(f"the CA certificate {settings.ca_bundle} does not exist")
        _keep_passwords_of_proxies()
        botocore_session = botocore.session.Session()
        botocore_session.register_component("data_loader", _DESCRIPTIONS)
        try:
            session = boto3.Session(
                botocore_session=botocore_session,
                profile_name=settings.profile,
                region_name=settings.region,
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=_revealed(settings.secret_access_key),
                aws_session_token=_revealed(settings.session_token),
            )
            self._credentials = _found_credentials(session)
        except ProfileNotFound:
            _require_readable_files()
            raise
        if self._credentials is None:
            _require_readable_files()
        self._checked: object = None
        self._public = f"{settings.url} {settings.endpoint_url}"
        self._client = _new_client(session, settings)
        self._client.meta.events.register("before-send.s3", before_send)
        self.endpoint_url: str = self._client.meta.endpoint_url

    @property
    def client(self) -> S3Client:
        """The client, after a check that its present credentials can be sent. They may change each time.

        Raises `CredentialsError`.
        """
        if self._credentials is not None:
            try:
                found = self._credentials.get_frozen_credentials()
            except Exception as error:
                raise CredentialsError from error
            if found != self._checked:
                keep_secret(*filter(_is_text, found[:3]), public=self._public)
                _require_sendable(found, self._credentials.method)
                self._checked = found
        return self._client


def _found_credentials(session: boto3.Session) -> Credentials | None:
    try:
        return session.get_credentials()
    except ProfileNotFound:
        raise
    except CredentialRetrievalError as error:
        if error.kwargs.get("provider") == "custom-process":
            # botocore quotes its stderr, which may contain secrets that cannot be masked.
            raise CredentialsError("the program of `credential_process` failed; run it by hand to see why") from error
        raise CredentialsError from error
    except Exception as error:
        raise CredentialsError from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _require_sendable(credentials: tuple[Any, ...], method: str | None) -> None:
    """Raise `CredentialsError` for values that a header cannot contain; http.client would quote them."""
    in_environment = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    in_files = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    names = in_environment if method == "env" else in_files
    for name, value in zip(names, credentials[:3], strict=True):
        whose = f"{name} ({method})" if method else name
        if value is None and name.lower().endswith("token"):
            continue
        if not _is_text(value) or not value:
            raise CredentialsError(f"{whose} is not a text")
        if value.endswith(("\n", "\r")):
            raise CredentialsError(f"{whose} ends with a line break")
        if value[0] in "\"'" or value != value.strip() or not (value.isascii() and value.isprintable()):
            raise CredentialsError(
                f"{whose} is not a valid key: quotes or spaces are around it, or a control character is in it"
            )


def _require_readable_files() -> None:
    """Raise `CredentialsError` for a file of the AWS tools that botocore skipped because it may not read it."""
    for variable, usual in _FILES.items():
        file = os.path.expanduser(os.environ.get(variable, usual))  # noqa: PTH111  (Path.expanduser raises)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.read(descriptor, 1)  # Docker creates a directory for a mounted file that does not exist
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CredentialsError(f"{file}: {os.strerror(error.errno or 0).lower()}") from error


def _keep_passwords_of_proxies() -> None:
    for proxy in urllib.request.getproxies().values():
        login = urlsplit(proxy).netloc.rpartition("@")[0]
        password = login.partition(":")[2]
        keep_secret(password, unquote(password))


def _new_client(session: boto3.Session, settings: StoreSettings) -> S3Client:
    style = settings.addressing_style
    if style == "auto" and settings.endpoint_url is not None:
        style = "path"
    client: S3Client = session.client(
        "s3",
        # All servers but Amazon's accept this region, or name the right one when they refuse it.
        region_name=session.region_name or "us-east-1",
        endpoint_url=settings.endpoint_url,
        verify=str(settings.ca_bundle) if settings.ca_bundle else None,
        config=Config(
            s3={"addressing_style": style},
            connect_timeout=settings.connect_timeout.total_seconds(),
            read_timeout=settings.read_timeout.total_seconds(),
            retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
            max_pool_connections=_POOL_CONNECTIONS,
            tcp_keepalive=True,
            # R2, B2 and older MinIO and Ceph refuse or mangle the trailers of the default; each PUT carries SHA-256.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register_first("choose-signer.s3.PutObject", _choose_signer)  # type: ignore[arg-type]
    endpoint = client._endpoint  # type: ignore[attr-defined]  # noqa: SLF001  (there is no other way to its answers)
    endpoint.http_session = _LimitedSession(endpoint.http_session)
    return client


class _LimitedSession:
    """botocore's connections, with a limit on the size of answers that are read into memory.

    botocore reads all of an answer, and takes 16 times its size for an error: a store could make the system kill this
    process. A truncated answer is not XML, and so not an answer of S3.
    """

    def __init__(self, session: URLLib3Session) -> None:
        self._session = session
        self.close = session.close

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Return the answer to one request. Raises the exceptions of botocore's own session."""
        is_streamed, request.stream_output = request.stream_output, True
        response = self._session.send(request)
        is_error = response.status_code >= _FIRST_ERROR
        if is_streamed and not is_error:
            return response
        response.raw = _Beginning(response.raw, _MOST_OF_AN_ERROR if is_error else _MOST_OF_AN_ANSWER)
        try:
            response.content  # noqa: B018  (reads it)
        except urllib3.ReadTimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except urllib3.HTTPError as error:
            raise ConnectionClosedError(endpoint_url=request.url, error=error) from error
        return response


class _Beginning:
    """The beginning of a body, with the interface that botocore reads."""

    def __init__(self, raw: Any, most_bytes: int) -> None:
        self._raw = raw
        self._most_bytes = most_bytes

    def stream(self) -> Iterator[bytes]:
        """Yield the blocks up to the limit, and close the connection when there are more."""
        left = self._most_bytes
        for block in self._raw.stream():
            yield block[:left]
            left -= len(block)
            if left < 0:
                self._raw.close()
                return


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
