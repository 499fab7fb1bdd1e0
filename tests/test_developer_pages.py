"""What the pages for developers say of the code is true: the files that they name exist, the packages are all there."""

from __future__ import annotations

import re

import pytest
from harness.pages import DOCS, ROOT, code_spans

_PAGES = (ROOT / "CONTRIBUTING.md", DOCS / "architecture.md")
_PLACES = ("backupd/", "tests/", "docs/")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_files_that_a_developer_page_names_exist(page):
    """A path in code type is one of the project, from its root."""
    named = [span for span in code_spans(page.read_text()) if span.startswith(_PLACES)]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_objects_that_the_architecture_names_exist():
    """A capitalized name in code type is that of a class, a function or a type of the package."""
    named = {
        span for span in code_spans((DOCS / "architecture.md").read_text()) if re.fullmatch(r"[A-Z][A-Za-z]+", span)
    }
    assert "Archive" in named
    source = "\n".join(file.read_text() for file in (ROOT / "backupd").rglob("*.py"))
    assert {name for name in named if not re.search(rf"^\s*(?:class )?{name}\b", source, re.MULTILINE)} == set()


def test_every_package_has_its_place_in_the_architecture():
    """The tree on the page is the tree on the disk."""
    (tree,) = re.findall(r"^```\nbackupd/\n(.*?)```", (DOCS / "architecture.md").read_text(), re.MULTILINE | re.DOTALL)
    drawn = set(re.findall(r"\b([a-z]+)(?:/|\.py)", tree))
    modules = {module.stem for module in (ROOT / "backupd").glob("[!_]*.py")}
    packages = {package.parent.name for package in (ROOT / "backupd").glob("*/__init__.py")}
    assert drawn == modules | packages


def test_make_targets_of_contributing_exist():
    """`make` lists each of them."""
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()
