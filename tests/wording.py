"""The words of the project: `make check` fails where a text or a name uses one that a stranger would not understand.

Texts are those of pages, docstrings, comments and messages; names are those of modules, classes, functions, parameters
and variables in `backupd/`. A docstring, even of a test, must make sense by itself where an editor shows it, so some
beginnings are out.
"""

# ruff: noqa: T201  (it reports to people)

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[1]
_PAGES = (
    "*.md",
    "docs/*.md",
    "backupd/**/*.md",
    "config.example.toml",
    "Dockerfile",
    "docker-compose*.yml",
    "Makefile",
)

_WORDS = {
    r"nobody|no one|somebody(?: else)?|someone else|whoever": "name the subject: no process, the caller, another host",
    r"anew": "again",
    r"(?:is|are|was|were|be|being|not) told": "is reported",
    r"(?:looks?|looked|looking) after": "maintain, protect",
    r"all the same": "anyway, still",
    r"believe(?:d|s)? it": "trust, check",
    r"someone": "name the subject: another user, another process",
    r"go(?:es)? on|going on": "continue, in progress",
    r"in vain": "without success",
    r"do(?:es)? without": "skip, lack",
    r"of theirs": "of another user",
    r"mend(?:s|ed|ing)?": "repair",
    r"for ever": "forever, without end",
    r"put(?:s)? (?:this|that|it) right": "correct, repair",
}
_BEGINNINGS = ("The same", "That of", "Those of", "As ", "Like ", "Ditto", "See ", "Also ", "And ", "But ", "Or ")
_MORE_BEGINNINGS = ("Nor ", "So ", "Likewise", "Even ", "It ", "Its ", "They ", "Their ", "Then ", "That ")
_NAMES = {
    "asking": "reachability",
    "attention": "alert_loop",
    "charge": "context",
    "chores": "maintenance",
    "feed": "pipeline",
    "receipt": "upload_check",
    "rotation": "retention, pruning",
    "rotations": "maintenance",
    "sight": "discovery",
    "starting": "setup",
    "whoever": "name it",
    "else": "other",
    "telling": "notifications",
    "judging": "alarms",
    "ground": "baseline",
    "silence": "hang_detection",
    "remarks": "warnings",
    "remark": "warning",
    "wish": "request",
    "condemned": "known_damaged",
    "strangers": "foreign_objects",
    "stranger": "foreign object",
    "told": "notified, reported",
    "anew": "again",
    "meanings": "error_table",
    "sought": "found, wanted",
}


class Finding(NamedTuple):
    """One use of a word, and what to write instead."""

    file: Path
    line: int
    found: str
    instead: str


def main() -> int:
    """Print every finding as `file:line: ...`; the exit code is 1 if there is one."""
    findings = [*_of_pages(), *_of_code()]
    for finding in findings:
        print(f"{finding.file.relative_to(_ROOT)}:{finding.line}: {finding.found!r}: {finding.instead}")
    return 1 if findings else 0


def _of_pages() -> Iterator[Finding]:
    for pattern in _PAGES:
        for page in sorted(_ROOT.glob(pattern)):
            for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
                yield from _in_text(page, number, line)


def _of_code() -> Iterator[Finding]:
    for file in sorted((_ROOT / "backupd").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        yield from _in_names(file, tree)
        yield from _in_docstrings(file, tree, _BEGINNINGS)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                for offset, line in enumerate(token.string.splitlines()):
                    yield from _in_text(file, token.start[0] + offset, line)
    for file in sorted((_ROOT / "tests").rglob("*.py")):
        yield from _in_docstrings(file, ast.parse(file.read_text(encoding="utf-8")), _BEGINNINGS + _MORE_BEGINNINGS)


def _in_text(file: Path, number: int, line: str) -> Iterator[Finding]:
    for pattern, instead in _WORDS.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", line, re.IGNORECASE):
            yield Finding(file, number, match[0], instead)


def _in_docstrings(file: Path, tree: ast.AST, beginnings: tuple[str, ...]) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if first.startswith(beginnings):
                yield Finding(file, getattr(node, "lineno", 1), first, "a first line says by itself what this is")


def _in_names(file: Path, tree: ast.AST) -> Iterator[Finding]:
    yield from _in_name(file, 1, file.stem)
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield from _in_name(file, node.lineno, name)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield from _in_name(file, node.lineno, name)


def _in_name(file: Path, number: int, name: str) -> Iterator[Finding]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    for part in parts:
        if part in _NAMES:
            yield Finding(file, number, name, _NAMES[part])


if __name__ == "__main__":
    sys.exit(main())
