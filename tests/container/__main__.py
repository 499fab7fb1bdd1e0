"""Run all checks where a container engine is; elsewhere say that they were skipped. Options go to pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from container.engine import NoEngineError, find_engine


def main() -> int:
    """Give pytest's exit code, or 0 when there is nothing to run them with."""
    try:
        find_engine()
    except NoEngineError as reason:
        print(f"skipped: {reason}")  # noqa: T201
        return 0
    # Not test_*.py, so that `make test` leaves them alone: they build images and take minutes.
    options = ["--override-ini=python_files=check_*.py", "--timeout=900", "-p", "no:xdist", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *sys.argv[1:], str(Path(__file__).parent)]))


if __name__ == "__main__":
    sys.exit(main())
