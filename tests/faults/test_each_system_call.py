"""Every system call that writes fails once, with EIO, ENOSPC or each: below spool, state, store and restore target.

After each, the command has said what is wrong, what is listed restores, the next run succeeds, and nothing is left.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
from harness.cli import CommandLine, Finished, Runner
from harness.extent import sampled
from harness.kept_workers import kept_workers
from harness.killing import kill
from harness.place import content_digest

from backupd.backup import Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.repository.references import list_snapshots
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from faults import system_calls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ERRORS = {
    "write": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC"),
    "copy_file_range": ("EIO", "ENOSPC"),
    "fsync": ("EIO",),
    "fdatasync": ("EIO",),
    "ftruncate": ("EIO",),
    "fallocate": ("ENOSPC",),
    "mkdirat": ("ENOSPC",),
    "link": ("ENOSPC",),
    "rename": ("ENOSPC",),
    "renameat": ("EIO",),
}
"""What each of them fails with: where it takes space the first one with both, and those after it with each in turn."""
_BEHIND_A_PIPE = {("write", "spool"), ("write", "store")}
"""The thread that does it writes to a pipe first, which fails in its place. A full disk gets there in the soak."""
_COMMANDS = {
    "now": ("now", "--full"),
    "restore": ("restore", "app@latest", "--to", "restored.db"),
}
_ATTEMPTS = 10
_BUG = 1


class Made(NamedTuple):
    """A system call of a thread, and what it was done to."""

    thread: str
    call: str
    where: str
    is_injected: bool


def _made(log: Path, home: Path) -> list[Made]:
    lines = re.findall(r"^(\d+) +([a-z0-9]+)\((.*)$", log.read_text(), re.MULTILINE)
    return [Made(thread, call, _where(rest, home), "(INJECTED)" in rest) for thread, call, rest in lines]


def _where(arguments: str, home: Path) -> str:
    for name, part in (("spool", "state/spool/"), ("state", "state"), ("store", "backups")):
        if f"{home}/{part}" in arguments:
            return name
    return "target" if str(home) in arguments else "elsewhere"


def _traced(home: Path, arguments: tuple[str, ...], enter: tuple[str, ...]) -> Finished:
    process = CommandLine(home, runner=Runner(enter=enter)).start(*arguments)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        kill(process)
    return Finished(process.returncode, stdout, stderr)


def _numbered(made: list[Made]) -> Iterator[tuple[str, int]]:
    """(call, n) for which some thread makes its n-th such call to a file of ours."""
    seen: Counter[tuple[str, str]] = Counter()
    found = set()
    for each in made:
        seen[each.thread, each.call] += 1
        if each.where != "elsewhere":
            found.add((each.call, seen[each.thread, each.call]))
    yield from sorted(found)


def _errors(call: str, number: int) -> tuple[str, ...]:
    errors = _ERRORS[call]
    return errors if number == 1 else (errors[number % len(errors)],)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", sampled([12, 1]))
@pytest.mark.parametrize("name", sampled(_COMMANDS))
def test_failure_of_any_system_call_loses_nothing(pristine: Path, tmp_path: Path, name: str, every: int):
    """The n-th of its kind in each thread, for every n (or some) of a run in which nothing fails."""
    log, arguments = tmp_path / "log", _COMMANDS[name]
    clean = shutil.copytree(pristine, tmp_path / "clean")
    assert _traced(clean, arguments, system_calls.tracing(log, [*_ERRORS])).code == 0
    made = _made(log, clean)
    injected = set()
    errors = [(call, number, error) for call, number in _numbered(made) for error in _errors(call, number)]
    for call, number, error in errors[::every]:
        for attempt in range(_ATTEMPTS):  # uploads are shared among threads differently each time
            home = shutil.copytree(pristine, tmp_path / f"{call}-{number}-{error}-{attempt}")
            log.unlink()
            finished = _traced(home, arguments, system_calls.injecting(log, [call], error=error, when=str(number)))
            failed = {each for each in _made(log, home) if each.is_injected}
            if failed:
                break
        assert failed, f"{call} number {number} was never failed"
        injected |= {(each.call, each.where) for each in failed}
        what = f"{error} of {call} number {number}: {sorted(each.where for each in failed)}"
        # A pipe between two processes that fails is no disk: what they say of that does not count.
        if all(each.where != "elsewhere" for each in failed):
            _require_a_message(finished, what)
        _require_promises(home, what)
    reachable = {(each.call, each.where) for each in made if each.where != "elsewhere"} - _BEHIND_A_PIPE
    assert injected >= reachable or every > 1


def _require_a_message(finished: Finished, what: str) -> None:
    assert finished.code != _BUG, (what, finished)
    assert "Traceback" not in finished.stderr, (what, finished)
    assert finished.code == 0 or finished.reported("error"), (what, finished)


def _require_promises(home: Path, what: str) -> None:
    states = {content_digest(home / name) for name in ("first", "app.db")}
    restored = home / "restored.db"
    # After the last step, flushing the directory's names, the file may be there in spite of the error. It is whole.
    assert not restored.exists() or content_digest(restored) in states, what
    # Within this process, which is a third of the time of a command.
    store = DirectoryStore(home / "backups")
    (again,) = back_up(
        Database("app", home / "app.db"),
        [Repository(store, StateDirectory(home / "state"))],
        Settings(),
        request=SnapshotRequest(is_full=True),
        on_progress=lambda _: None,
        workers=kept_workers(),
    )
    assert again.outcome is Outcome.CREATED, what
    repository = Repository(store, StateDirectory(home / "reader"))
    listing = list_snapshots([repository], "app")
    assert listing.problems == [], what
    assert len(listing.snapshots) >= 2, what
    for each in listing.snapshots:
        target = home / f"{each.manifest.id}.db"
        restore_to_file(
            RestorePoint(each.archive, each.archive.manifest(each.manifest.id)),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        assert content_digest(target) in states, what
    assert CommandLine(home).spooled() == [], what
    assert [*(home / "backups/.incoming").iterdir()] == [], what
    assert [path.name for path in home.iterdir() if ".backupd-" in path.name] == [], what
