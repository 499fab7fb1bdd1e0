"""Which rows of a table may differ between two states, by their pages: what did not change is not read.

A page with one image in both states is one node of a tree, so both trees are walked from their root, but only into
pages that changed and into those on the way to them. The nodes that were passed by divide the rowids of each tree into
spans. A span with the same node in both trees has the same rows in both.

Source of all that is said about pages: https://www.sqlite.org/fileformat2.html, sections 1.5 to 1.8.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from backupd.errors import DamageError
from backupd.format import lock_page

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from backupd.inside.pages import PageSource

_INNER, _LEAF = 5, 13
_INDEX_INNER, _INDEX_LEAF = 2, 10
_NODES = frozenset({_INNER, _LEAF, _INDEX_INNER, _INDEX_LEAF})
_FILE_HEADER_BYTES = 100
_MOST_DEPTH = 24
_MOST_CHAIN_PAGES = 10_000
_UNAMBIGUOUS_PAGES = 1 << 25
"""Overflow pages and the list of free pages begin with the number of a page, whose highest byte may be that of a node
when there are so many."""


class Span(NamedTuple):
    """Rowids from `low` to `high`, both included."""

    low: int
    high: int


ALL_ROWIDS = Span(-(1 << 63), (1 << 63) - 1)


class _Child(NamedTuple):
    """A node that was passed by, and the span of the rowids below it."""

    span: Span
    page: int


class ChangedPages:
    """What differs between the pages of two states of one database, for all of its tables."""

    def __init__(self, before: PageSource, after: PageSource, changed: Collection[int]) -> None:
        """`changed` has the numbers of all pages that differ or that one state lacks, and maybe of some others.

        Reads all of these pages. Raises `DamageError` and `StoreError`.
        """
        self._sources = before, after
        self._changed = frozenset(changed)
        found = [(source, number) for source in self._sources for number in changed if number <= source.page_count]
        nodes = [_Node(source, number) for source, number in found]
        self._keys = sorted({key for node in nodes if (key := node.any_rowid()) is not None})
        self.has_other_trees = any(node.kind in {_INDEX_INNER, _INDEX_LEAF} for node in nodes)
        """Whether a node of an index, or of a table without rowids, is among them in either state."""

    def spans(self, root: int) -> list[Span]:
        """Return the spans of rowids that may differ in the table with this root, in order; see `may_hide_rows`."""
        before, after = (self._walked(source, root) for source in self._sources)
        return _merged(before ^ after | {each for each in before & after if each.page in self._changed})

    def _walked(self, source: PageSource, root: int) -> set[_Child]:
        """Return the leaves that a walk came to, and the nodes that it passed by: together, all rowids."""
        ends: set[_Child] = set()

        def walk(number: int, span: Span, depth: int) -> None:
            node = _Node(source, number)
            if node.kind == _LEAF:
                ends.add(_Child(span, number))
                return
            if node.kind != _INNER or depth > _MOST_DEPTH:
                raise DamageError(
                    f"page {number} is no node of a table", hint="the database was damaged when it was taken"
                )
            for child in node.children(span):
                if child.page in self._changed or self._has_key(child.span):
                    walk(child.page, child.span, depth + 1)
                else:
                    ends.add(child)

        walk(root, ALL_ROWIDS, 0)
        return ends

    def _has_key(self, span: Span) -> bool:
        place = bisect_left(self._keys, span.low)
        return place < len(self._keys) and self._keys[place] <= span.high

    @cached_property
    def may_hide_rows(self) -> bool:
        """Whether a row outside of all spans may have changed in an overflow page alone.

        SQLite writes a row of the same length over the old one: then its leaf may stay as it was. Such a page of the
        later state belongs to no row of a leaf that changed, and is not free.
        """
        after = self._sources[1]
        numbers = [number for number in self._changed if number <= after.page_count]
        if after.page_count >= _UNAMBIGUOUS_PAGES:
            return bool(numbers)
        nodes = [_Node(after, number) for number in numbers]
        unexplained = {node.number for node in nodes if node.kind not in _NODES} - {lock_page(after.page_size)}
        for node in nodes:
            if not unexplained:
                return False
            if node.kind in _NODES:
                for first in node.overflow_pages():
                    _explain(after, first, unexplained)
        unexplained.difference_update(_pointer_map_pages(after))
        return bool(unexplained and unexplained.difference(_free_pages(after)))


def _merged(children: Iterable[_Child]) -> list[Span]:
    """Return the spans of `children` in order, with those joined that overlap or touch."""
    merged: list[Span] = []
    for low, high in sorted(child.span for child in children):
        if low > high:
            continue
        if merged and low <= merged[-1].high + 1:
            merged[-1] = Span(merged[-1].low, max(merged[-1].high, high))
        else:
            merged.append(Span(low, high))
    return merged


class _Node:
    """A page, read as a node of a tree. What it is not has no cells."""

    def __init__(self, source: PageSource, number: int) -> None:
        self.number = number
        self._source = source
        self._page = page = source.page(number)
        self._start = start = _FILE_HEADER_BYTES if number == 1 else 0
        self.kind = page[start]
        self._cells: tuple[int, ...] = ()
        if self.kind in _NODES:
            count = int.from_bytes(page[start + 3 : start + 5], "big")
            array = start + (12 if self.kind in {_INNER, _INDEX_INNER} else 8)
            pointers = page[array : array + 2 * count]
            self._cells = tuple(pointers[i] << 8 | pointers[i + 1] for i in range(0, len(pointers) - 1, 2))

    def any_rowid(self) -> int | None:
        """Return a rowid of this node, or of those below it; None when it is none of a table, or is empty."""
        if self.kind not in {_INNER, _LEAF} or not self._cells:
            return None
        return self._rowid(self._cells[0])

    def children(self, span: Span) -> Iterator[_Child]:
        """Yield the children of an inner node of a table, in order; `span` is what it has itself."""
        low = span.low
        for cell in self._cells:
            high = min(span.high, max(low - 1, self._rowid(cell)))
            yield _Child(Span(low, high), int.from_bytes(self._page[cell : cell + 4], "big"))
            low = high + 1
        last = self._page[self._start + 8 : self._start + 12]
        yield _Child(Span(low, span.high), int.from_bytes(last, "big"))

    def _rowid(self, cell: int) -> int:
        at = cell + 4 if self.kind == _INNER else _varint(self._page, cell)[1]
        return _signed(_varint(self._page, at)[0])

    def overflow_pages(self) -> Iterator[int]:
        """Yield the first overflow page of each cell that has one."""
        if self.kind == _INNER:
            return
        usable = _usable_bytes(self._source)
        least = (usable - 12) * 32 // 255 - 23
        most = usable - 35 if self.kind == _LEAF else (usable - 12) * 64 // 255 - 23
        for cell in self._cells:
            payload, at = _varint(self._page, cell + 4 if self.kind == _INDEX_INNER else cell)
            if self.kind == _LEAF:
                at = _varint(self._page, at)[1]
            if payload <= most:
                continue
            local = least + (payload - least) % (usable - 4)
            at += local if local <= most else least
            yield int.from_bytes(self._page[at : at + 4], "big")


def _explain(source: PageSource, number: int, unexplained: set[int]) -> None:
    """Remove the overflow pages from `number` on from `unexplained`, unless that takes too long."""
    passed = 0
    while unexplained and 0 < number <= source.page_count and passed < _MOST_CHAIN_PAGES:
        if number in unexplained:
            unexplained.remove(number)
        else:
            passed += 1
        number = int.from_bytes(source.page(number)[:4], "big")


def _pointer_map_pages(source: PageSource) -> Iterable[int]:
    """Return the pages of the pointer map, which a database with auto-vacuum has."""
    if source.page_count == 0 or not any(source.page(1)[52:56]):
        return ()
    step = _usable_bytes(source) // 5 + 1
    pages, lock = range(2, source.page_count + 1, step), lock_page(source.page_size)
    return [number + 1 if number == lock else number for number in pages]


def _free_pages(source: PageSource) -> Iterator[int]:
    """Yield the pages of the list of free pages."""
    trunk, seen = int.from_bytes(source.page(1)[32:36], "big"), set[int]()
    while 0 < trunk <= source.page_count and trunk not in seen:
        seen.add(trunk)
        yield trunk
        page = source.page(trunk)
        trunk, count = int.from_bytes(page[:4], "big"), int.from_bytes(page[4:8], "big")
        for at in range(8, min(8 + 4 * count, len(page)), 4):
            yield int.from_bytes(page[at : at + 4], "big")


def _usable_bytes(source: PageSource) -> int:
    return source.page_size - source.page(1)[20]


def _varint(page: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return an integer of 1 to 9 bytes, and where it ends."""
    value = 0
    for place in range(at, min(at + 8, len(page))):
        byte = page[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:  # noqa: PLR2004
            return value, place + 1
    end = at + 9
    return (value << 8 | page[end - 1] if end <= len(page) else value), end


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
