from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.config import DatabaseSettings, find_databases
from backupd.errors import UsageError
from backupd.starting.entries import Entry, entries_for, entries_from


def _paths(*texts: str) -> list[Path]:
    return [Path(text) for text in texts]


def test_one_entry_for_each_file() -> None:
    """The name comes from the path where that is enough."""
    entries, skipped = entries_for(_paths("/app/instance/app.db", "/data/users.sqlite"))
    assert [(entry.pattern, entry.name) for entry in entries] == [
        ("/app/instance/app.db", None),
        ("/data/users.sqlite", None),
    ]
    assert skipped == []


def test_tenants_become_one_pattern() -> None:
    """Files of one name in directories side by side; another file in one of them has an entry of its own."""
    files = _paths("/data/tenants/acme/app.db", "/data/tenants/beta/app.db", "/data/tenants/beta/extra.db")
    entries, _ = entries_for(files)
    assert [(entry.pattern, len(entry.files)) for entry in entries] == [
        ("/data/tenants/*/app.db", 2),
        ("/data/tenants/beta/extra.db", 1),
    ]


def test_two_files_for_each_tenant() -> None:
    """Only one pattern can name its databases after the directories; the others get names of their own."""
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
def test_what_no_pattern_can_name_is_written_one_by_one(files: tuple[str, ...]) -> None:
    """And each gets a name that no other has."""
    entries, _ = entries_for(_paths(*files))
    assert [entry.files for entry in entries] == [(path,) for path in sorted(_paths(*files))]
    settings = [DatabaseSettings(path=entry.pattern, name=entry.name) for entry in entries]
    assert len(find_databases(settings)) == 2


def test_tenants_whose_directories_differ_further_up() -> None:
    """One pattern names them after what differs, and new ones change no name."""
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
    """By as little as tells them apart, and all that are called alike in one way."""
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
    """Else the history of one customer goes on with the database of the next."""
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
def test_names_that_cannot_be_are_made_so(path: str, name: str) -> None:
    """As near to the file's name as a database's name can be."""
    assert entries_for([Path(path)])[0][0].name == name


def test_paths_that_are_no_text_are_told() -> None:
    """TOML is UTF-8."""
    odd = Path(os.fsdecode(b"/data/\xff.db"))
    assert entries_for([odd]) == ([], [odd])


_PART = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda part: part not in {".", ".."} and len(part.encode()) < 200
)


@given(st.lists(st.lists(_PART, min_size=1, max_size=3), min_size=1, max_size=8, unique_by=tuple))
def test_every_file_is_meant_by_exactly_one_entry(parts: list[list[str]]) -> None:
    """Whatever characters the paths have: each has one entry, and all names differ, also in case."""
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


def test_a_path_or_a_pattern_that_somebody_wrote(tmp_path: Path) -> None:
    """A file that is there is meant as it is, whatever its characters; a pattern stays one."""
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


def test_names_of_what_somebody_wrote(tmp_path: Path) -> None:
    """No two are one, whatever the order, and none is one that a pattern gives."""
    (tmp_path / "a").mkdir()
    for name in ("a/app.db", "b.db"):
        (tmp_path / name).touch()
    texts = ["/x/app.db", "/y/app.db", f"{tmp_path}/*/app.db", "/z/a.db"]
    named = {entry.pattern: entry.name for entry in entries_from(texts)}
    assert named == {"/x/app.db": "x-app", "/y/app.db": "y-app", f"{tmp_path}/*/app.db": None, "/z/a.db": "z-a"}
    assert {entry.pattern: entry.name for entry in entries_from(texts[::-1])} == named
