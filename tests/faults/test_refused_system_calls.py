"""System calls that a file system never permits: each command does without them, or refuses and changes nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest
from harness.cli import CommandLine, Finished, Runner, finish, side_files, tree
from harness.extent import sampled
from harness.place import content_digest

from faults import system_calls

if TYPE_CHECKING:
    from pathlib import Path

_COMMANDS = {
    "now": ("now", "--full"),
    "restore-to": ("restore", "app@latest", "--to", "restored.db"),
    "restore": ("restore", "app@latest", "--yes"),
    "replace": ("restore", "app@latest", "--yes", "--replace", "--app-stopped"),
    "init": ("init", "--yes", "--database", "app.db", "--store", "backups", "--config", "new.toml"),
    "doctor": ("doctor",),
    "drill": ("verify", "app@latest", "--level", "drill"),
}


class Refused(NamedTuple):
    """Calls that fail with `error` each time, and the commands that cannot do without, with their exit codes."""

    calls: tuple[str, ...]
    error: str
    codes: dict[str, int]
    word: str = ""
    """What the errors of these commands say."""


_STATE = dict.fromkeys(("now", "restore", "replace", "drill", "doctor", "init"), 2)
_REFUSED = {
    "chown": Refused(("chown", "fchown", "fchownat"), "EPERM", {}),
    "chown-to-no-one": Refused(("chown", "fchown", "fchownat"), "EINVAL", {}),
    "chmod": Refused(("chmod", "fchmod", "fchmodat"), "EPERM", {}),
    "copy": Refused(("copy_file_range", "sendfile"), "EIO", {}),
    "copy-in-a-sandbox": Refused(("copy_file_range", "sendfile"), "EPERM", {}),
    "link": Refused(("link", "linkat"), "EPERM", {"replace": 2}, "no hard links"),
    "many-links": Refused(("link", "linkat"), "EMLINK", {"replace": 2}, "no hard links"),
    "lock": Refused(("flock",), "ENOLCK", {**_STATE, "restore-to": 2}, "has no locks"),
    "lock-not-supported": Refused(("flock",), "EOPNOTSUPP", {**_STATE, "restore-to": 2}, "has no locks"),
    "allocate": Refused(("fallocate",), "EOPNOTSUPP", {}),
    "allocate-odd": Refused(("fallocate",), "EINVAL", {}),
    "room": Refused(("statfs", "fstatfs"), "ENOSYS", {}),
    "times": Refused(("utimensat",), "EPERM", {}),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sampled(_REFUSED, fast={"link"}))
def test_command_succeeds_or_changes_nothing(pristine: Path, tmp_path: Path, name: str):
    """With a system call refused, each command succeeds in full, or fails and changes nothing."""
    refused = _REFUSED[name]
    for verb, arguments in _COMMANDS.items():
        home = shutil.copytree(pristine, tmp_path / verb)
        before = _seen(home)
        runner = Runner(enter=system_calls.injecting(tmp_path / "log", refused.calls, error=refused.error, when="1+"))
        code = refused.codes.get(verb, 0)
        finished = finish(CommandLine(home, runner=runner).start(*arguments), code=code)
        assert CommandLine(home).spooled() == [], (verb, finished)
        assert [path.name for path in home.iterdir() if ".backupd-" in path.name] == [], (verb, finished)
        assert side_files(home / "app.db") == [], (verb, finished)
        if code:
            assert refused.word in finished.stdout + finished.stderr, (verb, finished)
            assert _seen(home) == before or verb == "init", (verb, finished)
        else:
            _require_done(verb, home, finished)


def _seen(home: Path) -> dict[str, tuple[object, ...]]:
    return {name: facts for name, facts in tree(home).items() if not name.startswith("state")}


def _require_done(verb: str, home: Path, finished: Finished) -> None:
    first, second = content_digest(home / "first"), content_digest(home / "second")
    is_replaced = verb in {"restore", "replace"}
    assert content_digest(home / "app.db") == (first if is_replaced else second), (verb, finished)
    if verb == "restore-to":
        assert content_digest(home / "restored.db") == first
    if verb == "init":
        assert (home / "new.toml").stat().st_size
    if verb == "now":
        CommandLine(home).run("restore", "app@latest", "--to", "again.db")
        assert content_digest(home / "again.db") == second
