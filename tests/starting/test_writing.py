from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import TargetExistsError, TargetUnwritableError, UsageError
from backupd.starting.entries import Entry, entries_for
from backupd.starting.writing import ConfigurationWish, StoreWish, as_toml, place, usual_place

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXAMPLE = tomllib.loads((Path(__file__).parents[2] / "config.example.toml").read_text())
_FULL = ConfigurationWish(
    databases=[
        Entry("/data/app.db", "main", (Path("/data/app.db"),)),
        Entry("/t/*/app.db", None, (Path("/t/a/app.db"), Path("/t/b/app.db"))),
    ],
    stores=[
        StoreWish(url="/backups"),
        StoreWish(
            url="s3://bucket/app",
            endpoint_url="https://s3.example.org",
            region="eu-central-1",
            access_key_id="KEY",
            secret_access_key='quo"ted\\',
        ),
        StoreWish(url="s3://other/app"),
    ],
    snapshots="every 5m",
    time_zone="Europe/Berlin",
)


def _environ(tmp_path: Path) -> Mapping[str, str]:
    return {"BACKUPD_STATE_DIR": str(tmp_path / "state")}


def test_everything_that_was_wished_is_in_the_file() -> None:
    """And nothing else: every other key keeps its default."""
    assert tomllib.loads(as_toml(_FULL)) == {
        "databases": [{"path": "/data/app.db", "name": "main"}, {"path": "/t/*/app.db"}],
        "stores": [
            {"url": "/backups"},
            {
                "url": "s3://bucket/app",
                "endpoint_url": "https://s3.example.org",
                "region": "eu-central-1",
                "access_key_id": "KEY",
                "secret_access_key": 'quo"ted\\',
            },
            {"url": "s3://other/app"},
        ],
        "schedule": {"snapshots": "every 5m", "time_zone": "Europe/Berlin"},
    }


def test_order_and_lines_are_those_of_the_example() -> None:
    """Who knows one file knows the other, and no line is longer than there."""
    text = as_toml(_FULL)
    tables = list(tomllib.loads(text))
    assert tables == [table for table in _EXAMPLE if table in tables]
    assert max(map(len, text.splitlines())) <= 120
    assert "config.example.toml" in text
    assert "BACKUPD_STORES__1__SECRET_ACCESS_KEY_FILE" in text
    assert "BACKUPD_STORES__2__SECRET_ACCESS_KEY_FILE" in text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives(text: str) -> None:
    """Quotes, backslashes, control characters, emoji: TOML gives back what was written."""
    wish = ConfigurationWish(databases=[Entry(text, None, ())], stores=[StoreWish(url=text, region=text)])
    values = tomllib.loads(as_toml(wish))
    assert (values["databases"][0]["path"], values["stores"][0]["region"]) == (text, text)


def test_odd_paths_are_found_again(tmp_path: Path) -> None:
    """What the loaded configuration protects is the file that was found, whatever its name."""
    files = [tmp_path / name for name in ('quo"te\\.db', "[a]*?.db", "nl\n\x7f.db", "ü 🙂.db")]
    for file in files:
        file.touch()
    wish = ConfigurationWish(databases=entries_for(files)[0], stores=[StoreWish(url="/backups")])
    settings = place(tmp_path / "c.toml", wish, _environ(tmp_path), is_forced=False)
    assert sorted(path for entry in settings.databases for path in entry.paths()) == sorted(files)


@pytest.mark.parametrize(("has_secret", "mode"), [(True, 0o600), (False, 0o644)])
def test_only_a_secret_is_private(tmp_path: Path, mode: int, *, has_secret: bool) -> None:
    """The daemon may run as another user than the one who writes; a secret is nobody else's business."""
    store = _FULL.stores[1] if has_secret else _FULL.stores[0]
    wish = ConfigurationWish(databases=_FULL.databases, stores=[store])
    file = tmp_path / "etc/backupd/config.toml"
    settings = place(file, wish, _environ(tmp_path), is_forced=False)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert settings.source == file
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """It takes force to write over it; a link counts as a file."""
    file = tmp_path / "config.toml"
    file.write_text("# precious\n")
    with pytest.raises(TargetExistsError, match="exists already"):
        place(file, _FULL, _environ(tmp_path), is_forced=False)
    assert file.read_text() == "# precious\n"
    (tmp_path / "link.toml").symlink_to("nowhere")
    with pytest.raises(TargetExistsError):
        place(tmp_path / "link.toml", _FULL, _environ(tmp_path), is_forced=False)
    place(file, _FULL, _environ(tmp_path), is_forced=True)
    assert file.read_text() == as_toml(_FULL)


def test_what_is_not_valid_never_gets_its_name(tmp_path: Path) -> None:
    """The error names the file that was meant; the one that is there is untouched, and nothing is left beside it."""
    file = tmp_path / "config.toml"
    file.write_text("# precious\n")
    wish = ConfigurationWish(databases=_FULL.databases, stores=[StoreWish(url="ftp://host")])
    with pytest.raises(UsageError, match=f"{file}: 'ftp:' is not a kind of store"):
        place(file, wish, _environ(tmp_path), is_forced=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.toml", "# precious\n")]


def test_an_environment_that_does_not_fit_is_told(tmp_path: Path) -> None:
    """A wrong variable would make every command fail with this file."""
    with pytest.raises(UsageError, match="BACKUPD_CAPTURE__MAX_LOK"):
        place(tmp_path / "c.toml", _FULL, {**_environ(tmp_path), "BACKUPD_CAPTURE__MAX_LOK": "3s"}, is_forced=False)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file is in the way of the directory."""
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnwritableError, match="not a directory"):
        place(tmp_path / "file/config.toml", _FULL, _environ(tmp_path), is_forced=False)


def test_the_place_is_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For root as for others; only the variable, which every command reads, names another."""
    monkeypatch.chdir(tmp_path)
    assert usual_place({"HOME": "/root"}) == tmp_path / "backupd.toml"
    assert usual_place({"HOME": "/root", "BACKUPD_CONFIG": "/x/c.toml"}) == Path("/x/c.toml")
