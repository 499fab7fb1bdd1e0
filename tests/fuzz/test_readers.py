"""Every reader of foreign bytes raises what it says or nothing: on what was found once, and on new inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.extent import examples
from harness.fuzzing import TARGETS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

_CORPUS = Path(__file__).parent / "corpus"
_MOST_CORPUS_BYTES = 300_000
_EXAMPLES = examples(60)

_ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, -1, 1, 512, 1 << 26, (1 << 26) + 1, (1 << 53) - 1, 1 << 63, 1.0, 1e308]),
    st.text(max_size=20),
    st.sampled_from(["..", "/etc/passwd", "a/../b", "\x00", "\x1b[2J", "\ud800", "A" * 5000, "0" * 64]),
    st.lists(st.none(), max_size=3),
    st.builds(dict),
    st.builds(lambda: {"sha256": "0" * 64, "stored_bytes": 1, "pages": 1, "index_bytes": 52, "index_hash": "0" * 32}),
)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_of_the_corpus_are_read_or_refused(name: str) -> None:
    """Each reader reads or refuses right bytes, and inputs that once reached a new part of it."""
    found = [file.read_bytes() for file in sorted((_CORPUS / name).glob("*"))]
    for content in [*seeds(name), *found]:
        TARGETS[name](content)


def test_the_corpus_is_small_and_has_something_for_every_reader() -> None:
    """The corpus has inputs for every reader, and stays small."""
    files = [file for file in _CORPUS.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < _MOST_CORPUS_BYTES


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=_EXAMPLES)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """Right bytes with some changed, removed or inserted are read or refused."""
    content = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    TARGETS[name](bytes(content))


@pytest.mark.parametrize("name", ["manifest-body", "private-part", "records", "rescue-manifest", "repository-object"])
@settings(max_examples=2 * _EXAMPLES)
@given(data=st.data())
def test_changed_values_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """JSON with some of its values changed, under the right seal, is read or refused."""
    texts = [each for each in seeds(name) if b'{"sha256"' not in each[:10]]
    values = json.loads(data.draw(st.sampled_from(texts)))
    for _ in range(data.draw(st.integers(1, 3))):
        _change(values, data.draw)
    TARGETS[name](json.dumps(values).encode())


def _change(values: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Put something odd in the place of one value, at any depth, or take it out."""
    while isinstance(values, dict | list) and values:
        key = draw(st.sampled_from(sorted(values) if isinstance(values, dict) else list(range(len(values)))))
        if isinstance(values[key], dict | list) and values[key] and draw(st.booleans()):
            values = values[key]
            continue
        if draw(st.integers(0, 5)):
            values[key] = draw(_ODD)
        else:
            del values[key]
        return
