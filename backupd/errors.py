"""Every error that backupd reports, with its exit code: the one table that the command line, JSON and docs share."""

from __future__ import annotations

import errno
import re
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

from backupd.masking import masked

# What moves the cursor or turns text around; what a file's name has besides is shown as each sink can.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LONGEST_MESSAGE = 2_000
_LONGEST_HINT = 10_000


class ExitCode(IntEnum):
    """What the process returns to its caller. Published in README; a number never changes its meaning."""

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
    """An expected failure: one line that says what happened to what, and a hint that says what to do next.

    `message` is lower case without a full stop and names the id, path or URL; `hint` is one line or None. Whatever
    they quote (a library, a server, a stored object), secrets are masked, commands for a terminal are escaped, and what
    is longer than any text for people is cut: an error goes into the status, notifications and answers.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG
    retry_can_help: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = _told(message, _LONGEST_MESSAGE)
        self.hint = hint and _told(hint, _LONGEST_HINT)
        super().__init__(self.message)

    def values(self) -> dict[str, object]:
        """The error as JSON documents and logs show it."""
        return {"message": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}


def _told(text: str, most: int) -> str:
    text = masked(text)  # before it is cut: the beginning of a secret is no longer known as one
    beginning = text[:most] + ("..." if len(text) > most else "")
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), beginning)


class UsageError(BackupdError):
    """Wrong arguments or an invalid configuration."""

    exit_code = ExitCode.USAGE


class TargetExistsError(UsageError):
    """A restore would overwrite something that nobody allowed it to overwrite."""


class TargetUnwritableError(UsageError):
    """A local file or directory that backupd has to write (restore target, state directory) cannot be written."""


class IdentityNeededError(UsageError):
    """What was asked for is encrypted, and the secret key that decrypts it is not on this machine."""


class StoreError(BackupdError):
    """A store did not do what was asked. This base class is what an unknown answer becomes."""

    exit_code = ExitCode.STORE_UNAVAILABLE


class StoreUnavailableError(StoreError):
    """A store cannot be reached, does not answer in time, or says that it is overloaded."""

    retry_can_help = True


class StoreRefusedError(StoreError):
    """A store understood and said no: wrong keys, missing bucket, no permission, a clock that is far off."""


class PutOnlyError(StoreRefusedError):
    """What was asked of a store needs other keys: those of this machine may neither delete nor read packs there."""


class StoreFullError(StoreError):
    """No space, or no quota, is left in the store."""


class NoSuchObjectError(StoreError):
    """A store holds no object of that key."""


class LostPacksError(StoreError):
    """A store does not show packs that it acknowledged. Another snapshot writes their pages again."""

    retry_can_help = True


class LostManifestError(StoreError):
    """A store does not give back the manifest that it acknowledged. Another snapshot may fare better."""

    retry_can_help = True


class UnreadableObjectError(BackupdError):
    """What was about to be stored is nothing that a reader would accept, and was not stored."""


class BusyError(BackupdError):
    """Something else holds a lock, or held it longer than allowed."""

    exit_code = ExitCode.BUSY
    retry_can_help = True


class AnotherRunError(BusyError):
    """Another run of backupd is at work on the same thing, and will end: nothing is wrong with either."""


class LimitReachedError(BackupdError):
    """This machine or container gives no more threads, processes, memory or open files, or backupd has enough to do.

    It passes when something else ends, and says nothing of any database or store.
    """

    exit_code = ExitCode.BUSY
    retry_can_help = True


class NoSuchSnapshotError(BackupdError):
    """No snapshot, or more than one, answers to the reference that was given."""

    exit_code = ExitCode.NO_SUCH_SNAPSHOT


class SourceUnusableError(BackupdError):
    """The database file is missing, unreadable, not SQLite, or changed under the capture."""

    exit_code = ExitCode.SOURCE_UNUSABLE


class MissingDatabaseError(SourceUnusableError):
    """The file of a database is not there, or no file of a pattern: the application may be about to make it."""

    retry_can_help = True


def missing_database(path: object) -> MissingDatabaseError:
    """The error for the database at `path`, which is not there."""
    return MissingDatabaseError(
        f"database {path} does not exist",
        hint="check the path and, in a container, that the volume is mounted there; nothing was created",
    )


class NotADatabaseError(SourceUnusableError):
    """The database file is there, and SQLite does not recognise it as a sound database."""


class DamageError(BackupdError):
    """Stored bytes are not the ones that were written, or are gone."""

    exit_code = ExitCode.DAMAGE_FOUND


class UnsupportedFormatError(BackupdError):
    """The store was written by a newer backupd."""

    exit_code = ExitCode.UNSUPPORTED_FORMAT


class InterruptedByUserError(BackupdError):
    """Ctrl-C or SIGTERM."""

    exit_code = ExitCode.INTERRUPTED


_PROCESSES = "raise the limit of processes: pids_limit of the container, ulimit -u, or TasksMax of systemd"
_THREADS = f"{_PROCESSES}; or that of memory"
_MEMORY = "raise the memory limit: mem_limit of the container, ulimit -v, or MemoryMax of systemd"
_FILES = "raise the limit of open files: ulimits.nofile of the container, ulimit -n, or LimitNOFILE of systemd"
_LIMITS = {
    errno.EAGAIN: ("no process can be started: the limit of processes is reached", _PROCESSES),
    errno.ENOMEM: ("no memory is left for backupd", _MEMORY),
    errno.EMFILE: ("backupd has as many files and connections open as it may have", _FILES),
    errno.ENFILE: ("this machine has as many files open as it can have", "close other programs, or raise fs.file-max"),
}
# What the dynamic loader says, when it could not map a library, and pthread_create in C code.
_WORDS_OF_LOADER = ("failed to map segment", "cannot allocate memory", "cannot apply additional memory protection")


def limit_reached(error: BaseException) -> LimitReachedError | None:
    """The limit of this machine or container that `error`, or what caused it, comes from; None when it is another.

    The one place that knows how Python and the system say so: MemoryError, RuntimeError for a thread, ImportError for a
    library that cannot be loaded, and ENOMEM, EMFILE, ENFILE or (for a process) EAGAIN.
    """
    for each in with_causes(error):
        if isinstance(each, LimitReachedError):
            return each
        if isinstance(each, RuntimeError) and "can't start new thread" in str(each):
            return LimitReachedError(
                "no thread can be started: a limit of processes or memory is reached", hint=_THREADS
            )
        is_memory = isinstance(each, MemoryError)
        if isinstance(each, ImportError) and any(words in str(each).lower() for words in _WORDS_OF_LOADER):
            is_memory = True
        number = errno.ENOMEM if is_memory else each.errno if isinstance(each, OSError) else None
        # Deeper down, EAGAIN is what a lock that is taken, or a socket that has nothing yet, says.
        if number in _LIMITS and (number != errno.EAGAIN or each is error):
            message, hint = _LIMITS[number]
            return LimitReachedError(message, hint=hint)
    return None


def expected(error: BaseException) -> BackupdError:
    """`error` as one of ours: itself, a limit of this machine, or else a bug. The one place that calls it that."""
    if isinstance(error, BackupdError):
        return error
    return limit_reached(error) or BackupdError(
        f"this is a bug in backupd: {type(error).__name__}: {error}",
        hint="please report it with what stands above this, or in the log; what is listed can still be restored",
    )


def with_causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it was raised for; each once, since some libraries make rings of them."""
    known: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in known:
        known.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
