from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.databases import find_databases
from hypothesis import given
from hypothesis import strategies as st

from backupd.config import DatabaseSettings
from backupd.errors import UsageError
from backupd.setup.entries import Entry, entries_for, entries_from


def _paths(*texts: str) -> list[Path]:
    return [Path(text) for text in texts]


def test_one_entry_for_each_file() -> None:
    """The name comes from the path where that is unique."""
    entries, skipped = entries_for(_paths("/app/instance/app.db", "/data/users.sqlite"))
    assert [(entry.pattern, entry.name) for entry in entries] == [
        ("/app/instance/app.db", None),
        ("/data/users.sqlite", None),
    ]
    assert skipped == []


def test_tenants_become_one_pattern() -> None:
    """Files of one name in sibling directories; another file in one of them has an entry of its own."""
    files = _paths("/data/tenants/acme/app.db", "/data/tenants/beta/app.db", "/data/tenants/beta/extra.db")
    entries, _ = entries_for(files)
    assert [(entry.pattern, len(entry.files)) for entry in entries] == [
        ("/data/tenants/*/app.db", 2),
        ("/data/tenants/beta/extra.db", 1),
    ]


def test_only_one_pattern_names_databases_after_directories() -> None:
    """The other files of each tenant get names of their own."""
    files = _paths("/t/a/app.db", "/t/b/app.db", "/t/a/log.db", "/t/b/log.db")
    entries, _ = entries_for(files)
    assert [(entry.pattern, entry.name) for entry in entries] == [
        ("/t/*/app.db", None),
        ("/t/a/log.db", "a-log"),
        ("/t/b/log.db", "b-log"),
    ]


@pytest.mark.parametrize(
    "files",
    [
        ("/t/ü ü/app.db", "/t/b/app.db"),
        ("/t/.hidden/app.db", "/t/b/app.db"),
        ("/t/A/app.db", "/t/a/app.db"),
        ("/app.db", "/t/app.db"),
    ],
    ids=["a name that cannot be", "hidden", "upper and lower case", "not side by side"],
)
def test_files_that_no_pattern_can_name_get_entries_of_their_own(files: tuple[str, ...]) -> None:
    """Files that no pattern can name get entries of their own, with unique names."""
    entries, _ = entries_for(_paths(*files))
    assert [entry.files for entry in entries] == [(path,) for path in sorted(_paths(*files))]
    settings = [DatabaseSettings(path=entry.pattern, name=entry.name) for entry in entries]
    assert len(find_databases(settings)) == 2


def test_directories_may_differ_further_up() -> None:
    """One pattern covers files whose directories differ further up, and others keep their names."""
    files = _paths("/multi/a/data/app.db", "/multi/b/data/app.db", "/multi/b/old/app.db", "/multi/c/data/app.db")
    entries, _ = entries_for(files)
    assert [(entry.pattern, entry.name, len(entry.files)) for entry in entries] == [
        ("/multi/*/data/app.db", None, 3),
        ("/multi/b/old/app.db", None, 1),
    ]


def _names(*texts: str) -> dict[str, str]:
    entries, _ = entries_for(_paths(*texts))
    settings = [DatabaseSettings(path=entry.pattern, name=entry.name) for entry in entries]
    return {
        str(path): setting.database_at(path).name
        for entry, setting in zip(entries, settings, strict=True)
        for path in entry.files
    }


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("/m/b/data/app.db", "/m/c/other/app.db"), ["b-app", "c-app"]),
        (("/m/b/1/app.db", "/m/b/2/app.db", "/m/c/1/app.db", "/m/d/x/y/app.db"), ["1", "2", "c-app", "d-app"]),
        (("/m/b/x.db", "/m/b/x.sqlite"), ["x.db", "x.sqlite"]),
        (("/m/b/1/u/x.db", "/m/b/2/v/x.db", "/m/c/3/x.db"), ["b-1-u-x", "b-2-v-x", "c-3-x"]),
    ],
    ids=["one directory", "a pattern for some", "endings", "several directories"],
)
def test_names_say_where_files_differ(files: tuple[str, ...], names: list[str]) -> None:
    """Names are as short as is unique, and formed in the same way for all files of one name."""
    assert [*_names(*files).values()] == names


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (("/m/b/data/app.db", "/m/c/other/app.db"), "/m/a/third/app.db"),
        (("/m/b/data/app.db", "/m/c/other/app.db"), "/b/x/app.db"),
        (("/t/b/app.db", "/t/B/app.db"), "/t/a/app.db"),
        (("/m/b 1/x/app.db", "/m/b_1/y/app.db", "/m/b-1/z/app.db"), "/m/b+1/a/app.db"),
    ],
)
def test_a_new_file_never_gets_the_name_of_another(before: tuple[str, ...], new: str) -> None:
    """The history of one customer must not continue with the database of another."""
    first, second = _names(*before), _names(new, *before)
    for path, name in second.items():
        assert all(name.lower() != other.lower() for elsewhere, other in first.items() if elsewhere != path), path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/Käse.db", "Kase"),
        ("/data/数据.db", "database"),
        ("/data/_x.db", "x"),
        ("/data/backupd.json.db", "database-backupd.json"),
    ],
)
def test_invalid_names_are_made_valid(path: str, name: str) -> None:
    """A name that is not valid becomes the closest valid one."""
    assert entries_for([Path(path)])[0][0].name == name


def test_paths_that_are_not_utf_8_are_returned() -> None:
    """TOML is UTF-8."""
    odd = Path(os.fsdecode(b"/data/\xff.db"))
    assert entries_for([odd]) == ([], [odd])


_PART = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda part: part not in {".", ".."} and len(part.encode()) < 200
)


@given(st.lists(st.lists(_PART, min_size=1, max_size=3), min_size=1, max_size=8, unique_by=tuple))
def test_every_file_has_exactly_one_entry(parts: list[list[str]]) -> None:
    """Each file has one entry, whatever characters its path has, and names differ by more than case."""
    files = sorted({Path("/", *each) for each in parts})
    entries, skipped = entries_for(files)
    assert skipped == []
    assert sorted(path for entry in entries for path in entry.files) == files
    names: list[str] = []
    for entry in entries:
        settings = DatabaseSettings(path=entry.pattern, name=entry.name)
        assert settings.is_glob == (len(entry.files) > 1)
        if not settings.is_glob:
            assert settings.paths() == entry.files
        names += [settings.database_at(path).name.lower() for path in entry.files]
    assert len(set(names)) == len(names)


def test_written_paths_and_patterns(tmp_path: Path) -> None:
    """An existing file is taken literally, whatever its characters; a pattern stays a pattern."""
    (tmp_path / "[1]").mkdir()
    for name in ("[1]/one.db", "app.db"):
        (tmp_path / name).touch()
    texts = (f"{tmp_path}/[1]/one.db", f"{tmp_path}/*.db", f"{tmp_path}/not-yet.db", f"{tmp_path}/not-yet.db")
    entries = entries_from(texts)
    assert [entry.files for entry in entries] == [
        (tmp_path / "[1]/one.db",),
        (tmp_path / "app.db",),
        (tmp_path / "not-yet.db",),
    ]
    assert entries[1] == Entry(f"{tmp_path}/*.db", None, (tmp_path / "app.db",))
    with pytest.raises(UsageError):
        entries_from([f"{tmp_path}/**/*.db"])


def test_names_of_written_paths_are_unique(tmp_path: Path) -> None:
    """Names of written paths do not depend on their order, and no pattern gives one of them."""
    (tmp_path / "a").mkdir()
    for name in ("a/app.db", "b.db"):
        (tmp_path / name).touch()
    texts = ["/x/app.db", "/y/app.db", f"{tmp_path}/*/app.db", "/z/a.db"]
    named = {entry.pattern: entry.name for entry in entries_from(texts)}
    assert named == {"/x/app.db": "x-app", "/y/app.db": "y-app", f"{tmp_path}/*/app.db": None, "/z/a.db": "z-a"}
    assert {entry.pattern: entry.name for entry in entries_from(texts[::-1])} == named
