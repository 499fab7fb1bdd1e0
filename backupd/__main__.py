"""`python -m backupd`, and the console script."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    from backupd.cli import run  # noqa: PLC0415  (`--help` and completion stay fast)

    run()


if __name__ == "__main__":
    main()
