"""A database like that of a web service that sells credit reports: users, JSON reports, payments, an Alembic revision.

Made with the standard library alone, fast, and the same for the same seed. About as compressible as a real one.

    python -m tests.harness.creditrobot FILE --size 1GB
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ALEMBIC_REVISION = "7f3a91c2d4e5"

_SCHEMA = """
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
CREATE TABLE users (
    id INTEGER NOT NULL PRIMARY KEY,
    email VARCHAR(255) NOT NULL,
    full_name VARCHAR(120) NOT NULL,
    password_hash VARCHAR(120) NOT NULL,
    balance_cents INTEGER NOT NULL DEFAULT 0,
    created_at DATETIME NOT NULL
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE TABLE reports (
    id INTEGER NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id),
    reference VARCHAR(32) NOT NULL,
    score INTEGER NOT NULL,
    body JSON NOT NULL,
    created_at DATETIME NOT NULL
);
CREATE INDEX ix_reports_user_id ON reports (user_id);
CREATE UNIQUE INDEX ix_reports_reference ON reports (reference);
CREATE TABLE payments (
    id INTEGER NOT NULL PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id),
    report_id INTEGER REFERENCES reports (id),
    amount_cents INTEGER NOT NULL,
    status VARCHAR(12) NOT NULL,
    provider_token VARCHAR(64) NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL
);
CREATE INDEX ix_payments_user_id ON payments (user_id);
CREATE INDEX ix_payments_status ON payments (status);
"""

_USERS_PER_BATCH = 100
_REPORTS_PER_BATCH = 400
_PAYMENTS_PER_BATCH = 600
_ACCOUNTS_PER_BATCH = 100
_TIMES_PER_BATCH = 120
_SEALED_CHARACTERS = 850
_CACHE_KIB = 256 << 10
_HOURS_PER_YEAR = 24 * 28 * 12
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

_FIRST_NAMES = (
    "Anna",
    "Boris",
    "Chiara",
    "David",
    "Elif",
    "Fatima",
    "Georg",
    "Hannah",
    "Ivan",
    "Jana",
    "Karim",
    "Lena",
    "Mehmet",
    "Nora",
    "Olga",
    "Paul",
)
_LAST_NAMES = (
    "Albrecht",
    "Bauer",
    "Costa",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Hoffmann",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lindgren",
)
_STREETS = (
    "Hauptstrasse",
    "Bahnhofweg",
    "Lindenallee",
    "Gartenstrasse",
    "Am Markt",
    "Schulweg",
    "Bergstrasse",
    "Ringstrasse",
)
_CITIES = (
    "Berlin",
    "Hamburg",
    "Wien",
    "Graz",
    "Basel",
    "Leipzig",
    "Dresden",
    "Bremen",
    "Linz",
    "Luzern",
    "Kassel",
    "Erfurt",
)
_LENDERS = ("Sparkasse", "Volksbank", "Direktbank", "Autobank", "Telefonica", "Stadtwerke", "Versandhaus", "Leasing AG")
_KINDS = ("credit_card", "instalment_loan", "current_account", "mobile_contract", "leasing", "mortgage")
_STATUSES = ("settled", "settled", "settled", "refunded")
_PRICES_CENTS = (990, 1490, 2990, 4990)
_PAYMENT_HISTORY = str.maketrans("0123456789abcdef", "OOOOOOOOOOOOOL1X")  # sixteen kinds of months, most of them fine
_REMARKS = (
    "The obligation was met on time in every month of the period under review.",
    "One payment was late by fewer than thirty days and was settled after the first reminder.",
    "The account was opened recently; the history is too short for a statement on reliability.",
    "The credit line is used to more than two thirds on average, which lowers the score.",
    "An enquiry of another lender was recorded and has no influence on the score.",
)


class _Draw:
    """Random text, cut from one block of random bytes at a time: a generator call for each field takes minutes."""

    _BLOCK_BYTES = 1 << 20

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._hex = self._base64 = ""
        self._hex_at = self._base64_at = 0

    def hex(self, digits: int) -> str:
        if self._hex_at + digits > len(self._hex):
            self._hex, self._hex_at = self._rng.randbytes(self._BLOCK_BYTES).hex(), 0
        self._hex_at += digits
        return self._hex[self._hex_at - digits : self._hex_at]

    def base64(self, characters: int) -> str:
        if self._base64_at + characters > len(self._base64):
            self._base64 = base64.urlsafe_b64encode(self._rng.randbytes(self._BLOCK_BYTES)).decode().rstrip("=")
            self._base64_at = 0
        self._base64_at += characters
        return self._base64[self._base64_at - characters : self._base64_at]

    def number(self, below: int) -> int:
        return int(self._rng.random() * below)

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[int(self._rng.random() * len(choices))]


def generate(
    file: Path, *, size_bytes: int, seed: int = 1, journal_mode: str = "wal", page_size: int | None = None
) -> None:
    """Make a new database of about `size_bytes` at `file` (at least one batch of rows, some 1.5 MB).

    The same arguments and the same SQLite give the same bytes. Every user's balance is the sum of the user's payments.
    `page_size` None means SQLite's default. Raises FileExistsError, and leaves no file behind when it fails.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL, 0o644)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            if page_size is not None:
                connection.execute(f"PRAGMA page_size = {page_size}")
            connection.execute("PRAGMA journal_mode = off")
            connection.execute("PRAGMA synchronous = off")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            _fill(connection, size_bytes, _Draw(seed))
            connection.execute(f"PRAGMA journal_mode = {journal_mode}")
    except BaseException:
        file.unlink()
        raise


def update_scattered(file: Path, rows: int, *, seed: int = 1) -> None:
    """Settle or refund `rows` different payments all over the file, each in a transaction of its own.

    Balances stay right. The same database, count and seed give the same changes. Raises ValueError when the database
    has fewer payments.
    """
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = off")
        (payments,) = connection.execute("SELECT max(id) FROM payments").fetchone()
        rng = random.Random(seed)
        for payment in rng.sample(range(1, payments + 1), rows):
            connection.execute(
                "UPDATE payments SET status = iif(status = 'settled', 'refunded', 'settled'), updated_at = ? "
                "WHERE id = ?",
                (_times(_hour(rng.randrange(_HOURS_PER_YEAR)))[0], payment),
            )


def unbalanced_users(file: Path) -> int:
    """The number of users whose balance is not the sum of their payments: 0 in every committed state."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM users LEFT JOIN (SELECT user_id, sum(amount_cents) AS paid_cents FROM payments "
            "GROUP BY user_id) AS paid ON paid.user_id = users.id WHERE balance_cents IS NOT coalesce(paid_cents, 0)"
        ).fetchone()
    return int(count)


def parse_size(text: str) -> int:
    """Bytes: `1GB`, `64MiB`, `5000000`. Raises ValueError."""
    number = text.rstrip("BGKMbgikm")
    return int(number) * _UNITS[text[len(number) :].upper()]


class _Batch(NamedTuple):
    """Rows that one hour brings."""

    users: list[tuple[object, ...]]
    reports: list[tuple[object, ...]]
    payments: list[tuple[object, ...]]


def _fill(connection: sqlite3.Connection, size_bytes: int, draw: _Draw) -> None:
    """Insert hour by hour, as a service does: so the tables and indexes lie interleaved all over the file."""
    connection.executescript(_SCHEMA)
    connection.execute("BEGIN")
    connection.execute("INSERT INTO alembic_version VALUES (?)", (ALEMBIC_REVISION,))
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    balances: dict[int, int] = {}
    for batch in _batches(draw, balances):
        connection.executemany("INSERT INTO users VALUES (?, ?, ?, ?, 0, ?)", batch.users)
        connection.executemany("INSERT INTO reports VALUES (?, ?, ?, ?, ?, ?)", batch.reports)
        connection.executemany("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?, ?)", batch.payments)
        (page_count,) = connection.execute("PRAGMA page_count").fetchone()
        if page_count * page_size >= size_bytes:
            break
    connection.executemany(
        "UPDATE users SET balance_cents = ? WHERE id = ?", [(cents, user) for user, cents in balances.items()]
    )
    connection.execute("COMMIT")


def _batches(draw: _Draw, balances: dict[int, int]) -> Iterator[_Batch]:
    """Batches without end, one an hour of the service's life; `balances` follows what the users have paid."""
    users = reports = payments = 0
    for hour in itertools.count():
        times = _times(_hour(hour))
        accounts = [_account(draw, hour) for _ in range(_ACCOUNTS_PER_BATCH)]
        batch = _Batch([_user(draw, users + i, times[0]) for i in range(1, _USERS_PER_BATCH + 1)], [], [])
        users += _USERS_PER_BATCH
        for number in range(reports + 1, reports + _REPORTS_PER_BATCH + 1):
            batch.reports.append(_report(draw, number, 1 + draw.number(users), draw.one_of(times), accounts))
        reports += _REPORTS_PER_BATCH
        for number in range(payments + 1, payments + _PAYMENTS_PER_BATCH + 1):
            user = 1 + draw.number(users)
            cents = _PRICES_CENTS[draw.number(len(_PRICES_CENTS))]
            batch.payments.append(_payment(draw, number, user, 1 + draw.number(reports), cents, draw.one_of(times)))
            balances[user] = balances.get(user, 0) + cents
        payments += _PAYMENTS_PER_BATCH
        yield batch


def _hour(hours: int) -> str:
    """The beginning of a time as SQLAlchemy writes one, `2024-01-01 00:`; months have 28 days here."""
    days, hour = divmod(hours, 24)
    months, day = divmod(days, 28)
    year, month = divmod(months, 12)
    return f"{2024 + year}-{month + 1:02}-{day + 1:02} {hour:02}:"


def _times(hour: str) -> list[str]:
    """Times within `hour`, in order."""
    seconds = range(0, 3600, 3600 // _TIMES_PER_BATCH)
    return [f"{hour}{second // 60:02}:{second % 60:02}.{second * 7919 % 1_000_000:06}" for second in seconds]


def _user(draw: _Draw, number: int, now: str) -> tuple[object, ...]:
    first, last = draw.one_of(_FIRST_NAMES), draw.one_of(_LAST_NAMES)
    password = f"scrypt:32768:8:1${draw.base64(16)}${draw.hex(64)}"
    return (number, f"{first}.{last}.{number}@example.org".lower(), f"{first} {last}", password, now)


def _report(draw: _Draw, number: int, user: int, now: str, accounts: Sequence[str]) -> tuple[object, ...]:
    score = 300 + draw.number(550)
    own = ",".join([f'{draw.one_of(accounts)}"iban_hash":"{draw.hex(40)}"}}' for _ in range(1 + draw.number(4))])
    body = (
        f'{{"version":3,"subject":{{"user_id":{user},"address":"{draw.one_of(_STREETS)} {draw.number(180)}, '
        f'{draw.one_of(_CITIES)}","identity_hash":"{draw.hex(64)}"}},"score":{{"value":{score},"range":[300,850],'
        f'"percentile":{draw.number(1000) / 10},"model":"creditrobot-2024.{draw.number(4)}"}},"accounts":[{own}],'
        f'"remarks":"{draw.one_of(_REMARKS)}","sealed_response":"{draw.base64(_SEALED_CHARACTERS)}"}}'
    )
    return (number, user, f"CR-{draw.hex(16).upper()}", score, body, now)


def _account(draw: _Draw, hour: int) -> str:
    """An account as JSON, but for its last member."""
    history = draw.hex(24).translate(_PAYMENT_HISTORY)
    return (
        f'{{"lender":"{draw.one_of(_LENDERS)}","kind":"{draw.one_of(_KINDS)}",'
        f'"opened_on":"{_hour(draw.number(hour + 1))[:10]}","limit_cents":{draw.number(100) * 10000},'
        f'"balance_cents":{draw.number(990000)},"late_days":{draw.number(4) * draw.number(30)},"history":"{history}",'
    )


def _payment(draw: _Draw, number: int, user: int, report: int, cents: int, now: str) -> tuple[object, ...]:
    return (number, user, report, cents, draw.one_of(_STATUSES), f"tok_{draw.base64(32)}", now, now)


def main() -> None:
    """Make one database as the command line says."""
    parser = argparse.ArgumentParser(description="Make a sample database.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=parse_size, default="1GB", help="such as 1GB or 64MiB (default: 1GB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal-mode", default="wal", choices=["wal", "delete", "truncate", "persist"])
    parser.add_argument("--page-size", type=int, default=None)
    arguments = parser.parse_args()
    generate(
        arguments.file,
        size_bytes=arguments.size,
        seed=arguments.seed,
        journal_mode=arguments.journal_mode,
        page_size=arguments.page_size,
    )


if __name__ == "__main__":
    main()
