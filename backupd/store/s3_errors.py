"""What an S3 server, or the way to it, said no with: botocore's errors as ours, in words for three in the morning."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from backupd.errors import (
    NoSuchObjectError,
    PutOnlyError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
)
from backupd.store.keys import PackKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.config import StoreSettings

LIBRARY_ERRORS = (boto.BotoCoreError, boto.ClientError, ResponseParserError, HTTPError)

# Farther off than this, a server may refuse a signature; Amazon does from 15 minutes on.
_TOLERATED_SKEW = timedelta(minutes=10)

_VERBS_OF_ONE_OBJECT = {"get", "head", "delete"}
_SIGNATURE_STATUSES = {400, 401, 403}
_RANGE_NOT_SATISFIABLE = 416
_OUT_OF_ORDER = {408, 429, 500, 502, 503, 504}
_INSUFFICIENT_STORAGE = 507
_FULL = re.compile(r"quota|insufficient_?storage|storage_?full|storage_?cap", re.IGNORECASE)


class _Meaning(NamedTuple):
    """An error to raise. The texts may name the fields that `_error` fills in."""

    error: type[StoreError]
    message: str
    hint: str


_NO_SPACE = _Meaning(
    StoreFullError, "{endpoint} has no space or quota left", "enlarge the quota, or free space in the store"
)
_OUT_OF_TIME = _Meaning(
    StoreUnavailableError,
    "{endpoint} did not finish within {time_limit:g} s",
    "check the network and the store; a slow connection may need a longer `time_limit`",
)
_OVERLOADED = _Meaning(
    StoreUnavailableError,
    "{endpoint} is overloaded or out of order ({code})",
    "wait, and look at the store's own state",
)
_NOT_S3 = _Meaning(
    StoreRefusedError,
    "what answers at {endpoint} is not an S3 server, but perhaps a web page, a proxy or a login",
    "check `endpoint_url`: scheme, host name, and the port of the S3 interface itself",
)
_CLOCK = _Meaning(StoreRefusedError, "{endpoint} refuses, because {clocks}", "set this machine's clock, best by NTP")
_NO_CREDENTIALS = _Meaning(
    StoreRefusedError,
    "no credentials were found",
    "set `access_key_id` and `secret_access_key`, or `profile`, or what else the AWS tools use",
)
_BROKEN_OFF = _Meaning(StoreUnavailableError, "{endpoint} broke off its answer", "check the network and the store")

_DENIED = "{endpoint} denies access with these credentials ({code})"
_DENIED_ANYTHING = _Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:ListBucket on the bucket (without it a missing object is denied too), and s3:GetObject,"
    " s3:PutObject and s3:DeleteObject on its objects",
)
_DENIED_PACK = _Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:GetObject on packs too; if these keys are only to put, set `put_only = true` for this store, and restore"
    " with keys that may read",
)
_DENIED_DELETION = _Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:DeleteObject; if these keys are only to put, set `put_only = true` for this store, and prune with keys"
    " that may delete",
)
_PUT_ONLY_PACK = _Meaning(
    PutOnlyError,
    "the keys for it may only put (put_only), and are not given packs ({code})",
    "use keys that may read: the policy for restores in docs/s3-providers.md, on a machine without put_only",
)
_PUT_ONLY_DELETION = _Meaning(
    PutOnlyError,
    "the keys for it may only put (put_only), and not delete ({code})",
    "use keys that may delete: the policy for pruning in docs/s3-providers.md, on a machine without put_only",
)

_BY_CODE = {
    code: meaning
    for codes, meaning in (
        (
            "NoSuchBucket",
            _Meaning(
                StoreRefusedError,
                "bucket {bucket} does not exist at {endpoint}",
                "create it, or correct its name in `url`",
            ),
        ),
        (
            "InvalidAccessKeyId InvalidAccessKey InvalidSecurity",
            _Meaning(StoreRefusedError, "{endpoint} does not know this access key", "check `access_key_id`"),
        ),
        (
            "SignatureDoesNotMatch",
            _Meaning(StoreRefusedError, "{endpoint} says that the secret key is wrong", "check `secret_access_key`"),
        ),
        (
            "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
            _Meaning(
                StoreRefusedError, "{endpoint} says that the session token is invalid or expired", "get a new one"
            ),
        ),
        (
            "AccessDenied AllAccessDisabled Forbidden Unauthorized 401 403",
            _DENIED_ANYTHING,
        ),
        (
            "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301",
            _Meaning(
                StoreRefusedError, "{endpoint} says that the bucket is in another region", "set `region` to {region}"
            ),
        ),
        ("RequestTimeTooSkewed RequestExpired", _CLOCK),
        ("InternalError OperationAborted RequestTimeout ServiceUnavailable SlowDown Throttling", _OVERLOADED),
        (
            "BadDigest InvalidDigest IncompleteBody XAmzContentChecksumMismatch XAmzContentSHA256Mismatch",
            _Meaning(
                StoreUnavailableError,
                "{endpoint} received other bytes than were meant ({code})",
                "check the network and this machine's memory, if it happens again",
            ),
        ),
        (
            "InvalidObjectState",
            _Meaning(
                StoreRefusedError,
                "{endpoint} has moved the object to an archive",
                "restore it in the store first; `storage_class` should be one that answers at once",
            ),
        ),
        (
            "NotImplemented 501",
            _Meaning(StoreRefusedError, "{endpoint} does not implement this", "use another server or a newer version"),
        ),
    )
    for code in codes.split()
}

# The first that is the error, or among its causes.
_BY_EXCEPTION: tuple[tuple[type[BaseException], _Meaning], ...] = (
    (boto.NoCredentialsError, _NO_CREDENTIALS),
    (boto.PartialCredentialsError, _NO_CREDENTIALS),
    (boto.CredentialRetrievalError, _NO_CREDENTIALS),
    (boto.TokenRetrievalError, _NO_CREDENTIALS),
    (ResponseParserError, _NOT_S3),
    (
        boto.ProxyConnectionError,
        _Meaning(
            StoreUnavailableError,
            "the proxy does not let it through to {endpoint}",
            "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment",
        ),
    ),
    (
        ssl.SSLCertVerificationError,
        _Meaning(
            StoreRefusedError,
            "the certificate of {endpoint} is not trusted: {reason}",
            "set `ca_bundle` to the CA certificate of a private store; check the host name in `endpoint_url`",
        ),
    ),
    (
        boto.SSLError,
        _Meaning(
            StoreRefusedError,
            "{endpoint} does not speak TLS as it should: {reason}",
            "check whether `endpoint_url` should begin with http://, and its port",
        ),
    ),
    (
        boto.ConnectTimeoutError,
        _Meaning(
            StoreUnavailableError,
            "{endpoint} took no connection within {connect_timeout:g} s",
            "check the network, a firewall, and `endpoint_url`",
        ),
    ),
    (
        boto.ReadTimeoutError,
        _Meaning(
            StoreUnavailableError,
            "{endpoint} took the connection and then said nothing for {read_timeout:g} s",
            "look at the store's own state; if it never answers, check the port in `endpoint_url`",
        ),
    ),
    (boto.IncompleteReadError, _BROKEN_OFF),
    (boto.ResponseStreamingError, _BROKEN_OFF),
    (
        socket.gaierror,
        _Meaning(
            StoreUnavailableError,
            "the host name of {endpoint} is not known",
            "check `endpoint_url` for a typing error, and this machine's name server",
        ),
    ),
    (
        ConnectionRefusedError,
        _Meaning(
            StoreUnavailableError,
            "nothing listens at {endpoint} (connection refused)",
            "check that the store is running, and the port in `endpoint_url`",
        ),
    ),
    (
        boto.ConnectionClosedError,
        _Meaning(
            StoreUnavailableError,
            "{endpoint} closed the connection without an answer",
            "check that the store is running, and whether `endpoint_url` should begin with https://",
        ),
    ),
    (
        boto.HTTPClientError,
        _Meaning(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (
        boto.EndpointConnectionError,
        _Meaning(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (HTTPError, _BROKEN_OFF),
    (
        boto.ProfileNotFound,
        _Meaning(StoreRefusedError, "{reason}", "correct `profile`, or mount the AWS configuration"),
    ),
    (boto.ParamValidationError, _Meaning(StoreRefusedError, "{reason}", "correct this store's configuration")),
    (ValueError, _Meaning(StoreRefusedError, "{reason}", "correct this store's configuration")),
)


class Asked(NamedTuple):
    """What was asked of which store: get, head, put, list or delete and a key or prefix, or "read" and what of it."""

    verb: str
    settings: StoreSettings
    key: str

    @property
    def endpoint(self) -> str:
        """Scheme, host and port of the server, or Amazon's name."""
        if self.settings.endpoint_url is None:
            return "Amazon S3"
        parts = urlsplit(self.settings.endpoint_url)
        return f"{parts.scheme}://{parts.netloc}"


def is_beyond_end(error: boto.ClientError) -> bool:
    """Whether a range was refused because the object ends before it."""
    return _Answer(error).status == _RANGE_NOT_SATISFIABLE


def code_of(error: boto.ClientError) -> str:
    """The server's own word for what is wrong, such as `NoSuchBucket`."""
    return _Answer(error).code


def out_of_time(asked: Asked) -> StoreError:
    """The `StoreUnavailableError` for an operation that has used up its time limit."""
    return _error(_OUT_OF_TIME, asked)


def not_s3(asked: Asked) -> StoreError:
    """The `StoreRefusedError` for a server that answers, but not as S3 does."""
    return _error(_NOT_S3, asked)


def translate(error: Exception, asked: Asked) -> StoreError:
    """The `StoreError` for one of `LIBRARY_ERRORS`, or for a ValueError in which boto3 rejects the configuration.

    Neither message nor hint contains a credential.
    """
    if isinstance(error, boto.ClientError):
        return _of_answer(_Answer(error), asked)
    causes = list(_causes(error))
    for expected, meaning in _BY_EXCEPTION:
        if any(isinstance(cause, expected) for cause in causes):
            return _error(meaning, asked, reason=_reason(causes))
    return StoreError(f"cannot {asked.verb} {asked.key}: {type(error).__name__}: {_reason(causes)}")


class _Answer:
    """The parts of an S3 error response that tell its cause."""

    def __init__(self, error: boto.ClientError) -> None:
        response: Any = error.response
        described, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
        self.code = str(described.get("Code", ""))
        self.message = str(described.get("Message", ""))
        self.status = int(metadata.get("HTTPStatusCode", 0))
        self.headers = {name.lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
        expected = re.search(r"expecting '([a-z0-9-]+)'", self.message)
        self.region = self.headers.get("x-amz-bucket-region") or described.get("Region") or (expected and expected[1])

        self.is_web_page = self.headers.get("content-type", "").startswith("text/html")

    def clock_ahead(self) -> timedelta | None:
        """How far the server's clock is ahead of this machine's, if it says what time it is there."""
        try:
            return parsedate_to_datetime(self.headers["date"]).astimezone(UTC) - datetime.now(UTC)
        except (KeyError, ValueError):
            return None


def _of_answer(answer: _Answer, asked: Asked) -> StoreError:
    if (
        asked.verb in _VERBS_OF_ONE_OBJECT
        and answer.code in {"NoSuchKey", "NotFound", "404"}
        # An answer to HEAD has no body, and some servers then give the type of a page.
        and (asked.verb == "head" or not answer.is_web_page)
    ):
        return NoSuchObjectError(f"there is no {asked.key} in {asked.settings.url}")
    meaning = _meaning(answer)
    if meaning is _DENIED_ANYTHING:
        meaning = _denied(asked)
    if meaning is not None:
        return _error(
            meaning,
            asked,
            code=answer.code or str(answer.status),
            region=answer.region or "that of the bucket",
            clocks=_clocks(answer.clock_ahead()),
        )
    return StoreError(
        f"cannot {asked.verb} {asked.key}: {asked.endpoint} answered {answer.code}: {_without_ids(answer.message)}"
    )


def _meaning(answer: _Answer) -> _Meaning | None:
    if answer.status == _INSUFFICIENT_STORAGE or _FULL.search(answer.code):
        return _NO_SPACE
    if answer.status in _OUT_OF_ORDER:
        return _OVERLOADED
    # What S3 says in its own words has a word for its code; a mere number is botocore's.
    if answer.is_web_page or answer.code in {"404", "405"}:
        return _NOT_S3
    ahead = answer.clock_ahead()
    if answer.status in _SIGNATURE_STATUSES and ahead is not None and abs(ahead) > _TOLERATED_SKEW:
        return _CLOCK
    return _BY_CODE.get(answer.code)


def _denied(asked: Asked) -> _Meaning:
    """What is denied says which right is missing, and whether it is meant to be."""
    if asked.verb == "delete":
        return _PUT_ONLY_DELETION if asked.settings.put_only else _DENIED_DELETION
    if asked.verb != "put" and PackKey.parse(asked.key) is not None:
        return _PUT_ONLY_PACK if asked.settings.put_only else _DENIED_PACK
    return _DENIED_ANYTHING


def _error(meaning: _Meaning, asked: Asked, **facts: str) -> StoreError:
    fields = {
        "endpoint": asked.endpoint,
        "bucket": asked.settings.bucket,
        "time_limit": asked.settings.time_limit.total_seconds(),
        "connect_timeout": asked.settings.connect_timeout.total_seconds(),
        "read_timeout": asked.settings.read_timeout.total_seconds(),
        **facts,
    }
    what = f"{asked.verb} {asked.key}".rstrip()
    return meaning.error(
        f"cannot {what} in {asked.settings.url}: {meaning.message.format(**fields)}", hint=meaning.hint.format(**fields)
    )


def _clocks(ahead: timedelta | None) -> str:
    if ahead is None:
        return "this machine's clock and the store's differ by too much"
    minutes = abs(ahead) / timedelta(minutes=1)
    units = ((1440, "days"), (60, "h"), (1, "min"))
    amount = next((f"{minutes / size:.0f} {name}" for size, name in units if minutes >= 2 * size), "a moment")
    return f"this machine's clock is {amount} {'behind' if ahead > timedelta() else 'ahead of'} the store's"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and, after it, what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(causes: list[BaseException]) -> str:
    """The most telling words of an error and its causes, on one line."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.replace("_", " ").lower()
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return " ".join(str(causes[0]).split())


def _without_ids(message: str) -> str:
    """A server's own words on one line, without what looks like the id of an access key."""
    line = "".join(character if character.isprintable() else " " for character in message)[:300]
    return re.sub(r"\b[A-Z0-9]{16,128}\b", "***", line)
