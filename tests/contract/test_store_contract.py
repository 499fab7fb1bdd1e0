from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest

from backupd.config import StoreSettings
from backupd.errors import DamageError, NoSuchObjectError, StoreUnavailableError
from backupd.store import Store, StoredObject, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_MIB = 1 << 20
_KINDS = ["directory", "moto", "seaweed", "seaweed-prefix"]


@pytest.fixture(scope="module")
def bucket_settings(request: pytest.FixtureRequest) -> Callable[[str], StoreSettings]:
    """Settings for each kind of bucket."""

    @cache
    def settings(kind: str) -> StoreSettings:
        server, _, prefix = kind.partition("-")
        return request.getfixturevalue(server).settings(prefix=f"some/{prefix}" if prefix else "")

    return settings


@pytest.fixture(scope="module")
def bucket_store(bucket_settings: Callable[[str], StoreSettings]) -> Callable[[str], Store]:
    """Open one store for each kind of bucket: making a client takes longer than most tests."""
    return cache(lambda kind: open_store(bucket_settings(kind)))


@pytest.fixture(params=_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The implementation and its server; `-prefix` is a store below the top of its bucket."""
    return request.param


@pytest.fixture
def settings(kind: str, bucket_settings: Callable[[str], StoreSettings], tmp_path: Path) -> StoreSettings:
    """The settings of `store`."""
    return StoreSettings(url=str(tmp_path / "made" / "by put")) if kind == "directory" else bucket_settings(kind)


@pytest.fixture
def store(kind: str, settings: StoreSettings, bucket_store: Callable[[str], Store]) -> Iterator[Store]:
    """An empty store."""
    store = open_store(settings) if kind == "directory" else bucket_store(kind)
    yield store
    for stored in store.list(""):
        store.delete(stored.key)


def put(store: Store, key: str, content: bytes) -> None:
    """Put with the right hash."""
    store.put(key, content, sha256=hashlib.sha256(content).digest())


def keys(store: Store, prefix: str = "") -> list[str]:
    """What a listing shows."""
    return [stored.key for stored in store.list(prefix)]


@pytest.mark.parametrize("size", [0, 1, 4095, 8 * _MIB + 1])
def test_get_returns_bytes_that_were_put(store: Store, size: int):
    """What was put from memory is what get gives, with a limit of exactly its size."""
    content = os.urandom(size)
    put(store, "app/packs/a", content)
    assert store.get("app/packs/a", limit_bytes=size) == content


@pytest.mark.parametrize("size", [0, 1, 8 * _MIB + 1])
def test_get_returns_file_that_was_put(store: Store, size: int, tmp_path: Path):
    """What was put from a file is what get gives, and the file is still there."""
    content = os.urandom(size)
    source = tmp_path / "source"
    source.write_bytes(content)
    store.put("app/packs/a", source, sha256=hashlib.sha256(content).digest())
    assert store.get("app/packs/a", limit_bytes=size) == content
    assert source.read_bytes() == content


def test_missing_source_is_not_the_stores_fault(store: Store, tmp_path: Path):
    """A local file that cannot be opened raises OSError and stores nothing."""
    with pytest.raises(FileNotFoundError):
        store.put("a", tmp_path / "missing", sha256=bytes(32))
    assert keys(store) == []


def test_put_replaces(store: Store):
    """A second put of a key leaves the second content, in whole."""
    put(store, "a", b"the first and longer content")
    put(store, "a", b"second")
    assert store.get("a", limit_bytes=100) == b"second"
    assert [(stored.key, stored.size_bytes) for stored in store.list("")] == [("a", 6)]


def test_put_may_be_repeated(store: Store):
    """Putting the same object twice leaves one object."""
    put(store, "app/packs/a", b"same")
    put(store, "app/packs/a", b"same")
    assert keys(store) == ["app/packs/a"]


def test_get_obeys_its_limit(store: Store):
    """An object of one byte more than the limit is damage."""
    put(store, "a", b"12345")
    with pytest.raises(DamageError, match=r"\b4\b"):
        store.get("a", limit_bytes=4)


def test_facts_are_read_without_the_content(store: Store, kind: str):
    """The size, and the SHA-256 of what is there now, where the store keeps one."""
    for content in (b"first", b"the second", b""):
        put(store, "app/packs/a", content)
        facts = store.facts("app/packs/a")
        assert facts.size_bytes == len(content)
        assert facts.sha256 in {None, hashlib.sha256(content).digest()}
        assert facts.sha256 is not None or not kind.startswith("seaweed")
    for missing in ("app/packs/b", "app/packs", "app"):
        with pytest.raises(NoSuchObjectError):
            store.facts(missing)
    with pytest.raises(ValueError, match="unsafe"):
        store.facts("../a")


def test_survey_shows_what_a_listing_shows(store: Store, kind: str):
    """Only what is known may come by its key alone; `look` gives the rest, and None for what is not there."""
    for key in ("app/packs/a", "app/packs/b", "app/snapshots/a"):
        put(store, key, b"1")
    listed = list(store.list("app/"))
    found = list(store.survey("app/", is_known=lambda key: key == "app/packs/a"))
    assert found[1:] == listed[1:]
    assert found[0] == ("app/packs/a" if kind == "directory" else listed[0])
    assert [store.look(each.key) for each in listed] == listed
    for missing in ("app/packs/c", "app/packs", "app", "app/packs/a/b"):
        assert store.look(missing) is None
    with pytest.raises(ValueError, match="unsafe"):
        store.look("../a")


def test_nothing_is_found_before_the_first_put(store: Store, settings: StoreSettings):
    """An empty store lists nothing, has no object, lets itself be deleted from, and is not created by any of that."""
    assert keys(store) == keys(store, "app/packs/") == []
    with pytest.raises(NoSuchObjectError, match=r"backupd\.json"):
        store.get("backupd.json", limit_bytes=1)
    with pytest.raises(NoSuchObjectError):
        store.get_range("backupd.json", offset=0, length=1)
    store.delete("backupd.json")
    assert settings.is_s3 or not settings.directory.parent.exists()


def test_missing_object_beside_others(store: Store):
    """A key is missing although longer and shorter ones exist; a prefix of a key is no object."""
    put(store, "app/packs/ab", b"1")
    for missing in ["app/packs/a", "app/packs/abc", "app/packs", "app", "app/packs/ab/c"]:
        with pytest.raises(NoSuchObjectError):
            store.get(missing, limit_bytes=1)
        with pytest.raises(NoSuchObjectError):
            store.get_range(missing, offset=0, length=0)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 10, b"0123456789"),
        (0, 0, b""),
        (3, 4, b"3456"),
        (9, 1, b"9"),
        (8, 3, b"89"),
        (10, 1, b""),
        (10, 0, b""),
        (1000, 10, b""),
    ],
)
def test_range_ends_with_the_object(store: Store, offset: int, length: int, expected: bytes):
    """A range ends with the object, and is empty beyond it."""
    put(store, "a", b"0123456789")
    assert store.get_range("a", offset=offset, length=length) == expected


def test_range_of_an_empty_object(store: Store):
    """An empty object exists and has only empty ranges."""
    put(store, "a", b"")
    assert store.get_range("a", offset=0, length=5) == b""


def test_range_in_a_large_object(store: Store):
    """A range of several blocks comes back whole."""
    content = os.urandom(2 * _MIB)
    put(store, "a", content)
    assert store.get_range("a", offset=_MIB - 1, length=_MIB) == content[_MIB - 1 : 2 * _MIB - 1]


def test_list_is_in_the_order_of_utf8(store: Store):
    """Whole keys are compared as bytes: `-` and `.` come before the `/` of a longer name, letters after it."""
    names = ["a/b/c", "a-b/c", "a.b", "a0", "a/b", "B", "é", "z", "\N{GRINNING FACE}", "\uffee", "a b+%&?#=~"]
    names.remove("a/b")  # a directory cannot hold `a/b` beside `a/b/c`
    for name in names:
        put(store, name, name.encode())
    assert keys(store) == sorted(names, key=str.encode)
    for name in names:
        assert store.get(name, limit_bytes=100) == name.encode()


def test_list_by_prefix(store: Store):
    """A prefix ends anywhere: in a name, or with `/`, which keeps a longer database name out."""
    for key in ["app/packs/1", "app/snapshots/1", "app2/packs/1", "ap", "backupd.json"]:
        put(store, key, b"x")
    assert keys(store, "app/") == ["app/packs/1", "app/snapshots/1"]
    assert keys(store, "app") == ["app/packs/1", "app/snapshots/1", "app2/packs/1"]
    assert keys(store, "app/p") == ["app/packs/1"]
    assert keys(store, "app/packs/1") == ["app/packs/1"]
    assert keys(store, "app/packs/1/") == []
    assert keys(store, "nothing/of/this") == []
    assert keys(store) == ["ap", "app/packs/1", "app/snapshots/1", "app2/packs/1", "backupd.json"]


def test_list_shows_size_and_time(store: Store):
    """A listed object has its size and the time of its put, aware, in UTC."""
    before = datetime.now(UTC) - timedelta(seconds=2)
    put(store, "app/packs/1", b"12345")
    (stored,) = store.list("app/")
    assert stored == StoredObject("app/packs/1", 5, stored.modified_at)
    assert stored.modified_at.tzinfo is UTC
    assert before <= stored.modified_at <= datetime.now(UTC) + timedelta(seconds=2)


@pytest.mark.parametrize("kind", ["directory"])
def test_list_of_over_a_thousand_objects_is_ordered_and_complete(store: Store):
    """More than a thousand objects are listed in order, each once; test_s3 does it for the pages of a bucket."""
    names = [f"app/packs/{number:04}" for number in range(1001)]
    for name in reversed(names):
        put(store, name, b"")
    assert keys(store, "app/packs/") == names


def test_delete_removes_one_object_and_may_be_repeated(store: Store):
    """A deleted object is gone, its neighbour is not, and deleting again does nothing."""
    put(store, "app/packs/1", b"1")
    put(store, "app/packs/2", b"2")
    store.delete("app/packs/1")
    store.delete("app/packs/1")
    store.delete("app/packs")
    store.delete("app/packs/2/3")
    with pytest.raises(NoSuchObjectError):
        store.get("app/packs/1", limit_bytes=1)
    assert keys(store) == ["app/packs/2"]


def test_deleted_key_can_be_used_again(store: Store):
    """A key can be used again."""
    put(store, "a", b"1")
    store.delete("a")
    put(store, "a", b"2")
    assert store.get("a", limit_bytes=1) == b"2"


def test_threads_can_share_a_new_store(store: Store):
    """Eight threads put, get and list one new store at once, and find what they put."""
    contents = [os.urandom(200_000 + number) for number in range(16)]

    def round_trip(number: int) -> bool:
        put(store, f"app/packs/{number:02}", contents[number])
        is_listed = f"app/packs/{number:02}" in keys(store, "app/packs/")
        return is_listed and store.get(f"app/packs/{number:02}", limit_bytes=_MIB) == contents[number]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(round_trip, range(len(contents))))


def test_replacing_is_atomic(store: Store):
    """A reader beside a writer sees one of the whole contents, never a part of one."""
    contents = [bytes([number]) * 300_000 for number in range(1, 11)]
    put(store, "a", contents[0])
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(lambda: [put(store, "a", content) for content in contents])
        seen = [store.get("a", limit_bytes=_MIB)]
        while not writing.done():
            seen.append(store.get("a", limit_bytes=_MIB))
        writing.result()
    assert set(seen) <= set(contents)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "..", "a\0b", "a\nb", "a/" + "b" * 1100]
)
def test_unsafe_keys_are_refused(store: Store, key: str):
    """A key that could mean something outside the store, or not be stored everywhere, reaches no store."""
    with pytest.raises(ValueError, match="unsafe object key"):
        put(store, key, b"")
    with pytest.raises(ValueError, match="unsafe object key"):
        store.get(key, limit_bytes=1)
    with pytest.raises(ValueError, match="unsafe object key"):
        store.get_range(key, offset=0, length=1)
    with pytest.raises(ValueError, match="unsafe object key"):
        store.delete(key)


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//"])
def test_unsafe_prefixes_are_refused(store: Store, prefix: str):
    """A prefix that could lead out of the store is refused."""
    with pytest.raises(ValueError, match="unsafe object key"):
        keys(store, prefix)


@pytest.mark.parametrize("kind", ["seaweed"])
def test_a_wrong_hash_is_noticed(store: Store):
    """A store that verifies checksums keeps nothing whose hash is not the given one."""
    with pytest.raises(StoreUnavailableError, match="other bytes"):
        store.put("a", b"content", sha256=hashlib.sha256(b"other").digest())
    assert keys(store) == []


def test_url_is_what_the_user_wrote(store: Store, settings: StoreSettings):
    """The URL names the store, and no secret."""
    assert store.url == settings.url
    assert settings.secret_access_key is None or settings.secret_access_key.reveal() not in store.url
