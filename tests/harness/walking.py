"""Captures beside an application on its walk: what came of each, put together and handed to the judge."""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import harness.stepping
from backupd.capture.limits import StreamBase
from backupd.capture.process import Compared
from backupd.errors import BusyError, SourceUnusableError
from backupd.format.pack import page_hash
from harness.capturing import NOTHING, Capturing, capture
from harness.states import Judge, Ledger, Taken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.capture.process import Event

_WHOLE_BYTES = (8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 1 << 40)
_NO_SECONDS = 1e-9


@dataclass(slots=True)
class Walk:
    """A running application, the judge over its ledger, and what came of the captures."""

    seed: str
    database: Path
    judge: Judge
    process: subprocess.Popen[bytes] | None = None
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def goes_on(self) -> bool:
        """Whether the application has not yet taken its last step."""
        return self.process is not None and self.process.poll() is None

    def reject_wrong_images(self) -> None:
        """The judge has refused nothing so far."""
        assert not self.judge.refusals, f"seed {self.seed}: {self.judge.refusals}"

    def summary(self) -> str:
        """What happened, in numbers."""
        ledger = self.judge.ledger
        counts = {"captures": self.outcomes, "accepted": self.judge.accepted, "steps": ledger.kinds}
        return (
            f"seed {self.seed}, {ledger.step + 1} steps, {len(ledger.states)} states: {json.dumps(counts, indent=1)}\n"
        )


@contextmanager
def walking(directory: Path, *, seed: str, steps: int, kinds: tuple[str, ...] = ()) -> Iterator[Walk]:
    """An application on its walk, of these `kinds` of steps or of all; checks that nothing else changed its files."""
    database, ledger = directory / "data" / "app.db", directory / "ledger"
    database.parent.mkdir()
    ledger.touch()
    command = [sys.executable, "-P", harness.stepping.__file__, "application", database, ledger, seed, str(steps)]
    with subprocess.Popen([*command, *kinds]) as process:
        walk = Walk(seed, database, Judge(Ledger(ledger)), process)
        try:
            while walk.goes_on and not walk.judge.ledger.states:
                walk.judge.settle()
            yield walk
            assert process.wait(timeout=600) == 0
        except BaseException as error:
            error.add_note(f"seed {seed}, step {walk.judge.ledger.step}")
            raise
        finally:
            process.kill()
    walk.judge.settle(is_over=True)
    assert not walk.judge.ledger.violations, f"seed {seed}: {walk.judge.ledger.violations}"


@dataclass(frozen=True, slots=True)
class _Way:
    """What a capture is asked to do with a database in rollback mode, and whether it compared what it read."""

    whole_bytes: int
    compare_seconds: float
    trusts_file: bool
    compared: list[bool | None] = field(default_factory=list)

    def take_note(self, event: Event | None) -> None:
        if isinstance(event, Compared):
            assert event.is_same is not False, "the API gives another image than the file"
            self.compared.append(event.is_same)

    def name(self, image: bytes) -> str:
        """The way in which the image came about. A requested comparison shows that the file was read without a lock."""
        if not self.trusts_file:
            return "confirmed by the API"
        if self.compared:
            return "confirmed by the API and the file" if self.compared[-1] else "confirmed by the file"
        return "in one step" if len(image) <= self.whole_bytes else "in steps"


class Chain:
    """Captures one database again and again, mostly against the last image that was accepted."""

    def __init__(self, walk: Walk, spools: Path, *, max_lock: float = 30.0) -> None:
        """A capture that needs longer than `max_lock` seconds to read the file again may not do so under the lock."""
        self._walk = walk
        self._max_lock = max_lock
        self._spools = spools
        self._chosen = random.Random(walk.seed)
        self._captures = 0
        self._image = b""
        self.last: Capturing | None = None

    def capture(self) -> None:
        """Capture once, and count what came of it; the judge gets the image."""
        chosen, walk = self._chosen, self._walk
        self._captures += 1
        spool = self._spools / str(self._captures)
        base = NOTHING
        if self.last is not None and chosen.random() < 0.9:
            base = StreamBase(self.last.page_size, str(self.last.hashes), ())
        way = _Way(
            whole_bytes=chosen.choice(_WHOLE_BYTES),
            compare_seconds=chosen.choice((_NO_SECONDS, _NO_SECONDS, 30.0)),
            trusts_file=self._max_lock < 1 or chosen.random() < 0.9,  # the API takes longer than reading the file
        )
        began_at = time.monotonic()
        try:
            captured = self._attempt(spool, base, way)
        except (BusyError, SourceUnusableError) as error:
            message = re.sub(r"\d+", "N", error.message.replace(str(walk.database), "it"))
            walk.outcomes[f"{type(error).__name__}: {message}"] += 1
            shutil.rmtree(spool)
            return
        ended_at = time.monotonic()
        image = self._put_together(captured, base)
        reject_foreign_facts(captured, image)
        facts = reported_facts(captured)
        walk.outcomes["an image"] += 1
        walk.judge.accepted["against a base"] += base.hashes is not None and base.page_size == captured.page_size
        walk.judge.accepted["from the log" if facts["is_wal"] else way.name(image)] += 1
        walk.judge.take(Taken(image, facts, began_at, ended_at))
        if self.last is not None:
            shutil.rmtree(self.last.hashes.parent)
        self.last, self._image = captured, image

    def _attempt(self, spool: Path, base: StreamBase, way: _Way) -> Capturing:
        return capture(
            self._walk.database,
            spool,
            streams=[base],
            lock_timeout=self._chosen.choice((0.05, 0.5, 5.0, 5.0, 5.0)),
            max_lock=self._max_lock,
            deadline=0.15 if self._chosen.random() < 0.03 else 60.0,
            whole_bytes=way.whole_bytes,
            compare_seconds=way.compare_seconds,
            trusts_file=way.trusts_file,
            on_event=way.take_note,
        )

    def _put_together(self, captured: Capturing, base: StreamBase) -> bytes:
        """The pages of the stream, and, where it has none, those of the base."""
        size, pages = captured.page_size, captured.streams[0]
        old = self._image if base.hashes and base.page_size == size else b""
        numbers = range(1, captured.page_count + 1)
        return b"".join(pages.get(number) or old[(number - 1) * size : number * size] for number in numbers)


def reject_foreign_facts(captured: Capturing, image: bytes) -> None:
    """The hashes and the names of the tables are those of the image."""
    size = captured.page_size
    hashes = b"".join(page_hash(image[at : at + size]) for at in range(0, len(image), size))
    assert captured.hashes.read_bytes() == hashes, "the hashes are not those of the image"
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(image[:18] + b"\x01\x01" + image[20:])  # no WAL in memory
        names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
    assert captured.facts.tables == tuple(name for (name,) in names), f"{captured.facts.tables} are not {names}"


def reported_facts(captured: Capturing) -> dict[str, int]:
    """The facts that came with a capture, as the ledger has them."""
    facts = captured.facts
    return {
        "page_size": captured.page_size,
        "page_count": captured.page_count,
        "is_wal": facts.journal_mode == "wal",
        "free_pages": facts.free_pages,
        "schema_version": facts.schema_version,
        "user_version": facts.user_version,
    }
