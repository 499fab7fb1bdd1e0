"""The service in tests/creditrobot under gunicorn, customers who order there, and the order that a state ends with."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from harness.acknowledged import Acknowledged, SharedLedger
from harness.webapp import gunicorn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.webapp import WebService

DATABASE = "instance/creditrobot.db"
_SERVICE = Path(__file__).parents[1] / "creditrobot"
_ENVIRONMENT = {"PYTHONPATH": str(_SERVICE), "FLASK_APP": "creditrobot"}
_IMPATIENCE_SECONDS = 30
_THINKING_SECONDS = 0.02
_EMAILS = 5


@contextmanager
def creditrobot(home: Path, *, workers: int) -> Iterator[WebService]:
    """The service, with its tables made by Alembic and its database at `DATABASE` in `home`, until the block ends.

    It is loaded once for all workers, which saves seconds: none of them has a connection before its first request.
    """
    subprocess.run(
        [sys.executable, "-m", "flask", "db", "upgrade", "--directory", _SERVICE / "migrations"],
        cwd=home,
        env={**os.environ, **_ENVIRONMENT},
        check=True,
        capture_output=True,
    )
    with gunicorn(
        "creditrobot:create_app()",
        home,
        "--preload",
        workers=workers,
        threads=1,
        first_request="/healthz",
        environ=_ENVIRONMENT,
    ) as service:
        yield service


@contextmanager
def customers(service: WebService, *, clients: int) -> Iterator[SharedLedger]:
    """Clients that order until the block ends. None of them shares an account with another, as the service wants it."""
    ledger, is_over = SharedLedger(), threading.Event()
    threads = [threading.Thread(target=_order, args=(service, client, ledger, is_over)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _order(service: WebService, client: int, ledger: SharedLedger, is_over: threading.Event) -> None:
    for number in count():
        if is_over.wait(_THINKING_SECONDS):
            return
        content = json.dumps({"email": f"customer-{client}-{number % _EMAILS}@example.org"})
        asked_at = time.time()
        try:
            with closing(HTTPConnection("127.0.0.1", service.port, timeout=_IMPATIENCE_SECONDS)) as connection:
                connection.request("POST", "/orders", content, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                body = answer.read().decode()
        except (OSError, HTTPException) as error:
            ledger.failures.append(repr(error))
            continue
        if answer.status == 201:
            ledger.add(Acknowledged(json.loads(body)["payment"], asked_at, time.time()))
        else:
            ledger.failures.append(f"{answer.status}: {body}")


def last_payment(image: bytes, scratch: Path) -> int:
    """The last payment in a database that holds exactly the orders up to it, each of them whole."""
    scratch.write_bytes(image[:18] + b"\1\1" + image[20:])  # no log beside it is to be looked for
    with closing(sqlite3.connect(f"file:{scratch}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        payments, last, cents = connection.execute(
            "SELECT count(*), coalesce(max(id), 0), coalesce(sum(amount_cents), 0) FROM payments"
        ).fetchone()
        assert payments == last
        assert connection.execute("SELECT count(*), coalesce(max(id), 0) FROM reports").fetchone() == (last, last)
        assert connection.execute("SELECT coalesce(sum(balance_cents), 0) FROM users").fetchone() == (cents,)
    return int(last)
