from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backupd.cli.session import database_name, select_databases
from backupd.config import Database
from backupd.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a file app.db, and a link to it."""
    (tmp_path / "app.db").touch()
    (tmp_path / "link.db").symlink_to("app.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_and_paths_of_one_file_are_one_database(current: Path) -> None:
    """A configured path keeps its name whichever way it is written; another one is named by its file."""
    main = Database("main", current / "app.db")
    selected = select_databases(["app.db", "main", "./app.db", "link.db", "new/other.sqlite"], [main])
    assert selected == [main, Database("other", current / "new/other.sqlite")]


def test_file_without_a_suffix_is_a_path(current: Path) -> None:
    """A word is a path when there is such a file, unless it is a configured name."""
    (current / "data").touch()
    assert select_databases(["data"], []) == [Database("data", current / "data")]
    named = Database("data", current / "elsewhere.db")
    assert select_databases(["data"], [named]) == [named]


def test_file_can_be_given_a_name(current: Path) -> None:
    """A file whose own name is no database name can be given one; a configured file keeps its name and its history."""
    named = Database("my-app", current / "my app.db")
    assert select_databases(["my-app=my app.db"], []) == [named]
    assert database_name("my-app=my app.db", []) == "my-app"
    (current / "a=b.db").touch()
    with pytest.raises(UsageError, match="'a=b' cannot be"):
        select_databases(["a=b.db"], [])
    assert select_databases(["ab=a=b.db"], []) == [Database("ab", current / "a=b.db")]
    main = Database("main", current / "app.db")
    assert select_databases(["main=link.db"], [main]) == [main]
    with pytest.raises(UsageError, match="is configured as main, and other would begin another history"):
        select_databases(["other=app.db"], [main])


@pytest.mark.parametrize(
    ("texts", "configured", "message", "hint"),
    [
        (["creditrobt"], ["creditrobot"], "no database is called 'creditrobt'", "did you mean creditrobot?"),
        (["x"], ["a", "b"], "no database is called 'x'", "configured are: a, b; a path has a slash"),
        (["x"], [], "no database is called 'x'", "none is configured; give the path"),
        (["app.db", "copy/App.db"], [], "two databases with one name: 'app' (", "give one another name: "),
        (["my app.db"], [], "'my app' cannot be the name of a database", "give it a name: 'my-app=my app.db'; or set"),
        (["üä.db"], [], "'üä' cannot be the name of a database", "give it a name: 'app=üä.db'; or set"),
        (["my app=x.db"], [], "'my app' cannot be the name of a database", "use up to 100 letters"),
    ],
    ids=["misspelled", "unknown", "nothing configured", "one name twice", "space", "umlaut", "wrong name"],
)
def test_text_that_means_no_database_is_an_error(
    current: Path, texts: list[str], configured: list[str], message: str, hint: str
) -> None:
    """The error names what was given, the hint what could be meant."""
    databases = [Database(name, current / f"{name}.file") for name in configured]
    with pytest.raises(UsageError) as caught:
        select_databases(texts, databases)
    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("text", "name"),
    [("app", "app"), ("app.db", "main"), ("lost.db", "lost"), ("dir/lost", "lost"), ("tenant.v2", "tenant.v2")],
)
def test_name_or_path_of_a_lost_file_is_a_name_in_the_stores(current: Path, text: str, name: str) -> None:
    """Files that are gone are still meant by their paths; dots alone make no path."""
    assert database_name(text, [Database("main", current / "app.db")]) == name
