"""What one run leaves to the next in the state directory: that a snapshot failed, that deletions are refused."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from backupd.errors import StoreRefusedError
from backupd.holds import Hold
from backupd.store import canonical_url

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.errors import BackupdError
    from backupd.state import StateDirectory


def note_begun(state: StateDirectory, database: str, store: str, *, now: datetime) -> None:
    """Remember that a snapshot of `database` in `store` (a URL) has begun: if it is killed, that is a failure too.

    Raises `TargetUnwritableError`, as do all functions here.
    """
    state.note(_failure(database, store), f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} it was interrupted")


def note_failure(state: StateDirectory, database: str, store: str, error: BackupdError, *, now: datetime) -> None:
    """Remember that it failed, and how: nothing is removed until one succeeds."""
    state.note(_failure(database, store), f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} {error.message}")


def note_success(state: StateDirectory, database: str, store: str) -> None:
    """Forget the failure."""
    state.note(_failure(database, store), None)


def failure_hold(state: StateDirectory, database: str, store: str) -> Hold | None:
    """The hold that a failed snapshot is, if the last one did."""
    noted = state.noted(_failure(database, store))
    if noted is None:
        return None
    at, _, message = noted.partition(" ")
    return Hold(
        f"the last snapshot of {database} in {store} failed at {at}: {message}",
        hint=f"put that right, then: backupd now {database}",
    )


def refusal_is_news(state: StateDirectory, store: str, error: BackupdError | None) -> bool:
    """Whether a prune of `store` (a URL) ended in a refusal that was not told yet; remembers that it now is.

    None, or any other error, makes the next refusal news again.
    """
    subject = f"deletions refused by {canonical_url(store)}"
    if not isinstance(error, StoreRefusedError):
        if error is None:
            state.note(subject, None)
        return False
    is_news = state.noted(subject) is None
    state.note(subject, error.message)
    return is_news


def _failure(database: str, store: str) -> str:
    return f"failed snapshot of {database} in {canonical_url(store)}"
