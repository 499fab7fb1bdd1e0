from __future__ import annotations

import pytest
from harness.place import make_place
from harness.rescuing import Bare, Kept, bare_python, encrypt_in


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """A Python with nothing installed."""
    return bare_python(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Three snapshots."""
    return Kept(make_place(tmp_path_factory.mktemp("plain")), None)


@pytest.fixture(scope="session")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Three snapshots that only who has the key can restore."""
    home = tmp_path_factory.mktemp("encrypted")
    identity = encrypt_in(home, tmp_path_factory.mktemp("keys"))
    return Kept(make_place(home), identity)
