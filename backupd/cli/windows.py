"""Recovery windows, the gaps between them and the commits in them, as lines and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupd.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from backupd.format.records import Continuity
    from backupd.repository.archive import Archive
    from backupd.repository.moments import CommitFacts, Gap, RestorePoint, WindowSpan

_PAGES_SHOWN = 8


def gap_text(gap: Gap) -> str:
    """Describe a gap, with dates: `between 14:02 and 14:05, not every moment can be restored: the log was cut`."""
    began, ended = (None if each is None else output.local_time(each) for each in (gap.began_at, gap.ended_at))
    if began and ended:
        span = f"between {began} and {ended}"
    elif ended:
        span = f"before {ended}"
    else:
        span = f"after {began}"
    return f"{span}, not every moment can be restored: {gap.reason}"


def print_gap(point: RestorePoint) -> None:
    """Print why it is not the moment that was asked for, if so, and what comes closer to it."""
    if point.is_newest:
        output.print_note(
            f"nothing newer than {output.local_time(point.at)} is stored: if the database was followed until the time "
            "that you want, this is its state then (backupd status says so)"
        )
    if point.gap is None:
        return
    output.print_warning(f"the snapshot before that moment is taken: {gap_text(point.gap)}")
    if point.gap.began_at is not None and point.gap.began_at > point.at:
        closer = output.local_time(point.gap.began_at, is_exact=True).replace(" ", "T")
        output.print_note(f"hint: the last commit before that: backupd restore {point.manifest.database}@{closer}")


def gap_values(gap: Gap) -> dict[str, Any]:
    """A gap in JSON documents."""
    began, ended = (None if each is None else output.utc_time(each) for each in (gap.began_at, gap.ended_at))
    return {"began_at": began, "ended_at": ended, "reason": gap.reason}


def window_lines(archive: Archive, spans: Iterable[WindowSpan]) -> Iterator[str]:
    """Yield a line for each recovery window of an archive, and for each gap between two."""
    name = f"{archive.database} in {archive.url}"
    for span in spans:
        if span.gap is not None:
            yield f"{name}: {gap_text(span.gap)}"
        if span.restorable is not None:
            yield f"{name}: {_restorable(*span.restorable, span.minutes_until)}{_proven(span)}"
        elif span.began_at is None:
            commits = output.count(span.window.last - span.window.first + 1, "commit")
            problem = span.problem.message if span.problem else "no snapshot is left that they could be added to"
            yield f"{name}: {commits} up to {output.local_time(span.window.ended_at)}; {problem}"
        if span.broken is not None:
            yield f"{name}: {gap_text(span.broken)}"


def _restorable(began_at: datetime, ended_at: datetime, minutes_until: datetime | None) -> str:
    """Say from when to when which moments can be restored."""
    began, ended = output.local_time(began_at), output.local_time(ended_at)
    if minutes_until is None or minutes_until < began_at:
        return f"any moment from {began} to {ended}"
    if minutes_until >= ended_at:
        return f"the last commit of each minute from {began} to {ended}"
    until = output.local_time(minutes_until)
    return f"the last commit of each minute from {began} to {until}, and any moment from then to {ended}"


def _proven(span: WindowSpan) -> str:
    """Say from when to when the commits of a window are known to be what was committed."""
    found = span.continuity
    if found is None or found.is_broken:
        return ""
    began, ended = output.local_time(found.base.taken_at), output.local_time(found.snapshot.taken_at)
    return f"; continuity proven from {began} to {ended}"


def window_values(archive: Archive, span: WindowSpan) -> dict[str, Any]:
    """A recovery window in JSON documents, with the gap before it; `began_at` is null when nothing can be restored."""
    window = span.window
    return {
        "id": str(window.id),
        "database": archive.database,
        "store": archive.url,
        "began_at": None if span.began_at is None else output.utc_time(span.began_at),
        "ended_at": output.utc_time(window.ended_at),
        "minutes_until": None if span.minutes_until is None else output.utc_time(span.minutes_until),
        "first_commit": window.first,
        "last_commit": window.last,
        "segments": len(window.segments),
        "stored_bytes": sum(stored.size_bytes for stored in window.segments),
        "gap": None if span.gap is None else gap_values(span.gap),
        "continuity": None if span.continuity is None else _continuity_values(span.continuity),
        "problem": None if span.problem is None else output.error_values(span.problem),
    }


def _continuity_values(found: Continuity) -> dict[str, Any]:
    return {
        "outcome": found.outcome.value,
        "at": output.utc_time(found.at),
        "base": str(found.base),
        "snapshot": str(found.snapshot),
        "first_commit": found.after + 1,
        "last_commit": found.by,
    }


def commit_line(commit: CommitFacts) -> str:
    """Describe a commit: `2026-11-29 14:03:06.512+01:00  commit 4,711: 3 pages (1, 17, 4,242) of 12,000`."""
    shown = ", ".join(map(output.count, commit.pages[:_PAGES_SHOWN]))
    shown += ", ..." if len(commit.pages) > _PAGES_SHOWN else ""
    pages = f"{output.count(len(commit.pages), 'page')} ({shown}) of {output.count(commit.page_count)}"
    return f"{output.local_time(commit.seen_at, is_exact=True)}  commit {output.count(commit.number)}: {pages}"


def commit_values(commit: CommitFacts) -> dict[str, Any]:
    """A commit in JSON documents."""
    return {
        "number": commit.number,
        "seen_at": output.utc_time(commit.seen_at),
        "page_count": commit.page_count,
        "pages": list(commit.pages),
    }
