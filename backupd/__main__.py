"""The entry point of `python -m backupd` and of the console script."""

from __future__ import annotations

from typing import NoReturn

from backupd.cli import run_and_exit


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    run_and_exit()


if __name__ == "__main__":
    main()
