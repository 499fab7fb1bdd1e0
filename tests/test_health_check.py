"""The health check of the image: the command in the Dockerfile, run by a shell as an engine does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from harness.image import health_check

if TYPE_CHECKING:
    from pathlib import Path

_ASKED = 7
"""The exit code of a `backupd` that only shows that it was called."""

pytestmark = pytest.mark.skipif(shutil.which("find") is None, reason="there is no find here, unlike in the image")


def check(home: Path) -> subprocess.CompletedProcess[str]:
    """Run the health check with `home/state` as its state directory, and a `backupd` that ends with `_ASKED`."""
    command = home / "bin/backupd"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\necho "$*"; exit {_ASKED}\n')
    command.chmod(0o755)
    environ = {"PATH": f"{command.parent}:{os.environ['PATH']}", "BACKUPD_STATE_DIR": str(home / "state")}
    return subprocess.run(health_check(), env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("directory", ["state", "state/1000"])
@pytest.mark.parametrize("age_seconds", [0, 60, 110])
def test_a_fresh_sign_is_all_that_it_needs(tmp_path: Path, directory: str, age_seconds: int) -> None:
    """The daemon has left the sign within two minutes, in the state directory of whatever user it is."""
    (tmp_path / directory).mkdir(parents=True)
    sign = tmp_path / directory / "healthy"
    sign.touch()
    os.utime(sign, (time.time() - age_seconds,) * 2)
    done = check(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")


@pytest.mark.parametrize("age_seconds", [130, 10**9, -90])
def test_a_sign_of_another_time_means_nothing(tmp_path: Path, age_seconds: int) -> None:
    """An old sign is that of a daemon that has died, and one from the future shows that the clock was set back."""
    (tmp_path / "state").mkdir()
    sign = tmp_path / "state/healthy"
    sign.touch()
    os.utime(sign, (time.time() - age_seconds,) * 2)
    done = check(tmp_path)
    assert (done.returncode, done.stdout) == (_ASKED, "status --check\n")


@pytest.mark.parametrize("is_there", [True, False])
def test_without_a_sign_it_asks_what_is_wrong(tmp_path: Path, *, is_there: bool) -> None:
    """The answer of `backupd status --check` is the one that counts, also where there is no state directory."""
    if is_there:
        (tmp_path / "state/1000/deeper").mkdir(parents=True)
        (tmp_path / "state/1000/deeper/healthy").touch()
        (tmp_path / "state/alive").touch()
    done = check(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (_ASKED, "status --check\n", "")
