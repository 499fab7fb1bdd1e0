"""`python -m backupd`, and the console script."""

from __future__ import annotations

from typing import NoReturn

from backupd.cli import run


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    run()


if __name__ == "__main__":
    main()
