"""Stores as they are configured: a directory, or a bucket with its credentials; and keys to encrypt to."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from backupd.config.policies import RetentionSettings
from backupd.config.tables import Table
from backupd.config.values import (
    AbsolutePath,
    Count,
    HiddenText,
    InvalidValueError,
    Text,
    Wait,
    absolute_path,
    at_least,
    read_text,
    reject_impossible_port,
)
from backupd.encryption import InvalidRecipientError, check_recipient
from backupd.errors import keep_secret

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
# Looser than Amazon's rule (lower case, 63 characters) because other servers and Amazon's oldest buckets are.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_MOST_RECIPIENTS = 64
"""All of them have to fit into the header of every object."""


def _normal_store_url(url: str) -> str:
    if url != url.strip():
        raise InvalidValueError("must not begin or end with a space")
    scheme = SCHEME.match(url)
    if scheme is None:
        return str(absolute_path(url))
    if url.startswith("s3://"):
        return _normal_s3_url(url)
    if url.startswith("file://"):
        return _directory_of_file_url(url)
    raise InvalidValueError(
        f"'{scheme[1]}:' is not a kind of store",
        hint="use s3://bucket/prefix or a directory; begin a relative one with a colon in its name with ./",
    )


def _normal_s3_url(url: str) -> str:
    # None of these messages repeats the URL: a secret may be in it.
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket:
        raise InvalidValueError(
            "must not contain credentials or a port",
            hint="write s3://bucket/prefix, and use the keys access_key_id, secret_access_key and endpoint_url",
        )
    _reject_query(url)
    if not _BUCKET.fullmatch(bucket):
        raise InvalidValueError(
            "must name a bucket of 3 or more letters, digits, dots, hyphens and underscores",
            hint="write s3://bucket/prefix",
        )
    prefix = prefix.strip("/")
    if prefix and any(part in {"", ".", ".."} for part in prefix.split("/")):
        raise InvalidValueError("has an empty part, '.' or '..' in its prefix")
    if not prefix.isprintable():
        raise InvalidValueError("has an unprintable character in its prefix")
    return f"s3://{bucket}/{prefix}".rstrip("/")


def _directory_of_file_url(url: str) -> str:
    _reject_query(url)
    host, slash, path = url.removeprefix("file://").partition("/")
    if host not in {"", "localhost"} or not slash:
        raise InvalidValueError("must not name a host", hint="write file:///path with three slashes, or only /path")
    return _normal_store_url(slash + unquote(path))


def _reject_query(url: str) -> None:
    if "?" in url or "#" in url:
        raise InvalidValueError("must not contain a query or a fragment", hint="every option has a key of its own")


def _http_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if scheme not in {"http", "https"} or not separator or not authority:
        raise InvalidValueError("must be an http:// or https:// URL with a host")
    if not url.isprintable() or " " in url:
        raise InvalidValueError("must not contain a space or an unprintable character")
    if "@" in rest:
        raise InvalidValueError("must not contain credentials", hint="use access_key_id and secret_access_key")
    _reject_query(url)
    reject_impossible_port(authority)
    return url.rstrip("/")


class StoreSettings(Table):
    """One store and how it is used.

    `url` is kept in one spelling: an absolute directory path (from `~`, `file://` or the current directory), or
    `s3://bucket/prefix` without a slash at its end. It never contains a secret.
    """

    url: Annotated[str, read_text, _normal_store_url]
    retention: RetentionSettings | None = None

    endpoint_url: Annotated[str, read_text, _http_url] | None = None
    region: Text | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"

    profile: Text | None = None
    access_key_id: Text | None = None
    secret_access_key: HiddenText | None = None
    session_token: HiddenText | None = None
    ca_bundle: AbsolutePath | None = None
    put_only: bool = False
    """The credentials may put, list, and get everything but packs; they cannot delete, nor read packs."""

    storage_class: Text | None = None
    server_side_encryption: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: Text | None = None

    time_limit: Wait = timedelta(minutes=5)
    connect_timeout: Wait = timedelta(seconds=10)
    read_timeout: Wait = timedelta(seconds=60)
    max_attempts: Annotated[Count, at_least(1)] = 5

    @property
    def is_s3(self) -> bool:
        """Whether this store is a bucket; otherwise it is a directory."""
        return self.url.startswith("s3://")

    @property
    def directory(self) -> Path:
        """The absolute path of a directory store. Raises `ValueError` for a bucket."""
        if self.is_s3:
            raise ValueError(f"{self.url} is not a directory")
        return Path(self.url)

    @property
    def bucket(self) -> str:
        """The bucket's name. Raises `ValueError` for a directory store."""
        return self._bucket_and_prefix()[0]

    @property
    def prefix(self) -> str:
        """The beginning of every key in the bucket, without a slash at either end; may be "". Raises as `bucket`."""
        return self._bucket_and_prefix()[1]

    def _bucket_and_prefix(self) -> tuple[str, str]:
        if not self.is_s3:
            raise ValueError(f"{self.url} is not in a bucket")
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        return bucket, prefix

    def check(self) -> None:
        """Raise `InvalidValueError` for keys without effect, or half of the credentials; keep the key id secret."""
        self._reject_keys_that_have_no_effect()
        self._reject_half_of_the_credentials()
        # Many MinIO buckets have the name of the access key that is made for them.
        keep_secret(self.access_key_id, public=f"{self.url} {self.endpoint_url}")

    def _reject_keys_that_have_no_effect(self) -> None:
        given = self.given - {"url", "retention"}
        if given and not self.is_s3:
            keys = ", ".join(key for key in self.keys if key in given)
            raise InvalidValueError(
                f"a directory has no use for {keys}", hint="these keys are for s3:// stores; take them out"
            )
        if self.sse_kms_key_id is not None and self.server_side_encryption != "aws:kms":
            raise InvalidValueError(
                "sse_kms_key_id is set, but not used", hint='set server_side_encryption = "aws:kms" as well'
            )

    def _reject_half_of_the_credentials(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            given, missing = "access_key_id", "secret_access_key"
            if self.access_key_id is None:
                given, missing = missing, given
            raise InvalidValueError(f"{given} is set without {missing}", hint=f"set {missing}, or neither")
        if self.session_token is not None and self.access_key_id is None:
            raise InvalidValueError("session_token is set without access_key_id and secret_access_key")


def store_from_url(url: str) -> StoreSettings:
    """Return the store at `url`, with defaults for all other keys. Raises `UsageError` when `url` names no store."""
    try:
        return StoreSettings(url=_normal_store_url(url))
    except InvalidValueError as error:
        raise InvalidValueError(f"store URL: {error.message}", hint=error.hint) from None


def _recipients(value: object) -> object:
    """Read public keys from a list, or, as in a variable, from a text with commas or line breaks between them."""
    if isinstance(value, str):
        value = [part.strip() for part in value.replace(",", "\n").splitlines() if part.strip()]
        if not value:  # a template without its value must not switch encryption off
            raise InvalidValueError("has no public key", hint="write one; or without encryption, leave this key out")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InvalidValueError(
            "must be a list of public keys", hint='write it like ["age1...", "ssh-ed25519 AAAA..."]'
        )
    if len(value) > _MOST_RECIPIENTS:
        raise InvalidValueError(f"{len(value)} public keys are too many", hint=f"{_MOST_RECIPIENTS} are the most")
    try:
        return tuple(check_recipient(each.strip()) for each in value)
    except InvalidRecipientError as error:
        raise InvalidValueError(error.message, hint=error.hint) from None


class EncryptionSettings(Table):
    """Public keys to encrypt to, each of whose secret keys decrypts everything; none means no encryption."""

    recipients: Annotated[tuple[str, ...], _recipients] = ()
