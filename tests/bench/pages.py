"""The committed results in the documentation: tables between two comments, and the chart. Only this writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from bench.chart import draw
from bench.report import head, peer_lines, short_peer_lines, tables
from bench.results import Result, committed_files

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[2]
_README, _OPERATIONS = _ROOT / "README.md", _ROOT / "docs/operations.md"
# For those who change backupd: `make bench` shows them.
_LEFT_OUT = (
    "level-*",
    "live-*-plan",
    "live-*-alone",
    "lock-*-undisturbed",
    "lock-*-seconds",
    "lock-*-cpu",
    "lock-*-failures",
    "*-stored-ratio",
    "list-kept-memory",
    "tenants-first-seconds",
    "tenants-idle-written",
)
_CHART = _ROOT / "docs/benchmark.svg"


def contents() -> dict[Path, str]:
    """What each file has to be by the committed results: those of the first machine, in the order of their names."""
    texts = {page: page.read_text(encoding="utf-8") for page in (_README, _OPERATIONS)}
    for file in committed_files(has_peers=False)[:1]:
        result = Result.read(file)
        rows = {
            name: row for name, row in result.rows.items() if not any(fnmatchcase(name, each) for each in _LEFT_OUT)
        }
        lines = tables(replace(result, rows=rows))
        texts[_OPERATIONS] = _with_block(texts[_OPERATIONS], "figures", [head(result), *lines])
    for file in committed_files(has_peers=True)[:1]:
        result = Result.read(file)
        texts[_README] = _with_block(texts[_README], "peers", short_peer_lines(result))
        texts[_OPERATIONS] = _with_block(texts[_OPERATIONS], "peers", [head(result), "", *peer_lines(result)])
        texts[_CHART] = draw(result)
    return texts


def write() -> list[Path]:
    """Write all files whose content is another than it has to be; those that were written."""
    changed = []
    for file, text in contents().items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(file)
    return changed


def _with_block(page: str, name: str, lines: list[str] | Iterator[str]) -> str:
    """Replace what stands between the two comments of `name`. Raises ValueError when they are not there."""
    start, end = f"<!-- bench {name}: written by make bench-pages -->", f"<!-- end of bench {name} -->"
    text = "\n".join([start, "", *lines, "", end])
    replaced, count = re.subn(re.escape(start) + ".*?" + re.escape(end), lambda _: text, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for the benchmark's {name}")
    return replaced
