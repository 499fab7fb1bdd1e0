"""Translate errors of botocore, and of the network below it, into `StoreError`, by the table in `s3_error_table`."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from botocore import exceptions as boto
from urllib3.util.ssl_match_hostname import CertificateError

from backupd.errors import NoSuchObjectError, StoreError, StoreUnavailableError, limit_reached, masked, with_causes
from backupd.store import s3_error_table as table
from backupd.store.keys import PackKey
from backupd.store.s3_client import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from urllib.parse import SplitResult

    from backupd.config import StoreSettings
    from backupd.store.s3_error_table import Explanation

# With a larger difference of clocks, a server may refuse a signature; Amazon does from 15 minutes on.
_TOLERATED_SKEW = timedelta(minutes=10)

_AMAZON = re.compile(r"\.amazonaws\.com(\.cn)?$")
_VERBS_OF_ONE_OBJECT = {"get", "head", "delete"}
_SIGNATURE_STATUSES = {400, 401, 403}
_RANGE_NOT_SATISFIABLE = 416
_OUT_OF_ORDER = {408, 429, 500, 502, 503, 504}
_INSUFFICIENT_STORAGE = 507
_LONGEST_CODE = 64
_LONGEST_REASON = 300
_FULL = re.compile(r"quota|insufficient_?storage|storage_?full|storage_?cap", re.IGNORECASE)


class Operation(NamedTuple):
    """An operation for its errors: get, head, put, list or delete with a key or prefix, or "read" with a property.

    `found_endpoint` returns the endpoint of the client, which the environment or a profile may set; None while it is
    not known.
    """

    verb: str
    settings: StoreSettings
    key: str
    found_endpoint: Callable[[], str | None]

    @property
    def endpoint(self) -> str:
        """Scheme, host and port of the server, or "Amazon S3"."""
        parts = urlsplit(self.settings.endpoint_url or self.found_endpoint() or "")
        if not parts.netloc or (self.settings.endpoint_url is None and _AMAZON.search(parts.hostname or "")):
            return "Amazon S3"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def bucket_in_endpoint(self) -> tuple[str, bool] | None:
        """The endpoint without the bucket in it, and whether that is in the path; None when it is not in the endpoint.

        A host name that begins with the bucket's may be right: backups.example.org, with a bucket called backups.
        """
        parts = urlsplit(self.settings.endpoint_url or self.found_endpoint() or "")
        bucket, netloc = self.settings.bucket, parts.netloc.rpartition("@")[2]
        steps = [step for step in parts.path.split("/") if step]
        is_in_path = bucket in steps
        kept = "/".join(steps[: steps.index(bucket)]) if is_in_path else "/".join(steps)
        own = netloc.removeprefix(f"{bucket.lower()}.")
        if not is_in_path and own == netloc:
            return None
        return urlunsplit((parts.scheme, own, kept, "", "")), is_in_path


def is_beyond_end(error: boto.ClientError) -> bool:
    """Whether a range was refused because the object ends before it."""
    return _Answer(error).status == _RANGE_NOT_SATISFIABLE


def code_of(error: boto.ClientError) -> str:
    """Return the server's code for an error, such as `NoSuchBucket`."""
    return _Answer(error).code


def out_of_time(operation: Operation) -> StoreError:
    """Return the `StoreUnavailableError` for an operation that has reached its time limit."""
    is_connected = operation.found_endpoint() is not None
    return _error(table.OUT_OF_TIME if is_connected else table.CREDENTIALS_OUT_OF_TIME, operation)


def not_s3(operation: Operation) -> StoreError:
    """Return the `StoreRefusedError` for a server that does not answer like S3."""
    return _error(table.NOT_S3, operation)


def translate(error: Exception, operation: Operation) -> StoreError:
    """Return the `StoreError` for an exception of botocore, or of a library below it, without credentials in it."""
    if isinstance(error, boto.ClientError):
        return _of_answer(_Answer(error), operation)
    if limit := limit_reached(error):
        return StoreUnavailableError(f"cannot {operation.verb} {operation.key}: {limit.message}", hint=limit.hint)
    causes = list(with_causes(error))
    explanation = _explain_tls(causes, operation) or _first(table.BY_EXCEPTION, causes)
    if explanation is None:
        return _error(table.UNKNOWN_ERROR, operation, reason=f"{type(error).__name__}: {_reason(causes)}")
    return _error(explanation, operation, reason=_reason(causes))


def unusable(error: Exception, operation: Operation) -> StoreError:
    """Return the `StoreError` for an exception from making a client or finding its credentials."""
    if isinstance(error, CredentialsError) and str(error):
        return _error(table.CREDENTIALS, operation, reason=str(error))
    if limit := limit_reached(error):
        return StoreUnavailableError(f"cannot {operation.verb} {operation.key}: {limit.message}", hint=limit.hint)
    causes = list(with_causes(error))
    # `CredentialsError` only says that it happened while finding credentials.
    reasons = causes[1:] if isinstance(error, CredentialsError) else causes
    explanation = _first(table.UNUSABLE, causes) or table.CONFIGURATION
    return _error(explanation, operation, reason=_without_ids(_reason(reasons)))


def _first(
    entries: Iterable[tuple[type[BaseException], Explanation]], causes: list[BaseException]
) -> Explanation | None:
    matching = (found for expected, found in entries if any(isinstance(cause, expected) for cause in causes))
    return next(matching, None)


def _explain_tls(causes: list[BaseException], operation: Operation) -> Explanation | None:
    """Explain a failure of a certificate or of TLS; None for other errors, or when nothing more is known."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in table.VERIFY_CODES_OF_ISSUERS:
                return table.UNKNOWN_ISSUER[operation.settings.ca_bundle is not None]
            return table.BY_VERIFY_CODE.get(cause.verify_code)
        if isinstance(cause, ssl.SSLError) and cause.reason in table.PLAIN_HTTP_REASONS:
            return table.PLAIN_HTTP
        if isinstance(cause, ssl.SSLError) and cause.library in {"X509", "PEM"}:
            return table.NO_CA_FILE
    is_without_file = any(isinstance(cause, FileNotFoundError | PermissionError) for cause in causes)
    return table.NO_CA_FILE if is_without_file and isinstance(causes[0], boto.SSLError) else None


class _Answer:
    """The parts of an S3 error response that identify its cause."""

    def __init__(self, error: boto.ClientError) -> None:
        response: Any = error.response
        described, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
        self.code = _shown(str(described.get("Code", "")), _LONGEST_CODE)
        self.message = str(described.get("Message", ""))
        self.status = int(metadata.get("HTTPStatusCode", 0))
        self.headers = {name.lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
        expected = re.search(r"expecting '([a-z0-9-]+)'", self.message)
        region = self.headers.get("x-amz-bucket-region") or described.get("Region") or (expected and expected[1])
        self.region = _shown(str(region), _LONGEST_CODE) if region else None
        self.is_web_page = self.headers.get("content-type", "").startswith("text/html")

    def clock_ahead(self) -> timedelta | None:
        """Return how far the server's clock is ahead of this machine's; None when the answer has no date."""
        try:
            return parsedate_to_datetime(self.headers["date"]).astimezone(UTC) - datetime.now(UTC)
        except (KeyError, ValueError, OverflowError):
            return None


def _of_answer(answer: _Answer, operation: Operation) -> StoreError:
    if (
        operation.verb in _VERBS_OF_ONE_OBJECT
        and answer.code in {"NoSuchKey", "NotFound", "404"}
        # An answer to HEAD has no body, and some servers label it as a web page.
        and (operation.verb == "head" or not answer.is_web_page)
    ):
        return NoSuchObjectError(f"there is no {operation.key} in {operation.settings.url}")
    explanation = _explain(answer, operation)
    if explanation is table.DENIED_ANYTHING:
        explanation = _denied(operation)
    return _error(
        explanation,
        operation,
        code=answer.code or str(answer.status),
        reason=_without_ids(answer.message),
        region=answer.region or "that of the bucket",
        clocks=_clocks(answer.clock_ahead()),
    )


def _explain(answer: _Answer, operation: Operation) -> Explanation:
    if answer.status == _INSUFFICIENT_STORAGE or _FULL.search(answer.code):
        return table.NO_SPACE
    if answer.status in _OUT_OF_ORDER:
        return table.OVERLOADED
    # S3 itself sends a word as the code; a number comes from botocore.
    if answer.is_web_page or answer.code in {"404", "405"} or (answer.code == "400" and operation.verb != "head"):
        return table.NOT_S3
    ahead = answer.clock_ahead()
    if answer.status in _SIGNATURE_STATUSES and ahead is not None and abs(ahead) > _TOLERATED_SKEW:
        return table.CLOCK
    return table.BY_CODE.get(answer.code, table.UNKNOWN_CODE)


def _denied(operation: Operation) -> Explanation:
    """Explain a denied operation by the permission that is missing, and whether that is intended."""
    if operation.verb == "delete":
        return table.PUT_ONLY_DELETION if operation.settings.put_only else table.DENIED_DELETION
    if operation.verb != "put" and PackKey.parse(operation.key) is not None:
        return table.PUT_ONLY_PACK if operation.settings.put_only else table.DENIED_PACK
    return table.DENIED_BY_VERB.get(operation.verb, table.DENIED_ANYTHING)


def _error(explanation: Explanation, operation: Operation, **facts: str) -> StoreError:
    settings, endpoint = operation.settings, urlsplit(operation.endpoint)
    other, is_in_path = operation.bucket_in_endpoint or ("", False)
    if is_in_path and explanation in table.AT_ANOTHER_PATH:
        explanation = table.BUCKET_IN_ENDPOINT
    elif other and explanation is table.UNKNOWN_CODE and operation.verb == "list":
        # Only a server that takes the bucket's name for an object cannot list it.
        explanation = table.BUCKET_IN_ENDPOINT
    fields = {
        "endpoint": operation.endpoint,
        "host": endpoint.hostname,
        "address": f"{endpoint.hostname}:{_port_of(endpoint)}",
        "endpoint_url": settings.endpoint_url or operation.found_endpoint(),
        "endpoint_key": "`endpoint_url`" if settings.endpoint_url else "AWS_ENDPOINT_URL",
        "endpoint_without_bucket": other,
        "bucket": settings.bucket,
        "url": settings.url,
        "ca_bundle": settings.ca_bundle,
        "now": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "time_limit": settings.time_limit.total_seconds(),
        "connect_timeout": settings.connect_timeout.total_seconds(),
        "read_timeout": settings.read_timeout.total_seconds(),
        **facts,
    }
    hint = explanation.hint.format(**fields)
    if other and not is_in_path and explanation in table.AT_ANOTHER_NAME:
        hint += f"; or, if {endpoint.hostname} is the bucket's own name there, set `endpoint_url` to {other}"
    what = f"{operation.verb} {operation.key}".rstrip()
    return explanation.error(f"cannot {what} in {settings.url}: {explanation.message.format(**fields)}", hint=hint)


def _port_of(endpoint: SplitResult) -> int:
    try:
        return endpoint.port or 443
    except ValueError:  # AWS_ENDPOINT_URL may have any number there
        return 443


def _clocks(ahead: timedelta | None) -> str:
    if ahead is None:
        return "this machine's clock and the store's differ by too much"
    minutes = abs(ahead) / timedelta(minutes=1)
    units = ((1440, "days"), (60, "h"), (1, "min"))
    amount = next((f"{minutes / size:.0f} {name}" for size, name in units if minutes >= 2 * size), "a moment")
    return f"this machine's clock is {amount} {'behind' if ahead > timedelta() else 'ahead of'} the store's"


def _reason(causes: list[BaseException]) -> str:
    """Return the most informative words of an error and its causes, on one line."""
    return _shown(_words(causes), _LONGEST_REASON)


def _words(causes: list[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, CertificateError):
            return f"it is for {str(cause).partition(' match ')[2] or 'another'}"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.replace("_", " ").lower()
        if isinstance(cause, OSError) and cause.strerror:
            words = cause.strerror.lower()
            return f"{cause.filename}: {words}" if cause.filename else words
    return str(causes[0])


def _without_ids(message: str) -> str:
    """Return a server's message on one line, without what looks like the id of an access key."""
    return re.sub(r"\b[A-Z0-9]{16,128}\b", "***", _shown(message, _LONGEST_REASON))


def _shown(text: str, most: int) -> str:
    """Return the beginning of a message of a server or library, on one line, without commands for a terminal."""
    text = masked(text)  # before it is cut: the beginning of a secret is no longer known as one
    line = "".join(character if character.isprintable() else " " for character in text[:most])
    return f"{line}..." if len(text) > most else line
