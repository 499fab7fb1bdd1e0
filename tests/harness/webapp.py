"""A web service as backupd finds them: Flask and SQLAlchemy with their defaults, under gunicorn with several workers.

Each page of content tells the generation that it is of, and so does each row that a request inserts: the same
statement reads it, under the lock that it writes with. So the answer to a request says into which content it went.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from harness.command_line import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORKERS = 3
THREADS = 2
_STOPS_WITHIN_SECONDS = 20
_PATH_VARIABLE = "WEBAPP_DATABASE"
_ROW_BYTES = 3000
_READ_ROWS = 50
_SCHEMA = """
CREATE TABLE generation (name TEXT NOT NULL);
CREATE TABLE page (id INTEGER PRIMARY KEY, generation TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE booking (number INTEGER PRIMARY KEY, generation TEXT NOT NULL);
"""
_BOOK = "INSERT INTO booking (number, generation) SELECT :number, name FROM generation"
_MIXED = """
SELECT name, (SELECT count(*) FROM page WHERE id % :every = 0 AND generation != name) FROM generation
"""


def create_content(path: Path, name: str, *, size_bytes: int, journal_mode: str) -> None:
    """A new database of one generation, and without bookings."""
    chosen = Random(17)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO generation VALUES (?)", (name,))
        rows = ((name, chosen.randbytes(_ROW_BYTES)) for _ in range(size_bytes // _ROW_BYTES))
        connection.executemany("INSERT INTO page (generation, body) VALUES (?, ?)", rows)


def change_generation(path: Path, name: str) -> None:
    """Change all content, in one transaction."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE generation SET name = ?", (name,))
        connection.execute("UPDATE page SET generation = ?", (name,))


def generation(path: Path) -> str:
    """The generation of the content."""
    with closing(sqlite3.connect(path)) as connection:
        (name,) = connection.execute("SELECT name FROM generation").fetchone()
        return str(name)


def bookings(path: Path) -> dict[int, str]:
    """Numbers with the generation that each went into."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT number, generation FROM booking"))


def create_app() -> Flask:
    """Make the application of one worker; gunicorn calls this."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{os.environ[_PATH_VARIABLE]}"
    database = SQLAlchemy(app)
    opened: list[object] = []
    with app.app_context():
        event.listen(database.engine, "connect", lambda connection, _: opened.append(connection))
        every = max(1, database.session.execute(text("SELECT count(*) FROM page")).scalar_one() // _READ_ROWS)

    def answer(name: str) -> dict[str, object]:
        return {"generation": name, "worker": os.getpid(), "connections": len(opened)}

    @app.post("/bookings/<int:number>")
    def book(number: int) -> dict[str, object]:
        row = {"number": number}
        database.session.execute(text(_BOOK), row)
        found = database.session.execute(text("SELECT generation FROM booking WHERE number = :number"), row)
        name = found.scalar_one()
        database.session.commit()
        return answer(name)

    @app.get("/generation")
    def read() -> tuple[dict[str, object], int]:
        name, others = database.session.execute(text(_MIXED), {"every": every}).one()
        return answer(name), 200 if others == 0 else 500

    @app.errorhandler(500)
    def failed(error: Exception) -> tuple[str, int]:
        return f"{request.path}: {getattr(error, 'original_exception', error)!r}", 500

    return app


@dataclass(frozen=True, slots=True)
class WebService:
    """A running service. `pid` is that of gunicorn's master."""

    port: int
    pid: int


@contextmanager
def web_service(path: Path) -> Iterator[WebService]:
    """Serve the database at `path` until the block ends; all workers have to have lived until then."""
    with gunicorn(
        "harness.webapp:create_app()",
        path.parent,
        workers=WORKERS,
        threads=THREADS,
        first_request="/generation",
        environ={_PATH_VARIABLE: str(path), "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as service:
        yield service


@contextmanager
def gunicorn(
    application: str,
    directory: Path,
    *arguments: str,
    workers: int,
    threads: int,
    first_request: str,
    environ: Mapping[str, str],
) -> Iterator[WebService]:
    """Serve an application that runs in `directory` until the block ends; all workers have to have lived until then.

    The block begins when `first_request`, a path, was answered. `arguments` are more options of gunicorn.
    """
    log = directory / "gunicorn.log"
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, log.open("wb") as log_file:
        port = listener.getsockname()[1]
        options = {
            "workers": workers,
            "threads": threads,
            "worker-class": "gthread",
            "bind": f"fd://{listener.fileno()}",
            "worker-tmp-dir": directory,
        }
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--no-control-socket"),
                *(f"--{name}={value}" for name, value in options.items()),
                *arguments,
                application,
            ],
            cwd=directory,
            env={**os.environ, **environ},
            pass_fds=(listener.fileno(),),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: process.poll() is not None or log.read_bytes().count(b"Booting worker") == workers)
            assert process.poll() is None, log.read_text()
            urllib.request.urlopen(f"http://127.0.0.1:{port}{first_request}").close()
            yield WebService(port, process.pid)
            process.terminate()
            assert process.wait(_STOPS_WITHIN_SECONDS) == 0, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert log.read_text().count("Booting worker") == workers, log.read_text()
    log.unlink()
