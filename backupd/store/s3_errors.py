"""What an S3 server, or the way to it, said no with: botocore's errors as ours, in words for three in the morning."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from botocore import exceptions as boto
from urllib3.util.ssl_match_hostname import CertificateError

from backupd.errors import NoSuchObjectError, StoreError, StoreUnavailableError, limit_reached, with_causes
from backupd.masking import masked
from backupd.store import s3_meanings as meanings
from backupd.store.keys import PackKey
from backupd.store.s3_client import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backupd.config import StoreSettings
    from backupd.store.s3_meanings import Meaning

# Farther off than this, a server may refuse a signature; Amazon does from 15 minutes on.
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


class Asked(NamedTuple):
    """What was asked of which store: get, head, put, list or delete and a key or prefix, or "read" and what of it.

    `found_endpoint` gives where the client goes, which the environment or a profile may say too; None while it is not
    known.
    """

    verb: str
    settings: StoreSettings
    key: str
    found_endpoint: Callable[[], str | None]

    @property
    def endpoint(self) -> str:
        """Scheme, host and port of the server, or Amazon's name."""
        parts = urlsplit(self.settings.endpoint_url or self.found_endpoint() or "")
        if not parts.netloc or (self.settings.endpoint_url is None and _AMAZON.search(parts.hostname or "")):
            return "Amazon S3"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def bucket_in_endpoint(self) -> tuple[str, bool] | None:
        """The URL of the server without the bucket, if it has it, and whether that stood in the path; else None.

        A name that begins with the bucket's may well be the server's own: backups.example.org, with a bucket for them.
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
    """The server's own word for what is wrong, such as `NoSuchBucket`."""
    return _Answer(error).code


def out_of_time(asked: Asked) -> StoreError:
    """The `StoreUnavailableError` for an operation that has used up its time limit."""
    is_connected = asked.found_endpoint() is not None
    return _error(meanings.OUT_OF_TIME if is_connected else meanings.CREDENTIALS_OUT_OF_TIME, asked)


def not_s3(asked: Asked) -> StoreError:
    """The `StoreRefusedError` for a server that answers, but not as S3 does."""
    return _error(meanings.NOT_S3, asked)


def translate(error: Exception, asked: Asked) -> StoreError:
    """The `StoreError` for what botocore, or anything under it, raised in an operation.

    Neither message nor hint contains a credential.
    """
    if isinstance(error, boto.ClientError):
        return _of_answer(_Answer(error), asked)
    if limit := limit_reached(error):
        return StoreUnavailableError(f"cannot {asked.verb} {asked.key}: {limit.message}", hint=limit.hint)
    causes = list(with_causes(error))
    meaning = _meaning_of_tls(causes, asked) or _first(meanings.BY_EXCEPTION, causes)
    if meaning is None:
        return _error(meanings.UNKNOWN_ERROR, asked, reason=f"{type(error).__name__}: {_reason(causes)}")
    return _error(meaning, asked, reason=_reason(causes))


def unusable(error: Exception, asked: Asked) -> StoreError:
    """The same for what was raised when a client was made, or its credentials were looked for."""
    if isinstance(error, CredentialsError) and str(error):
        return _error(meanings.CREDENTIALS, asked, reason=str(error))
    if limit := limit_reached(error):
        return StoreUnavailableError(f"cannot {asked.verb} {asked.key}: {limit.message}", hint=limit.hint)
    causes = list(with_causes(error))
    # The wrapping of `s3_client` says only where.
    told = causes[1:] if isinstance(error, CredentialsError) else causes
    meaning = _first(meanings.UNUSABLE, causes) or meanings.CONFIGURATION
    return _error(meaning, asked, reason=_without_ids(_reason(told)))


def _first(table: Iterable[tuple[type[BaseException], Meaning]], causes: list[BaseException]) -> Meaning | None:
    matching = (meaning for expected, meaning in table if any(isinstance(cause, expected) for cause in causes))
    return next(matching, None)


def _meaning_of_tls(causes: list[BaseException], asked: Asked) -> Meaning | None:
    """What is wrong with a certificate, or with TLS itself; None when neither is, or that is all that is known."""
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in meanings.VERIFY_CODES_OF_ISSUERS:
                return meanings.UNKNOWN_ISSUER[asked.settings.ca_bundle is not None]
            return meanings.BY_VERIFY_CODE.get(cause.verify_code)
        if isinstance(cause, ssl.SSLError) and cause.reason in meanings.PLAIN_HTTP_REASONS:
            return meanings.PLAIN_HTTP
        if isinstance(cause, ssl.SSLError) and cause.library in {"X509", "PEM"}:
            return meanings.NO_CA_FILE
    is_without_file = any(isinstance(cause, FileNotFoundError | PermissionError) for cause in causes)
    return meanings.NO_CA_FILE if is_without_file and isinstance(causes[0], boto.SSLError) else None


class _Answer:
    """The parts of an S3 error response that tell its cause."""

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
        """How far the server's clock is ahead of this machine's, if it says what time it is there."""
        try:
            return parsedate_to_datetime(self.headers["date"]).astimezone(UTC) - datetime.now(UTC)
        except (KeyError, ValueError, OverflowError):
            return None


def _of_answer(answer: _Answer, asked: Asked) -> StoreError:
    if (
        asked.verb in _VERBS_OF_ONE_OBJECT
        and answer.code in {"NoSuchKey", "NotFound", "404"}
        # An answer to HEAD has no body, and some servers then give the type of a page.
        and (asked.verb == "head" or not answer.is_web_page)
    ):
        return NoSuchObjectError(f"there is no {asked.key} in {asked.settings.url}")
    meaning = _meaning(answer, asked)
    if meaning is meanings.DENIED_ANYTHING:
        meaning = _denied(asked)
    return _error(
        meaning,
        asked,
        code=answer.code or str(answer.status),
        reason=_without_ids(answer.message),
        region=answer.region or "that of the bucket",
        clocks=_clocks(answer.clock_ahead()),
    )


def _meaning(answer: _Answer, asked: Asked) -> Meaning:
    if answer.status == _INSUFFICIENT_STORAGE or _FULL.search(answer.code):
        return meanings.NO_SPACE
    if answer.status in _OUT_OF_ORDER:
        return meanings.OVERLOADED
    # What S3 says in its own words has a word for its code; a mere number is botocore's.
    if answer.is_web_page or answer.code in {"404", "405"} or (answer.code == "400" and asked.verb != "head"):
        return meanings.NOT_S3
    ahead = answer.clock_ahead()
    if answer.status in _SIGNATURE_STATUSES and ahead is not None and abs(ahead) > _TOLERATED_SKEW:
        return meanings.CLOCK
    return meanings.BY_CODE.get(answer.code, meanings.UNKNOWN_CODE)


def _denied(asked: Asked) -> Meaning:
    """What is denied says which right is missing, and whether it is meant to be."""
    if asked.verb == "delete":
        return meanings.PUT_ONLY_DELETION if asked.settings.put_only else meanings.DENIED_DELETION
    if asked.verb != "put" and PackKey.parse(asked.key) is not None:
        return meanings.PUT_ONLY_PACK if asked.settings.put_only else meanings.DENIED_PACK
    return meanings.DENIED_BY_VERB.get(asked.verb, meanings.DENIED_ANYTHING)


def _error(meaning: Meaning, asked: Asked, **facts: str) -> StoreError:
    settings, endpoint = asked.settings, urlsplit(asked.endpoint)
    other, is_in_path = asked.bucket_in_endpoint or ("", False)
    if is_in_path and meaning in meanings.AT_ANOTHER_PATH:
        meaning = meanings.BUCKET_IN_ENDPOINT
    elif other and meaning is meanings.UNKNOWN_CODE and asked.verb == "list":
        # Only what is asked for an object of the bucket's name does not know how to list.
        meaning = meanings.BUCKET_IN_ENDPOINT
    fields = {
        "endpoint": asked.endpoint,
        "host": endpoint.hostname,
        "address": f"{endpoint.hostname}:{endpoint.port or 443}",
        "endpoint_url": settings.endpoint_url or asked.found_endpoint(),
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
    hint = meaning.hint.format(**fields)
    if other and not is_in_path and meaning in meanings.AT_ANOTHER_NAME:
        hint += f"; or, if {endpoint.hostname} is the bucket's own name there, set `endpoint_url` to {other}"
    what = f"{asked.verb} {asked.key}".rstrip()
    return meaning.error(f"cannot {what} in {settings.url}: {meaning.message.format(**fields)}", hint=hint)


def _clocks(ahead: timedelta | None) -> str:
    if ahead is None:
        return "this machine's clock and the store's differ by too much"
    minutes = abs(ahead) / timedelta(minutes=1)
    units = ((1440, "days"), (60, "h"), (1, "min"))
    amount = next((f"{minutes / size:.0f} {name}" for size, name in units if minutes >= 2 * size), "a moment")
    return f"this machine's clock is {amount} {'behind' if ahead > timedelta() else 'ahead of'} the store's"


def _reason(causes: list[BaseException]) -> str:
    """The most telling words of an error and its causes, on one line."""
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
    """A server's own words on one line, without what looks like the id of an access key."""
    return re.sub(r"\b[A-Z0-9]{16,128}\b", "***", _shown(message, _LONGEST_REASON))


def _shown(text: str, most: int) -> str:
    """The beginning of what a server or a library says, on one line, without commands for a terminal."""
    text = masked(text)  # before it is cut: the beginning of a secret is no longer known as one
    line = "".join(character if character.isprintable() else " " for character in text[:most])
    return f"{line}..." if len(text) > most else line
