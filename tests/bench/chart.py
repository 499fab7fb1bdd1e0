"""The picture of README: backupd beside other ways, from committed results. The same results give the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bench.peers import OURS, PEERS, WORKS
from bench.report import installed_peers, plain_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.results import Figure, Result

_PANELS = (("", "time"), ("-cpu", "CPU time"), ("-stored", "bytes stored"))
_LEFT, _TOP, _EDGE = 150, 64, 16
_PANEL_WIDTH, _PANEL_GAP = 150, 84
_BAR, _BAR_STEP, _WORK_GAP = 12, 17, 20
_COLORS = {OURS: "#1f6feb", "usual": "#8c959f", "restic": "#b8860b", "litestream": "#7d5ba6"}
_STYLE = "text{font:12px system-ui,sans-serif;fill:#24292f}.head{font-weight:600}.small{font-size:11px;fill:#57606a}"


def draw(result: Result) -> str:
    """An SVG: a row of bars for each tool and piece of work, a column for time, CPU time and bytes stored."""
    tools = [OURS, *installed_peers(result)]
    names = {OURS: OURS, **PEERS}
    elements = []
    for column, (_, title) in enumerate(_PANELS):
        elements.append(_text(_left_of(column), _TOP - 14, title, "head"))
    y = _TOP
    for work, title in WORKS.items():
        present = [tool for tool in tools if f"{work}-{tool}" in result.rows]
        elements.append(_text(_EDGE, y + 10, title, "head"))
        for column, (suffix, _) in enumerate(_PANELS):
            figures = {tool: result.rows.get(f"{work}-{tool}{suffix}") for tool in present}
            elements += _bars(_left_of(column), y + 16, figures)
        for position, tool in enumerate(present):
            elements.append(_text(_EDGE, y + 16 + position * _BAR_STEP + 10, names[tool].replace("`", ""), "small"))
        y += 16 + len(present) * _BAR_STEP + _WORK_GAP
    caption = f"{size_text(result.scale.size_bytes)} of SQLite, into a directory, less is better; {result.machine.cpu}"
    elements.insert(0, _text(_EDGE, 26, f"{caption}, {result.machine.cores} cores", "head"))
    width, height = _left_of(len(_PANELS)), y
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    )
    background = f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>'
    return "\n".join([opening, f"<style>{_STYLE}</style>", background, *elements, "</svg>", ""])


def _left_of(column: int) -> int:
    return _LEFT + column * (_PANEL_WIDTH + _PANEL_GAP)


def _bars(x: int, y: int, figures: dict[str, Figure | None]) -> Iterator[str]:
    """One bar for each tool, as long as its share of the longest in this panel, with its value behind it."""
    longest = max((figure.value for figure in figures.values() if figure), default=0.0)
    for position, (tool, figure) in enumerate(figures.items()):
        if figure is None:
            continue
        width = max(1.0, _PANEL_WIDTH * figure.value / longest) if longest else 1.0
        top = y + position * _BAR_STEP
        yield f'<rect x="{x}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{_COLORS[tool]}"/>'
        yield _text(round(x + width + 5), top + 10, plain_text(figure), "small")


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'
