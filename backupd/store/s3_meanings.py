"""What the errors of S3 servers, and of the way to them, mean: which of ours they are, and what to do about them."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from backupd.errors import PutOnlyError, StoreError, StoreFullError, StoreRefusedError, StoreUnavailableError
from backupd.store.s3_client import CredentialsError


class Meaning(NamedTuple):
    """An error to raise. The texts may name the fields that `s3_errors` fills in."""

    error: type[StoreError]
    message: str
    hint: str


NO_SPACE = Meaning(
    StoreFullError, "{endpoint} has no space or quota left", "enlarge the quota, or free space in the store"
)
OUT_OF_TIME = Meaning(
    StoreUnavailableError,
    "{endpoint} did not finish within {time_limit:g} s",
    "check the network and the store; a slow connection may need a longer `time_limit`",
)
OVERLOADED = Meaning(
    StoreUnavailableError,
    "{endpoint} is overloaded or out of order ({code})",
    "wait, and look at the store's own state",
)
NOT_S3 = Meaning(
    StoreRefusedError,
    "what answers at {endpoint} is not an S3 server, but perhaps a web page, a proxy or a login",
    "check `endpoint_url`: scheme, host name, and the port of the S3 interface itself",
)
BUCKET_IN_ENDPOINT = Meaning(
    StoreRefusedError,
    "the bucket {bucket} stands in {endpoint_key} too ({endpoint_url}), and is looked for inside itself",
    "set {endpoint_key} to {endpoint_without_bucket}",
)
NO_SUCH_BUCKET = Meaning(
    StoreRefusedError, "bucket {bucket} does not exist at {endpoint}", "create it, or correct its name in `url`"
)
WRONG_SECRET = Meaning(StoreRefusedError, "{endpoint} says that the secret key is wrong", "check `secret_access_key`")
UNKNOWN_CODE = Meaning(
    StoreError,
    "{endpoint} answered {code}: {reason}",
    "see what the documentation of the store, and its log, say of that",
)
UNKNOWN_ERROR = Meaning(
    StoreError,
    "{reason}",
    "check this store's configuration, that of the AWS tools, and the network; if all are right, please report it",
)
CLOCK = Meaning(StoreRefusedError, "{endpoint} refuses, because {clocks}", "set this machine's clock, best by NTP")
NO_CREDENTIALS = Meaning(
    StoreRefusedError,
    "no credentials were found",
    "set `access_key_id` and `secret_access_key`, or `profile`, or what else the AWS tools use",
)
CREDENTIALS = Meaning(
    StoreRefusedError,
    "the credentials cannot be used: {reason}",
    "correct what the AWS tools are given here (AWS_ variables, ~/.aws, the role of the machine), or set"
    " `access_key_id` and `secret_access_key` for this store",
)
CREDENTIALS_OUT_OF_REACH = Meaning(
    StoreUnavailableError,
    "the service that gives the credentials cannot be reached: {reason}",
    "check the network, and what the AWS tools are given here (AWS_ variables, ~/.aws, the role of the machine)",
)
CREDENTIALS_OUT_OF_TIME = Meaning(
    StoreUnavailableError,
    "no credentials were found within {time_limit:g} s",
    "look at what the AWS tools are given here: a `credential_process` may hang, or a service not answer",
)
CONFIGURATION = Meaning(
    StoreRefusedError, "{reason}", "correct this store's configuration, or that of the AWS tools on this machine"
)
BROKEN_OFF = Meaning(StoreUnavailableError, "{endpoint} broke off its answer", "check the network and the store")

_DENIED = "{endpoint} denies access with these credentials ({code})"
_OR_ELSE = "; or is there a typing error in {url}? Keys may be for one bucket and prefix alone"
DENIED_ANYTHING = Meaning(StoreRefusedError, _DENIED, "allow it, if these keys are meant for it")
DENIED_LIST = Meaning(StoreRefusedError, _DENIED, "allow s3:ListBucket on the bucket {bucket}" + _OR_ELSE)
DENIED_PUT = Meaning(StoreRefusedError, _DENIED, "allow s3:PutObject on what is below this URL" + _OR_ELSE)
DENIED_GET = Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:GetObject on what is below this URL, and s3:ListBucket on the bucket {bucket}, without which even what is"
    " not there is denied" + _OR_ELSE,
)
DENIED_BY_VERB = {"list": DENIED_LIST, "put": DENIED_PUT, "get": DENIED_GET, "head": DENIED_GET}
DENIED_PACK = Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:GetObject on packs too; if these keys are only to put, set `put_only = true` for this store, and restore"
    " with keys that may read",
)
DENIED_DELETION = Meaning(
    StoreRefusedError,
    _DENIED,
    "allow s3:DeleteObject; if these keys are only to put, set `put_only = true` for this store, and prune with keys"
    " that may delete",
)
PUT_ONLY_PACK = Meaning(
    PutOnlyError,
    "the keys for it may only put (put_only), and are not given packs ({code})",
    "use keys that may read: the policy for restores in docs/s3-providers.md, on a machine without put_only",
)
PUT_ONLY_DELETION = Meaning(
    PutOnlyError,
    "the keys for it may only put (put_only), and not delete ({code})",
    "use keys that may delete: the policy for pruning in docs/s3-providers.md, on a machine without put_only",
)

BY_CODE = {
    code: meaning
    for codes, meaning in (
        ("NoSuchBucket", NO_SUCH_BUCKET),
        (
            "InvalidAccessKeyId InvalidAccessKey InvalidSecurity",
            Meaning(StoreRefusedError, "{endpoint} does not know this access key", "check `access_key_id`"),
        ),
        ("SignatureDoesNotMatch", WRONG_SECRET),
        (
            "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
            Meaning(StoreRefusedError, "{endpoint} says that the session token is invalid or expired", "get a new one"),
        ),
        (
            "AccessDenied AllAccessDisabled Forbidden Unauthorized 401 403",
            DENIED_ANYTHING,
        ),
        (
            "PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301",
            Meaning(
                StoreRefusedError, "{endpoint} says that the bucket is in another region", "set `region` to {region}"
            ),
        ),
        ("RequestTimeTooSkewed RequestExpired", CLOCK),
        ("InternalError OperationAborted RequestTimeout ServiceUnavailable SlowDown Throttling", OVERLOADED),
        (
            "BadDigest InvalidDigest IncompleteBody XAmzContentChecksumMismatch XAmzContentSHA256Mismatch",
            Meaning(
                StoreUnavailableError,
                "{endpoint} received other bytes than were meant ({code})",
                "check the network and this machine's memory, if it happens again",
            ),
        ),
        (
            "InvalidObjectState",
            Meaning(
                StoreRefusedError,
                "{endpoint} has moved the object to an archive",
                "restore it in the store first; `storage_class` should be one that answers at once",
            ),
        ),
        (
            "NotImplemented 501",
            Meaning(StoreRefusedError, "{endpoint} does not implement this", "use another server or a newer version"),
        ),
    )
    for code in codes.split()
}

# In the chain of credentials, and when a client is made: the first that is the error, or among its causes.
UNUSABLE: tuple[tuple[type[BaseException], Meaning], ...] = (
    (
        boto.ProfileNotFound,
        Meaning(StoreRefusedError, "{reason}", "correct `profile`, or mount the AWS configuration"),
    ),
    (boto.NoCredentialsError, NO_CREDENTIALS),
    (boto.HTTPClientError, CREDENTIALS_OUT_OF_REACH),
    (boto.ConnectionError, CREDENTIALS_OUT_OF_REACH),
    (CredentialsError, CREDENTIALS),
    (boto.PartialCredentialsError, CREDENTIALS),
    (Exception, CONFIGURATION),
)

_ISSUER = (
    "set `ca_bundle` to the CA certificate of a private store (its own, if it signed itself)",
    "`ca_bundle` ({ca_bundle}) is not that of the CA that issued it: set it to that one",
)
OTHER_NAME = Meaning(
    StoreRefusedError,
    "the certificate of {endpoint} is for another host name: {reason}",
    "set `endpoint_url` to a host name that is in the certificate, or have one issued for {host}",
)
EXPIRED = Meaning(
    StoreRefusedError,
    "the certificate of {endpoint} has expired, by this machine's clock, which shows {now}",
    "renew it there, or set this machine's clock",
)
NOT_YET_VALID = Meaning(
    StoreRefusedError,
    "the certificate of {endpoint} is not valid yet, by this machine's clock, which shows {now}",
    "set this machine's clock, best by NTP",
)
# Without and with a `ca_bundle`.
UNKNOWN_ISSUER = tuple(
    Meaning(StoreRefusedError, "the certificate of {endpoint} is not trusted: {reason}", hint) for hint in _ISSUER
)
NOT_TRUSTED = Meaning(
    StoreRefusedError,
    "the certificate of {endpoint} is not trusted: {reason}",
    "look at it: openssl s_client -connect {address} -showcerts",
)
NO_CA_FILE = Meaning(
    StoreRefusedError,
    "the CA certificates for {endpoint} cannot be read: {reason}",
    "set `ca_bundle`, or AWS_CA_BUNDLE, to a file with certificates in PEM form",
)
PLAIN_HTTP = Meaning(
    StoreRefusedError,
    "{endpoint} does not speak TLS: {reason}",
    "check the port in `endpoint_url`; a store without TLS has one that begins with http://",
)
TLS_FAILED = Meaning(
    StoreRefusedError,
    "{endpoint} does not speak TLS as it should: {reason}",
    "check the port in `endpoint_url`, which versions of TLS the store takes, and what stands between",
)

UNKNOWN_HOST = Meaning(
    StoreUnavailableError,
    "the host name of {endpoint} is not known",
    "check `endpoint_url` for a typing error, and this machine's name server",
)
# What a server may answer that is asked by another path, or under another name, than it has the bucket.
AT_ANOTHER_PATH = frozenset(
    (NO_SUCH_BUCKET, NOT_S3, UNKNOWN_CODE, WRONG_SECRET, DENIED_ANYTHING, DENIED_LIST, DENIED_PUT, DENIED_GET)
)
AT_ANOTHER_NAME = frozenset((*AT_ANOTHER_PATH, OTHER_NAME, UNKNOWN_HOST))

# The codes of OpenSSL (X509_V_ERR_...) for what is wrong with a certificate.
BY_VERIFY_CODE = {9: NOT_YET_VALID, 10: EXPIRED, 62: OTHER_NAME, 64: OTHER_NAME}
VERIFY_CODES_OF_ISSUERS = frozenset((2, 18, 19, 20, 21))
PLAIN_HTTP_REASONS = frozenset(("HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"))

# The first that is the error, or among its causes.
BY_EXCEPTION: tuple[tuple[type[BaseException], Meaning], ...] = (
    (ResponseParserError, NOT_S3),
    (
        # botocore follows S3's redirects by calling itself.
        RecursionError,
        Meaning(
            StoreRefusedError,
            "{endpoint} sends requests for this bucket elsewhere, again and again",
            "check `endpoint_url` and `region`",
        ),
    ),
    (
        boto.ProxyConnectionError,
        Meaning(
            StoreUnavailableError,
            "the proxy does not let it through to {endpoint}",
            "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment",
        ),
    ),
    (CertificateError, OTHER_NAME),
    (ssl.SSLCertVerificationError, NOT_TRUSTED),
    (boto.SSLError, TLS_FAILED),
    (
        boto.ConnectTimeoutError,
        Meaning(
            StoreUnavailableError,
            "{endpoint} took no connection within {connect_timeout:g} s",
            "check the network, a firewall, and `endpoint_url`",
        ),
    ),
    (
        boto.ReadTimeoutError,
        Meaning(
            StoreUnavailableError,
            "{endpoint} took the connection and then said nothing for {read_timeout:g} s",
            "look at the store's own state; if it never answers, check the port in `endpoint_url`",
        ),
    ),
    (boto.IncompleteReadError, BROKEN_OFF),
    (boto.ResponseStreamingError, BROKEN_OFF),
    (socket.gaierror, UNKNOWN_HOST),
    (
        ConnectionRefusedError,
        Meaning(
            StoreUnavailableError,
            "nothing listens at {endpoint} (connection refused)",
            "check that the store is running, and the port in `endpoint_url`",
        ),
    ),
    (
        boto.ConnectionClosedError,
        Meaning(
            StoreUnavailableError,
            "{endpoint} closed the connection without an answer",
            "check that the store is running, and whether `endpoint_url` should begin with https://",
        ),
    ),
    (
        boto.HTTPClientError,
        Meaning(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (
        boto.EndpointConnectionError,
        Meaning(StoreUnavailableError, "cannot reach {endpoint}: {reason}", "check the network and `endpoint_url`"),
    ),
    (HTTPError, BROKEN_OFF),
    (boto.NoCredentialsError, NO_CREDENTIALS),
    (boto.ParamValidationError, Meaning(StoreRefusedError, "{reason}", "correct this store's configuration")),
    # A number, a time or a text in the answer that botocore cannot read.
    (ValueError, NOT_S3),
    (OverflowError, NOT_S3),
)
