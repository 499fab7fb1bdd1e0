"""Draws the pictures of the status page for README and docs, from the sample.

Run it with python tests/page/pictures.py; it needs Chromium. The sample is made of values with fixed times, so that
the pictures change with the page alone.
"""

# ruff: noqa: T201  (it reports to people)

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TZ"] = "UTC"
time.tzset()

import sample  # noqa: E402
from browser import chromium, launched, serving  # noqa: E402
from palette import with_palette  # noqa: E402

_DOCS = Path(__file__).parents[2] / "docs"
_PICTURES = {
    "status-page.png": ("/", {"width": 860, "height": 620}, "light", True),
    "status-page-database.png": ("/database/app", {"width": 860, "height": 900}, "dark", False),
}
"""The path of each page, the size of the window, the colours, and whether there is trouble."""

MOST_BYTES = 60_000


def main() -> int:
    """Draw each picture; the exit code is 1 when one is too large, or there is no Chromium."""
    binary = chromium()
    if binary is None:
        print("error: there is no Chromium here\nhint: on Debian: apt install chromium", file=sys.stderr)
        return 1
    with launched(binary) as browser:
        for name, (path, size, scheme, is_troubled) in _PICTURES.items():
            with serving(sample.pages(is_troubled=is_troubled)) as url:
                page = browser.new_page(viewport=size, color_scheme=scheme)
                page.goto(url + path)
                (_DOCS / name).write_bytes(with_palette(page.screenshot()))
                page.close()
            size_bytes = (_DOCS / name).stat().st_size
            print(f"{name}: {size_bytes:,} bytes")
            if size_bytes > MOST_BYTES:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
