"""What another user put where backupd finds it: configurations, state, stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.cli import CommandLine
from harness.confinement import ANOTHER_UID, another_user, shared_directory

from backupd.config import load
from backupd.errors import StoreRefusedError, TargetUnwritableError, UsageError
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.system.trust import way_of

_USAGE = 2

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


def _of_another(path: Path) -> Path:
    os.chown(path, ANOTHER_UID, ANOTHER_UID, follow_symlinks=False)
    return path


@pytest.mark.parametrize("start", [None, "real"])
def test_a_way_ends_where_the_kernel_ends(tmp_path: Path, start: str | None) -> None:
    """A path through relative and absolute links and dots is resolved as the kernel resolves it."""
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "real/inner/app.db").touch()
    (tmp_path / "real/up").symlink_to("../real/inner")
    (tmp_path / "real/again").symlink_to(tmp_path / "real/./up")
    known = None if start is None else (f"{tmp_path}/real", os.path.realpath(tmp_path / "real"))
    for name in ("inner/app.db", "up/app.db", "again/app.db", "again/../inner/app.db", "again"):
        way = way_of(tmp_path / "real" / name, known)
        assert way.real == os.path.realpath(tmp_path / "real" / name)
        assert os.path.samestat(way.status, Path(way.real).stat())
    assert way_of(tmp_path / "real/again/missing/x", known).status is None
    (tmp_path / "real/loop").symlink_to("loop")
    assert way_of(tmp_path / "real/loop", known).status is None


@only_root
@pytest.mark.parametrize("how", ["file", "link", "mode", "pipe"])
def test_configuration_that_another_user_put_here_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Root does not use a configuration that another user put into the current directory, unless it is named."""
    file = tmp_path / "backupd.toml"
    match how:
        case "file":
            file.touch()
            _of_another(file)
        case "link":
            (tmp_path / "own.toml").touch()
            file.symlink_to("own.toml")
            _of_another(file)
        case "mode":
            file.touch()
            file.chmod(0o664)
        case "pipe":
            os.mkfifo(file)
            _of_another(file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{file} .*not used without being named") as caught:
        load(None, {"HOME": str(tmp_path)})
    assert "--config ./backupd.toml" in (caught.value.hint or "")
    if how != "pipe":
        assert load(Path("backupd.toml"), {}).source == file
        assert load(None, {"BACKUPD_CONFIG": "backupd.toml"}).source == file


@only_root
def test_configuration_in_the_home_of_another_user_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root does not use the configuration of another user, as under a sudo that keeps $HOME."""
    file = tmp_path / "home/.config/backupd/config.toml"
    file.parent.mkdir(parents=True)
    file.touch()
    _of_another(file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{file} belongs to uid {ANOTHER_UID}"):
        load(None, {"HOME": str(tmp_path / "home")})


def test_own_and_root_s_configuration_is_obeyed_by_another_user() -> None:
    """A group of one's own may write it, as many systems have it."""
    with another_user() as runner, shared_directory() as home:
        home.chmod(0o777)
        file = home / "backupd.toml"
        file.touch(mode=0o644)
        backupd = CommandLine(home, runner=runner)
        backupd.run("list")
        _of_another(file)
        file.chmod(0o664)
        backupd.run("list")
        os.chown(file, 4711, 4711)
        backupd.refusal("list", code=_USAGE, names=[file, 4711])


@only_root
def test_state_that_another_user_laid_out_is_not_used() -> None:
    """The owner of the directory of the spool could read the pages in it."""
    with shared_directory() as home:
        home.chmod(0o1777)
        (home / "spool").mkdir()
        _of_another(home / "spool")
        with (
            pytest.raises(TargetUnwritableError, match=f"spool is not used for state: .*uid {ANOTHER_UID}"),
            StateDirectory(home).spool(),
        ):
            pass
        (home / "link").symlink_to("/root")
        _of_another(home / "link")
        with pytest.raises(TargetUnwritableError, match="is not used for state: a symbolic link"):
            StateDirectory(home / "link").writer_id()
        (home / "state").mkdir()
        _of_another(home / "state")
        with pytest.raises(TargetUnwritableError, match="where every user may make one"):
            StateDirectory(home / "state").writer_id()


@only_root
def test_store_that_another_user_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    """Root would make directories and files where only root may."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to("elsewhere")
    _of_another(tmp_path / "store")
    with pytest.raises(StoreRefusedError, match=f"a symbolic link that uid {ANOTHER_UID} made"):
        DirectoryStore(tmp_path / "store").put("backupd.json", b"{}", sha256=b"")
    assert not list((tmp_path / "elsewhere").iterdir())
    os.chown(tmp_path / "store", 0, 0, follow_symlinks=False)
    DirectoryStore(tmp_path / "store").put("backupd.json", b"{}", sha256=b"")
