"""Print for each package how much of its code ran: `python tests/coverage_by_package.py REPORT.json`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path, PurePath


def main() -> None:
    """Read a JSON report of coverage.py, and print a table of statements and of those that ran."""
    files = json.loads(Path(sys.argv[1]).read_text())["files"]
    statements: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for name, file in files.items():
        directory = PurePath(name).parent.as_posix()
        for package in (directory, "all"):
            statements[package] += file["summary"]["num_statements"]
            ran[package] += file["summary"]["covered_lines"]
    width = max(map(len, statements))
    sys.stdout.write(f"{'package':{width}}  statements  covered\n")
    for package in [*sorted(statements.keys() - {"all"}), "all"]:
        share = ran[package] / max(statements[package], 1)
        sys.stdout.write(f"{package:{width}}  {statements[package]:10,}  {share:7.1%}\n")


if __name__ == "__main__":
    main()
