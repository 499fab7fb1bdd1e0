from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.confinement import another_user
from harness.place import Place, make_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.cli import Runner


@pytest.fixture(scope="session")
def pristine_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Made once; only to be copied from."""
    return make_place(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def place(pristine_place: Place, tmp_path: Path) -> Place:
    """A database with three snapshots in a directory store, for one test."""
    return pristine_place.copy(tmp_path / "home")


@pytest.fixture(scope="session")
def stranger() -> Iterator[Runner]:
    """Runs commands as another user."""
    with another_user() as runner:
        yield runner
