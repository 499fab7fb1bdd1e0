"""Restored files, held against what the application wrote."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from faults.ledger import CELLS, State, body, digest_of, touched

if TYPE_CHECKING:
    from pathlib import Path


class NotAStateError(Exception):
    """A restored file that is no state that the application can have committed."""


class Seen(NamedTuple):
    """The state that a file holds, and the digest of its content."""

    state: State
    digest: str


def read_state(path: Path) -> Seen:
    """The content of a file that no process has open. Raises `NotAStateError` if a byte of it is wrong."""
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
            problems = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
            cells = connection.execute("SELECT id, number, body FROM cell ORDER BY id").fetchall()
            seen = _state(connection)
    except sqlite3.Error as error:
        raise NotAStateError(f"SQLite cannot read it: {error}") from error
    if problems:
        raise NotAStateError(f"integrity_check: {problems[0]}")
    _require_bodies(seen.state, cells)
    return seen


def read_commit(image: bytes) -> Seen:
    """The state in the image of a database after a commit; of what cells hold, only what that commit wrote is checked.

    Raises `NotAStateError`.
    """
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(image[:18] + b"\1\1" + image[20:])  # there is no log beside it
            seen = _state(connection)
            places = ",".join(map(str, touched(seen.state)))
            cells = connection.execute(f"SELECT id, number, body FROM cell WHERE id IN ({places})").fetchall()
    except sqlite3.Error as error:
        raise NotAStateError(f"SQLite cannot read it: {error}") from error
    _require_bodies(seen.state, cells)
    return seen


def _state(connection: sqlite3.Connection) -> Seen:
    states = connection.execute("SELECT generation, number, digest FROM state").fetchall()
    cells = connection.execute("SELECT id, number FROM cell ORDER BY id").fetchall()
    if len(states) != 1:
        raise NotAStateError(f"{len(states)} rows say which state it is in")
    ((generation, number, digest),) = states
    if [cell for cell, _ in cells] != [*range(CELLS)]:
        raise NotAStateError(f"it has {len(cells)} of {CELLS} cells")
    if f"{digest_of(cells):064x}" != digest:
        raise NotAStateError(f"its cells are of different commits: they do not make up number {number}")
    return Seen(State(generation, number), digest)


def _require_bodies(state: State, cells: list[tuple[int, int, bytes]]) -> None:
    wrong = [cell for cell, version, content in cells if body(State(state.generation, version), cell) != content]
    if wrong:
        raise NotAStateError(f"the content of {len(wrong)} cells is wrong, of {wrong[0]} first")
