"""The pages of a restore point, read where they are stored and proven one by one; nothing else is fetched."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections import OrderedDict, deque
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, TypeVar

from backupd.concurrency import worker_threads
from backupd.errors import DamageError
from backupd.format.pack import HASH_BYTES, page_hash
from backupd.format.pagemap import u32_from
from backupd.restore.replay import Replaying
from backupd.store.cached import CachedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path

    from backupd.format.pack import Frame, PackIndex
    from backupd.repository.archive import Archive, StoredPack
    from backupd.repository.moments import RestorePoint

_Page: TypeAlias = "tuple[memoryview | bytes, bytes | None]"
"""The image of a page, and the hash that it must have; None when that is proven."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_READERS = 4
_MOST_FRAME_BYTES = 8 << 20
_MOST_HELD_BYTES = 12 << 20
_MOST_INDEXES = 128
_MOST_PACKS = 2
_FRAMES_AHEAD = 4
_RUNS = 6
_INNER_NODES = frozenset({2, 5})
"""The first bytes of inner nodes of trees, on whose pages a search comes again and again."""

_NEAR = 4
"""Inner nodes of a tree lie between its leaves: the pages that are read one after the other leave out so many."""


class PageSource(Protocol):
    """Pages of one state of a database, which does not change."""

    page_size: int
    page_count: int

    def page(self, number: int) -> bytes | memoryview:
        """Return the image of a page, from 1 to `page_count`. Raises `DamageError` and `StoreError`."""

    def hash_of(self, number: int) -> bytes:
        """Return the hash of a page. Raises as `page`."""

    def expect(self, numbers: Sequence[int]) -> None:
        """Prepare for questions about these pages, ascending, and maybe more than once."""


class _Place(NamedTuple):
    """A frame: the number of its pack in the manifest, from 1, and its own in the pack, from 0."""

    pack: int
    frame: int


class _Frame(NamedTuple):
    """The pages of a frame that the image uses, by their numbers; `frame_bytes` is what all of them take."""

    pages: dict[int, _Page]
    frame_bytes: int


class _Index:
    """The index of a pack, with what is looked up in it."""

    def __init__(self, index: PackIndex) -> None:
        self.index = index
        self.numbers = u32_from(index.page_numbers)
        self.frames = index.frames
        self.hashes = index.hashes

    def find(self, number: int) -> int:
        """Return the place of a page in the pack, from 0. Raises `DamageError`."""
        place = bisect_left(self.numbers, number)
        if place == len(self.numbers) or self.numbers[place] != number:
            raise DamageError(f"it lacks page {number}, which the manifest says is in it")
        return place

    def numbers_in(self, frame: Frame) -> list[int]:
        """Return the numbers of the pages in a frame."""
        return [*self.numbers[frame.first_page : frame.first_page + frame.pages]]


class StoredPages:
    """The `PageSource` of a restore point. `opened_pages` makes it.

    A page costs the index of its pack and the frame that it is in, by ranged reads; an encrypted pack is read whole.
    Where pages are read one after the other, the next frames are read meanwhile. Only one thread may ask.
    """

    def __init__(self, archive: Archive, point: RestorePoint, threads: ThreadPoolExecutor, commits: _Commits) -> None:
        self.page_size = point.manifest.page_size
        self.page_count = point.page_count
        self.point = point
        self._archive = archive
        self._threads = threads
        self._commits = commits
        self._map = archive.page_map(point.manifest)
        self._packs = point.manifest.packs
        self._indexes: OrderedDict[int, Future[_Index]] = OrderedDict()
        self._whole: OrderedDict[int, Future[StoredPack]] = OrderedDict()
        self._reading: OrderedDict[_Place, Future[_Frame]] = OrderedDict()
        self._frames: deque[_Frame] = deque()
        self._frame_bytes = 0
        self._held: deque[int] = deque()
        """Pages that stay when their frame is forgotten: inner nodes of trees, and those that are expected."""
        self._pages: dict[int, _Page] = {}
        """All pages of `_frames` and `_held`, by their numbers."""
        self._ends: deque[int] = deque(maxlen=_RUNS)
        self._twin: PageSource | None = None
        self._differs_from_twin: Collection[int] = ()
        self._expected: Sequence[int] = ()
        self._is_expected: frozenset[int] = frozenset()

    def expect(self, numbers: Sequence[int]) -> None:
        """Prepare for questions about some pages, as `PageSource.expect`."""
        self._expected, self._is_expected = numbers, frozenset(numbers)

    def page(self, number: int) -> bytes | memoryview:
        """Return the image of a page, as `PageSource.page`."""
        found = self._pages.get(number)
        if found is None:
            if self._twin is not None and number not in self._differs_from_twin:
                return self._twin.page(number)
            if number in self._commits.hashes:
                return self._commits.page(number)
            if self._pack_of(number) == 0:
                return bytes(self.page_size)
            with self._naming(number):
                found = self._load(number)
        image, digest = found
        if digest is not None:
            # By the thread that asks: others would keep it from SQLite's work, as only one at a time runs Python.
            if page_hash(image) != digest:
                with self._naming(number):
                    raise DamageError(
                        f"pack {self._archive.pack_key(self._packs[self._pack_of(number) - 1])} has another image of it"
                    )
            self._pages[number] = image, None
        return image

    @contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Let damage name the page and the restore point."""
        try:
            yield
        except DamageError as error:
            raise DamageError(
                f"page {number} of {self.point.name} cannot be read: {error.message}",
                hint="read another snapshot, or this one from another store with --store",
            ) from error

    def share(self, twin: PageSource, differing: Collection[int]) -> None:
        """Take all pages from another state but for those that differ, or that it lacks: each is read once for both."""
        self._twin, self._differs_from_twin = twin, differing

    def hash_of(self, number: int) -> bytes:
        """Return the hash of a page: of its pack, only the index is read."""
        if (committed := self._commits.hashes.get(number)) is not None:
            return committed
        pack = self._pack_of(number)
        if pack == 0:
            return page_hash(bytes(self.page_size))
        index = self._index(pack).result()
        place = index.find(number)
        return index.hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES]

    def may_differ(self, other: StoredPages) -> Iterator[int]:
        """Yield, ascending, each page that differs from that of `other` or that one of both lacks, and maybe more.

        Nothing is read: a page of the same pack is the same.
        """
        numbers = {pack.sha256: number for number, pack in enumerate(other._packs, 1)}
        same = [0, *(numbers.get(pack.sha256, -1) for pack in self._packs)]
        both = min(self.page_count, other.page_count)
        mapped = min(both, len(self._map), len(other._map))
        committed = self._commits.hashes.keys() | other._commits.hashes.keys()
        pairs = zip(self._map[:mapped], other._map[:mapped], strict=True)
        for number, (mine, its) in enumerate(pairs, 1):
            if same[mine] != its or number in committed:
                yield number
        yield from range(mapped + 1, max(self.page_count, other.page_count) + 1)

    def _pack_of(self, number: int) -> int:
        """Return the number of the pack that has a page; 0 for the lock-byte page and one that was never written."""
        return self._map[number - 1] if number <= len(self._map) else 0

    def _load(self, number: int) -> _Page:
        is_run = any(end <= number < end + _NEAR for end in self._ends)
        pack = self._pack_of(number)
        place = self._place(number, self._index(pack).result())
        begun = self._begun(place)
        if number in self._is_expected:
            self._read_ahead(number + 1, self._expected)
        frame = begun.result()
        self._reading.pop(place, None)
        self._keep(frame)
        end = max(frame.pages) + 1
        self._ends.append(end)
        if is_run and number not in self._is_expected:
            self._read_ahead(end, range(1, len(self._map) + 1))
        return frame.pages[number]

    def _keep(self, frame: _Frame) -> None:
        """Keep the pages of a frame in memory, instead of those that came first."""
        self._frame_bytes += frame.frame_bytes
        while self._frames and self._frame_bytes > _MOST_FRAME_BYTES:
            oldest = self._frames.popleft()
            self._frame_bytes -= oldest.frame_bytes
            for number, (image, digest) in oldest.pages.items():
                if image[0] in _INNER_NODES or number in self._is_expected:
                    self._pages[number] = bytes(image), digest
                    self._held.append(number)
                else:
                    self._pages.pop(number, None)
        while len(self._held) * self.page_size > _MOST_HELD_BYTES:
            self._pages.pop(self._held.popleft(), None)
        self._frames.append(frame)
        self._pages.update(frame.pages)

    def _read_ahead(self, number: int, numbers: Sequence[int]) -> None:
        """Begin to read the next frames with pages among `numbers` from `number` on, if their packs' indexes are there.

        An index that is missing is begun.
        """
        while len(self._reading) <= _FRAMES_AHEAD:
            following = (numbers[place] for place in range(bisect_left(numbers, number), len(numbers)))
            number = next(filter(self._is_unread, following), 0)
            if number == 0:
                return
            future = self._index(self._pack_of(number))
            if not future.done() or future.exception():
                return
            index = future.result()
            place = self._place(number, index)
            self._begun(place)
            number = index.numbers_in(index.frames[place.frame])[-1] + 1

    def _is_unread(self, number: int) -> bool:
        return number not in self._pages and number not in self._commits.hashes and self._pack_of(number) != 0

    def _place(self, number: int, index: _Index) -> _Place:
        return _Place(self._pack_of(number), index.find(number) // index.index.pages_per_frame)

    def _index(self, pack: int) -> Future[_Index]:
        if self._packs[pack - 1].encryption is None:
            read: Callable[[], _Index] = lambda: _Index(self._archive.index(self._packs[pack - 1]))  # noqa: E731
        else:
            whole = self._stored(pack)
            read = lambda: _Index(whole.result().index)  # noqa: E731
        return _kept(self._indexes, pack, lambda: self._threads.submit(read), most=_MOST_INDEXES)

    def _begun(self, place: _Place) -> Future[_Frame]:
        """Begin to read a frame, unless that was done before."""
        pack, entry = place.pack, self._packs[place.pack - 1]
        index = self._index(pack).result()
        frame = index.frames[place.frame]
        whole = self._stored(pack) if entry.encryption else None

        def read() -> _Frame:
            images = memoryview(
                whole.result().images(frame) if whole else self._archive.images(entry, index.index, frame)
            )
            size, hashes, page_map, committed = self.page_size, index.hashes, self._map, self._commits.hashes
            first, most = frame.first_page, len(page_map)
            pages: dict[int, _Page] = {
                number: (
                    images[at * size : (at + 1) * size],
                    hashes[(first + at) * HASH_BYTES : (first + at + 1) * HASH_BYTES],
                )
                for at, number in enumerate(index.numbers_in(frame))
                if number <= most and page_map[number - 1] == pack and number not in committed
            }
            return _Frame(pages, len(images))

        return _kept(self._reading, place, lambda: self._threads.submit(read), most=2 * _FRAMES_AHEAD)

    def _stored(self, pack: int) -> Future[StoredPack]:
        """Begin to read a whole pack, unless that was done before."""
        return _kept(
            self._whole,
            pack,
            lambda: self._threads.submit(self._archive.pack, self._packs[pack - 1]),
            most=_MOST_PACKS,
        )


def _kept(
    kept: OrderedDict[_Key, Future[_Value]], key: _Key, make: Callable[[], Future[_Value]], *, most: int
) -> Future[_Value]:
    """Return what is kept under `key`, made if it is not there, and forget what was not used for longest."""
    value = kept.get(key)
    if value is None or (value.done() and value.exception()):  # a store may answer the next time
        value = kept[key] = make()
        if len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return value


class _Commits:
    """The pages that the commits after a snapshot have changed, in a file without a name."""

    def __init__(self, descriptor: int, hashes: Mapping[int, bytes], page_size: int) -> None:
        self.hashes = hashes
        """The hashes of these pages, by their numbers."""
        self._descriptor = descriptor
        self._page_size = page_size

    def page(self, number: int) -> bytes:
        """Return the image of one of these pages."""
        return os.pread(self._descriptor, self._page_size, (number - 1) * self._page_size)


@contextmanager
def opened_pages(point: RestorePoint, cache: Path) -> Iterator[StoredPages]:
    """Give the pages of `point` until the block ends; `cache` is a private directory for what a bucket is asked for.

    The commits of a moment are read at once. Raises `DamageError`, `StoreError`, and OSError of the directory.
    """
    archive = point.archive
    if not archive.url.startswith("/"):
        repository = archive.repository
        store = CachedStore(
            repository.store, cache, on_failure=lambda why: repository.report_once("nothing can be cached", reason=why)
        )
        archive = repository.through(store).archive(archive.database)
    with ExitStack() as stack:
        commits = _Commits(-1, {}, point.manifest.page_size)
        if point.replay is not None:
            descriptor = stack.enter_context(tempfile.TemporaryFile(dir=cache)).fileno()
            replaying = Replaying(replace(point, archive=archive), point.replay, descriptor)
            replaying.run()
            commits = _Commits(descriptor, replaying.written, point.manifest.page_size)
        yield StoredPages(archive, point, stack.enter_context(worker_threads(_READERS, name="pages")), commits)
