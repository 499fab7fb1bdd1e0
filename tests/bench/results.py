"""The figures of one run, with the machine that they were taken on, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.machine import Machine

COMMITTED = Path(__file__).parent / "results"
"""One pair of files for each kind of machine."""
RATIO = "ratio"
FAILURES = "failures"
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is of everything. Results of different scales cannot be compared."""

    size_bytes: int
    kept: int
    """Snapshots in a long history."""
    databases: int
    followed_seconds: int = field(default=60, compare=False)
    """How long gaps are waited for at full rate: longer is a better proof, and not another amount."""


USUAL_SCALE = Scale(size_bytes=10**9, kept=10_000, databases=1000)
"""The amounts that targets are meant for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A row as it was measured. Less is better for every unit. Times are in seconds, sizes in bytes."""

    title: str
    group: str
    unit: str
    samples: tuple[float, ...]
    compared_with: str
    """What it is a ratio to, in words; empty when it is none."""
    at_most: float | None
    """Its target."""
    pace: float | None
    """How long a fixed computation took right before its samples (seconds); None where the machine's speed cancels."""

    @property
    def value(self) -> float:
        """The median of its samples; of counts of failures, the share that failed."""
        return mean(self.samples) if self.unit == FAILURES else median(self.samples)

    @property
    def is_reached(self) -> bool | None:
        """Whether it is as good as its target; None without one."""
        return None if self.at_most is None else self.value <= self.at_most

    def to_json(self) -> dict[str, Any]:
        """The members that say something, with numbers of four digits."""
        values = {**asdict(self), "samples": [*map(_rounded, self.samples)], "pace": self.pace and _rounded(self.pace)}
        return {name: value for name, value in values.items() if value not in (None, "")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Figure:
        """Read what `to_json` has given."""
        absent = {"compared_with": "", "at_most": None, "pace": None}
        return cls(**{**absent, **values, "samples": tuple(values["samples"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run. `rows` is in the order of the report."""

    machine: Machine
    scale: Scale
    rounds: int
    date: str
    commit: str
    rows: dict[str, Figure]

    def write(self, file: Path) -> None:
        """Write it, one line for each row, so that a difference between two versions can be read."""
        head = {**asdict(self), "rows": None}
        lines = [f"    {json.dumps(name)}: {json.dumps(row.to_json())}" for name, row in self.rows.items()]
        text = json.dumps(head, indent=2).replace('"rows": null', '"rows": {\n' + ",\n".join(lines) + "\n  }")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        """Read a file that `write` has made. Raises OSError, and ValueError or KeyError when it is no such file."""
        values = json.loads(file.read_text(encoding="utf-8"))
        rows = {name: Figure.from_json(row) for name, row in values["rows"].items()}
        machine, scale = Machine(**values["machine"]), Scale(**values["scale"])
        return cls(**{**values, "machine": machine, "scale": scale, "rows": rows})


def committed_file(machine: Machine, *, has_peers: bool) -> Path:
    """Where the results of such a machine are committed."""
    return COMMITTED / f"{machine.slug}{'-peers' if has_peers else ''}.json"


def committed_files(*, has_peers: bool) -> list[Path]:
    """All committed results of one sort, by name."""
    return [file for file in sorted(COMMITTED.glob("*.json")) if file.stem.endswith("-peers") is has_peers]


def _rounded(number: float) -> float:
    """Four significant digits; whole numbers stay whole."""
    return int(number) if number == int(number) else float(f"{number:.{_DIGITS}g}")
