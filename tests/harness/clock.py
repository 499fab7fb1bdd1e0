"""A clock of one's own for a process, which a test can set while it runs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from harness.cli import Runner

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class Clock:
    """A clock that shows a time later than the real one, for files too; monotonic time is the real one.

    A process that goes by it must not sleep: faketime makes an error of that when monotonic time is left alone.
    """

    file: Path
    library: str
    ahead_seconds: float = 0.0

    def set(self, ahead_seconds: float) -> None:
        """Show a time that is so many seconds later than the real one, from now on."""
        self.ahead_seconds = ahead_seconds
        temporary = self.file.with_suffix(".new")
        temporary.write_text(f"{ahead_seconds:+f}\n")
        temporary.replace(self.file)

    def runner(self) -> Runner:
        """Runs commands by this clock."""
        return Runner(
            environ={
                "LD_PRELOAD": self.library,
                "FAKETIME_TIMESTAMP_FILE": str(self.file),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )


def settable_clock(directory: Path) -> Clock:
    """A clock that is right, with its file in `directory`. Skips the test where faketime is missing."""
    if shutil.which("faketime") is None:
        pytest.skip("needs the program faketime")
    shown = subprocess.run(["faketime", "-f", "+0", "env"], capture_output=True, text=True, check=True).stdout
    library = next(line.partition("=")[2] for line in shown.splitlines() if line.startswith("LD_PRELOAD="))
    clock = Clock(directory / "clock", library)
    clock.set(0.0)
    return clock
