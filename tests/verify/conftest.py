from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.stored import Stored

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """A store with no snapshot yet."""
    return Stored(tmp_path)
