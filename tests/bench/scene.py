"""The place of a scenario: a scratch directory, how large and how often, and the samples that were recorded."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.creditrobot import generate

from bench.measuring import Quantity, flush, pace, peak_anonymous_bytes, timed
from bench.tools import Backupd, plain_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bench.measuring import Run
    from bench.results import Scale

_ENOUGH_SECONDS = 600
_SETTLES_WITHIN_SECONDS = 3.0


@dataclass(slots=True)
class Work:
    """All samples of one piece of work, in the order in which they were taken, and the machine's pace before each."""

    samples: dict[Quantity, list[float]] = field(default_factory=dict)
    paces: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """One run of scenarios. Every command is a new process, the file cache is warm, and the disk is idle before it."""

    scratch: Path
    scale: Scale
    rounds: int
    works: dict[str, Work] = field(default_factory=dict)

    def tell(self, text: str) -> None:
        """Show what is done now."""
        sys.stderr.write(f"{text} ...\n")
        sys.stderr.flush()

    def each_round(self, rounds: int | None = None) -> Iterator[int]:
        """Count from 1 to `rounds` (those of the run), and stop early when they take ten minutes together."""
        began = time.monotonic()
        for number in range(1, (rounds or self.rounds) + 1):
            yield number
            if time.monotonic() - began > _ENOUGH_SECONDS:
                break

    def sample_database(self, name: str = "creditrobot.db") -> Path:
        """Make a database of the size that is measured; an earlier one with this name is replaced."""
        original, database = self.scratch / "original.db", self.scratch / name
        if not original.exists():
            self.tell(f"making a database of {self.scale.size_bytes / 1e6:.0f} MB")
            generate(original, size_bytes=self.scale.size_bytes)
        for suffix in ("", "-wal", "-shm"):
            database.with_name(name + suffix).unlink(missing_ok=True)
        shutil.copyfile(original, database)
        return database

    def backupd(
        self,
        *databases: Path | str,
        level: int | None = None,
        store: Mapping[str, object] | None = None,
        **tables: Mapping[str, object],
    ) -> Backupd:
        """Configure backupd for `databases`, with an empty state directory; `tables` of its configuration.

        Without a `store`, it has a directory as its store, which is empty.
        """
        tool = Backupd(self.scratch / "backupd", level)
        tool.remove()
        tool.configure(databases, store=store, **tables)
        return tool

    def record(self, work: str, **quantities: float) -> None:
        """Add a sample: quantities by the names of `Quantity` in lower case."""
        samples = self.works.setdefault(work, Work()).samples
        for name, value in quantities.items():
            samples.setdefault(Quantity[name.upper()], []).append(value)

    def feel_pace(self, work: str) -> None:
        """Note how fast the machine is, right before a sample of `work`."""
        self.works.setdefault(work, Work()).paces.append(pace())

    def time(self, work: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
        """Run a command, and record what it took."""
        self.feel_pace(work)
        run = timed(command, plain_environment() if environment is None else environment, self.scratch)
        self.record(work, seconds=run.seconds, cpu=run.cpu_seconds)
        return run

    def peak(self, work: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Run a command, and record how much memory it needed."""
        variables = plain_environment() if environment is None else environment
        self.record(work, memory=peak_anonymous_bytes(command, variables, self.scratch))

    def settle(self) -> None:
        """Wait until a file that was written just now no longer is: its time stamp would prove nothing."""
        flush(self.scratch)
        time.sleep(_SETTLES_WITHIN_SECONDS)
