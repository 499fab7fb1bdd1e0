"""Pages may come more than once, and the image may grow and shrink meanwhile: what counts is what came last."""

from __future__ import annotations

import base64
import tempfile
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.extent import examples
from harness.packs import decode_pack, pack_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.backup.assembly import WrittenPack, assemble
from backupd.capture.packer import Packer, PackWriter, Stream
from backupd.format.pack import page_hash

if TYPE_CHECKING:
    from backupd.format.manifest import PackEntry

PAGE_BYTES = 512
# Few pages and few values, so that pages often go back to what they were.
_PAGES = 4

_batches = st.lists(st.tuples(st.integers(1, _PAGES), st.lists(st.integers(0, 1), min_size=1, max_size=4)), max_size=4)
_histories = st.lists(st.tuples(st.integers(1, _PAGES), _batches), min_size=1, max_size=5)


def _page(value: int) -> bytes:
    return bytes([value + 1]) * PAGE_BYTES


def _entry(number: int, pages: int) -> PackEntry:
    return pack_entry(f"{number:064x}", stored_bytes=1, pages=pages)


class _Packing:
    """One packer with one base, into which a history of batches and sizes is written."""

    def __init__(self, spool: Path, base: list[int], relocate: frozenset[int]) -> None:
        self.packs: list[dict[str, Any]] = []
        self._spool = spool
        self._base = base
        self._writer = PackWriter(spool, level=1, slots=1000, emit=self._emit)
        expected = b"".join(page_hash(_page(value)) for value in base)
        stream = Stream(0, expected, relocate, spool)
        self.packer = Packer(PAGE_BYTES, 1, [stream], self._writer, spool / "hashes")

    def _emit(self, event: str, **values: Any) -> None:
        if event == "pack":
            self.packs.append(values)

    def image(self, page_count: int) -> list[int]:
        """The pages (by value) of the snapshot that a store would put together."""
        packs = sorted(self.packs, key=lambda pack: pack["order"])
        decoded = [decode_pack(Path(pack["file"]).read_bytes()) for pack in packs]
        written = [
            WrittenPack(_entry(at, index.pages), base64.b64decode(pack["page_numbers"]))
            for at, (pack, (index, _)) in enumerate(zip(packs, decoded, strict=True), 1)
        ]
        base_entry = _entry(0, len(self._base))
        base_map = array("I", [1] * len(self._base))
        entries, page_map = assemble(PAGE_BYTES, page_count, [base_entry], base_map, written)
        values = []
        for number, place in enumerate(page_map.tolist(), 1):
            source = int(entries[place - 1].sha256, 16)
            if source == 0:
                values.append(self._base[number - 1])
                continue
            index, images = decoded[source - 1]
            at = memoryview(index.page_numbers).cast("I").tolist().index(number)
            values.append(images[at * PAGE_BYTES] - 1)
        return values


@settings(max_examples=examples(300))
@given(
    base=st.lists(st.integers(0, 1), min_size=1, max_size=_PAGES),
    relocate=st.just(frozenset()) | st.frozensets(st.integers(1, _PAGES)),
    history=_histories,
)
def test_last_image_of_each_page_is_what_a_store_puts_together(
    base: list[int], relocate: frozenset[int], history: list[tuple[int, list[tuple[int, list[int]]]]]
) -> None:
    """A store puts together the last image of each page, whatever was written, cut off or written twice before."""
    with tempfile.TemporaryDirectory() as spool:
        packing = _Packing(Path(spool), base, frozenset(page for page in relocate if page <= len(base)))
        packer, expected = packing.packer, {}
        for page_count, batches in history:
            packer.resize(page_count)
            expected = {number: value for number, value in expected.items() if number <= page_count}
            for first, values in batches:
                numbers = [number for number in range(first, first + len(values)) if number <= page_count]
                packer.add(numbers, [_page(value) for value in values[: len(numbers)]])
                expected.update(zip(numbers, values, strict=False))
            missing = [number for number in range(1, page_count + 1) if number not in expected]
            packer.add(missing, [_page(0)] * len(missing))
            expected.update(dict.fromkeys(missing, 0))
        packer.finish()
        page_count = history[-1][0]
        assert packing.image(page_count) == [expected[number] for number in range(1, page_count + 1)]
        hashes = b"".join(page_hash(_page(expected[number])) for number in range(1, page_count + 1))
        assert (Path(spool) / "hashes").read_bytes() == hashes
