"""The status page over HTTP: which page a path means, and what goes into it.

What it shows is in the memory and the state directory of the daemon: no request for a page asks a store.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

from backupd.errors import LimitReachedError
from backupd.page.values import Situation
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backupd.daemon.alert_loop import AlertLoop
    from backupd.daemon.work import Context

MOST_AT_ONCE = 2


class Page(NamedTuple):
    """An answer to a browser: HTML in UTF-8, and whether there is what it asked for."""

    content: bytes
    is_found: bool = True


class Pages:
    """Makes the pages, a few at a time: threads may share it."""

    def __init__(self, alerts: AlertLoop) -> None:
        self._alerts = alerts
        self._turns = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._state: StateDirectory | None = None

    def page(self, path: str, query: str, context: Context) -> Page | None:
        """Return the page at `path`, as WSGI gives it; None when no page can be there.

        Raises `LimitReachedError` while too many others are made.
        """
        values = {key: given[-1] for key, given in parse_qs(query).items()}
        with self._turn():
            match path.encode("latin-1").decode(errors="replace").split("/")[1:]:
                case [""]:
                    return self._overview(values, context)
                case ["database", name]:
                    return self._database(name, values, context)
                case ["snapshot", name, snapshot_id]:
                    return self._snapshot(name, snapshot_id, context)
        return None

    def _overview(self, query: Mapping[str, str], context: Context) -> Page:
        from backupd.jobs.knowledge import recent_runs  # noqa: PLC0415  (a daemon may never be asked)
        from backupd.page.overview import SORTS, USUAL_SORT, Place, render_overview  # noqa: PLC0415

        situation = self._situation(context)
        sort, start = query.get("sort", ""), query.get("start", "")
        place = Place(sort if sort in SORTS else USUAL_SORT, int(start) if _is_number(start) else 0)
        return _encoded(render_overview(situation, place, recent_runs(situation, self._own_state(context))))

    def _database(self, name: str, query: Mapping[str, str], context: Context) -> Page:
        from backupd.jobs.knowledge import known_database  # noqa: PLC0415
        from backupd.page.database import Part, render_database  # noqa: PLC0415

        situation = self._situation(context)
        known = known_database(name, situation, context.settings, self._own_state(context))
        if known is None:
            return self._missing(situation, "../", f"No database {name} is known here")
        return _encoded(render_database(known, situation, Part(before=query.get("before"))))

    def _snapshot(self, name: str, snapshot_id: str, context: Context) -> Page:
        from backupd.jobs.knowledge import known_database  # noqa: PLC0415
        from backupd.page.snapshot import find_snapshot, render_snapshot  # noqa: PLC0415

        situation = self._situation(context)
        known = known_database(name, situation, context.settings, self._own_state(context))
        found = find_snapshot(known, snapshot_id) if known is not None else []
        if known is None or not found:
            return self._missing(situation, "../../", f"No snapshot {name}@{snapshot_id} is known here")
        return _encoded(render_snapshot(known, found, situation))

    def _missing(self, situation: Situation, root: str, sentence: str) -> Page:
        from backupd.page.document import missing_page  # noqa: PLC0415

        return _encoded(missing_page(sentence, root, now=situation.now), is_found=False)

    def _situation(self, context: Context) -> Situation:
        now = datetime.now(UTC)
        return Situation(context.status.read(), self._alerts.alarms(), now, alive_at=now)

    def _own_state(self, context: Context) -> StateDirectory:
        """Return the state with a connection of its own: no run waits until a page was made, nor a page for a run."""
        with self._lock:
            if self._state is None or self._state.root != context.state.root:
                self._state = StateDirectory(context.state.root)
            return self._state

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise LimitReachedError(
                f"{MOST_AT_ONCE} pages are being made already", hint="load the page again in a few seconds"
            )
        try:
            yield
        finally:
            self._turns.release()


def _encoded(html: str, *, is_found: bool = True) -> Page:
    return Page(html.encode(errors="replace"), is_found)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 9  # noqa: PLR2004
