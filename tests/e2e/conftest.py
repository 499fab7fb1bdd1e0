from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.confinement import another_user
from harness.place import Place, create_database, make_place
from harness.site import TOKEN, new_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.cli import Runner
    from harness.daemon import Daemon


@pytest.fixture(scope="session")
def pristine_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Made once; only to be copied from."""
    return make_place(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def place(pristine_place: Place, tmp_path: Path) -> Place:
    """A database with three snapshots in a directory store, for one test."""
    return pristine_place.copy(tmp_path / "home")


@pytest.fixture(scope="session")
def other_user() -> Iterator[Runner]:
    """Runs commands as another user."""
    with another_user() as runner:
        yield runner


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that takes requests, and has taken its first snapshots of app and users."""
    site = new_site(tmp_path)
    for name in ("app", "users"):
        create_database(tmp_path / f"{name}.db", rows=10)
    site.configure("app.db", "users.db", http={"token": TOKEN})
    with site.daemon() as running:
        for name in ("app", "users"):
            running.wait_for("snapshot", database=name, outcome="created")
        yield running
