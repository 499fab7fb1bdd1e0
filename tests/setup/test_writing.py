from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import TargetExistsError, TargetUnwritableError, UsageError
from backupd.setup.entries import Entry, entries_for
from backupd.setup.writing import ConfigurationRequest, StoreRequest, as_toml, usual_place, write_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXAMPLE = tomllib.loads((Path(__file__).parents[2] / "config.example.toml").read_text())
_FULL = ConfigurationRequest(
    databases=[
        Entry("/data/app.db", "main", (Path("/data/app.db"),)),
        Entry("/t/*/app.db", None, (Path("/t/a/app.db"), Path("/t/b/app.db"))),
    ],
    stores=[
        StoreRequest(url="/backups"),
        StoreRequest(
            url="s3://bucket/app",
            endpoint_url="https://s3.example.org",
            region="eu-central-1",
            access_key_id="KEY",
            secret_access_key='quo"ted\\',
        ),
        StoreRequest(url="s3://other/app"),
    ],
    snapshots="every 5m",
    time_zone="Europe/Berlin",
)


def _environ(tmp_path: Path) -> Mapping[str, str]:
    return {"BACKUPD_STATE_DIR": str(tmp_path / "state")}


def test_the_file_contains_exactly_the_request() -> None:
    """Every other key keeps its default."""
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


def test_the_file_follows_the_example() -> None:
    """The file has its tables in the order of the example, and no longer lines."""
    text = as_toml(_FULL)
    tables = list(tomllib.loads(text))
    assert tables == [table for table in _EXAMPLE if table in tables]
    assert max(map(len, text.splitlines())) <= 120
    assert "config.example.toml" in text
    assert "BACKUPD_STORES__1__SECRET_ACCESS_KEY_FILE" in text
    assert "BACKUPD_STORES__2__SECRET_ACCESS_KEY_FILE" in text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_string_is_written_and_read_back(text: str) -> None:
    """Quotes, backslashes, control characters, emoji: TOML returns what was written."""
    request = ConfigurationRequest(databases=[Entry(text, None, ())], stores=[StoreRequest(url=text, region=text)])
    values = tomllib.loads(as_toml(request))
    assert (values["databases"][0]["path"], values["stores"][0]["region"]) == (text, text)


def test_odd_paths_are_found_again(tmp_path: Path) -> None:
    """The loaded configuration backs up the file that was found, whatever its name."""
    files = [tmp_path / name for name in ('quo"te\\.db', "[a]*?.db", "nl\n\x7f.db", "ü 🙂.db")]
    for file in files:
        file.touch()
    request = ConfigurationRequest(databases=entries_for(files)[0], stores=[StoreRequest(url="/backups")])
    settings = write_configuration(tmp_path / "c.toml", request, _environ(tmp_path), is_forced=False)
    assert sorted(path for entry in settings.databases for path in entry.paths()) == sorted(files)


@pytest.mark.parametrize(("has_secret", "mode"), [(True, 0o600), (False, 0o644)])
def test_only_a_file_with_a_secret_is_private(tmp_path: Path, mode: int, *, has_secret: bool) -> None:
    """The daemon may run as another user than the one who writes."""
    store = _FULL.stores[1] if has_secret else _FULL.stores[0]
    request = ConfigurationRequest(databases=_FULL.databases, stores=[store])
    file = tmp_path / "etc/backupd/config.toml"
    settings = write_configuration(file, request, _environ(tmp_path), is_forced=False)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert settings.source == file
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]


def test_an_existing_file_is_overwritten_by_force_only(tmp_path: Path) -> None:
    """A link counts as a file."""
    file = tmp_path / "config.toml"
    file.write_text("# precious\n")
    with pytest.raises(TargetExistsError, match="exists already"):
        write_configuration(file, _FULL, _environ(tmp_path), is_forced=False)
    assert file.read_text() == "# precious\n"
    (tmp_path / "link.toml").symlink_to("nowhere")
    with pytest.raises(TargetExistsError):
        write_configuration(tmp_path / "link.toml", _FULL, _environ(tmp_path), is_forced=False)
    write_configuration(file, _FULL, _environ(tmp_path), is_forced=True)
    assert file.read_text() == as_toml(_FULL)


def test_an_invalid_file_never_gets_its_name(tmp_path: Path) -> None:
    """The error names the requested file; an existing one is untouched, and nothing is left beside it."""
    file = tmp_path / "config.toml"
    file.write_text("# precious\n")
    request = ConfigurationRequest(databases=_FULL.databases, stores=[StoreRequest(url="ftp://host")])
    with pytest.raises(UsageError, match=f"{file}: 'ftp:' is not a kind of store"):
        write_configuration(file, request, _environ(tmp_path), is_forced=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.toml", "# precious\n")]


def test_an_invalid_environment_is_refused(tmp_path: Path) -> None:
    """A wrong variable would make every command fail with this file."""
    with pytest.raises(UsageError, match="BACKUPD_CAPTURE__MAX_LOK"):
        write_configuration(
            tmp_path / "c.toml", _FULL, {**_environ(tmp_path), "BACKUPD_CAPTURE__MAX_LOK": "3s"}, is_forced=False
        )
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    """A file is in the directory's place."""
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnwritableError, match="not a directory"):
        write_configuration(tmp_path / "file/config.toml", _FULL, _environ(tmp_path), is_forced=False)


def test_the_usual_place_is_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual place is the current directory, even for root, unless the variable names another one."""
    monkeypatch.chdir(tmp_path)
    assert usual_place({"HOME": "/root"}) == tmp_path / "backupd.toml"
    assert usual_place({"HOME": "/root", "BACKUPD_CONFIG": "/x/c.toml"}) == Path("/x/c.toml")
