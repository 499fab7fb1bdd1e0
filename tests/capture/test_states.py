"""Every image that a capture gives out is a committed state, whatever an application does to its database meanwhile.

`STATES_STEPS=100000 STATES_SEED=7` make the walk another and longer one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from harness.capturing import capture
from harness.states import COARSEST_SECONDS, Judge, Ledger, Taken, digests, facts_of, free_leaves, strange_machine
from harness.stepping import CARDS, DECK
from harness.walking import Chain, Walk, reject_foreign_facts, walking

from backupd.children import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = int(os.environ.get("STATES_STEPS", str(2 * CARDS)))
SEED = os.environ.get("STATES_SEED", "1")
CONDITIONS = {
    "in rollback mode",
    "in WAL mode",
    "in one step",
    "in steps",
    "confirmed by the file",
    "confirmed by the API and the file",
    "confirmed by the API",
    "from the log",
    "against a base",
    "while commits went on",
    "while nothing was committed",
    "in a long pause",
}


BUSY, REST = ("one row",) * 400, ("short pause",) * 40
SLOW = (
    *("growth",) * 8,
    *("journal mode memory", *(*BUSY, "spill and rollback after long", *REST) * 5),
    *("journal mode persist", *(*BUSY, "spill and rollback after long", *REST) * 5),
    *(*BUSY, "very long pause", *BUSY, "exclusive lock for long", *REST) * 2,
)
COARSE = {"stamp_seconds": 2}
COARSE_AND_JUMPING = {"stamp_seconds": 2, "jump_seconds": 60}


@pytest.mark.timeout(120 + STEPS // 20)
@pytest.mark.parametrize(
    ("steps", "machine"),
    [
        pytest.param(STEPS, {}, id="true-times"),
        pytest.param(STEPS // 2, COARSE, id="coarse-times"),
        pytest.param(STEPS // 2, COARSE_AND_JUMPING, id="coarse-times-and-jumping-clock"),
    ],
)
def test_every_accepted_image_was_committed_and_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, machine: dict[str, int]
) -> None:
    """Byte for byte, with the facts of that state; everything else is an error after which another try may succeed."""
    with walking(tmp_path, seed=SEED, steps=steps) as walk:
        monkeypatch.setenv("PYTHONPATH", strange_machine(tmp_path / "machine", **machine))
        chain = Chain(walk, tmp_path / "spools")
        while walk.goes_on:
            chain.capture()
            walk.reject_wrong_images()
    chain.capture()
    walk.judge.settle(is_over=True)
    sys.stdout.write(walk.summary())
    walk.reject_wrong_images()
    if steps >= CARDS:
        assert DECK.keys() <= walk.judge.ledger.kinds.keys()
        # Coarse stamps do not tell of a write between two steps: then the file is read without a lock.
        assert (+walk.judge.accepted).keys() >= CONDITIONS - ({"in steps"} if machine else set())
        assert any("SourceUnusableError" in outcome for outcome in walk.outcomes)


@pytest.mark.parametrize("machine", [COARSE, COARSE_AND_JUMPING], ids=["coarse-times", "and-jumping-clock"])
def test_file_that_takes_long_to_read_is_captured_by_its_time_stamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: dict[str, int]
) -> None:
    """Too long to read it again under the lock: that nothing has touched it since has to be known otherwise."""
    with walking(tmp_path, seed=SEED, steps=len(SLOW), kinds=SLOW) as walk:
        monkeypatch.setenv("PYTHONPATH", strange_machine(tmp_path / "machine", read_seconds=0.4, **machine))
        chain = Chain(walk, tmp_path / "spools", max_lock=0.1)
        while walk.goes_on:
            chain.capture()
            walk.reject_wrong_images()
    walk.judge.settle(is_over=True)
    sys.stdout.write(walk.summary())
    walk.reject_wrong_images()
    if machine == COARSE:
        assert walk.judge.accepted["confirmed by the file"] + walk.judge.accepted["confirmed by the API and the file"]


def test_capturing_process_is_on_the_strange_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the walks on one would be like the one on this machine."""
    monkeypatch.setenv("PYTHONPATH", strange_machine(tmp_path / "machine", read_seconds=0.2, **COARSE_AND_JUMPING))
    program = """if True:
        import datetime, json, os, sys, time
        status, began = os.stat(sys.argv[1]), time.monotonic()
        with open(sys.argv[1], "rb") as file:
            os.preadv(file.fileno(), [bytearray(1 << 16)], 0)
        seconds, offsets = time.monotonic() - began, [0]
        while not max(offsets) > 0 > min(offsets):
            offsets.append(round(time.time() - time.clock_gettime(time.CLOCK_REALTIME)))
        by_datetime = datetime.datetime.now(datetime.UTC).timestamp() - time.time()
        times = [status.st_mtime_ns, status.st_ctime_ns, status.st_mtime]
        print(json.dumps([*times, status.st_size, seconds, by_datetime]))
    """
    file = tmp_path / "file"
    file.write_bytes(b"four")
    os.utime(file, ns=(0, 7_999_999_999))
    command = [sys.executable, "-P", "-c", program, file]
    seen = subprocess.run(command, env=child_environment(), capture_output=True, check=True, timeout=60).stdout
    mtime_ns, ctime_ns, mtime, size, seconds, by_datetime = json.loads(seen)
    assert (mtime_ns, mtime, size, ctime_ns % (2 * 10**9)) == (6 * 10**9, 6.0, 4, 0)
    assert seconds > 0.2
    assert abs(by_datetime) < 1


# Captures that are wrong, and what the judge says of them


def _look(path: Path, granularity_ns: int = 1) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns // granularity_ns, status.st_ctime_ns // granularity_ns


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _read_between_equal_looks(path: Path) -> bytes:
    """Without a lock: a transaction may have spilled before, and not be over."""
    before, image = _look(path), path.read_bytes()
    return image if _look(path) == before else b""


def _read_and_look_again_under_lock(path: Path) -> bytes:
    """With time stamps that are coarse, and no thought of how old they are."""
    before, image = _look(path, 2 * 10**9), path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return image if _look(path, 2 * 10**9) == before else b""


def _read_what_is_old(path: Path) -> bytes:
    """Without a thought of hot journals."""
    age = time.time() - path.stat().st_mtime
    return path.read_bytes() if age > COARSEST_SECONDS else b""


@pytest.mark.parametrize(
    ("careless", "steps", "kinds"),
    [
        (_read, 150, ("spill and commit", "spill and rollback")),
        (_read_between_equal_looks, 150, ("spill and commit", "spill and rollback")),
        (_read_and_look_again_under_lock, 2000, ("many rows", "time stamp set back")),
        (_read_what_is_old, 2, ("long pause", "killed for long")),
    ],
)
def test_careless_capture_is_found_out(
    tmp_path: Path, careless: Callable[[Path], bytes], steps: int, kinds: tuple[str, ...]
) -> None:
    """Each gives out images that are right, and others that were never committed."""
    with walking(tmp_path, seed=SEED, steps=steps, kinds=kinds) as walk:
        while walk.goes_on:
            began_at = time.monotonic()
            if image := careless(walk.database):
                walk.judge.take(Taken(image, facts_of(image), began_at, time.monotonic()))
            time.sleep(0.01)  # or the judge has to keep thousands of images until a long step is over
    assert walk.judge.accepted["in rollback mode"] > 0
    assert any("never committed" in refusal for refusal in walk.judge.refusals)


def test_capture_that_rolls_back_is_found_out(tmp_path: Path) -> None:
    """A hot journal is the application's."""
    with pytest.raises(AssertionError, match="another process has rolled the hot journal back"):
        _roll_back_each_hot_journal(tmp_path)


def _roll_back_each_hot_journal(directory: Path) -> None:
    with walking(directory, seed=SEED, steps=10, kinds=("killed",)) as walk:
        while walk.goes_on:
            with closing(sqlite3.connect(walk.database)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()


def test_page_that_is_wrongly_taken_for_unchanged_is_found_out(tmp_path: Path) -> None:
    """A base whose hashes are of other pages than its image makes an image that the hashes contradict."""
    database, ledger = tmp_path / "app.db", tmp_path / "ledger"
    ledger.touch()
    database.write_bytes(_image(1))
    chain = Chain(Walk(SEED, database, Judge(Ledger(ledger))), tmp_path / "spools")
    chain.capture()
    database.write_bytes(_image(2))
    assert chain.last is not None
    chain.last.hashes.write_bytes(capture(database, tmp_path / "other").hashes.read_bytes())
    with pytest.raises(AssertionError, match="the hashes are not those of the image"):
        chain.capture()


def test_tables_of_another_state_are_found_out(tmp_path: Path) -> None:
    """The names of the tables are read from the image too."""
    (tmp_path / "app.db").write_bytes(_image(1))
    captured = capture(tmp_path / "app.db", tmp_path / "spool")
    reject_foreign_facts(captured, captured.image())
    captured.facts = replace(captured.facts, tables=("item", "late"))
    with pytest.raises(AssertionError, match="late"):
        reject_foreign_facts(captured, captured.image())


def _image(number: int, *, free: int = 0) -> bytes:
    """A database of state `number`, of some pages; with `free`, that byte is in its free leaf pages."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE item (body)")
        connection.execute("INSERT INTO item VALUES (zeroblob(30000))")
        connection.execute("DELETE FROM item")
        connection.execute("INSERT INTO item VALUES (?)", (bytes([number]) * 9000,))
        connection.execute(f"PRAGMA user_version = {number}")
        image = bytearray(connection.serialize())
    for leaf in free_leaves(image):
        image[(leaf - 1) * 4096 : leaf * 4096] = bytes([free]) * 4096
    return bytes(image)


def _judge(directory: Path, *states: tuple[bytes, bool]) -> Judge:
    """A judge over a ledger in which each state, image and whether it is a commit, began at 10, 20, ... and took 1."""
    lines = []
    for place, (image, is_commit) in enumerate(states, 1):
        exact, content = digests(image)
        values = {"is_commit": is_commit, "exact": exact, "content": content, "facts": facts_of(image)}
        lines.append(json.dumps({**values, "begun": 10 * place, "at": 10 * place + 1}))
    (directory / "ledger").write_text("\n".join([*lines, ""]))
    return Judge(Ledger(directory / "ledger"))


@pytest.mark.parametrize(
    ("number", "began_at", "ended_at", "refusal"),
    [
        (1, 0, 10, None),
        (1, 0, 9.9, "not current"),
        (1, 21, 22, None),
        (1, 21.1, 22, "not current"),
        (2, 20, 20, None),
        (2, 0, 19.9, "not current"),
        (3, 99, 99, None),
        (4, 0, 99, "never committed"),
    ],
)
def test_image_has_to_be_current(
    tmp_path: Path, number: int, began_at: float, ended_at: float, refusal: str | None
) -> None:
    """From when its commit began to when the next one had ended."""
    judge = _judge(tmp_path, *((_image(number), True) for number in (1, 2, 3)))
    judge.take(Taken(_image(number), facts_of(_image(number)), began_at, ended_at))
    judge.settle(is_over=True)
    assert [refusal in found for found in judge.refusals if refusal] == [True] * bool(refusal)
    assert bool(judge.refusals) == bool(refusal)


def test_facts_and_pages_have_to_be_of_one_state(tmp_path: Path) -> None:
    """Also when both states were current during the capture."""
    judge = _judge(tmp_path, (_image(1), True), (_image(2), True))
    judge.take(Taken(_image(2), facts_of(_image(1)), 0, 21))
    (refusal,) = judge.refusals
    assert "of another state than the pages" in refusal


def test_image_of_two_states_is_refused(tmp_path: Path) -> None:
    """One page of the other state is enough."""
    first, second = _image(1), _image(2)
    (page,) = [at for at in range(4096, len(first), 4096) if first[at : at + 4096] != second[at : at + 4096]][:1]
    mixed = first[:page] + second[page : page + 4096] + first[page + 4096 :]
    judge = _judge(tmp_path, (first, True), (second, True))
    judge.take(Taken(mixed, facts_of(first), 0, 21))
    assert len(judge.refusals) == 1


@pytest.mark.parametrize(("is_commit", "refused"), [(False, 0), (True, 1)])
def test_free_pages_may_differ_only_when_a_rollback_changed_them_meanwhile(
    tmp_path: Path, *, is_commit: bool, refused: int
) -> None:
    """A commit is noticed by SQLite's backup, which starts again; a rollback is not."""
    judge = _judge(tmp_path, (_image(1, free=1), True), (_image(1, free=2), is_commit))
    judge.take(Taken(_image(1, free=3), facts_of(_image(1)), 12, 20))
    assert len(judge.refusals) == refused
