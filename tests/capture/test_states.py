"""Every image that a capture gives out is a committed state, whatever an application does to its database meanwhile.

`STATES_STEPS=100000 STATES_SEED=7` makes the walk a longer one with other steps.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.capturing import capture
from harness.extent import sampled, slow
from harness.states import COARSEST_SECONDS, Judge, Ledger, Taken, digests, facts_of, free_leaves, strange_machine
from harness.stepping import CARDS, DECK
from harness.walking import Chain, Walk, reject_foreign_facts, walking
from msgspec.structs import replace

from backupd.system.processes import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = int(os.environ.get("STATES_STEPS", str(CARDS)))
SEED = os.environ.get("STATES_SEED", "1")
MOST_WALKS = 3
"""A busy machine takes fewer captures during one walk, and may accept none in some rare condition."""

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


@pytest.mark.timeout(MOST_WALKS * (120 + STEPS // 20))
@pytest.mark.parametrize(
    ("steps", "machine"),
    sampled([(CARDS // 4, {}), (STEPS, {}), (STEPS, COARSE), (STEPS, COARSE_AND_JUMPING)]),
    ids=["short", "true-times", "coarse-times", "coarse-times-and-jumping-clock"],
)
def test_every_accepted_image_was_committed_and_current(tmp_path: Path, steps: int, machine: dict[str, float]) -> None:
    """Byte for byte, with the facts of that state; everything else is an error after which another try may succeed."""
    # Coarse stamps do not show a write between two steps: then the file is read without a lock.
    expected = CONDITIONS - ({"in steps"} if machine else set()) if steps >= CARDS else set()
    accepted: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for number in range(MOST_WALKS):
        walk = _walked(tmp_path / str(number), f"{SEED}{'.' * number}", steps=steps, machine=machine)
        accepted += walk.judge.accepted
        outcomes += walk.outcomes
        if accepted.keys() >= expected and any("SourceUnusableError" in outcome for outcome in outcomes):
            break
    if steps >= CARDS:
        assert DECK.keys() <= walk.judge.ledger.kinds.keys()
        assert accepted.keys() >= expected
        assert any("SourceUnusableError" in outcome for outcome in outcomes)


def _walked(
    directory: Path,
    seed: str,
    *,
    steps: int,
    machine: dict[str, float],
    kinds: tuple[str, ...] = (),
    max_lock: float = 30.0,
) -> Walk:
    """Walk while captures follow each other, and return the walk, whose images the judge has accepted."""
    directory.mkdir()
    with pytest.MonkeyPatch.context() as of_captures:
        with walking(directory, seed=seed, steps=steps, kinds=kinds) as walk:
            of_captures.setenv("PYTHONPATH", strange_machine(directory / "machine", **machine))
            chain = Chain(walk, directory / "spools", max_lock=max_lock)
            while walk.goes_on:
                chain.capture()
                walk.reject_wrong_images()
        chain.capture()
    walk.judge.settle(is_over=True)
    sys.stdout.write(walk.summary())
    walk.reject_wrong_images()
    return walk


@slow
@pytest.mark.timeout(MOST_WALKS * 120)
@pytest.mark.parametrize("machine", [COARSE, COARSE_AND_JUMPING], ids=["coarse-times", "and-jumping-clock"])
def test_file_that_takes_long_to_read_is_captured_by_its_time_stamps(tmp_path: Path, machine: dict[str, float]) -> None:
    """Reading it again under the lock would take too long, so its time stamps must show that nothing has touched it."""
    slow_machine = {"read_seconds": 0.4, **machine}
    accepted: Counter[str] = Counter()
    for number in range(MOST_WALKS):
        walk = _walked(
            tmp_path / str(number), SEED, steps=len(SLOW), kinds=SLOW, machine=slow_machine, max_lock=0.1 + 0.2 * number
        )
        accepted += walk.judge.accepted
        if machine != COARSE or accepted["confirmed by the file"] + accepted["confirmed by the API and the file"]:
            return
    pytest.fail(f"no image was accepted by its time stamps: {accepted}")


def test_capturing_process_is_on_the_strange_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process on the strange machine sees coarse time stamps, slow reads and a clock that jumps."""
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
    """Read without a lock, although a transaction may have spilled before and not be over."""
    before, image = _look(path), path.read_bytes()
    return image if _look(path) == before else b""


def _read_and_look_again_under_lock(path: Path) -> bytes:
    """Read and look again under a lock at coarse time stamps, without checking how old they are."""
    before, image = _look(path, 2 * 10**9), path.read_bytes()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return image if _look(path, 2 * 10**9) == before else b""


def _read_what_is_old(path: Path) -> bytes:
    """Read a file whose time stamp is old, without checking for a hot journal."""
    age = time.time() - path.stat().st_mtime
    return path.read_bytes() if age > COARSEST_SECONDS else b""


@pytest.mark.parametrize(
    ("careless", "steps", "kinds"),
    sampled(
        [
            (_read_and_look_again_under_lock, 2000, ("many rows", "time stamp set back")),
            (_read, 150, ("spill and commit", "spill and rollback")),
            (_read_between_equal_looks, 150, ("spill and commit", "spill and rollback")),
            (_read_what_is_old, 2, ("long pause", "killed for long")),
        ]
    ),
)
def test_judge_refuses_the_image_of_a_careless_capture(
    tmp_path: Path, careless: Callable[[Path], bytes], steps: int, kinds: tuple[str, ...]
) -> None:
    """The judge refuses images of a careless capture that were never committed, and accepts its right ones."""
    accepted: Counter[str] = Counter()
    refusals: list[str] = []
    for number in range(MOST_WALKS):
        (tmp_path / str(number)).mkdir()
        with walking(tmp_path / str(number), seed=f"{SEED}{'.' * number}", steps=steps, kinds=kinds) as walk:
            while walk.goes_on:
                began_at = time.monotonic()
                if image := careless(walk.database):
                    walk.judge.take(Taken(image, facts_of(image), began_at, time.monotonic()))
                time.sleep(0.01)  # or the judge has to keep thousands of images until a long step is over
        accepted += walk.judge.accepted
        refusals += walk.judge.refusals
        if accepted["in rollback mode"] and any("never committed" in refusal for refusal in refusals):
            return
    pytest.fail(f"accepted {accepted}, refused {refusals}")


@slow
def test_judge_refuses_a_capture_that_rolls_back(tmp_path: Path) -> None:
    """A hot journal is the application's."""
    with pytest.raises(AssertionError, match="another process has rolled the hot journal back"):
        _roll_back_each_hot_journal(tmp_path)


def _roll_back_each_hot_journal(directory: Path) -> None:
    with walking(directory, seed=SEED, steps=10, kinds=("killed",)) as walk:
        while walk.goes_on:
            with closing(sqlite3.connect(walk.database)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()


def test_judge_refuses_a_page_wrongly_taken_for_unchanged(tmp_path: Path) -> None:
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


def test_tables_of_another_state_are_refused(tmp_path: Path) -> None:
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
    """An image is accepted only if it was current during the capture: from its commit to the end of the next one."""
    judge = _judge(tmp_path, *((_image(number), True) for number in (1, 2, 3)))
    judge.take(Taken(_image(number), facts_of(_image(number)), began_at, ended_at))
    judge.settle(is_over=True)
    assert [refusal in found for found in judge.refusals if refusal] == [True] * bool(refusal)
    assert bool(judge.refusals) == bool(refusal)


def test_facts_and_pages_have_to_be_of_one_state(tmp_path: Path) -> None:
    """Facts of another state than the pages are refused, even if both states were current during the capture."""
    judge = _judge(tmp_path, (_image(1), True), (_image(2), True))
    judge.take(Taken(_image(2), facts_of(_image(1)), 0, 21))
    (refusal,) = judge.refusals
    assert "of another state than the pages" in refusal


def test_image_of_two_states_is_refused(tmp_path: Path) -> None:
    """An image with a single page of another state is refused."""
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
