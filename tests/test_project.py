"""What holds the project together: pinned dependencies, one version, a front door that tells what it can do."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from harness.creditrobot import generate, unbalanced_users, update_scattered

import backupd

_ROOT = Path(__file__).parents[1]
_MADE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Names and versions of constraints.txt."""
    lines = (_ROOT / "constraints.txt").read_text().splitlines()
    return dict(re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line).groups() for line in lines if line[0] != "#")


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_pinned(pins, project):
    """What pyproject.toml names, it names without a version that constraints.txt would contradict or leave open."""
    extras = project["optional-dependencies"].values()
    named = [text for group in [project["dependencies"], *extras] for text in group]
    names = {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower().replace("_", "-") for text in named}
    assert names - {"backupd"} <= pins.keys()


def test_no_older_apsw_is_taken_than_one_that_ignores_super_journals(project):
    """SQLite before 3.53.3 deletes the file that a planted journal names, with the rights of the process."""
    (apsw,) = [text for text in project["dependencies"] if text.startswith("apsw")]
    assert tuple(map(int, re.fullmatch(r"apsw>=([0-9.]+)", apsw)[1].split("."))) >= (3, 53, 3)


def test_pins_have_only_names_and_versions():
    """Pins are sorted, and have no address and no option."""
    lines = (_ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert pinned == sorted(pinned, key=lambda line: line.partition("==")[0])
    assert not [line for line in lines if "://" in line or line.startswith("-")]


def test_the_version_stands_in_the_changelog():
    """The newest released heading of the changelog is this version, or everything is still unreleased."""
    headings = re.findall(r"^## \[?([^\]\s]+)", (_ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading.lower() != "unreleased"]
    assert headings
    assert released[:1] in ([], [backupd.__version__])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lists_what_it_can_do():
    """`make` alone changes nothing and names every target that README and CI use."""
    listed = _make()
    assert listed.returncode == 0
    names = set(re.findall(r"^ +make ([a-z-]+)", listed.stdout, re.MULTILINE))
    tests = {"test", "test-full", "coverage", "test-container", "check", "profile", "soak"}
    figures = {"bench", "bench-peers", "bench-compare", "bench-record", "bench-pages"}
    assert names == {"help", "try", "build", "clean", *tests, *figures}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_explains_a_python_that_is_too_old(tmp_path):
    """Make names a Python that is too old, the version that is needed, and how to name another one."""
    old = tmp_path / "python2"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 2.7.18\nexit 1\n')
    old.chmod(0o755)
    made = _make_environment(tmp_path, old)
    assert made.returncode != 0
    assert "error: backupd needs Python 3.11 or later" in made.stderr
    assert "Python 2.7.18" in made.stderr
    assert "hint: name a newer one" in made.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_explains_a_missing_python(tmp_path):
    """Make names a missing Python, and leaves no partial environment."""
    made = _make_environment(tmp_path, tmp_path / "nowhere")
    assert made.returncode != 0
    assert f"error: there is no {tmp_path}/nowhere" in made.stderr
    assert not (tmp_path / "venv").exists()


def _make_environment(directory: Path, python: Path) -> subprocess.CompletedProcess[str]:
    venv = directory / "venv"
    return _make(f"VENV={venv}", f"PYTHON={python}", f"{venv}/bin/python")


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what a `make test` around this run hands down to every make below it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-C", _ROOT, *arguments], env=environment, check=False, capture_output=True, text=True
    )


def test_the_sample_database_is_the_same_for_the_same_seed(tmp_path):
    """Byte for byte, so that figures can be taken again."""
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        generate(tmp_path / name, size_bytes=_MADE_BYTES, seed=seed)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    assert (tmp_path / "one").read_bytes() != (tmp_path / "other").read_bytes()


def test_the_sample_database_stays_balanced_under_updates(tmp_path):
    """The sample database keeps its invariant under updates, and SQLite finds it sound."""
    database = tmp_path / "sample.db"
    generate(database, size_bytes=_MADE_BYTES)
    before = database.read_bytes()
    update_scattered(database, 50)
    assert database.read_bytes() != before
    assert unbalanced_users(database) == 0
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_sample_database_replaces_nothing(tmp_path):
    """A file that is there is not ours to overwrite, nor to remove."""
    database = tmp_path / "precious.db"
    database.write_text("precious")
    with pytest.raises(FileExistsError):
        generate(database, size_bytes=_MADE_BYTES)
    assert database.read_text() == "precious"
