"""Everything that is measured: one value for each row of the report.

A scenario records samples of pieces of work, each with several quantities; a row is one quantity of one work, as it is
or as a ratio to that of another work in the same rounds, with the target that it has to reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.comparing import TOLERANCE
from bench.following import FULL_RATE, RATES, time_bucket, time_commits, time_full_rate, time_resting, time_scheduled
from bench.idle import time_idle
from bench.kept import FEW, time_long_histories
from bench.live import MODES, time_live_restores
from bench.locks import SITUATIONS, time_lock_waits
from bench.looks import time_looks, time_looks_into_bucket
from bench.measuring import Quantity
from bench.peers import OURS, PEERS, WORKS, time_peers
from bench.results import RATIO, USUAL_SCALE, Figure
from bench.segments import INTERVALS, LITESTREAM_INTERVAL, measure_stored_hour, time_moments
from bench.snapshots import DAYS, LEVELS, UPDATES, time_increments, time_levels, time_snapshots
from bench.tenants import CHANGED, time_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.results import Scale
    from bench.scene import Scene, Work

    Scenario = Callable[[Scene], None]

_MEMORY_BYTES = 150e6
_FOLLOWING_SHARES = (1.0, 8.0)
"""Percent of a core at most, for each of `RATES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the report. `title` may name `{kept}`, `{databases}` and `{followed_seconds}` of the scale."""

    name: str
    title: str
    group: str
    scenario: Scenario
    work: str
    quantity: Quantity
    against: str | None = None
    """The work whose quantity it is divided by, sample by sample: they ran in turn, so the machine's speed cancels."""
    compared_with: str = ""
    """That work, in words."""
    at_most: float | None = None
    scaled_by: str = ""
    """The attribute of the scale that it depends on, for whose usual value the target is meant."""

    @property
    def unit(self) -> str:
        """The unit of its samples."""
        return RATIO if self.against else self.quantity

    def figure(self, works: Mapping[str, Work], scale: Scale) -> Figure | None:
        """What `works` say of this row; None when something was not measured: a program is not installed."""
        ours = _samples(works, self.work, self.quantity)
        theirs = _samples(works, self.against, self.quantity) if self.against else []
        if not ours or (self.against and not theirs):
            return None
        is_usual = not self.scaled_by or getattr(scale, self.scaled_by) == getattr(USUAL_SCALE, self.scaled_by)
        samples = _ratios(ours, theirs) if self.against else ours
        paces = works[self.work].paces if self.quantity.is_time and not self.against else []
        return Figure(
            title=self.title.format(
                kept=f"{scale.kept:,}",
                databases=f"{scale.databases:,}",
                followed_seconds=f"{scale.followed_seconds:,}",
            ),
            group=self.group,
            unit=self.unit,
            samples=tuple(samples),
            compared_with=self.compared_with,
            at_most=self.at_most if is_usual else None,
            pace=median(paces) if paces else None,
        )


def _samples(works: Mapping[str, Work], work: str, quantity: Quantity) -> list[float]:
    return works[work].samples.get(quantity, []) if work in works else []


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if len(ours) == len(theirs):
        return [own / other for own, other in zip(ours, theirs, strict=True)]
    return [median(ours) / median(theirs)]


_USUAL = "`.backup`, `zstd -3 -T2`, `cp`"
_DECOMPRESSED = "`zstd -d`"


def _rows() -> Iterator[Row]:
    yield from _snapshot_rows()
    yield from _kept_rows()
    yield from _tenant_rows()
    yield from _idle_rows()
    yield from _level_rows()
    yield from _live_rows()
    yield from _lock_rows()
    yield from _follow_rows()
    yield from _look_rows()


def _snapshot_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None, **more: object) -> Row:
        scenario = time_increments if work.startswith("restore-later") else time_snapshots
        values = {"group": "One database", "scenario": scenario, "scaled_by": "size_bytes", **more}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    updates, later = f"`now` after {UPDATES:,} scattered updates", f"restore after {DAYS} days of increments"
    seconds, cpu, stored = Quantity.SECONDS, Quantity.CPU, Quantity.STORED
    beside_usual = {"against": "usual", "compared_with": _USUAL}
    yield row("unchanged", "`now`, unchanged", "unchanged", cpu, 0.3)
    yield row("touched", "`now`, touched but equal", "touched", cpu, 0.8)
    yield row("updates", updates, "updates", seconds, 1.2)
    yield row("updates-cpu", updates, "updates", cpu, 1.2)
    yield row("updates-stored", updates, "updates", stored, 4e6)
    yield row("updates-ratio", updates, "updates", seconds, 0.2, **beside_usual)
    yield row("first", "first snapshot", "first", seconds)
    yield row("first-cpu", "first snapshot", "first", cpu)
    yield row("first-stored", "first snapshot", "first", stored)
    yield row("first-ratio", "first snapshot", "first", seconds, 0.55, **beside_usual)
    yield row("first-stored-ratio", "first snapshot, bytes stored", "first", stored, 1.05, **beside_usual)
    yield row("restore", "restore", "restore", seconds)
    yield row("restore-cpu", "restore", "restore", cpu)
    beside_zstd = {"against": "restore-usual", "compared_with": _DECOMPRESSED}
    yield row("restore-ratio", "restore", "restore", seconds, 1.0, **beside_zstd)
    yield row("restore-later", later, "restore-later", seconds)
    beside_zstd = {"against": "restore-later-usual", "compared_with": _DECOMPRESSED}
    yield row("restore-later-ratio", later, "restore-later", seconds, 1.1, **beside_zstd)
    for name, title, work in (
        ("first-memory", "first snapshot", "first"),
        ("updates-memory", updates, "updates"),
        ("touched-memory", "`now`, touched but equal", "touched"),
        ("restore-memory", "restore", "restore"),
        ("restore-later-memory", later, "restore-later"),
    ):
        yield row(name, title, work, Quantity.MEMORY, _MEMORY_BYTES)


def _look_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None, **more: object) -> Row:
        in_bucket = work.startswith("look-row") or work.endswith("-bucket")
        scenario = time_looks_into_bucket if in_bucket else time_looks
        values = {"group": "Looking inside", "scenario": scenario, "scaled_by": "size_bytes", **more}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    seconds, memory, read = Quantity.SECONDS, Quantity.MEMORY, Quantity.STORED
    table, one = "`query` of a whole table", "`query` of one row, in a bucket 20 ms away"
    compared = f"`diff` of two snapshots with {UPDATES:,} scattered updates between them"
    beside_sqlite = {"against": "look-table-sqlite", "compared_with": "SQLite on the file"}
    yield row("look-table-ratio", table, "look-table", seconds, 2.0, **beside_sqlite)
    yield row("look-table", table, "look-table", seconds)
    yield row("look-table-memory", table, "look-table", memory, 100e6)
    yield row("look-row", f"{one}, beyond the start", "look-row", seconds, 0.4)
    yield row("look-row-read", f"{one}: read from the bucket", "look-row", read, 3e6)
    yield row("look-row-again", f"{one}, again, beyond the start", "look-row-again", seconds, 0.1)
    yield row("look-diff", compared, "look-diff", seconds, 2.0)
    yield row("look-diff-memory", compared, "look-diff", memory, 100e6)
    near = f"`diff` after {UPDATES:,} updates of neighbouring rows, in a bucket 20 ms away"
    yield row("look-near-bucket", near, "look-near-bucket", seconds)
    yield row("look-near-bucket-read", f"{near}: read from the bucket", "look-near-bucket", read, 10e6)
    yield row("look-diff-bucket-read", f"{compared}: read from a bucket", "look-diff-bucket", read)


def _kept_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None, **more: object) -> Row:
        values = {"group": "Many snapshots", "scenario": time_long_histories, "scaled_by": "kept", **more}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    now, listed, pruned = "`now` with {kept} snapshots kept", "`list` with {kept}", "`prune --dry-run` with {kept}"
    few = {"against": "now-few", "compared_with": f"`now` with {FEW} kept"}
    yield row("now-kept-ratio", now, "now-many", Quantity.SECONDS, 1.2, **few)
    yield row("now-kept-cpu-ratio", f"{now}, CPU", "now-many", Quantity.CPU, 1.2, **few)
    yield row("now-kept", now, "now-many", Quantity.SECONDS)
    yield row("now-few", f"`now` with {FEW} kept", "now-few", Quantity.SECONDS)
    yield row("list-kept", listed, "list-many", Quantity.SECONDS, 1.0)
    yield row(
        "list-kept-first", f"{listed}, on a machine that sees the store first", "list-many-first", Quantity.SECONDS
    )
    yield row("list-kept-memory", listed, "list-many", Quantity.MEMORY)
    yield row("prune-kept", pruned, "prune-many", Quantity.SECONDS, 1.0)


def _tenant_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None) -> Row:
        values = {"group": "Many databases", "scenario": time_tenants, "scaled_by": "databases"}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    first = "first snapshot of {databases} databases of 100 kB"
    round_of_few = f"a round of the daemon over {{databases}}, of which {CHANGED} have changed"
    yield row("tenants-first", first, "tenants-first", Quantity.CPU, 30.0)
    yield row("tenants-first-seconds", first, "tenants-first", Quantity.SECONDS)
    yield row("tenants-first-stored", first, "tenants-first", Quantity.STORED)
    yield row("tenants-round", round_of_few, "tenants-round", Quantity.CPU, 0.4)
    yield row("tenants-idle", "a round over {databases} idle ones", "tenants-idle", Quantity.CPU)
    yield row("tenants-idle-written", "a round over {databases} idle ones", "tenants-idle", Quantity.WRITTEN)
    yield row("tenants-memory", "the daemon of {databases}", "tenants-idle", Quantity.MEMORY)
    yield row("tenants-check", "`status --check` with {databases}", "tenants-check", Quantity.CPU)


def _idle_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None) -> Row:
        values = {"group": "A sidecar and small commands", "scenario": time_idle}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    idle = "idle daemon of 1 database, with its health check every 30 s"
    yield row("idle", idle, "idle", Quantity.SHARE, 0.1)
    yield row("idle-memory", "idle daemon of 1 database", "idle", Quantity.MEMORY, 35e6)
    yield row("now-small", "`now` of a tiny database", "now", Quantity.CPU, 0.25)
    yield row("now-small-seconds", "`now` of a tiny database", "now", Quantity.SECONDS)
    yield row("list-small", "`list` of a tiny database", "list", Quantity.CPU, 0.15)
    yield row("check-small", "`status --check` of a tiny database", "check", Quantity.CPU, 0.08)
    yield row("help", "`backupd --help`", "help", Quantity.SECONDS, 0.3)


def _level_rows() -> Iterator[Row]:
    def row(level: int, suffix: str, quantity: Quantity, **more: object) -> Row:
        values = {"group": "Compression levels", "scenario": time_levels, "work": f"level-{level}", **more}
        return Row(name=f"level-{level}{suffix}", title=f"first snapshot at level {level}", quantity=quantity, **values)

    for level in LEVELS:
        yield row(level, "", Quantity.SECONDS)
        yield row(level, "-cpu", Quantity.CPU)
        yield row(level, "-ratio", Quantity.SECONDS, against="usual-beside-levels", compared_with=_USUAL)
        yield row(level, "-stored", Quantity.STORED)
        yield row(level, "-memory", Quantity.MEMORY)


def _live_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity) -> Row:
        values = {"group": "Live restore of 100 MB", "scenario": time_live_restores}
        return Row(name=name, title=title, work=work, quantity=quantity, **values)

    for mode in MODES.values():
        work, title = f"live-{mode}", f"{mode} mode"
        yield row(work, f"{title}, the command", work, Quantity.SECONDS)
        for who in ("writer", "reader"):
            longest = f"{title}, longest wait of a {who}"
            yield row(f"{work}-{who}", longest, f"{work}-{who}", Quantity.WAIT)
            yield row(f"{work}-{who}-plan", f"{longest}, in its plan", f"{work}-{who}-plan", Quantity.WAIT)
            yield row(f"{work}-{who}-alone", f"{longest}, without a restore", f"{work}-{who}-alone", Quantity.WAIT)


def _lock_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: str, quantity: Quantity, at_most: float | None = None) -> Row:
        values = {"group": "Snapshots in rollback-journal mode", "scenario": time_lock_waits}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    for situation in SITUATIONS:
        for which in ("first", "later"):
            work, title = f"lock-{situation.key}-{which}", f"{which} snapshot, {situation.name}"
            yield row(f"{work}-wait", f"{title}: longest wait of a writer", work, Quantity.WAIT)
            without = f"{title}: longest wait without a snapshot"
            yield row(f"{work}-undisturbed", without, f"{work}-undisturbed", Quantity.WAIT)
            yield row(f"{work}-seconds", f"{title}: the command", work, Quantity.SECONDS)
            yield row(f"{work}-cpu", f"{title}: the command", work, Quantity.CPU)
            yield row(f"{work}-failures", f"{title}: failed", work, Quantity.FAILURES, 0.0)


def _follow_rows() -> Iterator[Row]:
    def row(
        name: str,
        title: str,
        scenario: Scenario,
        work: str,
        quantity: Quantity,
        at_most: float | None = None,
        **more: Any,
    ) -> Row:
        values = {"group": "Following the write-ahead log", "scenario": scenario, **more}
        return Row(name=name, title=title, work=work, quantity=quantity, at_most=at_most, **values)

    share, wait, seconds, stored = Quantity.SHARE, Quantity.WAIT, Quantity.SECONDS, Quantity.STORED
    follower, daemon = "the following process", "the daemon beside it"
    for rate, most_cpu in zip(RATES, _FOLLOWING_SHARES, strict=True):
        work, title = f"follow-{rate}", f"{rate:,} commits a second"
        yield row(work, f"{title}: {follower}", time_commits, work, share, most_cpu)
        yield row(f"{work}-daemon", f"{title}: {daemon}", time_commits, f"{work}-daemon", share)
        yield row(f"{work}-memory", f"{title}: {follower}", time_commits, work, Quantity.MEMORY)
        writer, slowest = f"{work}-writer", f"{title}: 99 of 100 commits take at most"
        alone = {"against": f"{writer}-alone", "compared_with": "not followed"}
        yield row(f"{writer}-ratio", slowest, time_commits, writer, wait, 1 + TOLERANCE, **alone)
        yield row(writer, f"{slowest}, followed", time_commits, writer, wait)
        yield row(f"{writer}-alone", f"{slowest}, not followed", time_commits, f"{writer}-alone", wait)
    newest = f"{RATES[0]} commits a second: age of the newest stored commit in 99 of 100 moments"
    yield row("follow-age", f"{newest}, directory", time_commits, f"follow-{RATES[0]}-age", seconds, 1.5)
    yield row("follow-bucket-age", f"{newest}, SeaweedFS", time_bucket, "follow-bucket-age", seconds, 2.5)
    full = f"{FULL_RATE:,} commits a second for {{followed_seconds}} s"
    yield row("follow-gaps", f"{full}: gaps", time_full_rate, "follow-full", Quantity.GAPS, 0.0)
    yield row("follow-full", f"{full}: {follower}", time_full_rate, "follow-full", share)
    for work, title, most_cpu, more in (
        ("follow-idle", "1 database at rest", 0.05, {}),
        ("follow-idle-many", "{databases} databases at rest", 1.0, {"scaled_by": "databases"}),
    ):
        yield row(work, f"{title}: {follower}", time_resting, work, share, most_cpu, **more)
        yield row(f"{work}-daemon", f"{title}: {daemon}", time_resting, f"{work}-daemon", share)
        yield row(f"{work}-memory", f"{title}: {follower}", time_resting, work, Quantity.MEMORY)
    of_usual = {"scaled_by": "size_bytes"}
    scheduled = "a scheduled snapshot from the log, after 1,000 scattered updates: the daemon with its captures"
    yield row("follow-scheduled", scheduled, time_scheduled, "follow-scheduled", Quantity.CPU, 0.4)
    moment = "restore of a moment, after a quarter of an hour of 100 commits a second"
    beside = {"against": "follow-restore-snapshot", "compared_with": "restore of the snapshot", **of_usual}
    yield row("follow-restore-ratio", moment, time_moments, "follow-restore", seconds, 1.3, **beside)
    yield row("follow-restore", moment, time_moments, "follow-restore", seconds)
    yield row("follow-restore-cpu", moment, time_moments, "follow-restore", Quantity.CPU)
    yield row(
        "follow-restore-memory", moment, time_moments, "follow-restore", Quantity.MEMORY, _MEMORY_BYTES, **of_usual
    )
    hour = "an hour of 10 commits a second, in segments of"
    least = "the last version of each page in each, compressed"
    for interval in INTERVALS:
        work = f"follow-hour-{interval}s"
        beside = {"against": f"{work}-least", "compared_with": least, **of_usual}
        yield row(f"{work}-ratio", f"{hour} {interval} s", measure_stored_hour, work, stored, 1.5, **beside)
        yield row(work, f"{hour} {interval} s", measure_stored_hour, work, stored)
    work, title = "follow-hour-litestream", f"the same hour, by Litestream every {LITESTREAM_INTERVAL} s"
    beside = {"against": f"follow-hour-{LITESTREAM_INTERVAL}s-least", "compared_with": least}
    yield row(f"{work}-ratio", title, measure_stored_hour, work, stored, **beside)
    yield row(work, title, measure_stored_hour, work, stored)


def _peer_rows() -> Iterator[Row]:
    quantities = {
        "": Quantity.SECONDS,
        "-cpu": Quantity.CPU,
        "-stored": Quantity.STORED,
        "-memory": Quantity.MEMORY,
    }
    for work, title in WORKS.items():
        for tool, name in {OURS: OURS, **PEERS}.items():
            for suffix, quantity in quantities.items():
                yield Row(
                    name=f"{work}-{tool}{suffix}",
                    title=f"{title}, {name}",
                    group=title,
                    scenario=time_peers,
                    work=f"{work}-{tool}",
                    quantity=quantity,
                )


ROWS = tuple(_rows())
"""The rows of `make bench`, in the order of the report."""
PEER_ROWS = tuple(_peer_rows())
"""The rows of `make bench-peers`: each piece of work, by each tool, in four quantities."""
