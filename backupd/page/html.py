"""A builder of HTML and SVG that escapes by construction: what is not `Markup` is text, and is escaped.

Names come from files and stores, and may be anything.
"""

from __future__ import annotations

from html import escape
from typing import TypeAlias

from backupd.errors import masked
from backupd.logs import printable

_WITHOUT_END = frozenset({"meta", "link", "input", "br", "td", "th", "tr", "circle", "rect", "line", "use"})
"""Elements without content, and those of tables whose end is implied: a thousand rows make the difference."""
_CLOSED = frozenset({"circle", "rect", "line", "use"})
"""Those of SVG, where a start tag has to be closed."""


class Markup(str):
    """Text that is HTML already. Only this module and constants make it."""

    __slots__ = ()


Child: TypeAlias = "str | None"
Value: TypeAlias = "str | int | float | bool | None"


def text(content: str) -> Markup:
    """Return `content` as HTML: escaped, on one line, without secrets. Markup stays as it is."""
    if isinstance(content, Markup):
        return content
    return Markup(escape(printable(masked(content))))


def tag(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """Return an element. A child that is not markup is escaped, and None is left out.

    Attributes that are None or False are left out too, and True stands for the name alone. The last underscore of a
    name such as `class_` is left out, and other underscores are hyphens.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    content = "".join([text(child) for child in children if child is not None])
    if name in _WITHOUT_END:
        return Markup(f"<{name}{given}{'/' if name in _CLOSED else ''}>{content}")
    return Markup(f"<{name}{given}>{content}</{name}>")


def joined(*children: Child, by: str = "") -> Markup:
    """Return `children` one after the other, with `by` between them; None is left out."""
    return Markup(text(by).join([text(child) for child in children if child is not None]))


def _attribute(key: str, value: Value) -> str:
    if value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        return f' {name}="{value:.2f}"'
    return f' {name}="{text(str(value))}"'
