"""An application that changes one database in every way that SQLite knows, a process of its own: a walk from a seed.

`python -P stepping.py application DATABASE LEDGER SEED STEPS [KIND ...]` needs nothing but the standard library.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from harness.recorded import BUSY_SECONDS, FEW_PAGES, Partner, Recorded, add_rows, be_partner, change_rows
from harness.states import page_size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DECK = {
    "one row": 2129,
    "many rows": 150,
    "growth": 140,
    "deletion": 130,
    "vacuum": 30,
    "incremental vacuum": 50,
    "layout": 20,
    "schema": 100,
    "burst": 5,
    "spill and commit": 160,
    "spill and rollback": 160,
    "exclusive lock": 40,
    "second connection": 550,
    "reader in the way": 100,
    "second process": 300,
    "killed": 16,
    "killed for long": 1,
    "replaced": 30,
    "time stamp set back": 450,
    "short pause": 330,
    "long pause": 5,
    "reopened": 40,
    "journal mode delete": 20,
    "journal mode persist": 12,
    "journal mode truncate": 12,
    "journal mode memory": 9,
    "journal mode off": 9,
    "journal mode wal": 6,
}
"""How often each kind of step comes in a deck; the walk shuffles one deck after the other."""

CARDS = sum(DECK.values())
LONG_SECONDS = (3.5, 4.0)
"""A long pause is longer than any time stamp is coarse."""

# In OFF mode a ROLLBACK leaves the file undefined, and a connection opens the file without looking for a hot journal.
# In WAL mode the file alone is not the database.
_NOT_IN = {
    "off": {"spill and rollback", "spill and rollback after long", "killed", "killed for long"},
    "wal": {"layout", "exclusive lock", "reader in the way", "killed", "killed for long", "replaced"},
}
_SMALLEST_BYTES, _LARGEST_BYTES = 100_000, 3_000_000
_JOURNAL_MODE = "journal mode "


class Application:
    """Takes the steps. Each says whether it did what it is named after: some need luck, as a spill needs pages."""

    def __init__(self, database: Recorded, chosen: random.Random) -> None:
        self._database = database
        self._chosen = chosen
        self._partner = Partner([sys.executable, "-P", __file__, "partner", str(database.path)])
        self._steps: dict[str, Callable[[], bool]] = {
            "one row": lambda: self._change(0),
            "many rows": lambda: self._change(chosen.random() / 2),
            "growth": self._grow,
            "deletion": self._delete,
            "vacuum": self._vacuum,
            "incremental vacuum": self._incremental_vacuum,
            "layout": self._change_layout,
            "schema": self._change_schema,
            "burst": self._burst,
            "spill and commit": lambda: self._spill("COMMIT", self._some_pause()),
            "spill and rollback": lambda: self._spill("ROLLBACK", self._some_pause()),
            "spill and rollback after long": lambda: self._spill("ROLLBACK", chosen.uniform(0.5, 0.9), most_added=0),
            "exclusive lock": lambda: self._hold_exclusive_lock(0.02),
            "exclusive lock for long": lambda: self._hold_exclusive_lock(0.8),
            "second connection": lambda: self._change(0, database.second()),
            "reader in the way": self._commit_against_reader,
            "second process": self._commit_elsewhere,
            "killed": lambda: self._kill(chosen.uniform(0.02, 0.2)),
            "killed for long": lambda: self._kill(chosen.uniform(*LONG_SECONDS)),
            "replaced": self._replace,
            "time stamp set back": self._set_time_stamp_back,
            "short pause": lambda: self._pause(chosen.uniform(0.001, 0.01)),
            "long pause": lambda: self._pause(chosen.uniform(*LONG_SECONDS)),
            "very long pause": lambda: self._pause(2 * LONG_SECONDS[1] + 1),
            "reopened": self._reopen,
        }

    def walk(self, steps: int, kinds: Sequence[str]) -> None:
        """Take so many steps, of `kinds` in this order or from shuffled decks, and say of each what kind it was."""
        database = self._database
        with database.changing():
            database.create(database.path)
            database.open()
        cards: list[str] = []
        for number in range(steps):
            if not cards:
                cards = [*reversed(kinds)] or self._chosen.sample([*DECK], counts=[*DECK.values()], k=CARDS)
            kind = self._draw(cards)
            has_happened = self._take(kind)
            database.write_down(step=number, kind=kind if has_happened else None)
        (verdict,) = database.connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            database.write_down(violation=f"the application's own file is damaged: {verdict}")
        database.close()
        self._partner.kill()

    def _draw(self, cards: list[str]) -> str:
        """Take the last card that the journal mode allows; when there is none, the mode has to change."""
        for at in reversed(range(len(cards))):
            if cards[at] not in _NOT_IN.get(self._database.mode, ()):
                return cards.pop(at)
        return f"{_JOURNAL_MODE}delete"

    def _take(self, kind: str) -> bool:
        if not kind.startswith(_JOURNAL_MODE):
            return self._steps[kind]()
        mode = kind.removeprefix(_JOURNAL_MODE)
        is_new = mode != self._database.mode
        self._database.change_mode(mode)
        return is_new

    # What changes rows, pages and schema

    def _change(self, part: float, connection: sqlite3.Connection | None = None) -> bool:
        self._database.commit(lambda used: change_rows(used, self._chosen, part), connection)
        return True

    def _grow(self) -> bool:
        if len(self._database.image) > _LARGEST_BYTES:
            return self._delete()
        self._database.commit(lambda connection: add_rows(connection, self._chosen, self._chosen.randrange(20, 600)))
        return True

    def _delete(self) -> bool:
        """Delete rows, here and there or from the end; a small database gets more instead."""
        if len(self._database.image) < _SMALLEST_BYTES:
            return self._grow()
        condition = self._chosen.choice(
            (
                f"id % {self._chosen.randrange(2, 9)} = 0",
                f"id > (SELECT max(id) * {self._chosen.random()} FROM item)",
            )
        )
        self._database.commit(lambda connection: connection.execute(f"DELETE FROM item WHERE {condition}"))
        return True

    def _change_schema(self) -> bool:
        name = f"extra_{self._chosen.randrange(5)}"
        rows = self._database.connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)).fetchall()
        statement = f"DROP TABLE {name}" if rows else f"CREATE TABLE {name} (a)"
        self._database.commit(lambda connection: connection.execute(statement))
        return True

    def _vacuum(self, *pragmas: str) -> bool:
        """Delete rows and give their pages back; `pragmas` take effect with that."""
        self._delete()
        before = len(self._database.image)
        with self._database.changing():
            for pragma in pragmas:
                self._database.connection.execute(f"PRAGMA {pragma}")
            self._database.connection.execute("VACUUM")
        return len(self._database.image) < before

    def _change_layout(self) -> bool:
        before = page_size_of(self._database.image)
        self._vacuum(*self._database.layout())
        return page_size_of(self._database.image) != before

    def _incremental_vacuum(self) -> bool:
        connection = self._database.connection
        if connection.execute("PRAGMA auto_vacuum").fetchone() != (2,):
            self._vacuum("auto_vacuum = INCREMENTAL")
        self._delete()
        before = len(self._database.image)
        with self._database.changing():
            connection.execute(f"PRAGMA incremental_vacuum({self._chosen.randrange(1, 200)})").fetchall()
        return len(self._database.image) < before

    def _burst(self) -> bool:
        """Commit at a steady rate, 20 to 200 times a second."""
        pause = 1 / self._chosen.uniform(20, 200)
        for _ in range(int(0.5 / pause)):
            self._change(self._chosen.choice((0, 0, 0.1)))
            time.sleep(pause)
        return True

    # What locks, spills and dies

    def _some_pause(self) -> float:
        return self._chosen.choice((0, 0, self._chosen.uniform(0.001, 0.03)))

    def _spill(self, end: str, pause: float, *, most_added: int = 150) -> bool:
        """Have a transaction write into the file some time before its end; if it adds no rows, the size stays too."""
        database, chosen, connection = self._database, self._chosen, self._database.connection
        connection.execute(f"PRAGMA cache_size = {FEW_PAGES}")
        with database.changing(is_commit=end == "COMMIT"):
            connection.execute("BEGIN IMMEDIATE")
            if end == "COMMIT":
                database.count(connection)
            change_rows(connection, chosen, chosen.random() / 4)
            add_rows(connection, chosen, chosen.randint(0, most_added))
            has_spilled = database.mode != "wal" and database.bytes_now() != database.image
            self._pause(pause)
            connection.execute(end)
        connection.execute("PRAGMA cache_size = -2000")
        return has_spilled

    def _hold_exclusive_lock(self, longest_pause: float) -> bool:
        """Keep SQLite's lock from one commit to the next; only the first of them changes the change counter."""
        connection = self._database.connection
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        self._change(self._chosen.random() / 8)
        for _ in range(self._chosen.randrange(1, 5)):
            self._pause(self._chosen.uniform(0, longest_pause))
            self._database.commit(lambda used: change_rows(used, self._chosen, 0.1), is_counted=False)
        connection.execute("PRAGMA locking_mode = NORMAL").fetchall()
        with self._database.changing():
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # gives the lock back
        return True

    def _commit_against_reader(self) -> bool:
        """Have a reader of the application make a COMMIT fail, and try again when the reader has ended."""
        reader, writer, has_failed = self._database.second(), self._database.connection, False
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM item").fetchall()
        with self._database.changing():
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("PRAGMA busy_timeout = 0").fetchall()  # before it spills, or it waits for the reader there
            change_rows(writer, self._chosen, 0.01)
            self._database.count(writer)
            try:
                writer.execute("COMMIT")
            except sqlite3.OperationalError:
                has_failed = True
            writer.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}").fetchall()
            reader.execute("COMMIT")
            if has_failed:
                writer.execute("COMMIT")
        return has_failed

    def _commit_elsewhere(self) -> bool:
        with self._database.changing():
            self._database.number += 1
            self._partner.ask("commit", self._database.number, self._chosen.getrandbits(32))
        return True

    def _kill(self, seconds: float) -> bool:
        """Kill the second process in a transaction that has spilled: the next that opens the file rolls it back.

        That has to be the application, after a pause.
        """
        database = self._database
        with database.changing(is_commit=False):
            self._partner.ask("spill", database.number, self._chosen.getrandbits(32))
            self._pause(self._chosen.uniform(0, 0.01))
            self._partner.kill()
            left, journal = database.bytes_now(), database.journal_now()
            is_hot = left != database.image and any(journal[:8])
            self._pause(seconds)
            if is_hot and (database.bytes_now(), database.journal_now()) != (left, journal):
                database.write_down(violation="another process has rolled the hot journal back")
            database.connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # rolls it back
        return is_hot

    # What happens around it

    def _replace(self) -> bool:
        self._database.replace()
        return True

    def _reopen(self) -> bool:
        with self._database.changing():
            self._database.close()
            self._database.open()
        return True

    def _set_time_stamp_back(self) -> bool:
        """Commit, and give the file the time stamp of before."""
        path = self._database.path
        before = path.stat()
        self._change(self._chosen.random() / 20)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return True

    def _pause(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True


if __name__ == "__main__":
    if sys.argv[1] == "partner":
        be_partner(Path(sys.argv[2]))
    else:
        path, ledger, seed, steps, *kinds = sys.argv[2:]
        seeded = random.Random(seed)
        application = Application(Recorded(Path(path), Path(ledger), seeded), seeded)
        application.walk(int(steps), kinds)
