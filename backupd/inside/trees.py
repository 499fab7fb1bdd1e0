"""Which rows of a table may differ between two states, by their pages: what did not change is not read.

A page with one image in both states is one node of a tree, so both trees are walked from their root, but only into
pages that changed and into those on the way to them. The nodes that were passed by divide the rowids of each tree into
spans. A span with the same node in both trees has the same rows in both.

Source of all that is said about pages: https://www.sqlite.org/fileformat2.html, sections 1.5 to 1.8.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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


class Part(NamedTuple):
    """A span, and how many rows it has in each state; None where that is not known."""

    span: Span
    rows_before: int | None = None
    rows_after: int | None = None


ALL_ROWIDS = Span(-(1 << 63), (1 << 63) - 1)
EVERYTHING = Part(ALL_ROWIDS)


class _Entry(NamedTuple):
    """A node where a tree has it: the rowids that may be below it, and its page."""

    span: Span
    page: int


class ChangedPages:
    """What differs between the pages of two states of one database, for all of its tables."""

    def __init__(self, before: PageSource, after: PageSource, changed: Collection[int]) -> None:
        """`changed` has the numbers of all pages that differ or that one state lacks, and maybe of some others.

        Reads all of these pages. Raises `DamageError` and `StoreError`.
        """
        self._before = before
        self._after = after
        self._changed = sorted(changed)
        self._is_changed = frozenset(changed)
        self.has_other_trees = False
        """Whether a node of an index, or of a table without rowids, is among them in either state."""
        self._is_odd = False
        keys: set[int] = set()
        for source in (before, after):
            source.expect(self._changed)
            for node in self._nodes(source):  # not kept: they may be many
                self.has_other_trees |= node.kind in {_INDEX_INNER, _INDEX_LEAF}
                self._is_odd |= node.kind == _INNER and not node.count
                if (key := node.any_rowid()) is not None:
                    keys.add(key)
        self._keys = sorted(keys)

    def _nodes(self, source: PageSource) -> Iterator[_Node]:
        """Read those of the pages that differ that a state has."""
        return (_Node(source, number) for number in self._changed if number <= source.page_count)

    def parts(self, root: int) -> list[Part]:
        """Return the spans of rowids that may differ in the table with this root, in order; see `may_hide_rows`."""
        if self._is_odd:  # no rowid leads to such a page
            return [EVERYTHING]
        found: list[Part] = []
        entries = {_Entry(ALL_ROWIDS, root)}, {_Entry(ALL_ROWIDS, root)}
        depth = self._depth(self._before, root)
        if depth != self._depth(self._after, root):
            depth = _MOST_DEPTH
        for level in range(_MOST_DEPTH):
            entries = self._compare(*entries, found, are_leaves_next=level + 1 == depth)
            if not any(entries):
                return _merged(found)
        raise DamageError(f"the tree at page {root} has no end", hint="the database was damaged when it was taken")

    @staticmethod
    def _depth(source: PageSource, root: int) -> int:
        """Return how many levels of inner nodes a tree has: as many on each way down."""
        node = _Node(source, root)
        depth = 0
        while node.kind == _INNER and depth < _MOST_DEPTH:
            node, depth = _Node(source, node.last_child()), depth + 1
        return depth

    def _compare(
        self, before: set[_Entry], after: set[_Entry], found: list[Part], *, are_leaves_next: bool
    ) -> tuple[set[_Entry], set[_Entry]]:
        """Compare entries of both trees: add to `found` what differs in leaves; return those to be compared next."""
        same = {entry for entry in before & after if entry.page not in self._is_changed}
        below: tuple[set[_Entry], set[_Entry]] = set(), set()
        for entry in same:
            children = self._towards_changes(entry)
            if are_leaves_next:  # a leaf that did not change is not looked at
                children = {child for child in children if child.page in self._is_changed}
            for each in below:
                each.update(children)
        for source, entries, next_ones in ((self._before, before, below[0]), (self._after, after, below[1])):
            for entry in entries - same:
                node = _Node(source, entry.page)
                if node.kind == _LEAF:
                    is_before = source is self._before
                    found.append(Part(entry.span, node.count * is_before, node.count * (not is_before)))
                elif node.kind == _INNER:
                    next_ones.update(node.children(entry.span))
                else:
                    raise DamageError(
                        f"page {entry.page} is no node of a table", hint="the database was damaged when it was taken"
                    )
        return below

    def _towards_changes(self, entry: _Entry) -> set[_Entry]:
        """Return those children of a node that both trees have which lead to a page that changed."""
        first, end = bisect_left(self._keys, entry.span.low), bisect_right(self._keys, entry.span.high)
        if first == end:
            return set()
        node = _Node(self._before, entry.page)
        if node.kind != _INNER:
            return set()
        children = set()
        while first < end:
            child = node.child_with(self._keys[first], entry.span)
            children.add(child)
            first = max(first + 1, bisect_right(self._keys, child.span.high))
        return children

    @cached_property
    def may_hide_rows(self) -> bool:
        """Whether a row outside of all spans may have changed in an overflow page alone.

        SQLite writes a row of the same length over the old one: then its leaf may stay as it was. Such a page of the
        later state belongs to no row of a leaf that changed, and is not free.
        """
        after = self._after
        if after.page_count >= _UNAMBIGUOUS_PAGES:
            return bool(self._changed)
        unexplained = {node.number for node in self._nodes(after) if node.kind not in _NODES}
        unexplained.discard(lock_page(after.page_size))
        for node in self._nodes(after) if unexplained else ():
            if node.kind in _NODES:
                for first in node.overflow_pages():
                    _explain(after, first, unexplained)
        unexplained.difference_update(_pointer_map_pages(after))
        return bool(unexplained and unexplained.difference(_free_pages(after)))


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Return the parts of both trees in order, with those joined that overlap or touch: they cover the same rowids."""
    merged: list[Part] = []
    for part in sorted(part for part in parts if part.span.low <= part.span.high):
        last = merged[-1] if merged else None
        if last is not None and part.span.low <= last.span.high + 1:
            span = Span(last.span.low, max(last.span.high, part.span.high))
            rows_before = (last.rows_before or 0) + (part.rows_before or 0)
            rows_after = (last.rows_after or 0) + (part.rows_after or 0)
            merged[-1] = Part(span, rows_before, rows_after)
        else:
            merged.append(part)
    return merged


class _Node:
    """A page, read as a node of a tree. What it is not has no cells."""

    def __init__(self, source: PageSource, number: int) -> None:
        self.number = number
        self._source = source
        self._page = page = source.page(number)
        self._start = start = _FILE_HEADER_BYTES if number == 1 else 0
        self.kind = page[start]
        count = int.from_bytes(page[start + 3 : start + 5], "big") if self.kind in _NODES else 0
        self._array = start + (12 if self.kind in {_INNER, _INDEX_INNER} else 8)
        self.count = max(0, min(count, (len(page) - self._array) // 2))

    def any_rowid(self) -> int | None:
        """Return a rowid of this node, or of those below it; None when it is none of a table, or is empty."""
        return self._rowid(self._cell(0)) if self.kind in {_INNER, _LEAF} and self.count else None

    def children(self, span: Span) -> Iterator[_Entry]:
        """Yield the children of an inner node of a table, in order; `span` is what it has itself."""
        low = span.low
        for place in range(self.count):
            cell = self._cell(place)
            high = min(span.high, max(low - 1, self._rowid(cell)))
            yield _Entry(Span(low, high), self._page_at(cell))
            low = high + 1
        yield _Entry(Span(low, span.high), self.last_child())

    def child_with(self, rowid: int, span: Span) -> _Entry:
        """Return the child of an inner node of a table that has a rowid, as `children` does."""
        place = bisect_left(range(self.count), rowid, key=lambda each: self._rowid(self._cell(each)))
        low = span.low if place == 0 else max(span.low, self._rowid(self._cell(place - 1)) + 1)
        if place == self.count:
            return _Entry(Span(low, span.high), self.last_child())
        cell = self._cell(place)
        return _Entry(Span(low, min(span.high, self._rowid(cell))), self._page_at(cell))

    def last_child(self) -> int:
        """Return the page of the last child of an inner node of a table."""
        return self._page_at(self._start + 8)

    def _cell(self, place: int) -> int:
        at = self._array + 2 * place
        return self._page[at] << 8 | self._page[at + 1]

    def _page_at(self, at: int) -> int:
        return int.from_bytes(self._page[at : at + 4], "big")

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
        for cell in map(self._cell, range(self.count)):
            payload, at = _varint(self._page, cell + 4 if self.kind == _INDEX_INNER else cell)
            if self.kind == _LEAF:
                at = _varint(self._page, at)[1]
            if payload <= most:
                continue
            local = least + (payload - least) % (usable - 4)
            at += local if local <= most else least
            yield self._page_at(at)


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
