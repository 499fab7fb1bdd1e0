"""README and the pages in docs/, taken apart: fenced blocks, commands, tables, headings and links."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.glob("*.md")))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return blocks_of(page.read_text(), language)


def blocks_of(text: str, language: str) -> list[str]:
    """The fenced blocks of a part of a page in one language."""
    return [content for found, content in _FENCED.findall(text) if found == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def commands(text: str, *, anywhere: bool = False) -> list[list[str]]:
    """The lines that begin with `backupd`, split as a shell does: without comments, the program, and where output goes.

    `anywhere` adds those that have it behind something else: `docker compose exec backupd backupd now`.
    """
    found = []
    for line in text.splitlines():
        if line.strip().startswith("backupd ") or (anywhere and " backupd " in line):
            words = shlex.split(line.strip(), comments=True)
            last = len(words) - 1 - words[::-1].index("backupd") if "backupd" in words else len(words)
            command = [*takewhile(lambda word: word not in {">", "|"}, words[last + 1 :])]
            if command:
                found.append(command)
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Commands in the prose that have arguments, up to `&&`; a verb alone is a name, and no command line.

    Sentences of the log are none: "backupd has started".
    """
    spans = re.findall(r"`([^`\n]*\bbackupd (?!has |is )[^`\n]*)`", prose(page))
    found = [command for span in spans for command in commands(span.partition("&&")[0], anywhere=True)]
    return [command for command in found if len(command) > 1]


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or a higher one."""
    level, _, title = heading.partition(" ")
    below = page.read_text().split(f"\n{level} {title}\n", maxsplit=1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in `text`, without the lines below their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|\-: ]+", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code_spans(text: str) -> list[str]:
    """What stands between backquotes."""
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, spelled as web sites for source code spell them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of a page's links that lead to another place in the project, or on the page."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+://", target)]
