"""Secrets are noted here when they are read, and masked in all that leaves the process: errors, log, stdout, stderr.

A library may quote what it was given, in any spelling that it likes; so may a server.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MASK = "***"
# Shorter ones, and short words, stand in half of all messages, and can be guessed.
_TOO_COMMON = re.compile(r".{0,4}|[a-z_]{5,7}", re.DOTALL)
# What parts of a URL look like that only say where something is.
_WORD = re.compile(r".{0,7}|[a-z_-]{8,11}")
_SHORTEST_ENCODED = 8

_lock = threading.Lock()
_secrets: set[str] = set()
_spelled: set[str] = set()
_pattern: re.Pattern[str] | None = None


def keep_secret(*secrets: str | None, public: str = "") -> None:
    """Have `masked` mask each of `secrets` from now on, in this process; may be repeated.

    Left out is what is part of `public`: a bucket may be called as its access key is, and its URL is no secret.
    """
    global _pattern  # noqa: PLW0603  (one for the process, as its streams are)
    with _lock:
        new = {each for each in secrets if each and each not in _secrets and each.strip() not in public}
        if not new:
            return
        _secrets.update(new)
        _spelled.update(spelling for each in new for spelling in _spellings(each))
        # The longest first: a part of it may be a secret too.
        _pattern = re.compile("|".join(map(re.escape, sorted(_spelled, key=len, reverse=True)))) if _spelled else None


def keep_secret_url(url: str, *, is_host_public: bool = True) -> None:
    """The same for a URL that is a secret, and for those parts of it that libraries repeat without the rest.

    Its host is one of them unless `is_host_public`: tgram://token/chat.
    """
    from urllib.parse import unquote  # noqa: PLC0415  (few runs have any)

    login, _, place = url.partition("://")[2].rpartition("@")
    user, _, password = login.partition(":")
    host, *parts = re.split(r"[/?&=#]", place)
    tokens = [user, *parts] if is_host_public else [user, host, *host.split(":"), *parts]
    kept = [url, login if password else None, password, *(each for each in tokens if not _WORD.fullmatch(each))]
    keep_secret(*kept, *(unquote(each) for each in kept if each))


def masked(text: str) -> str:
    """`text` with three stars in place of every secret that is known, however it is spelled there."""
    return text if _pattern is None else _pattern.sub(_MASK, text)


def masked_values(value: Any) -> Any:
    """`value` with `masked` texts, at any depth of dictionaries (keys are left) and lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(each) for each in value]
    return value


def _spellings(secret: str) -> Iterator[str]:
    """As it is, and as JSON, Python, URLs, XML, hexadecimal digits and base64 (wherever it begins) have it."""
    import base64  # noqa: PLC0415  (this module is imported by all that may fail, and most runs know no secret)
    import html  # noqa: PLC0415
    import json  # noqa: PLC0415
    from urllib.parse import quote, quote_plus  # noqa: PLC0415

    content = secret.encode(errors="surrogateescape")
    for text in {secret, secret.strip()}:
        # Python escapes the quotes that it has around the whole.
        escaped = [text, repr(text)[1:-1], ascii(text)[1:-1], repr(text.encode(errors="surrogateescape"))[2:-1]]
        escaped = [
            variant for each in escaped for variant in (each, each.replace("\\'", "'"), each.replace("'", "\\'"))
        ]
        as_json = [json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]]
        in_urls = [quote(content), quote(content, safe=""), quote_plus(content)]
        yield from _uncommon([*escaped, *as_json, *in_urls, html.escape(text)])
    encoded = [base64.b64encode(b"x" * shift + content)[4 if shift else 0 : -4].decode() for shift in range(3)]
    for each in encoded:
        if len(each) >= _SHORTEST_ENCODED:
            yield from (each, each.replace("+", "-").replace("/", "_"))
    yield from _uncommon([content.hex()])


def _uncommon(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if not _TOO_COMMON.fullmatch(text))
