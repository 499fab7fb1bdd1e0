"""All errors that backupd reports, with their exit codes; and the secrets that no output may show.

A library or a server may quote a secret in any spelling: each is registered when it is read, and masked in errors, the
log, stdout and stderr.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Characters that move the cursor or reverse text. Each output shows other odd characters in its own way.
_TERMINAL_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LONGEST_MESSAGE = 2_000
_LONGEST_HINT = 10_000
_LONG_WORD = re.compile(r"(\S{200})\S{101,}(\S{100})")
"""A path or URL of which the beginning and the end are enough: with all of it, the rest of the line is not found."""


class ExitCode(IntEnum):
    """The exit code of the process. Published in docs/operations.md; a number never changes its meaning."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PARTLY_DONE = 3
    STORE_UNAVAILABLE = 10
    BUSY = 11
    NO_SUCH_SNAPSHOT = 12
    SOURCE_UNUSABLE = 13
    DAMAGE_FOUND = 20
    UNSUPPORTED_FORMAT = 21
    INTERRUPTED = 130


class BackupdError(Exception):
    """An expected failure: one line that says what happened, and a hint that says what to do next.

    `message` is lower case without a full stop and names the id, path or URL; `hint` is one line or None. They may
    quote a library, a server or a stored object, and go into the status, notifications and answers: secrets are masked,
    commands for a terminal are escaped, and longer text is cut.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    retry_can_help: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = _safe_text(message, _LONGEST_MESSAGE)
        self.hint = hint and _safe_text(hint, _LONGEST_HINT)
        super().__init__(self.message)

    def values(self) -> dict[str, object]:
        """Return the error as JSON documents and logs show it."""
        return {"message": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}


def _safe_text(text: str, most: int) -> str:
    text = masked(text)  # before it is cut: the beginning of a secret could not be recognized
    text = _LONG_WORD.sub(r"\1...\2", text)
    beginning = text[:most] + ("..." if len(text) > most else "")
    return _TERMINAL_COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), beginning)


class UsageError(BackupdError):
    """Wrong arguments or an invalid configuration."""

    exit_code = ExitCode.USAGE


class TargetExistsError(UsageError):
    """A restore would overwrite something without permission to do so."""


class TargetUnwritableError(UsageError):
    """A local file or directory that backupd must write (restore target, state directory) cannot be written."""


class IdentityNeededError(UsageError):
    """The requested data is encrypted, and the secret key that decrypts it is not on this machine."""


class StoreError(BackupdError):
    """A store did not carry out an operation. This base class stands for an unknown answer."""

    exit_code = ExitCode.STORE_UNAVAILABLE


class StoreUnavailableError(StoreError):
    """A store cannot be reached, does not answer in time, or reports that it is overloaded."""

    retry_can_help = True


class StoreRefusedError(StoreError):
    """A store refused an operation: wrong keys, missing bucket, no permission, a wrong clock."""


class PutOnlyError(StoreRefusedError):
    """An operation needs other keys: those of this machine may neither delete nor read packs in this store."""


class StoreFullError(StoreError):
    """The store has no space or no quota left."""


class NoSuchObjectError(StoreError):
    """A store has no object with that key."""


class LostPacksError(StoreError):
    """A store does not list packs that it acknowledged. The next snapshot writes their pages again."""

    retry_can_help = True


class LostManifestError(StoreError):
    """A store does not return the manifest that it acknowledged. The next snapshot may succeed."""

    retry_can_help = True


class UnreadableObjectError(BackupdError):
    """An object was not stored because no reader would accept it."""


class BusyError(BackupdError):
    """Another process holds a lock, or held it for longer than allowed."""

    exit_code = ExitCode.BUSY
    retry_can_help = True


class AnotherRunError(BusyError):
    """Another run of backupd works on the same database and will end: neither has a problem."""


class LimitReachedError(BackupdError):
    """A limit on threads, processes, memory, open files or simultaneous work is reached.

    It passes when other work ends, and does not concern any database or store.
    """

    exit_code = ExitCode.BUSY
    retry_can_help = True


class NoSuchSnapshotError(BackupdError):
    """No snapshot, or more than one, matches a reference."""

    exit_code = ExitCode.NO_SUCH_SNAPSHOT


class NoMatchingSnapshotError(NoSuchSnapshotError):
    """No snapshot in any store answers to the reference that was given."""


class SourceUnusableError(BackupdError):
    """The database file is missing, unreadable, not SQLite, or changed during the capture."""

    exit_code = ExitCode.SOURCE_UNUSABLE


class MissingDatabaseError(SourceUnusableError):
    """The file of a database does not exist, or no file matches a pattern; the application may still create it."""

    retry_can_help = True


def missing_database(path: object) -> MissingDatabaseError:
    """Return the error for a database file that does not exist."""
    return MissingDatabaseError(
        f"database {path} does not exist",
        hint="check the path and, in a container, that the volume is mounted there; nothing was created",
    )


class NotADatabaseError(SourceUnusableError):
    """The database file exists, but SQLite does not recognise it as a sound database."""


class DamageError(BackupdError):
    """Stored bytes differ from those that were written, or are missing."""

    exit_code = ExitCode.DAMAGE_FOUND


class DamagedSegmentError(DamageError):
    """A segment is not what was written, is missing, or does not continue the one before it."""


class UnsupportedFormatError(BackupdError):
    """The store was written by a newer backupd."""

    exit_code = ExitCode.UNSUPPORTED_FORMAT


class InterruptedByUserError(BackupdError):
    """The run was ended by Ctrl-C or SIGTERM."""

    exit_code = ExitCode.INTERRUPTED


_PROCESSES = "raise the limit of processes: pids_limit of the container, ulimit -u, or TasksMax of systemd"
_THREADS = f"{_PROCESSES}; or that of memory"
_MEMORY = "raise the memory limit: mem_limit of the container, ulimit -v, or MemoryMax of systemd"
_FILES = "raise the limit of open files: ulimits.nofile of the container, ulimit -n, or LimitNOFILE of systemd"
_LIMITS = {
    errno.EAGAIN: ("no process can be started: the limit of processes is reached", _PROCESSES),
    errno.ENOMEM: ("no memory is left for backupd", _MEMORY),
    errno.EMFILE: ("backupd has reached its limit of open files and connections", _FILES),
    errno.ENFILE: ("this machine has reached its limit of open files", "close other programs, or raise fs.file-max"),
}
# Messages of the dynamic loader when it has no memory to map a library; other limits it tells in the system's words.
_NO_MEMORY = ("failed to map segment", "cannot apply additional memory protection")
_NO_MEMORY_FOR_THE_ERROR = ("without exception set", "without setting an exception")
"""How the messages of Python end when a call failed and there was no memory even for the exception."""


def limit_reached(error: BaseException) -> LimitReachedError | None:
    """Return the limit of this machine or container that caused `error`; None for other causes.

    Python and the system report limits in many ways: MemoryError, RuntimeError for a thread, ImportError for a library
    that cannot be loaded, and ENOMEM, EMFILE, ENFILE or (for a process) EAGAIN.
    """
    for each in with_causes(error):
        if isinstance(each, LimitReachedError):
            return each
        if isinstance(each, RuntimeError) and "can't start new thread" in str(each):
            return LimitReachedError(
                "no thread can be started: a limit of processes or memory is reached", hint=_THREADS
            )
        number = _number_of(each)
        # As a deeper cause, EAGAIN means a lock that is held, or a socket without data.
        if number in _LIMITS and (number != errno.EAGAIN or each is error):
            message, hint = _LIMITS[number]
            return LimitReachedError(message, hint=hint)
    return None


def _number_of(error: BaseException) -> int | None:
    """Return the number of the system's error in an exception; of an ImportError, only one that stands for a limit."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, SystemError) and str(error).endswith(_NO_MEMORY_FOR_THE_ERROR) and _is_memory_limited():
        return errno.ENOMEM
    if isinstance(error, ImportError):
        message = str(error)
        if any(words in message for words in _NO_MEMORY):
            return errno.ENOMEM
        return next((number for number in _LIMITS if message.endswith(os.strerror(number))), None)
    return error.errno if isinstance(error, OSError) else None


def _is_memory_limited() -> bool:
    """Whether this process may be refused memory; without a limit, the system ends a process instead."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def as_backupd_error(error: BaseException) -> BackupdError:
    """Translate any exception: a `BackupdError` is itself, a limit of this machine is named, the rest is a bug."""
    if isinstance(error, BackupdError):
        return error
    return limit_reached(error) or BackupdError(
        f"this is a bug in backupd: {type(error).__name__}: {error}",
        hint="please report it with the lines above, or those in the log; listed snapshots can still be restored",
    )


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and its causes, each once: some libraries make rings of them."""
    known: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in known:
        known.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


_MASK = "***"
# Very short secrets and short words occur in many messages, and can be guessed.
_TOO_COMMON = re.compile(r".{0,4}|[a-z_]{5,7}", re.DOTALL)
# Parts of a URL that only say where something is.
_WORD = re.compile(r".{0,7}|[a-z_-]{8,11}")
_SHORTEST_ENCODED = 8

_lock = threading.Lock()
_secrets: set[str] = set()
_spelled: set[str] = set()
_pattern: re.Pattern[str] | None = None


def keep_secret(*secrets: str | None, public: str = "") -> None:
    """Make `masked` mask each of `secrets` from now on, in this process; may be repeated.

    Parts of `public` are not masked: a bucket may have the name of its access key, and its URL is not secret.
    """
    global _pattern  # noqa: PLW0603  (one for the process, like its streams)
    with _lock:
        new = {each for each in secrets if each and each not in _secrets and each.strip() not in public}
        if not new:
            return
        _secrets.update(new)
        _spelled.update(spelling for each in new for spelling in _spellings(each))
        # The longest first: a part of a secret may be one too.
        _pattern = re.compile("|".join(map(re.escape, sorted(_spelled, key=len, reverse=True)))) if _spelled else None


def keep_secret_url(url: str, *, is_host_public: bool = True) -> None:
    """Make `masked` mask a secret URL, and the parts of it that libraries quote without the rest.

    The host is such a part unless `is_host_public`: tgram://token/chat.
    """
    from urllib.parse import unquote  # noqa: PLC0415  (few runs have any)

    login, _, place = url.partition("://")[2].rpartition("@")
    user, _, password = login.partition(":")
    host, *parts = re.split(r"[/?&=#]", place)
    tokens = [user, *parts] if is_host_public else [user, host, *host.split(":"), *parts]
    kept = [url, login if password else None, password, *(each for each in tokens if not _WORD.fullmatch(each))]
    keep_secret(*kept, *(unquote(each) for each in kept if each))


def masked(text: str) -> str:
    """Return `text` with three stars in place of each known secret, in any spelling."""
    return text if _pattern is None else _pattern.sub(_MASK, text)


def masked_values(value: Any) -> Any:
    """Return `value` with all texts `masked`, at any depth of dictionaries (except keys) and lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(each) for each in value]
    return value


def _spellings(secret: str) -> Iterator[str]:
    """Yield the spellings of a secret in text, JSON, Python, URLs, XML, hexadecimal and base64 (at any offset)."""
    import base64  # noqa: PLC0415  (most runs have no secret)
    import html  # noqa: PLC0415
    import json  # noqa: PLC0415
    from urllib.parse import quote, quote_plus  # noqa: PLC0415

    content = secret.encode(errors="surrogateescape")
    for text in {secret, secret.strip()}:
        # Python escapes the quotes that it puts around a text.
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
