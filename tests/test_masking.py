from __future__ import annotations

import base64
import html
import json
import subprocess
import sys
from urllib.parse import quote, quote_plus

import pytest

from backupd.errors import BackupdError, keep_secret, keep_secret_url, masked, masked_values

_SECRET = "V3ry+secret/key \"of\" 'tests' & ü\n"
_LEAK = """
import logging, sys, warnings
from backupd.logs import log
from backupd.errors import keep_secret
log.configure(is_quiet=False, is_daemon=sys.argv[1] == "daemon")
keep_secret("a-leaked-token-of-a-library")
try:
    raise RuntimeError("header b'a-leaked-token-of-a-library'")
except RuntimeError as error:
    import traceback
    log.error(f"failed: {error}", error={"message": repr(error)}, also=[str(error)], traceback=traceback.format_exc())
logging.getLogger("urllib3").warning("retrying with a-leaked-token-of-a-library")
warnings.warn("a-leaked-token-of-a-library")
"""


@pytest.mark.parametrize(
    "spell",
    [
        str,
        str.strip,
        repr,
        ascii,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: repr(text.encode()),
        html.escape,
        quote,
        lambda text: quote(text, safe=""),
        quote_plus,
        lambda text: text.encode().hex(),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.urlsafe_b64encode(f"user:{text}".encode()).decode(),
        lambda text: base64.b64encode(f"me:{text}".encode()).decode(),
    ],
)
def test_a_secret_is_masked_however_a_library_spells_it(spell) -> None:
    """What remains of it is no more than the ends of its base64, which depend on what is beside it."""
    keep_secret(_SECRET)
    reported = masked(f"header {spell(_SECRET)!s} is invalid")
    assert "***" in reported
    assert len(reported) < len("header *** is invalid") + 16
    assert not any(part in reported for part in ("V3ry", "tests", "secret"))


def test_an_error_contains_no_secret() -> None:
    """An error has no secret in its message, its hint or its JSON, and so none in status or notifications."""
    keep_secret("an-Access-Key-Id")
    error = BackupdError("b'an-Access-Key-Id\\n' is invalid", hint="not an-Access-Key-Id")
    assert "Access-Key" not in f"{error} {error!r} {error.values()}"
    assert error.message == "b'***\\n' is invalid"


def test_values_are_masked_at_any_depth_and_keys_are_not() -> None:
    """A document stays one."""
    keep_secret("snapshots-token")
    found = masked_values({"snapshots-token": [{"a": "snapshots-token"}, ("x snapshots-token",)], "n": 1, "none": None})
    assert found == {"snapshots-token": [{"a": "***"}, ["x ***"]], "n": 1, "none": None}


def test_what_is_too_short_or_public_is_left() -> None:
    """A key that is called as its bucket, or a word of all messages, would make them unreadable."""
    keep_secret("key", "minio", None, "")
    keep_secret("myapp-backups", public="s3://myapp-backups/x")
    assert masked("the key of minio in s3://myapp-backups/x") == "the key of minio in s3://myapp-backups/x"


@pytest.mark.parametrize(
    ("url", "is_host_public", "secrets"),
    [
        ("mailto://user:pass%40word1@mail.example.org", True, ["pass%40word1", "pass@word1"]),
        ("tgram://123456789:AAFFsecretbot/42", False, ["123456789:AAFFsecretbot", "AAFFsecretbot"]),
        ("https://hc.example/ping/0a1b2c3d-uuid-4e5f", True, ["0a1b2c3d-uuid-4e5f"]),
        ("json://host.example/hook?token=T0psecretT0ken", True, ["T0psecretT0ken"]),
    ],
)
def test_the_parts_of_a_secret_url_are_secrets(url: str, is_host_public: bool, secrets: list[str]) -> None:  # noqa: FBT001
    """The parts of a secret URL are masked, except for a public host."""
    keep_secret_url(url, is_host_public=is_host_public)
    assert all(masked(f"cannot send {secret}!") == "cannot send ***!" for secret in [url, *secrets])
    public = "mail.example.org hc.example/ping host.example/hook"
    assert masked(public) == public


@pytest.mark.parametrize("way", ["daemon", "command"])
def test_no_library_leaks_a_secret_into_the_log(way: str) -> None:
    """No library leaks a secret by a message, a traceback, or a logger or warnings of its own."""
    done = subprocess.run([sys.executable, "-c", _LEAK, way], capture_output=True, text=True, check=True)
    assert "leaked-token" not in done.stdout + done.stderr
    assert "***" in (done.stdout if way == "daemon" else done.stderr)


@pytest.mark.parametrize("before", range(1960, 2010, 7))
def test_the_beginning_of_a_secret_is_not_left_where_a_message_is_cut(before: int) -> None:
    """A message is not cut within a secret so that its beginning is shown."""
    keep_secret("0a1b2c3d4e5f-Secret-0a1b2c3d4e5f-Secret")
    error = BackupdError("x " * (before // 2) + "0a1b2c3d4e5f-Secret-0a1b2c3d4e5f-Secret" + "y" * 100)
    assert "0a1" not in error.message


def test_a_long_path_is_shown_by_its_beginning_and_its_end() -> None:
    """A URL of a thousand characters leaves the words around it readable; one of usual length stays whole."""
    usual, long = f"s3://bucket/{'a' * 280}", f"s3://bucket/{'a' * 3000}/end"
    assert BackupdError(f"{usual} is away").message == f"{usual} is away"
    error = BackupdError(f"no packs in {long}: try again", hint=f"look at {long}")
    assert error.message.startswith("no packs in s3://bucket/aaa")
    assert "aaa...aaa" in error.message
    assert error.message.endswith("aaa/end: try again")
    assert max(len(error.message), len(error.hint or "")) < 350
    assert BackupdError(error.message).message == error.message


def test_an_error_is_short_and_harmless_whatever_it_quotes() -> None:
    """A stored object may have megabytes of commands for a terminal where a time should be."""
    error = BackupdError(f"'\x1b[2J\u202e{'7' * 10_000_000}' is not a time", hint="\x9b" * 100_000)
    assert error.message.startswith("'\\x1b[2J\\u202e777")
    assert len(error.message) < 3_000
    assert len(error.hint or "") < 50_000
    assert f"{error.message}{error.hint}".isprintable()
    assert BackupdError("/data/tenant-\udcff.db").message == "/data/tenant-\udcff.db"
