"""Results as tables in Markdown."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from bench.comparing import Verdict
from bench.measuring import Quantity
from bench.peers import OURS, PEERS, WORKS
from bench.results import FAILURES, RATIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.comparing import Change, Growth
    from bench.results import Figure, Result

_SIZES = {Quantity.STORED, Quantity.WRITTEN, Quantity.MEMORY}
_UNITS: Mapping[str, str] = {
    Quantity.SECONDS: "s",
    Quantity.CPU: "s of CPU",
    Quantity.WAIT: "s",
    Quantity.SHARE: "% of a core",
    Quantity.STORED: "stored",
    Quantity.WRITTEN: "written",
    Quantity.MEMORY: "of memory",
    Quantity.GAPS: "gaps",
}
_SMALL = 0.1
_FLUSHES_NOTHING_MS = 0.05
_QUANTITIES = {"": "time", "-cpu": "CPU", "-stored": "bytes stored", "-memory": "memory"}


def head(result: Result) -> str:
    """What was measured where, in one paragraph."""
    size = f"a database of {size_text(result.scale.size_bytes)}"
    rounds = f"{result.rounds} round{'s' if result.rounds != 1 else ''}"
    machine = result.machine
    disk = f"a disk of {machine.disk_mb_per_second} MB/s that flushes in {machine.flush_ms:g} ms"
    if machine.flush_ms < _FLUSHES_NOTHING_MS:
        disk = "files in memory"
    return (
        f"{size[0].upper()}{size[1:]}, medians of up to {rounds} with their range; {machine.text}, {disk}; "
        f"load {machine.load:g} before the run; {result.date[:10]}, commit {result.commit}."
    )


def tables(result: Result) -> Iterator[str]:
    """All rows, in one table for each group, as lines."""
    group = None
    for row in result.rows.values():
        if row.group != group:
            yield from ("", f"### {row.group}", "")
            yield "| what | measured | compared with | at most | |"
            yield "|---|---|---|---|---|"
            group = row.group
        target = "" if row.at_most is None else value_text(row.at_most, row.unit)
        compared = f"ratio to {row.compared_with}" if row.compared_with else ""
        yield f"| {row.title} | {figure_text(row)} | {compared} | {target} | {_reached(row.is_reached)} |"


def summary(result: Result) -> str:
    """How many targets were reached, and which were not."""
    judged = [row for row in result.rows.values() if row.is_reached is not None]
    if not judged:
        return "No row has a target for these amounts."
    missed = [name for name, row in result.rows.items() if row.is_reached is False]
    text = f"{len(judged) - len(missed)} of {len(judged)} targets reached"
    return f"{text}; not: {', '.join(missed)}." if missed else f"{text}."


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """A table of what changed; rows that were not measured now are counted below it."""
    yield "| what | committed | now | at one speed of the machine | |"
    yield "|---|---|---|---|---|"
    for change in changes:
        if change.after is None:
            continue
        before = "" if change.before is None else value_text(change.before.value, change.before.unit)
        relative = "" if change.relative is None else f"{change.relative:+.0%}"
        now = value_text(change.after.value, change.after.unit)
        yield f"| {change.after.title} (`{change.name}`) | {before} | {now} | {relative} | {change.verdict} |"
    left_out = [change.name for change in changes if change.verdict is Verdict.NOT_MEASURED]
    if left_out:
        yield f"\nnot measured now: {', '.join(left_out)}"


def growth_lines(grown: Sequence[Growth], small: Result, large: Result) -> Iterator[str]:
    """A table of two sizes of database."""
    sizes = [size_text(result.scale.size_bytes) for result in (small, large)]
    yield f"| what | {sizes[0]} | {sizes[1]} | times | at most | |"
    yield "|---|---|---|---|---|---|"
    for each in grown:
        unit = each.small.unit
        times = f"{each.large.value / each.small.value:.1f}" if each.small.value else ""
        values = f"{value_text(each.small.value, unit)} | {value_text(each.large.value, unit)} | {times}"
        reached = _reached(each.is_reached)
        yield f"| {each.small.title} | {values} | {value_text(each.at_most, unit)} | {reached} |"


def peer_lines(result: Result) -> Iterator[str]:
    """Ours against each: what each tool took, and in parentheses how much of that backupd takes, round by round."""
    peers = installed_peers(result)
    yield f"| | | {OURS} | {' | '.join(PEERS[peer] for peer in peers)} |"
    yield f"|---|---|---|{'---|' * len(peers)}"
    for work, title in WORKS.items():
        for suffix, quantity in _QUANTITIES.items():
            ours = result.rows.get(f"{work}-{OURS}{suffix}")
            if ours is None:
                continue
            cells = [plain_text(ours)]
            cells += [_against(ours, result.rows.get(f"{work}-{peer}{suffix}")) for peer in peers]
            yield f"| {title if not suffix else ''} | {quantity} | {' | '.join(cells)} |"


def short_peer_lines(result: Result) -> Iterator[str]:
    """Time and bytes of each tool."""
    tools = [OURS, *installed_peers(result)]
    yield f"| | {' | '.join({OURS: OURS, **PEERS}[tool] for tool in tools)} |"
    yield f"|---|{'---|' * len(tools)}"
    for work, title in WORKS.items():
        yield f"| {title} | {' | '.join(_time_and_bytes(result, f'{work}-{tool}') for tool in tools)} |"


def installed_peers(result: Result) -> list[str]:
    """The keys of the tools that were measured beside ours."""
    return [peer for peer in PEERS if any(f"{work}-{peer}" in result.rows for work in WORKS)]


def figure_text(figure: Figure) -> str:
    """The value of a row with its range, such as `4.31 s (4.20 to 4.55)`."""
    text = value_text(figure.value, figure.unit)
    if len(figure.samples) == 1 or figure.unit == FAILURES:
        return text
    low, high = (_number(edge(figure.samples), figure.unit) for edge in (min, max))
    return text if low == high else f"{text} ({low} to {high})"


def value_text(value: float, unit: str) -> str:
    """A number with its unit, as people read it."""
    return " ".join(filter(None, (_number(value, unit), _UNITS.get(unit))))


def _number(value: float, unit: str) -> str:
    if unit in _SIZES:
        return size_text(value)
    if unit == FAILURES:
        return f"{value:.0%}"
    if unit == Quantity.GAPS:
        return f"{value:.0f}"
    if 0 < value < _SMALL and unit != RATIO:
        return f"{value:.2g}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain_text(figure: Figure) -> str:
    """The value where a heading names the quantity."""
    number = _number(figure.value, figure.unit)
    return number if figure.unit in _SIZES else f"{number} s"


def size_text(size_bytes: float) -> str:
    """Decimal, with up to three digits: `2.61 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            number = size_bytes / factor
            digits = max(0, 2 - math.floor(math.log10(number)))
            return f"{number:.{digits}f} {unit}" if digits and number % 1 else f"{number:.0f} {unit}"
    return f"{size_bytes:.0f} B"


def _against(ours: Figure, theirs: Figure | None) -> str:
    if theirs is None:
        return ""
    text = plain_text(theirs)
    if not all(theirs.samples):
        return text
    if len(ours.samples) == len(theirs.samples):
        ratio = median(own / other for own, other in zip(ours.samples, theirs.samples, strict=True))
    else:
        ratio = ours.value / theirs.value
    return f"{text} ({ratio:.2f})"


def _time_and_bytes(result: Result, name: str) -> str:
    time, stored = result.rows.get(name), result.rows.get(f"{name}-stored")
    if time is None:
        return ""
    return plain_text(time) if stored is None else f"{plain_text(time)}, {plain_text(stored)}"


def _reached(is_reached: bool | None) -> str:  # noqa: FBT001
    return {None: "", True: "reached", False: "**not reached**"}[is_reached]
