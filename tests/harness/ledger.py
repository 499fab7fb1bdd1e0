"""An application that books as fast as it can, in its own process: every committed state of its books balances."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ACCOUNTS = 2000
_SCHEMA = """
CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT NOT NULL);
CREATE TABLE entry (id INTEGER PRIMARY KEY, debit INTEGER NOT NULL, credit INTEGER NOT NULL, amount INTEGER NOT NULL);
"""


def create_ledger(path: Path, *, journal_mode: str) -> None:
    """A new database with some megabytes of accounts that all stand at zero."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(_SCHEMA)
        notes = random.Random(7)
        rows = ((number, notes.randbytes(600).hex()) for number in range(_ACCOUNTS))
        connection.executemany("INSERT INTO account VALUES (?, 0, ?)", rows)


def imbalance(path: Path) -> list[str]:
    """What is wrong with the books in `path`; nothing when it is a committed state. Leaves no files beside it."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        problems = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        (total,) = connection.execute("SELECT sum(balance) FROM account").fetchone()
        (entries, last) = connection.execute("SELECT count(*), coalesce(max(id), 0) FROM entry").fetchone()
        wrong = connection.execute(
            """
            SELECT count(*) FROM account WHERE balance !=
                (SELECT coalesce(sum(amount), 0) FROM entry WHERE debit = account.id)
              - (SELECT coalesce(sum(amount), 0) FROM entry WHERE credit = account.id)
            """
        ).fetchone()[0]
    if total != 0:
        problems.append(f"balances add up to {total}")
    if entries != last:
        problems.append(f"{entries} entries, but the last is number {last}")
    if wrong:
        problems.append(f"{wrong} accounts differ from their entries")
    return problems


@contextmanager
def bookkeeper(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running application; it has booked something before the block begins and is stopped at its end."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "booking\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _book_for_ever(path: str) -> None:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.execute("CREATE INDEX IF NOT EXISTS entry_debit ON entry (debit)")
    connection.execute("CREATE INDEX IF NOT EXISTS entry_credit ON entry (credit)")
    connection.execute("PRAGMA synchronous = OFF")
    chosen = random.Random(11)
    number = 0
    while True:
        debit, credit, amount = chosen.randrange(_ACCOUNTS), chosen.randrange(_ACCOUNTS), chosen.randrange(1, 1000)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, debit))
        connection.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, credit))
        connection.execute("INSERT INTO entry (debit, credit, amount) VALUES (?, ?, ?)", (debit, credit, amount))
        connection.execute("COMMIT")
        number += 1
        if number == 1:
            sys.stdout.write("booking\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _book_for_ever(sys.argv[1])
