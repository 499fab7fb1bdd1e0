"""The recovery point of a followed database in a store: the time up to which every commit that was seen is stored.

It moves with the time while the store lacks nothing, so that the status need not be written for that. It stops at the
oldest commit that the store lacks, or when commits are not seen any more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from backupd.health.values import FollowHealth, Gap, SegmentsHealth, with_databases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from backupd.health.values import DaemonHealth, DatabaseHealth, Status, StoreHealth

TO_WAL = (
    "switch it to WAL mode once, with sqlite3 {path} 'PRAGMA journal_mode=WAL' or in SQLAlchemy: "
    "docs/configuration.md#journal-mode shows how, and what that changes"
)
"""How a database gets a log that can be followed; `path` is that of the database."""

_GAPS_KEPT_FOR = timedelta(days=1)
_MOST_GAPS = 50


class Stop(NamedTuple):
    """When and why a recovery point has stopped, and what to do about it."""

    at: datetime
    reason: str
    hint: str


def is_followable(database: DatabaseHealth) -> bool:
    """Whether the database has a write-ahead log, as far as is known."""
    follow = database.follow
    return follow is not None and (follow.window is not None or database.journal_mode == "wal")


def recovery_point(
    database: DatabaseHealth, health: StoreHealth, daemon: DaemonHealth | None, *, alive_at: datetime
) -> datetime | None:
    """Return the recovery point in one store of `database`; None when it is not followed, or has no snapshot there.

    `alive_at` is when the daemon is known to have worked last: now, where the daemon itself asks.
    """
    if database.follow is None or health.current_at is None or not is_followable(database):
        return None
    moving = alive_at - timedelta(seconds=database.follow.lag_seconds)
    stop = recovery_stop(database, health, daemon)
    return moving if stop is None else min(stop.at, moving)


def recovery_stop(database: DatabaseHealth, health: StoreHealth, daemon: DaemonHealth | None) -> Stop | None:
    """Return where and why the recovery point in one store of `database` stands still; None while it moves."""
    if not is_followable(database):
        return None
    return min(_stops(database, health, daemon), default=None)


def gaps_since(follow: FollowHealth, since: datetime) -> int:
    """Count the windows that have ended since then: within 24 hours, and 50 at most."""
    return sum(at >= since for at in follow.gaps)


def has_all_gaps(follow: FollowHealth) -> bool:
    """Whether `gaps` has every gap of the last 24 hours."""
    return len(follow.gaps) < _MOST_GAPS


def after_gap(follow: FollowHealth, gap: Gap) -> FollowHealth:
    """Return the health after a recovery window has ended."""
    gaps = (*(at for at in follow.gaps if gap.at - at < _GAPS_KEPT_FOR), gap.at)
    return replace(
        follow,
        window=None,
        window_since=None,
        last_gap=gap,
        gaps=gaps[-_MOST_GAPS:],
        gaps_total=follow.gaps_total + 1,
    )


def with_following(
    status: Status,
    follows: Mapping[str, FollowHealth],
    lacking: Mapping[tuple[str, str], SegmentsHealth],
    *,
    blind_since: datetime | None,
) -> Status:
    """Note how each database is followed, by its name, and what the stores lack, by name and URL.

    A database that is not in `follows` is not followed. What a store has lost before stays until a snapshot closes the
    gap. It is `status` itself when nothing has changed.
    """
    changed = {}
    for name, database in status.databases.items():
        after = _followed(database, follows.get(name), {url: lacking.get((name, url)) for url in database.stores})
        if after != database:
            changed[name] = after
    status = with_databases(status, changed)
    daemon = status.daemon
    if daemon is None or daemon.blind_since == blind_since:
        return status
    return replace(status, daemon=replace(daemon, blind_since=blind_since))


def _followed(
    database: DatabaseHealth, follow: FollowHealth | None, lacking: Mapping[str, SegmentsHealth | None]
) -> DatabaseHealth:
    stores = {
        url: replace(health, segments=None if follow is None else _segments(health, lacking[url]))
        for url, health in database.stores.items()
    }
    return replace(database, follow=follow, stores=stores)


def _segments(health: StoreHealth, now: SegmentsHealth | None) -> SegmentsHealth | None:
    """Return what the store lacks now, and what it has lost before and no snapshot has made up for."""
    earlier = health.segments or SegmentsHealth()
    now = now or SegmentsHealth()
    if earlier.problem is not None and now.problem is not None:
        now = replace(now, problem=replace(now.problem, since=earlier.problem.since))
    if earlier.lost_since is not None and is_lost(health, earlier):
        now = replace(now, lost_since=earlier.lost_since, lost_until=now.lost_until or earlier.lost_until)
    return None if now == SegmentsHealth() else now


def is_lost(health: StoreHealth, segments: SegmentsHealth) -> bool:
    """Whether the store lacks commits that it will never get, and no snapshot was begun after them."""
    lost_until = segments.lost_until
    return lost_until is not None and (health.current_at is None or health.current_at <= lost_until)


def _stops(database: DatabaseHealth, health: StoreHealth, daemon: DaemonHealth | None) -> Iterator[Stop]:
    segments = health.segments
    if segments is not None and segments.waiting_since is not None:
        problem = segments.problem
        yield Stop(
            segments.waiting_since,
            problem.message if problem else "segments wait for the store, which is slow",
            (problem and problem.hint)
            or "try the store with: backupd doctor; segments are put when it takes them again",
        )
    if segments is not None and segments.lost_since is not None and is_lost(health, segments):
        yield Stop(
            segments.lost_since,
            "segments were given up, because the store has taken none for too long",
            "the next snapshot in that store closes the gap; raise follow.spool to keep more meanwhile",
        )
    if daemon is not None and daemon.blind_since is not None:
        yield Stop(
            daemon.blind_since,
            "the process that follows databases has ended, or does not answer",
            "look for its end in the daemon's log, and for a disk or mount that hangs: ls next to each database",
        )
    yield from _without_snapshot(database, health)


def _without_snapshot(database: DatabaseHealth, health: StoreHealth) -> Iterator[Stop]:
    """Find out whether what is stored is of no use without a snapshot, or commits are not seen at all."""
    follow, current_at = database.follow, health.current_at
    if follow is None or current_at is None:
        return
    gap = follow.last_gap
    known_at = current_at if gap is None else max(current_at, gap.at)
    if follow.window_since is not None:
        if current_at < follow.window_since:
            yield Stop(
                min(known_at, follow.window_since),
                "no snapshot has been taken in its recovery window yet",
                "one is taken as soon as the window begins: look for its outcome in the daemon's log",
            )
    elif gap is not None and (gap.is_blind or current_at < gap.at):
        yield Stop(
            known_at,
            f"its recovery window has ended: {gap.reason}",
            "remove the cause; until then each snapshot is a recovery point",
        )
