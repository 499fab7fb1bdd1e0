"""The table of S3 errors: for each answer, exception and TLS failure, the error to raise and what to do about it."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util.ssl_match_hostname import CertificateError

from backupd.errors import PutOnlyError, StoreError, StoreFullError, StoreRefusedError, StoreUnavailableError
from backupd.store.s3_client import CredentialsError


class Explanation(NamedTuple):
    """An error to raise. Its texts may contain the fields that `s3_errors` fills in."""

    error: type[StoreError]
    message: str
    hint: str


NO_SPACE = Explanation(
    StoreFullError, "{endpoint} has no space or quota left", "enlarge the quota, or free space in the store"
)
OUT_OF_TIME = Explanation(
    StoreUnavailableError,
    "{endpoint} did not finish within {time_limit:g} s",
    "check the network and the store; a slow connection may need a longer `time_limit`",
)
OVERLOADED = Explanation(
    StoreUnavailableError,
    "{endpoint} is overloaded or out of order ({code})",
    "wait, and check the state of the store itself",
)
NOT_S3 = Explanation(
    StoreRefusedError,
    "the server at {endpoint} does not answer like S3: it may be a web page, a proxy or a login",
    "check `endpoint_url`: scheme, host name, and the port of the S3 interface itself",
)
BUCKET_IN_ENDPOINT = Explanation(
    StoreRefusedError,
    "the bucket {bucket} is in {endpoint_key} too ({endpoint_url}), and so is searched for inside itself",
    "set {endpoint_key} to {endpoint_without_bucket}",
)
NO_SUCH_BUCKET = Explanation(
    StoreRefusedError, "bucket {bucket} does not exist at {endpoint}", "create it, or correct its name in `url`"
)
WRONG_SECRET = Explanation(
    StoreRefusedError, "{endpoint} says that the secret key is wrong", "check `secret_access_key`"
)
UNKNOWN_CODE = Explanation(
    StoreError,
    "{endpoint} answered {code}: {reason}",
    "look this up in the documentation and the log of the store",
)
UNKNOWN_ERROR = Explanation(
    StoreError,
    "{reason}",
    "check this store's configuration, that of the AWS tools, and the network; if all are right, please report it",
)
CLOCK = Explanation(StoreRefusedError, "{endpoint} refuses, because {clocks}", "set this machine's clock, best by NTP")
NO_CREDENTIALS = Explanation(
    StoreRefusedError,
    "no credentials were found",
    "set `access_key_id` and `secret_access_key`, or `profile`, or anything else that the AWS tools use",
)
CREDENTIALS = Explanation(
    StoreRefusedError,
    "the credentials cannot be used: {reason}",
    "correct the credentials of the AWS tools here (AWS_ variables, ~/.aws, the role of the machine), or set"
    " `access_key_id` and `secret_access_key` for this store",
)
CREDENTIALS_OUT_OF_REACH = Explanation(
    StoreUnavailableError,
    "the service that gives the credentials cannot be reached: {reason}",
    "check the network, and the credentials of the AWS tools here (AWS_ variables, ~/.aws, the role of the machine)",
)
CREDENTIALS_OUT_OF_TIME = Explanation(
    StoreUnavailableError,
    "no credentials were found within {time_limit:g} s",
    "check the credentials of the AWS tools here: a `credential_process` may hang, or a service may not answer",
)
CONFIGURATION = Explanation(
    StoreRefusedError, "{reason}", "correct this store's configuration, or that of the AWS tools on this machine"
)
BROKEN_OFF = Explanation(
    StoreUnavailableError, "{endpoint} did not complete its answer", "check the network and the store"
)

_DENIED = "{endpoint} denies access with these credentials ({code})"
_OR_WRONG_URL = "; or check {url} for a typing error: keys may be limited to one bucket and prefix"
DENIED_ANYTHING = Explanation(StoreRefusedError, _DENIED, "allow it, if these keys are intended for it")
DENIED_LIST = Explanation(StoreRefusedError, _DENIED, "allow s3:ListBucket on the bucket {bucket}" + _OR_WRONG_URL)
DENIED_PUT = Explanation(StoreRefusedError, _DENIED, "allow s3:PutObject on everything below this URL" + _OR_WRONG_URL)
DENIED_GET = Explanation(
    StoreRefusedError,
    _DENIED,
    "allow s3:GetObject on everything below this URL, and s3:ListBucket on the bucket {bucket}, without which even a"
    " missing object is denied" + _OR_WRONG_URL,
)
DENIED_BY_VERB = {"list": DENIED_LIST, "put": DENIED_PUT, "get": DENIED_GET, "head": DENIED_GET}
DENIED_PACK = Explanation(
    StoreRefusedError,
    _DENIED,
    "allow s3:GetObject on packs too; if these keys should only put, set `put_only = true` for this store, and restore"
    " with keys that may read",
)
DENIED_DELETION = Explanation(
    StoreRefusedError,
    _DENIED,
    "allow s3:DeleteObject; if these keys should only put, set `put_only = true` for this store, and prune with keys"
    " that may delete",
)
PUT_ONLY_PACK = Explanation(
    PutOnlyError,
    "the keys for it may only put (put_only), not read packs ({code})",
    "use keys that may read: the policy for restores in docs/s3-providers.md, on a machine without put_only",
)
PUT_ONLY_DELETION = Explanation(
    PutOnlyError,
    "the keys for it may only put (put_only), not delete ({code})",
    "use keys that may delete: the policy for pruning in docs/s3-providers.md, on a machine without put_only",
)

BY_CODE = {
    code: explanation
    for codes, explanation in (
        ("NoSuchBucket", NO_SUCH_BUCKET),
        (
            "InvalidAccessKeyId InvalidAccessKey InvalidSecurity",
            Explanation(StoreRefusedError, "{endpoint} does not know this access key", "check `access_key_id`"),
        ),
        ("SignatureDoesNotMatch", WRONG_SECRET),
        (
            "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
            Explanation(
                StoreRefusedError, "{endpoint} says that the session token is invalid or expired", "get a new one"
            ),
        ),
        (
            "AccessDenied AllAccessDisabled Forbidden Unauthorized 401 403",
            DENIED_ANYTHING,
        ),
        (
            "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301",
            Explanation(
                StoreRefusedError, "{endpoint} reports that the bucket is in another region", "set `region` to {region}"
            ),
        ),
        ("RequestTimeTooSkewed RequestExpired", CLOCK),
        ("InternalError OperationAborted RequestTimeout ServiceUnavailable SlowDown Throttling", OVERLOADED),
        (
            "BadDigest InvalidDigest IncompleteBody XAmzContentChecksumMismatch XAmzContentSHA256Mismatch",
            Explanation(
                StoreUnavailableError,
                "{endpoint} received other bytes than were sent ({code})",
                "check the network and this machine's memory, if it happens again",
            ),
        ),
        (
            "InvalidObjectState",
            Explanation(
                StoreRefusedError,
                "{endpoint} has moved the object to an archive",
                "restore it in the store first, and choose a `storage_class` that can be read at once",
            ),
        ),
        (
            "NotImplemented 501",
            Explanation(
                StoreRefusedError, "{endpoint} does not implement this", "use another server or a newer version"
            ),
        ),
    )
    for code in codes.split()
}

# For errors in finding credentials and in making a client: the first entry that matches the error or one of its causes.
UNUSABLE: tuple[tuple[type[BaseException], Explanation], ...] = (
    (
        boto.ProfileNotFound,
        Explanation(StoreRefusedError, "{reason}", "correct `profile`, or mount the AWS configuration"),
    ),
    (boto.NoCredentialsError, NO_CREDENTIALS),
    (boto.HTTPClientError, CREDENTIALS_OUT_OF_REACH),
    (boto.ConnectionError, CREDENTIALS_OUT_OF_REACH),
    (CredentialsError, CREDENTIALS),
    (boto.PartialCredentialsError, CREDENTIALS),
    (Exception, CONFIGURATION),
)

_ISSUER = (
    "set `ca_bundle` to the CA certificate of a private store (its own, if it is self-signed)",
    "`ca_bundle` ({ca_bundle}) does not belong to the CA that issued it: set it to the right one",
)
OTHER_NAME = Explanation(
    StoreRefusedError,
    "the certificate of {endpoint} is for another host name: {reason}",
    "set `endpoint_url` to a host name that is in the certificate, or have one issued for {host}",
)
EXPIRED = Explanation(
    StoreRefusedError,
    "the certificate of {endpoint} has expired according to this machine's clock, which shows {now}",
    "renew it there, or set this machine's clock",
)
NOT_YET_VALID = Explanation(
    StoreRefusedError,
    "the certificate of {endpoint} is not valid yet according to this machine's clock, which shows {now}",
    "set this machine's clock, best by NTP",
)
# Without and with a `ca_bundle`.
UNKNOWN_ISSUER = tuple(
    Explanation(StoreRefusedError, "the certificate of {endpoint} is not trusted: {reason}", hint) for hint in _ISSUER
)
NOT_TRUSTED = Explanation(
    StoreRefusedError,
    "the certificate of {endpoint} is not trusted: {reason}",
    "inspect it: openssl s_client -connect {address} -showcerts",
)
NO_CA_FILE = Explanation(
    StoreRefusedError,
    "the CA certificates for {endpoint} cannot be read: {reason}",
    "set `ca_bundle`, or AWS_CA_BUNDLE, to a file with certificates in PEM form",
)
PLAIN_HTTP = Explanation(
    StoreRefusedError,
    "{endpoint} does not speak TLS: {reason}",
    "check the port in `endpoint_url`; for a store without TLS, it must begin with http://",
)
TLS_FAILED = Explanation(
    StoreRefusedError,
    "the TLS connection to {endpoint} failed: {reason}",
    "check the port in `endpoint_url`, the TLS versions that the store accepts, and any proxy in between",
)

UNKNOWN_HOST = Explanation(
    StoreUnavailableError,
    "the host name of {endpoint} is not known",
    "check `endpoint_url` for a typing error, and this machine's name server",
)
# Possible answers of a server that is asked for the bucket by the wrong path, or under the wrong name.
AT_ANOTHER_PATH = frozenset(
    (NO_SUCH_BUCKET, NOT_S3, UNKNOWN_CODE, WRONG_SECRET, DENIED_ANYTHING, DENIED_LIST, DENIED_PUT, DENIED_GET)
)
AT_ANOTHER_NAME = frozenset((*AT_ANOTHER_PATH, OTHER_NAME, UNKNOWN_HOST))

# OpenSSL's codes (X509_V_ERR_...) for invalid certificates.
BY_VERIFY_CODE = {9: NOT_YET_VALID, 10: EXPIRED, 62: OTHER_NAME, 64: OTHER_NAME}
VERIFY_CODES_OF_ISSUERS = frozenset((2, 18, 19, 20, 21))
PLAIN_HTTP_REASONS = frozenset(("HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"))

# The first entry that matches the error or one of its causes.
BY_EXCEPTION: tuple[tuple[type[BaseException], Explanation], ...] = (
    (ResponseParserError, NOT_S3),
    (
        # botocore follows S3's redirects recursively.
        RecursionError,
        Explanation(
            StoreRefusedError,
            "{endpoint} redirects requests for this bucket endlessly",
            "check `endpoint_url` and `region`",
        ),
    ),
    (
        boto.ProxyConnectionError,
        Explanation(
            StoreUnavailableError,
            "the proxy does not let the request through to {endpoint}",
            "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment",
        ),
    ),
    (CertificateError, OTHER_NAME),
    (ssl.SSLCertVerificationError, NOT_TRUSTED),
    (boto.SSLError, TLS_FAILED),
    (
        boto.ConnectTimeoutError,
        Explanation(
            StoreUnavailableError,
            "{endpoint} accepted no connection within {connect_timeout:g} s",
            "check the network, a firewall, and `endpoint_url`",
        ),
    ),
    (
        boto.ReadTimeoutError,
        Explanation(
            StoreUnavailableError,
            "{endpoint} accepted the connection, then sent nothing for {read_timeout:g} s",
            "check the state of the store itself; if it never answers, check the port in `endpoint_url`",
        ),
    ),
    (boto.IncompleteReadError, BROKEN_OFF),
    (boto.ResponseStreamingError, BROKEN_OFF),
    (socket.gaierror, UNKNOWN_HOST),
    (
        ConnectionRefusedError,
        Explanation(
            StoreUnavailableError,
            "nothing listens at {endpoint} (connection refused)",
            "check that the store is running, and the port in `endpoint_url`",
        ),
    ),
    (
        boto.ConnectionClosedError,
        Explanation(
            StoreUnavailableError,
            "{endpoint} closed the connection without an answer",
            "check that the store is running, and whether `endpoint_url` should begin with https://",
        ),
    ),
    (
        LocationParseError,
        Explanation(
            StoreRefusedError,
            "an address on the way to {endpoint} is not valid: {reason}",
            "correct HTTPS_PROXY or HTTP_PROXY in the environment, or `endpoint_url`",
        ),
    ),
    (
        boto.HTTPClientError,
        Explanation(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (
        boto.EndpointConnectionError,
        Explanation(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (HTTPError, BROKEN_OFF),
    (boto.NoCredentialsError, NO_CREDENTIALS),
    (boto.ParamValidationError, Explanation(StoreRefusedError, "{reason}", "correct this store's configuration")),
    # The answer contains a number, a time or a text that botocore cannot read.
    (boto.EndpointProviderError, Explanation(StoreRefusedError, "{reason}", "correct {endpoint_key}")),
    (ValueError, NOT_S3),
    (OverflowError, NOT_S3),
)
