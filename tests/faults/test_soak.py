"""A short soak as `make soak` runs it: some faults, chosen by a seed, and every snapshot restores or was reported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.extent import slow

from faults.catalogue import FAULTS
from faults.soak import deck

_SECONDS = 8
_SEED = 11


@slow
@pytest.mark.timeout(600)
def test_a_short_soak_breaks_no_promise():
    """A few rounds in well under a minute of a machine with nothing else to do; `make soak` goes on for longer."""
    finished = subprocess.run(
        [sys.executable, "-m", "faults", "--minutes", str(_SECONDS / 60), "--seed", str(_SEED)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    figures = dict(re.findall(r"^\| \**(.+?)\** +\| (.+?) +\|$", finished.stdout, re.MULTILINE))
    assert int(figures["rounds"]) >= 1
    assert int(figures["snapshots taken"]) > 4
    assert int(figures["restored and checked"]) >= int(figures["snapshots taken"])
    assert int(figures["commits put together and checked"]) >= int(figures["commits in windows, in both stores"]) > 0
    assert int(figures["moments restored and checked"]) >= 8
    assert int(figures["recovery points checked"]) > 0
    assert (figures["lost"], figures["violations"], figures["seed"]) == ("0", "0", str(_SEED))
    shown = [figures[fault.name] for fault in FAULTS]
    assert sum(int(each) for each in shown if each.isdecimal()) == int(figures["faults injected"])
    assert shown.count("not reached") == int(figures["kinds not reached in this time"]) > 0


def test_a_seed_gives_its_faults_again():
    """A seed gives the same faults in the same order, each of them once before any comes twice."""
    turns = [[fault.name for fault in deck(7, turn)] for turn in (0, 1)]
    assert turns == [[fault.name for fault in deck(7, turn)] for turn in (0, 1)]
    assert turns[0] != turns[1]
    assert [sorted(turn) for turn in turns] == [sorted(fault.name for fault in FAULTS)] * 2
    assert [fault.name for fault in deck(8, 0)] != turns[0]


def test_each_fault_has_a_description():
    """Each fault is described by a sentence, which the page about reliability quotes."""
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
    for fault in FAULTS:
        assert fault.does.endswith("."), fault.name
        assert f"| {fault.name} | {fault.does} |" in page
